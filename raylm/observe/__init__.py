"""Floor 3: events, the live view, TensorBoard files."""
