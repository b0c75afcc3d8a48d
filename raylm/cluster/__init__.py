"""Floor 5: the only importer of Ray."""
