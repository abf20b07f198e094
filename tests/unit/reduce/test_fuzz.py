"""Random models through the whole of the reduction: each is refused with what to change, or its cut answers as it does.

Whether it does is asked here anew, with feeds of this file's own: the comparison before a file is written is under test too.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from hypothesis import HealthCheck, Phase, given, note, seed, settings
from hypothesis import strategies as st

from build.core.reduce import ReductionError, Select
from build.core.reduction import PassError, reduce_file
from tests.unit.reduce.example import Example, compose
from tests.unit.reduce.graphs import pooled
from tests.unit.reduce.inputs import BATCH, STEPS, TIME

Array = np.ndarray

GRAPHS = 200
TOLERANCE, HALF_TOLERANCE = 1e-3, 5e-2  # of the answers' spread: more than the battery allows, whose feeds are others
ROUNDING = 1e-2  # the same where sums of another length are compared


class Fuzz:
    """Models that were drawn, and what became of them.

    Attributes:
        counts: "written", "refused", "wrong".
        reasons: how often each refusal was told, numbers and names left out.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()

    def run(self, graphs: int, first: int) -> None:
        """Draw so many models; `first` is what chance starts with."""

        @seed(first)
        @settings(
            max_examples=graphs,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        )
        @given(st.data())
        def every(data: st.DataObject) -> None:
            example = compose(data)
            note(onnx.printer.to_text(ir.to_proto(example.model)))
            note(str(example.options))
            self.counts["wrong"] += 1  # until it is known better
            written = examine(example)
            self.counts["wrong"] -= 1
            self.counts["written" if not written else "refused"] += 1
            if written:
                self.reasons[re.sub(r"'[^']*'|[\d.]+(e-?\d+)?|\[.*?\]", "_", written)[:110]] += 1

        every()

    def __str__(self) -> str:
        told = [f"{number:5} {reason}" for reason, number in self.reasons.most_common(30)]
        return "\n".join([", ".join(f"{number} {what}" for what, number in sorted(self.counts.items())), *told])


def examine(example: Example) -> str:
    """Reduce a model; the refusal, or nothing where the cut was written and is right."""
    options = example.options
    with TemporaryDirectory(prefix="lastrow-") as folder:
        full, cut = Path(folder) / "full.onnx", Path(folder) / "cut.onnx"
        ir.save(example.model, full)
        try:
            reduce_file(
                *(full, cut, options.select, options.time_axis, options.outputs, options.window, options.declared)
            )
        except PassError:
            raise  # a fault of the pass is no refusal
        except ReductionError as e:
            refusal = str(e)
        else:
            hold(example, _session(full), _session(cut))
            return ""
        assert not cut.exists()
    assert_helpful(refusal, example)
    return refusal


def assert_helpful(refusal: str, example: Example) -> None:
    """It names an input, a node, an option or an axis, so that who reads it knows where to begin.

    A wrong cut that the comparison has found is refused too, and a fault of the pass all the same.
    """
    assert "please report" not in refusal, refusal
    names = [each.name for each in example.given]
    names += [str(value.name) for node in example.model.graph for value in node.outputs]
    named = any(re.search(rf"\b{re.escape(name)}\b", refusal) for name in names)
    assert named or re.search(r"--[a-z]+|\baxis\b|\bselect\b|\boutput\b", refusal), refusal


def hold(example: Example, full: ort.InferenceSession, cut: ort.InferenceSession) -> None:
    """Hold the cut against the full model: in the same batch, and in one with others, padded, against it by itself."""
    window = example.options.window
    rng = np.random.default_rng(window)
    marks = {mark + step for mark in example.marks for step in (-1, 0, 1, 2)}
    times = {1, 2, window, window - 1, *rng.integers(2, window + 1, 4).tolist(), *marks}
    for number, time in enumerate(sorted(time for time in times if 0 < time <= window)):
        batch = int(rng.integers(1, 5))
        sizes = {BATCH: batch, TIME: time, STEPS: int(rng.integers(1, window + 1))}
        lengths = rng.integers(1, max(1, time // 3) + 1 if number % 3 == 1 else time + 1, batch)
        if number % 3 == 0:
            lengths[:] = time
        compare(example, full, cut, sizes, lengths, rng)


def compare(
    example: Example,
    full: ort.InferenceSession,
    cut: ort.InferenceSession,
    sizes: dict[str, int],
    lengths: Array,
    rng: np.random.Generator,
) -> None:
    """As `hold`, at one size."""
    select = example.options.select
    allowed = HALF_TOLERANCE if example.half else TOLERANCE
    told = f"{sizes}, lengths {lengths.tolist()}"
    feeds = {each.name: each.draw(sizes, lengths, rng) for each in example.given}
    # Which row: the last valid one, or any of all where none is padding.
    number = rng.integers(1, sizes[TIME] + 1, len(lengths)) if select == "row" else lengths
    if select == "own":
        wanted = full.run([*example.options.outputs], feeds)[0]
        answer = cut.run(None, _narrowed(cut, feeds))[0]
        assert answer.shape == wanted.shape, told
        assert answer.dtype == wanted.dtype, told
        assert apart(answer, wanted) <= allowed * spread(wanted), f"{apart(answer, wanted):.1e} off at {told}"
        return
    answers = _answers(cut, feeds, number, select)
    every = _rows(full, feeds, example)
    for answer, rows in zip(answers, every, strict=True):
        wanted = _selected(rows, number, select)
        assert answer.shape == wanted.shape, told
        assert answer.dtype == wanted.dtype, told
        off = apart(answer, wanted) / spread(rows)
        assert off <= allowed, f"{off:.1e} off at {told}"
    one = int(rng.integers(len(lengths)))
    kept = {BATCH: np.array([one])}
    if select != "row":
        kept[TIME] = np.arange(lengths[one])
    alone = {each.name: each.of(feeds[each.name], kept) for each in example.given}
    for answer, rows, lonely in zip(answers, every, _rows(full, alone, example), strict=True):
        off = apart(answer[[one]], _selected(lonely, number[[one]], select)) / spread(rows)
        assert off <= max(allowed, ROUNDING), f"{off:.1e} off from the history by itself, {one} of {told}"


def spread(rows: Array) -> float:
    """How far the answers of all rows lie apart; at least a tenth of the largest."""
    numbers = rows.astype(np.float64)
    numbers = numbers[np.isfinite(numbers)]
    return float(max(np.ptp(numbers), np.abs(numbers).max() / 10, 1e-6)) if numbers.size else 1.0


def apart(one: Array, other: Array) -> float:
    """The largest difference; what is no number has to be none in both."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, np.abs(a - b))
    return float(np.where(np.isnan(difference), np.inf, difference).max())


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _rows(full: ort.InferenceSession, feeds: dict[str, Array], example: Example) -> list[Array]:
    """Every row of each output, [batch, time, ...]."""
    options = example.options
    return [np.moveaxis(rows, options.time_axis, 1) for rows in full.run(list(options.outputs), feeds)]


def _selected(rows: Array, number: Array, select: Select) -> Array:
    with np.errstate(invalid="ignore"):
        return np.stack([pooled(learner[:n], select) for learner, n in zip(rows, number, strict=True)])


def _answers(cut: ort.InferenceSession, feeds: dict[str, Array], number: Array, select: Select) -> list[Array]:
    """The cut's; its one input more is the last, and its integers are INT32."""
    taken = [value.name for value in cut.get_inputs()]
    index = taken[-1]
    assert index not in feeds
    return cut.run(None, _narrowed(cut, {**feeds, index: (number - (select == "row")).astype(np.int32)}))


def _narrowed(cut: ort.InferenceSession, feeds: dict[str, Array]) -> dict[str, Array]:
    """What it takes of the feeds; its integers are INT32."""
    kinds = {value.name: value.type for value in cut.get_inputs()}
    return {
        name: feeds[name].astype(np.int32) if kind == "tensor(int32)" else feeds[name] for name, kind in kinds.items()
    }


def test_the_cut_of_a_random_model_answers_as_the_model_does_or_is_refused_with_what_to_change():
    fuzz = Fuzz()
    fuzz.run(GRAPHS, 0)
    print(fuzz)
    assert fuzz.counts["written"] + fuzz.counts["refused"] >= GRAPHS
    assert fuzz.counts["written"] > GRAPHS / 3, fuzz
