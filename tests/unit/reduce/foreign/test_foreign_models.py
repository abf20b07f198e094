"""The reduction on architectures that its rules were not written for: exact, or refused with the reason."""

import logging
import warnings
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from build.core.reduce import Reduction, ReductionError, Select, reduce
from tests.unit.reduce.foreign.cases import CASES, REFUSED, Case
from tests.unit.reduce.foreign.embedded import VOCABULARY, WIDTH
from tests.unit.reduce.foreign.recurrent import TwoOutputs
from tests.unit.reduce.foreign.sequence import Peers

SIZES = ((1, 1), (2, 7), (4, 20), (3, 33))  # batch and time; not those that the pass looks at
OUTPUTS = ["first_rows", "second_rows"]


def randoms(case: Case, batch: int, time: int, seed: int) -> dict[str, np.ndarray]:
    """Inputs of a size. Two inputs are never the same: an exporter may take equal examples for one tensor."""
    numbers = np.random.default_rng(seed)
    shape = (batch, time) if case.time_axis else (time, batch)
    if not case.inputs:
        return {"x": numbers.normal(size=(*shape, WIDTH)).astype(np.float32)}
    return {name: numbers.integers(0, VOCABULARY, shape).astype(np.int32) for name in ("ids", "answers")[: case.inputs]}


@cache
def exported(case: Case) -> ir.Model:
    for operator in (torch.ops.aten.lstm, torch.ops.aten.gru, torch.ops.aten.rnn_tanh):
        operator.input._dispatch_cache.clear()  # else a second export in the process finds the first one's layer
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.manual_seed(0)
    model = case.make().eval()
    batch, time = (size or example for size, example in zip(case.sizes, (2, 7), strict=True))
    feeds = randoms(case, batch, time, 0)
    axes = ("batch", "time") if case.time_axis else ("time", "batch")
    dynamic = {n: axes[n] for n, size in enumerate(case.sizes[:: 1 if case.time_axis else -1]) if size is None}
    names = {
        "input_names": list(feeds),
        "output_names": OUTPUTS[: 2 if case.make is TwoOutputs else 1],
        "opset_version": case.opset or (18 if "dynamo" in case.by else 17),
    }
    examples = tuple(map(torch.from_numpy, feeds.values()))
    with warnings.catch_warnings(), TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        if "dynamo" in case.by:
            program = torch.onnx.export(
                model, examples, dynamo=True, dynamic_shapes=(dynamic,) * len(feeds), verbose=False, **names
            )
            assert program is not None
            return program.model
        file = Path(folder) / "model.onnx"
        every = dict.fromkeys([*feeds, *names["output_names"]], dynamic)
        torch.onnx.export(model, examples, str(file), dynamo=False, dynamic_axes=every, **names)
        return ir.from_proto(ir.to_proto(ir.load(file)))


@cache
def session(case: Case, select: Select | None) -> tuple[ort.InferenceSession, Reduction | None]:
    options, reduction = ort.SessionOptions(), None
    options.log_severity_level = 3
    model = exported(case)
    if select is None:
        # Exporters note sizes that only the example had, and fusions believe them.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if select is not None:
        reduction = reduce(
            model,
            select=select,
            time_axis=case.time_axis,
            output=OUTPUTS[case.output],
            window=32,
        )
        model = reduction.model
    return ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    ), reduction


def every_row(case: Case, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The full model's answer, [batch, time, ...]."""
    rows = session(case, None)[0].run([OUTPUTS[case.output]], feeds)[0]
    return rows if case.time_axis else rows.swapaxes(0, 1)


def expected(case: Case, select: Select, feeds: dict[str, np.ndarray], lengths: np.ndarray) -> np.ndarray:
    pick = {"mean": lambda rows: rows.mean(0), "max": lambda rows: rows.max(0)}.get(select, lambda rows: rows[-1])
    return np.stack([pick(rows[:length]) for rows, length in zip(every_row(case, feeds), lengths, strict=True)])


def answered(case: Case, select: Select, feeds: dict[str, np.ndarray], lengths: np.ndarray) -> np.ndarray:
    index = {"row": lengths - 1} if select == "row" else {"lengths": lengths}
    return session(case, select)[0].run(None, feeds | index)[0]


def agree(one: np.ndarray, other: np.ndarray) -> None:
    assert one.shape == other.shape
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * max(1.0, float(np.abs(other).max())))


def sizes(case: Case) -> list[tuple[int, int]]:
    return sorted({(case.sizes[0] or batch, case.sizes[1] or time) for batch, time in SIZES})


CHOICES = [pytest.param(case, select, id=f"{name}-{select}") for name, case in CASES.items() for select in case.selects]


@pytest.mark.parametrize(("case", "select"), CHOICES)
def test_the_reduced_model_answers_what_the_full_one_has_in_that_row(case, select):
    for seed, (batch, time) in enumerate(sizes(case)):
        feeds = randoms(case, batch, time, seed)
        drawn = np.random.default_rng(seed).integers(1, time + 1, batch)
        for lengths in (drawn, np.full(batch, time), np.ones(batch)):
            lengths = lengths.astype(np.int32)
            agree(answered(case, select, feeds, lengths), expected(case, select, feeds, lengths))


@pytest.mark.parametrize(("case", "select"), CHOICES)
def test_noise_behind_the_length_changes_as_much_as_in_the_full_model(case, select):
    """Columns may be left out only if nothing in them counts: neither what they hold nor that they are there."""
    batch, time = sizes(case)[-1]
    lengths = np.linspace(1, time // 2, batch).astype(np.int32)
    feeds, other = (randoms(case, batch, time, seed) for seed in (1, 2))
    for name, array in feeds.items():
        for learner, length in enumerate(lengths):
            past = (learner, slice(length)) if case.time_axis else (slice(length), learner)
            other[name][past] = array[past]
    full, reduced = ([how(case, select, inputs, lengths) for inputs in (feeds, other)] for how in (expected, answered))
    for mine, wanted in zip(reduced, full, strict=True):
        agree(mine, wanted)
    moved = [float(np.abs(one - two).max()) for one, two in map(tuple, (full, reduced))]
    if case.make is Peers:
        return  # for whom the noise is other learners' past
    assert [m > 1e-4 for m in moved] == [case.ahead, case.ahead], moved


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
def test_the_row_is_taken_where_it_has_to_be(case):
    for select in ("last", "row"):
        reduction = session(case, select)[1]
        assert reduction is not None
        assert any(case.rests in rest for rest in reduction.rests), reduction.rests
        assert reduction.trimmed == case.trimmed


@pytest.mark.parametrize(("case", "how", "reason"), [pytest.param(*found, id=name) for name, found in REFUSED.items()])
def test_what_has_no_such_rows_is_refused_with_the_reason(case, how, reason):
    with pytest.raises(ReductionError, match=reason):
        reduce(exported(case), **how)
