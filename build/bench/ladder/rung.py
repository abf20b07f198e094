"""The rungs: each the one before plus one change, each a repository of its own that a server can be started on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from build.bench import machine, reply
from build.bench.caller import Part
from build.bench.variant import Variant, changed, in_int64
from ensemble.errors import LastrowError
from ensemble.sequence import Sequence as SequenceSpec
from ensemble.spec import Spec

LONG_DELAY_US, SHORT_DELAY_US = 100_000, 100
FLOOR = "floor"
WIDTHS = (64, 128, 256)  # of a core that computes them whole, beside the spec's own
GRAPH_BATCH_SIZES = (1, 2, 4, 8)

Transport = Literal["http", "grpc", "shared memory"]


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
        together: how many histories each of the callers puts into a request; a caller alone sends one.
        picked: whether it is asked for the answer that picks columns, and not for the whole one.
    """

    number: str
    name: str
    change: str
    local: str | None = None
    variant: str = ""
    transport: Transport = "grpc"
    part: Part = "ensemble"
    together: int = 1
    picked: bool = False
    skipped: str | None = None


# Of knowledge tracing, in its words; what is other for any sequence model stands in SEQUENCE, by name.
_LADDER = (
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
        "{histories} a request",
        "each of several callers sends 8 {histories} a request",
        None,
        "tuned",
        together=8,
    ),
    Rung("10", "shared memory", "client and server on one host", None, "tuned", "shared memory"),
    Rung("11a", "CUDA", "the core on a GPU", None, "cuda"),
    Rung("11b", "I/O binding", "buffers on the GPU that stay", None, "bound"),
    Rung("11c", "CUDA graphs", "captured at load, for 1, 2, 4, 8 {histories} and each width", None, "graphs"),
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
    Rung("13", "one model", 'as rung 8, with all steps in one model: serve.layout = "single"', None, "single"),
    Rung(FLOOR, "core over gRPC", "no Python steps: what the ensemble adds is above this", None, "tuned", part="core"),
    Rung(FLOOR, "ONNX Runtime in process", "no server: what serving adds is above this", local="onnxruntime"),
)


def rungs(spec: Spec) -> tuple[Rung, ...]:
    """The spec's ladder, in its words. What makes no sense for it is there too, skipped, with why."""
    made = list(_LADDER)
    if isinstance(spec, SequenceSpec):
        changes, left_out = _changes(spec), _left_out(spec)
        made = [
            replace(r, change=changes.get(r.name, r.change), skipped=left_out.get(r.number) or left_out.get(r.name))
            for r in made
        ]
        floors = next(number for number, rung in enumerate(made) if rung.number == FLOOR)
        made.insert(floors, _picking(spec))
    if spec.reduce.where != "core":
        why = 'one model selects no row: it needs reduce.where = "core"'
        made = [replace(r, skipped=r.skipped or why) if r.variant == "single" else r for r in made]
    words = spec.contract.words._asdict()
    return tuple(replace(r, name=r.name.format(**words), change=r.change.format(**words)) for r in made)


def _picking(spec: SequenceSpec) -> Rung:
    """The rung that asks for some columns, where others ask for all."""
    plain = Rung("14", "picked columns", "some columns and their ids in place of all", None, "tuned", picked=True)
    answer = reply.picked(spec)
    if answer is None:
        return replace(plain, skipped="no other answer picks columns")
    names = " and ".join(tensor.name for tensor in answer.tensors)
    return replace(
        plain, change=f"{names}, {answer.tensors[0].shape[0]} of each, in place of {reply.whole(spec).tensors[0].name}"
    )


def _changes(spec: SequenceSpec) -> dict[str, str]:
    """By rung what is said of it where the model is not knowledge tracing's."""
    asked = "padded in front to the window" if spec.model.padding == "left" else "as long as the history is"
    own = spec.row.select == "own"
    every = "the one row that the model takes by itself" if own else "every row"
    integers = "INT64, " if _integers(spec) else ""
    return {
        "PyTorch eager": f"the whole forward on this machine, {asked}, as its author asks it",
        "naive Triton": f"HTTP, {integers}{every} on the wire, 100 ms queue delay",
        "row in postprocess": "a Python step answers one row in place of every row",
        "row before the head": "the ONNX core computes what the wanted row needs"
        + (", from where the model takes it" if own else ""),
    }


def _left_out(spec: SequenceSpec) -> dict[str, str]:
    """By number or name of a rung why it is none of this spec's."""
    found = {
        "PyTorch eager, logits": "what is made of the answer is made of one row",
        "PyTorch, last row": "a module of one's own says nothing of its head",
        "3": 'reduce.where = "postprocess" is for knowledge tracing',
        "10": "measured for knowledge tracing alone",
        "11e": "measured for knowledge tracing alone",
        "11f": "measured for knowledge tracing alone",
    }
    if not _integers(spec):
        found["6"] = "nothing that the model takes is an integer"
    if spec.model.padding == "none":
        found["7a"] = found["7b"] = 'model.padding = "none": a batch is as long as its {histories} are'
        found["9"] = 'model.padding = "none": {histories} of unequal length are not sent together'
    elif spec.model.padding == "left":
        found["7a"] = 'model.padding = "left": a window runs to its end'
    if not spec.model.buckets:
        found.setdefault("7b", "model.buckets is empty: there is one width")
    words = spec.contract.words._asdict()
    return {rung: why.format(**words) for rung, why in found.items()}


def _integers(spec: Spec) -> bool:
    return any(tensor.dtype != "FP32" for tensor in spec.requested)


RUNGS = rungs(Spec.read())  # the default spec's


def select(text: str | None, of: Sequence[Rung] = RUNGS) -> list[Rung]:
    """The rungs that RUNGS= names: numbers, ranges and "floor" with commas between, e.g. "0,1,4-8,11c,floor"; all for None.

    Raises:
        RungError: names what is not there.
    """
    if text is None:
        return list(of)
    wanted = set()
    for word in text.split(","):
        bounds = re.fullmatch(r"(\d+)(?:-(\d+))?", word.strip())
        if bounds is not None:
            wanted |= {str(number) for number in range(int(bounds[1]), int(bounds[2] or bounds[1]) + 1)}
        else:
            wanted.add(word.strip())
    unknown = sorted(wanted - {rung.number for rung in of} - {_whole(rung) for rung in of})
    if unknown:
        last = max(int(_whole(rung)) for rung in of if rung.number != FLOOR)
        raise RungError(f"there is no rung {', '.join(unknown)}; there are 0 to {last} and {FLOOR}")
    return [rung for rung in of if {rung.number, _whole(rung)} & wanted]


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
        serve__layout="ensemble",
    )
    length = changed(widths, model__buckets=())
    int32 = changed(length, reduce__length_aware=False)
    head, row = _in_int64(int32)
    return {
        "naive": Variant(row, LONG_DELAY_US),
        "delay": Variant(row, SHORT_DELAY_US),
        "row": Variant(row),
        "head": Variant(head),
        "int32": Variant(int32),
        "length": Variant(length),
        "widths": Variant(widths),
    }


def _in_int64(spec: Spec) -> tuple[Spec, Spec]:
    """The spec with wide integers; and what a naive deployment is made of."""
    if isinstance(spec, SequenceSpec):
        wide = in_int64(spec)
        return wide, wide
    names = ("problem_ids", "responses", "recent_problem_ids", "recent_responses")
    head = changed(spec, **{f"tensors__{name}__dtype": "INT64" for name in names})
    return head, changed(head, reduce__where="postprocess")


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


def in_one_model(spec: Spec) -> Variant:
    """The repository of rung 13; the spec is that of rung 8."""
    return Variant(changed(spec, serve__layout="single"))


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
    if spec.steps.core.device == "gpu":
        spec = variants(spec)["widths"].spec
    return [
        changed(
            spec,
            steps__core__instances=count,
            steps__core__intra_op_threads=threads,
            steps__core__queue_delay_us=0,
            steps__preprocess__instances=steps,
            steps__postprocess__instances=steps,
            serve__layout="ensemble",
            export__precision="float32",
        )
        for count, threads in machine.shares()
        for steps in ((1,) if quick else (1, 2))
    ]


def names(rungs: Sequence[Rung]) -> list[str]:
    """The variants that these rungs need, in their order."""
    return list(dict.fromkeys(r.variant for r in rungs if r.variant and r.local is None and r.skipped is None))
