"""Networks in forms that need nothing of bnprune: ONNX, pt2, plain weights beside a plain Python file."""
