"""What leaves training: ONNX, its graph rewritten, a MONAI bundle."""
