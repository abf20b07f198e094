"""The rungs: each the one before plus one change, each a repository of its own that a server can be started on."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from build.bench.variant import Variant, changed
from ensemble.errors import LastrowError
from ensemble.spec import Spec

LONG_DELAY_US, SHORT_DELAY_US = 100_000, 100
FLOOR = "floor"
WIDTHS = (64, 128, 256)  # of a core that computes them whole, beside the spec's own
GRAPH_BATCH_SIZES = (1, 2, 4, 8)

Transport = Literal["http", "grpc", "shared memory"]
Part = Literal["naive", "ensemble", "core"]


class RungError(LastrowError):
    """RUNGS names what is not there."""


@dataclass(frozen=True)
class Rung:
    """One step of the ladder.

    Attributes:
        number: as RUNGS selects it. Several may share one: local PyTorch in its forms, the floors.
        change: what is other than on the rung before.
        local: the process that answers instead of a server; "gpu-..." on a GPU (`build.bench.ladder.device`).
        variant: the repository that is served; rungs that differ in the client alone share it; locally, its core.
        part: which of its models is asked.
        learners_a_request: how many learners each of the callers puts into a request; a caller alone sends one.
    """

    number: str
    name: str
    change: str
    local: str | None = None
    variant: str = ""
    transport: Transport = "grpc"
    part: Part = "ensemble"
    learners_a_request: int = 1
    skipped: str | None = None


RUNGS = (
    Rung("0", "PyTorch eager", "the whole forward on this machine: probabilities of every row", local="eager"),
    Rung("0", "PyTorch eager, logits", "without the sigmoid of every row", local="logits"),
    Rung("0", "PyTorch compiled", "torch.compile", local="compile"),
    Rung("0", "PyTorch, last row", "the head on the last row alone", local="last"),
    Rung("1", "naive Triton", "HTTP, INT64, every row on the wire, 100 ms queue delay", None, "naive", "http", "naive"),
    Rung("2", "queue delay", "100 us in place of 100 ms", None, "delay", "http", "naive"),
    Rung("3", "row in postprocess", "a Python step answers [problems] in place of every row", None, "row", "http"),
    Rung("4", "row before the head", "the ONNX core computes the head for that row alone", None, "head", "http"),
    Rung("5", "gRPC", "in place of HTTP", None, "head"),
    Rung("6", "INT32", "in place of INT64", None, "int32"),
    Rung("7a", "length-aware core", "it stops where the history does", None, "length"),
    Rung("7b", "widths", "a batch has one width: short histories do not wait for long ones", None, "widths"),
    Rung("8", "tuned", "instances and threads chosen for this machine, no queue delay", None, "tuned"),
    Rung(
        "9",
        "learners a request",
        "each of several callers sends 8 learners a request",
        None,
        "tuned",
        learners_a_request=8,
    ),
    Rung("10", "shared memory", "client and server on one host", None, "tuned", "shared memory"),
    Rung("11a", "CUDA", "the core on a GPU", None, "cuda"),
    Rung("11b", "I/O binding", "buffers on the GPU that stay", None, "bound"),
    Rung("11c", "CUDA graphs", "captured at load, for 1, 2, 4, 8 learners and each width", None, "graphs"),
    Rung("11d", "half precision", "float16 weights and products", None, "half"),
    Rung("11e", "GPU: PyTorch eager", "the whole forward, probabilities of every row", "gpu-eager"),
    Rung("11e", "GPU: PyTorch compiled", "torch.compile", "gpu-compile"),
    Rung("11e", "GPU: PyTorch, CUDA graphs", "the eager forward, captured", "gpu-graphs"),
    Rung("11e", "GPU: PyTorch, last row", "the head on the last row alone", "gpu-last"),
    Rung("11e", "GPU: PyTorch, last row, CUDA graphs", "captured", "gpu-last-graphs"),
    Rung("11e", "GPU: PyTorch, last row, half", "float16: cuDNN's persistent LSTM", "gpu-last-half"),
    Rung("11f", "GPU: core without binding", "no server, session.run", "gpu-onnxruntime", "cuda"),
    Rung(
        "11f",
        "GPU: core",
        "no server; recurrent layers stop at each length (sequence_lens)",
        "gpu-onnxruntime",
        "bound",
    ),
    Rung("11f", "GPU: core, whole width", "recurrent layers run to the end of the width", "gpu-onnxruntime", "whole"),
    Rung("11f", "GPU: core, CUDA graphs", "the same, captured", "gpu-onnxruntime", "graphs"),
    Rung("11f", "GPU: core, half precision", "the same in float16", "gpu-onnxruntime", "half"),
    Rung("12", "int8", "as rung 8, in whole widths; LSTM and products in 8 bits: answers a little off", None, "int8"),
    Rung(FLOOR, "core over gRPC", "no Python steps: what the ensemble adds is above this", None, "tuned", part="core"),
    Rung(FLOOR, "ONNX Runtime in process", "no server: what serving adds is above this", local="onnxruntime"),
)


def select(text: str | None) -> list[Rung]:
    """The rungs that RUNGS names: numbers, ranges and "floor" with commas between, e.g. "0,1,4-8,11c,floor"; all for None.

    Raises:
        RungError: names what is not there.
    """
    if text is None:
        return list(RUNGS)
    wanted = set()
    for word in text.split(","):
        bounds = re.fullmatch(r"(\d+)(?:-(\d+))?", word.strip())
        if bounds is not None:
            wanted |= {str(number) for number in range(int(bounds[1]), int(bounds[2] or bounds[1]) + 1)}
        else:
            wanted.add(word.strip())
    unknown = sorted(wanted - {rung.number for rung in RUNGS} - {_whole(rung) for rung in RUNGS})
    if unknown:
        raise RungError(f"there is no rung {', '.join(unknown)}; there are 0 to 12 and {FLOOR}")
    return [rung for rung in RUNGS if {rung.number, _whole(rung)} & wanted]


def _whole(rung: Rung) -> str:
    """11 for 11a to 11f, 7 for 7a and 7b."""
    return rung.number.rstrip("abcdef") if rung.number != FLOOR else FLOOR


def variants(spec: Spec) -> dict[str, Variant]:
    """The repositories of rungs 1 to 7; the spec is the served one's. Rung 8's comes from measuring."""
    plain = {"instances": 1}
    widths = changed(
        spec,
        steps__preprocess=plain,
        steps__postprocess=plain,
        steps__propose=plain,
        steps__core={**plain, "queue_delay_us": SHORT_DELAY_US, "device": "cpu"},
        export__precision="float32",
        reduce__length_aware=True,
    )
    length = changed(widths, model__buckets=())
    int32 = changed(length, reduce__length_aware=False)
    wide = {
        f"tensors__{name}__dtype": "INT64"
        for name in ("problem_ids", "responses", "recent_problem_ids", "recent_responses")
    }
    head = changed(int32, **wide)
    row = changed(head, reduce__where="postprocess")
    return {
        "naive": Variant(row, LONG_DELAY_US),
        "delay": Variant(row, SHORT_DELAY_US),
        "row": Variant(row),
        "head": Variant(head),
        "int32": Variant(int32),
        "length": Variant(length),
        "widths": Variant(widths),
    }


def on_a_gpu(spec: Spec) -> dict[str, Variant]:
    """The repositories of rung 11, each the one before plus one change; the spec is that of the rung below.

    A graph repeats the steps that it was captured with, so from there on recurrent layers run to the end of the width, and
    widths are what makes a short history cheap.
    """
    core = {"instances": 1, "device": "gpu"}
    bound = changed(spec, steps__core=core, reduce__length_aware=True, export__precision="float32")
    whole = in_whole_widths(bound)
    graphs = changed(whole, steps__core={**core, "graph_batch_sizes": GRAPH_BATCH_SIZES})
    return {
        "cuda": Variant(changed(bound, steps__core={**core, "io_binding": False})),
        "bound": Variant(bound),
        "whole": Variant(whole),
        "graphs": Variant(graphs),
        "half": Variant(changed(graphs, export__precision="float16")),
    }


def in_int8(spec: Spec) -> Variant:
    """The repository of rung 12; the spec is that of rung 8."""
    return Variant(changed(in_whole_widths(spec), export__precision="int8"))


def in_whole_widths(spec: Spec) -> Spec:
    """The spec with a core that computes the whole width, and widths that make it less for a short history.

    A spec without buckets keeps its one width: an ONNX file of a fixed time axis takes no other.
    """
    whole = changed(spec, reduce__length_aware=False)
    if not spec.model.buckets:
        return whole
    widths = {*spec.model.widths, *(width for width in WIDTHS if width < spec.model.window)}
    return changed(whole, model__buckets=sorted(widths))


def candidates(spec: Spec, quick: bool) -> list[Spec]:
    """Instances and threads that are worth a try here: the cores shared out to 1, 2, ... sessions, steps once and twice."""
    cores = len(os.sched_getaffinity(0))
    shares = [count for count in (1, 2, 4, 8) if cores % count == 0]
    if spec.steps.core.device == "gpu":
        spec = variants(spec)["widths"].spec
    return [
        changed(
            spec,
            steps__core__instances=count,
            steps__core__intra_op_threads=cores // count,
            steps__core__queue_delay_us=0,
            steps__preprocess__instances=steps,
            steps__postprocess__instances=steps,
            export__precision="float32",
        )
        for count in shares
        for steps in ((1,) if quick else (1, 2))
    ]


def names(rungs: Sequence[Rung]) -> list[str]:
    """The variants that these rungs need, in their order."""
    return list(dict.fromkeys(r.variant for r in rungs if r.variant and r.local is None and r.skipped is None))
