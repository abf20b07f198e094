"""What is served: the spec, the Triton configuration derived from it, and the gRPC client.

This package imports nothing of `build`, so a client needs neither torch nor onnxruntime.
"""
