"""Models that select their row themselves: the cut answers what the full model does, whatever index it has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from build.core.reduce import Declared, Reduction, ReductionError, reduce
from build.core.reduction import reduce_file
from tests.unit.reduce.graphs import FLOAT, SIZES, TIME, Graph, computed, decomposed, flat, layer

MASKED = Declared(masks=frozenset({"mask"}))


def numbers(g: Graph, axis: int = 0) -> str:
    """0, 1, 2, ... as many as there are histories, or rows."""
    return g.op("Range", np.array(0), g.op("Squeeze", g.size("x", axis)), np.array(1))


def index(g: Graph, name: str = "n", less: int = 1) -> str:
    """INT64 [batch]: the input less 1."""
    given = g.input(name, "batch", dtype=np.int64)
    return g.op("Sub", given, np.array(less)) if less else given


def by_elements(g: Graph, h: str, n: str, width: int, how: str = "Expand") -> str:
    column = g.op("Reshape", n, [-1, 1, 1])
    if how == "Tile":
        wide = g.op("Tile", column, [1, 1, width])
    else:
        wide = g.op("Expand", column, g.op("Concat", g.size("x", 0), [1, width], axis=0))
    return g.op("Squeeze", g.op("GatherElements", h, wide, axis=1), [1])


def by_pairs(g: Graph, h: str, n: str, width: int) -> str:
    pair = g.op("Concat", g.op("Unsqueeze", numbers(g), [-1]), g.op("Unsqueeze", n, [-1]), axis=-1)
    return g.op("GatherND", h, pair)


def by_pairs_time_first(g: Graph, h: str, n: str, width: int) -> str:
    pair = g.op("Concat", g.op("Unsqueeze", n, [1]), g.op("Unsqueeze", numbers(g), [1]), axis=1)
    return g.op("GatherND", g.op("Transpose", h, perm=[1, 0, 2]), pair)


def by_row(g: Graph, h: str, n: str, width: int) -> str:
    return g.op("GatherND", h, g.op("Unsqueeze", n, [1]), batch_dims=1)


def by_merged(g: Graph, h: str, n: str, width: int) -> str:
    merged = g.op("Mul", numbers(g), g.op("Squeeze", g.size(h, 1)))
    return g.op("Gather", flat(g, h, width), g.op("Add", n, merged), axis=0)


def by_merged_time_first(g: Graph, h: str, n: str, width: int) -> str:
    first = g.op("Transpose", h, perm=[1, 0, 2])
    merged = g.op("Mul", n, g.op("Squeeze", g.size("x", 0)))
    return g.op("Gather", flat(g, first, width), g.op("Add", numbers(g), merged), axis=0)


def tiled(g: Graph, h: str, n: str, width: int) -> str:
    return by_elements(g, h, n, width, "Tile")


WRAPPING = {
    "elements": by_elements,
    "tiled": tiled,
    "pairs": by_pairs,
    "time first": by_pairs_time_first,
    "row": by_row,
}
MERGED = {"merged": by_merged, "merged, time first": by_merged_time_first}
FORMS: dict[str, Callable[[Graph, str, str, int], str]] = {**WRAPPING, **MERGED}
NUMBERED: dict[str, Callable[[Graph, str], str]] = {
    "last": lambda g, h: g.op("Gather", h, np.array(-1), axis=1),
    "last, kept": lambda g, h: g.op("Squeeze", g.op("Slice", h, [-1], [2**63 - 1], [1], [1]), [1]),
    "last, negative axis": lambda g, h: g.op("Gather", h, np.array(-1), axis=-2),
    "last, by its number": lambda g, h: g.op(
        "Gather", h, g.op("Sub", g.op("Squeeze", g.size(h, 1)), np.array(1)), axis=1
    ),
    "first": lambda g, h: g.op("Gather", h, np.array(0), axis=1),
    "first, kept": lambda g, h: g.op("Squeeze", g.op("Slice", h, [0], [1], [1]), [1]),
    "first, an axis more": lambda g, h: g.op("Squeeze", g.op("Gather", h, np.array([[0]]), axis=1), [1, 2]),
    "last of time first": lambda g, h: g.op("Gather", g.op("Transpose", h, perm=[1, 0, 2]), np.array(-1), axis=0),
}


Session = Callable[[dict[str, np.ndarray]], np.ndarray]


def opened(model: ir.Model) -> Session:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    narrow = {v.name: v.type == "tensor(int32)" for v in session.get_inputs()}
    return lambda feeds: session.run(
        None, {n: f.astype(np.int32) if narrow[n] else f for n, f in feeds.items() if n in narrow}
    )[0]


def check(model: ir.Model, shortest: int = 1, declared: Declared | None = None, window: int = TIME) -> Reduction:
    """Reduce and compare at every size, with lengths from `shortest`; noise lies behind them."""
    before = ir.to_proto(model)
    reduction = reduce(model, select="own", window=window, declared=declared)
    assert ir.to_proto(model) == before
    assert {v.name for v in reduction.model.graph.inputs} <= {v.name for v in model.graph.inputs}
    full, cut = opened(model), opened(reduction.model)
    for number, (batch, time) in enumerate(SIZES):
        rng = np.random.default_rng(number)
        lengths = rng.integers(shortest, max(1, time // (1 + number % 2 * 3)) + 1, batch)
        for these in (lengths, np.full(batch, time), np.full(batch, shortest)):
            feeds = {
                "x": rng.normal(size=(batch, time, 4)).astype(np.float32),
                "n": these,
                "at": these - 1,
                "mask": (np.arange(time) < these[:, None]).astype(np.int64),
            }
            wanted, got = full(feeds), cut(feeds)
            assert got.shape == wanted.shape
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5, err_msg=f"{batch}, {time}, lengths {these}")
    return reduction


def head(g: Graph, row: str, width: int = 4) -> ir.Model:
    return g.model(g.op("MatMul", row, g.weight(width, 3)))


def rows_computed(reduction: Reduction, op: str) -> list[tuple[int, ...]]:
    return [outputs[0] for name, _, outputs in computed(reduction) if name == op]


@pytest.mark.parametrize("form", FORMS)
def test_a_row_by_an_index_is_cut_from_where_it_is_taken(form):
    """Behind it everything stays; a length of 0 is the last row of the window, as ONNX has it."""
    g = Graph()
    h = g.op("Tanh", g.op("MatMul", layer(g, "GRU", g.sequence(4), 4, 5), g.weight(5, 4)))
    reduction = check(head(g, FORMS[form](g, h, index(g), 4)), shortest=int(form in MERGED))
    assert [rest for rest in reduction.rests if "its final state is that row" in rest], reduction.rests
    assert reduction.trimmed


@pytest.mark.parametrize("form", FORMS)
def test_an_index_may_count_from_0_and_is_no_length(form, tmp_path):
    g = Graph()
    h = g.op("Tanh", layer(g, "LSTM", g.sequence(4), 4, 4))
    model = head(g, FORMS[form](g, h, index(g, "at", less=0), 4))
    check(model)
    ir.save(model, tmp_path / "full.onnx")
    reduction, proof = reduce_file(tmp_path / "full.onnx", tmp_path / "row.onnx", "own", window=32)
    assert "at [batch]: the wanted row" in str(proof)
    assert reduction.trimmed


@pytest.mark.parametrize("form", NUMBERED)
def test_a_row_by_a_number_is_cut_from_where_it_is_taken(form):
    g = Graph()
    h = decomposed(g, g.op("LayerNormalization", g.sequence(4), g.weight(4)), 2, 2, "none")
    reduction = check(head(g, NUMBERED[form](g, g.op("Relu", h))))
    assert not reduction.trimmed
    assert (2, 2, 1, TIME) in rows_computed(reduction, "Softmax")


@pytest.mark.parametrize("form", NUMBERED)
def test_a_recurrent_layer_ends_at_a_row_by_its_number(form):
    g = Graph()
    reduction = check(head(g, NUMBERED[form](g, layer(g, "LSTM", g.sequence(4), 4, 4))))
    assert "its final state is that row" in reduction.rests[0]
    assert reduction.trimmed == form.startswith("first")
    last = next(node for node in reduction.model.graph if node.op_type == "LSTM")
    if "number" not in form:
        assert (len(last.inputs) < 5 or last.inputs[4] is None) == form.startswith("last"), "it ends by itself"


def test_a_row_of_a_slice_is_counted_in_what_is_sliced():
    for start, end in ((1, 2**31), (0, -1), (2, 2**31)):
        for number in (-1, 0):
            g = Graph()
            x = g.op("Concat", g.op("Slice", g.sequence(4), [0], [1], [1]), "x", axis=1)
            x = g.op("Concat", g.op("Slice", x, [0], [1], [1]), x, axis=1)  # two rows more
            part = g.op("Slice", layer(g, "GRU", x, 4, 4), [start], [end], [1])
            check(head(g, g.op("Gather", part, np.array(number), axis=1)))


def masked(g: Graph, h: str, form: str = "expanded") -> str:
    mask = g.sequence(name="mask", dtype=np.int64)
    wide = g.op("Cast", g.op("Unsqueeze", mask, [2]), to=FLOAT)
    if form == "expanded":
        wide = g.op("Expand", wide, g.op("Shape", h))
    total = g.op("ReduceSum", g.op("Mul", h, wide) if form != "swapped" else g.op("Mul", wide, h), [1], keepdims=0)
    count = g.op("ReduceSum", wide, [1], keepdims=0)
    return g.op("Div", total, g.op("Clip", count, np.array(1e-9, np.float32)) if form == "expanded" else count)


@pytest.mark.parametrize("form", ["expanded", "plain", "swapped"])
def test_a_masked_mean_commutes_with_products_and_biases_even_where_nothing_is_valid(form):
    g = Graph()
    x = g.op("Relu", g.op("MatMul", g.sequence(4), g.weight(4, 4)))
    h = g.op("Add", g.op("MatMul", x, g.weight(4, 4)), g.weight(4))
    reduction = check(head(g, masked(g, h, form)), shortest=0, declared=MASKED)
    assert (2, 1, 4) in rows_computed(reduction, "MatMul")
    assert "the mean does not commute with it" in reduction.rests[0]


def test_a_masked_mean_of_what_it_does_not_commute_with_stays_as_it_is():
    g = Graph()
    reduction = check(head(g, masked(g, g.op("Tanh", g.sequence(4)))), declared=MASKED)
    assert reduction.after.operations == reduction.before.operations


def test_the_first_and_the_last_row_are_cut_each_by_itself():
    g = Graph()
    h = g.op("Relu", decomposed(g, g.op("LayerNormalization", g.sequence(4), g.weight(4)), 2, 2, "none"))
    both = g.op("Concat", g.op("Gather", h, np.array(0), axis=1), g.op("Gather", h, np.array(-1), axis=1), axis=-1)
    reduction = check(head(g, both, 8))
    assert rows_computed(reduction, "Softmax") == [(2, 2, 1, TIME)] * 2


def test_a_recurrent_layer_that_two_selections_read_is_run_once():
    for more in (
        lambda g, h: g.op("Gather", h, np.array(0), axis=1),
        lambda g, h: g.op("ReduceMean", h, [1], keepdims=0),
    ):
        g = Graph()
        h = layer(g, "LSTM", g.sequence(4), 4, 4)
        both = g.op("Concat", g.op("Gather", g.op("Tanh", h), np.array(-1), axis=1), more(g, h), axis=-1)
        reduction = check(head(g, both, 8))
        assert [node.op_type for node in reduction.model.graph].count("LSTM") == 1
        assert not reduction.trimmed
        assert any("needs its states too" in rest for rest in reduction.rests)


def test_a_row_that_goes_into_all_rows_is_cut_where_it_stands_alone():
    g = Graph()
    h = g.op("Tanh", g.op("MatMul", g.sequence(4), g.weight(4, 4)))
    first = g.op("Gather", h, np.array([0]), axis=1)
    last = g.op("Gather", g.op("Relu", g.op("Add", h, first)), np.array(-1), axis=1)
    check(head(g, g.op("Add", last, g.op("Squeeze", first, [1]))))


@pytest.mark.parametrize("reads", ["mask", "rows"])
def test_what_the_index_reads_is_not_cut_off(reads):
    """The index counts a mask, or comes from the rows themselves: the columns that it needs are unknown before."""
    g = Graph()
    h = layer(g, "GRU", g.sequence(4), 4, 4)
    if reads == "mask":
        n = g.op("Sub", g.op("ReduceSum", g.sequence(name="mask", dtype=np.int64), [1], keepdims=0), np.array(1))
    else:
        first = g.op("Squeeze", g.op("Slice", "x", [0], [1], [2]), [2])
        n = g.op("ArgMax", first, axis=1, keepdims=0)
    reduction = check(head(g, by_elements(g, h, n, 4)), shortest=0, declared=MASKED if reads == "mask" else None)
    assert not reduction.trimmed
    assert "its final state is that row" in reduction.rests[0]


def test_the_number_of_rows_is_not_that_of_the_columns_that_are_left():
    """It goes into the answer behind the selection, and into the index of another history."""
    g = Graph()
    row = by_elements(g, layer(g, "GRU", g.sequence(4), 4, 4), index(g), 4)
    assert not check(head(g, g.op("Div", row, g.op("Cast", g.size("x", 1), to=FLOAT)))).trimmed
    g = Graph()
    n = g.op("Min", index(g), g.op("Squeeze", g.op("Sub", g.size("x", 1), [1])))
    assert not check(head(g, by_elements(g, layer(g, "GRU", g.sequence(4), 4, 4), n, 4)), shortest=0).trimmed


@pytest.mark.parametrize("axes", [("batch", 24), (1, 24), (1, "time"), (3, 24)])
def test_time_may_be_fixed_and_the_answer_as_long(axes, tmp_path):
    g = Graph()
    h = layer(g, "LSTM", g.input("x", *axes, 4), 4, 4)
    ir.save(g.model(g.op("MatMul", NUMBERED["last"](g, g.op("Tanh", h)), g.weight(4, 24))), tmp_path / "full.onnx")
    reduction, _ = reduce_file(tmp_path / "full.onnx", tmp_path / "row.onnx", "own", window=24)
    assert "its final state is that row" in reduction.rests[0]


def picked_row(g: Graph, form: str, h: str) -> str:
    return NUMBERED[form](g, h) if form in NUMBERED else FORMS[form](g, h, index(g), 4)


@pytest.mark.parametrize("behind", [0, 2], ids=["causal", "rows behind too"])
@pytest.mark.parametrize("form", [*NUMBERED, *FORMS])
def test_of_a_stack_of_convolutions_the_rows_under_the_models_own_are_computed(form, behind):
    g = Graph()
    turned = g.op("Transpose", g.sequence(4), perm=[0, 2, 1])
    for dilation in (1, 2):
        weights = (g.weight(4, 4, 3), g.weight(4))
        pads = [2 * dilation - min(behind, dilation), min(behind, dilation)]
        turned = g.op("Tanh", g.op("Conv", turned, *weights, kernel_shape=[3], dilations=[dilation], pads=pads))
    row = picked_row(g, form, g.op("Transpose", turned, perm=[0, 2, 1]))
    reduction = check(head(g, row))
    assert [shape[2] for shape in rows_computed(reduction, "Conv")] == [3, 1]
    assert "it is an input" in reduction.rests[0]


@pytest.mark.parametrize("form", ["last", "first", "row", "merged"])
def test_of_a_packed_projection_the_queries_of_the_models_own_row_are_projected(form):
    g = Graph()
    packed = g.op("MatMul", g.op("Tanh", g.op("MatMul", g.sequence(4), g.weight(4, 4))), g.weight(4, 12))
    query, key, value = (g.op("Slice", packed, [4 * n], [4 * n + 4], [2]) for n in range(3))
    scores = g.op("Softmax", g.op("MatMul", query, g.op("Transpose", key, perm=[0, 2, 1])), axis=-1)
    reduction = check(head(g, picked_row(g, form, g.op("MatMul", scores, value))))
    widths = sorted(shape[1:] for shape in rows_computed(reduction, "MatMul") if shape[-1] == 4)
    assert widths.count((1, 4)) == 2  # the query, and the mean of the values
    assert len(reduction.worths) == len(reduction.rests)


def refused(answer: Callable[[Graph], str], tmp_path: Path, **how: object) -> str:
    g = Graph()
    ir.save(g.model(answer(g)), tmp_path / "full.onnx")
    with pytest.raises(ReductionError) as raised:
        reduce_file(tmp_path / "full.onnx", tmp_path / "row.onnx", **{"select": "own", "window": 32, **how})
    assert not (tmp_path / "row.onnx").exists()
    return str(raised.value)


def test_what_selects_no_row_is_refused_with_what_takes_them_all(tmp_path):
    def mean(g: Graph) -> str:
        h = g.op("MatMul", g.sequence(4), g.weight(4, 4))
        return g.op("ReduceMean", h, [1], keepdims=0)

    assert "all rows go into ReduceMean" in refused(mean, tmp_path)
    assert "batch as axis 0 and no time" in refused(lambda g: g.op("Tanh", g.sequence(4)), tmp_path)


def test_of_several_outputs_one_has_to_be_named(tmp_path):
    g = Graph()
    row = NUMBERED["last"](g, g.op("Tanh", g.sequence(4)))
    model = g.model(g.op("Exp", row), g.op("Sin", row))
    names = [str(value.name) for value in model.graph.outputs]
    with pytest.raises(ReductionError, match="one output is cut, not 2"):
        reduce(model, select="own", output=names)
    ir.save(model, tmp_path / "full.onnx")
    for output in (names[1], names[1:]):
        reduction, _ = reduce_file(tmp_path / "full.onnx", tmp_path / "row.onnx", "own", output=output, window=32)
        assert [value.name for value in reduction.model.graph.outputs] == names[1:]


def test_who_asks_for_the_last_row_of_a_model_with_one_is_told_of_its_own(tmp_path):
    def last(g: Graph) -> str:
        return NUMBERED["last"](g, g.op("Tanh", g.sequence(4)))

    assert "--select own" in refused(last, tmp_path, select="last")


@pytest.mark.parametrize("form", MERGED)
def test_a_length_of_0_that_takes_the_row_of_a_neighbour_is_refused_unless_lengths_are_declared(form, tmp_path):
    def picked(g: Graph) -> str:
        h = g.op("Tanh", layer(g, "LSTM", g.sequence(4), 4, 4))
        return MERGED[form](g, h, index(g), 4)

    if form == "merged":
        assert "--length NAME" in refused(picked, tmp_path)
    g = Graph()
    ir.save(g.model(picked(g)), tmp_path / "full.onnx")
    reduce_file(
        *(tmp_path / "full.onnx", tmp_path / "row.onnx", "own"), window=32, declared=Declared(lengths=frozenset({"n"}))
    )


@pytest.mark.parametrize("form", WRAPPING)
def test_lengths_of_0_are_compared_too(form, tmp_path):
    g = Graph()
    h = g.op("Tanh", layer(g, "LSTM", g.sequence(4), 4, 4))
    ir.save(head(g, WRAPPING[form](g, h, index(g), 4)), tmp_path / "full.onnx")
    reduce_file(tmp_path / "full.onnx", tmp_path / "row.onnx", "own", window=32)


def test_time_may_be_the_inputs_first_axis_and_another_input_have_batch_first(tmp_path):
    """The answer's first axis is batch, which must not be taken for the inputs' first."""
    g = Graph()
    x, states = g.input("x", "time", "batch", 3), g.input("states", "batch", "steps", 3)
    queries = g.op("Transpose", x, perm=[1, 0, 2])
    weights = g.op("Softmax", g.op("MatMul", queries, g.op("Transpose", states, perm=[0, 2, 1])), axis=-1)
    ir.save(g.model(g.op("Gather", g.op("MatMul", weights, states), np.array(-1), axis=1)), tmp_path / "full.onnx")
    reduction, _ = reduce_file(tmp_path / "full.onnx", tmp_path / "row.onnx", "own", time_axis=0, window=32)
    assert reduction.rests == ("x [time, batch, 3]: it is an input",)


def test_static_features_may_come_before_a_history_with_time_first(tmp_path):
    g = Graph()
    static = g.input("static", "batch", 3)
    x = g.op("Transpose", g.input("x", "time", "batch", 3), perm=[1, 0, 2])
    row = g.op("Gather", g.op("Tanh", g.op("Add", x, g.op("Unsqueeze", static, [1]))), np.array(-1), axis=1)
    ir.save(g.model(row), tmp_path / "full.onnx")
    reduction, _ = reduce_file(tmp_path / "full.onnx", tmp_path / "row.onnx", "own", time_axis=0, window=32)
    assert reduction.rests == ("x [time, batch, 3]: it is an input",)
