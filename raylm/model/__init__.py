"""Floor 2: LSTM kernels, the language model, its loss. TensorFlow, no files."""
