"""Checkpoints, in the forms that people have them: what is in one, and the model with its weights.

- a state_dict of a reference architecture (reference.py), or of any module whose factory is given (module.py)
- a run folder of pyKT (config.json, *_model.ckpt): dkt, dkt+, qdkt (run.py)
- a folder of knowledge-tracing-collection-pytorch (model_config.json, model.ckpt): dkt, dkt+ (run.py)
- an ONNX file (onnx_file.py)

Nothing in them is run: weights are read as plain tensors, or refused (state.py).
"""

from build.model.checkpoint.errors import CheckpointError
from build.model.checkpoint.kinds import describe, digest, load, load_network
from build.model.checkpoint.module import factory_module
from build.model.checkpoint.onnx_file import outside
from build.model.checkpoint.state import save

__all__ = [
    "CheckpointError",
    "describe",
    "digest",
    "factory_module",
    "load",
    "load_network",
    "outside",
    "save",
]
