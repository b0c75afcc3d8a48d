"""Floor 3: judges each step, decides what to undo."""
