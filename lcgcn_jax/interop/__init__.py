"""Import and export of models: PyTorch, StableHLO and ONNX."""
