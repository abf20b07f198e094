"""What is served: the spec, the Triton configuration derived from it, and the gRPC client.

This package imports nothing of `build`, so a client needs neither torch nor onnxruntime.
"""

from ensemble import knowledge_tracing, sequence  # the kinds of spec that `Spec.read` knows

__all__ = ["knowledge_tracing", "sequence"]
