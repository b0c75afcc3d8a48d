"""Floor 1: from text to batches. NumPy and pyarrow, no TensorFlow."""
