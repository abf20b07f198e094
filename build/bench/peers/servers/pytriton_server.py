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
from core import LOOPBACK, Core, parser
from numpy.typing import NDArray
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

MODEL = "knowledge_tracing"


def main() -> None:
    """Serve until SIGTERM."""
    given = parser().parse_args()
    core = Core(given.core, given.threads, given.window)

    @batch
    def answer(problem_ids: NDArray[np.int32], responses: NDArray[np.int32]) -> dict[str, NDArray[np.float32]]:
        lengths = np.count_nonzero(problem_ids >= 0, axis=1)
        padded = np.stack((problem_ids, responses), axis=1)
        return {"probabilities": core.answer([row[:, :length] for row, length in zip(padded, lengths, strict=True)])}

    _prefer("LD_LIBRARY_PATH", sysconfig.get_config_var("LIBDIR"))
    _prefer("PATH", str(Path(sys.executable).parent))
    # An exception, so that the `with` below ends Triton.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    # HTTP and metrics are off, so gRPC is all that listens.
    config = TritonConfig(allow_http=False, allow_metrics=False, grpc_address=LOOPBACK, grpc_port=given.port)
    with Triton(config=config) as triton:
        triton.bind(
            model_name=MODEL,
            infer_func=answer,
            inputs=[
                Tensor(name="problem_ids", dtype=np.int32, shape=(-1,)),
                Tensor(name="responses", dtype=np.int32, shape=(-1,)),
            ],
            outputs=[Tensor(name="probabilities", dtype=np.float32, shape=(-1,))],
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
