"""PyTriton: its embedded Triton answers over gRPC and calls a function of this process, by batches of its dynamic batcher.

Triton puts only tensors of one length into a batch, and PyTriton takes none of length 0: a client may pad
with -1 at the end.
"""

import os
import signal
import sys
import sysconfig
from pathlib import Path

import numpy as np
from core import LOOPBACK, Array, Core, parser
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def main() -> None:
    """Serve until SIGTERM."""
    given = parser().parse_args()
    core = Core(given.about, given.threads)

    @batch
    def answer(**tensors: Array) -> dict[str, Array]:
        return core.to_batch(core.answer(core.from_batch(tensors)))

    _prefer("LD_LIBRARY_PATH", sysconfig.get_config_var("LIBDIR"))
    _prefer("PATH", str(Path(sys.executable).parent))
    # An exception, so that the `with` below ends Triton.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    # HTTP and metrics are off, so gRPC is all that listens.
    config = TritonConfig(allow_http=False, allow_metrics=False, grpc_address=LOOPBACK, grpc_port=given.port)
    with Triton(config=config) as triton:
        triton.bind(
            model_name=core.name,
            infer_func=answer,
            inputs=[
                Tensor(name=name, dtype=np.dtype(kind).type, shape=tuple(shape) or (1,), optional=core.may_miss(name))
                for name, kind, shape in core.inputs
            ],
            outputs=[
                Tensor(name=name, dtype=np.dtype(kind).type, shape=tuple(shape) or (1,))
                for name, kind, shape in core.answers
            ],
            config=ModelConfig(max_batch_size=given.max_batch_size, batcher=DynamicBatcher()),
        )
        triton.serve()


def _prefer(name: str, folder: str) -> None:
    """Have Triton's Python stub find this Python's libpython and packages, as PyTriton's installation guide asks.

    The stub would load any libpython of the same minor version, and fails under one that is older than its standard library.
    """
    os.environ[name] = os.pathsep.join(filter(None, (folder, os.environ.get(name))))


if __name__ == "__main__":
    main()
