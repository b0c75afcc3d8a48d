"""Floor 3: the atomic, verified checkpoint store."""
