"""From a PyTorch model to an exported ATen graph; loading of models by name."""
