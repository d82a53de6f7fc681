"""Trained models → ONNX and TensorRT graphs. Empty so far: the torch backend runs everything."""
