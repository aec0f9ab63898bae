"""Training of hemseg: slice labels in, ONNX weights out. Imports hemseg, never the reverse."""
