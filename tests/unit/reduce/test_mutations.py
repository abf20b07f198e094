"""The pass with one rule broken: what it writes then is wrong, and the comparison has to see that.

Each fault goes with a model whose cut it spoils. Without the fault the model is written, with it nothing is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from build.core.reduce import Declared, ReductionError, projection, rules, trim, unsort
from build.core.reduce.emitter import Emitter
from build.core.reduce.picker import Picker
from build.core.reduce.shapes import Shapes
from build.core.reduction import reduce_file
from tests.unit.reduce.models import (
    attention,
    backwards,
    columns,
    encoder,
    fused_projection,
    head,
    lstm,
    masked,
    own_last,
    own_lengths,
    own_mean,
    own_row,
    own_share,
    packed,
    packed_projection,
    positions,
    previous,
    rising,
    share,
    shifted,
    square,
    stack,
    sums,
    time_first_rows,
    vocabulary,
    weighed,
)
from tests.unit.reduce.mutations import (
    Fault,
    always,
    before_input,
    behind_answer,
    columns_off,
    cut_by_longest,
    edited,
    first_run_alone,
    gathers_last,
    lengths_sorted,
    lenient,
    moved_rows,
    no_choice,
    not_causal,
    other_constant,
    parts_turned,
    replaced,
    rounded,
    seen_otherwise,
    shape_of,
    shift_rule,
    skip_check,
    swapped,
    turned_lookup,
    unread_time,
    whole_mean,
    without_bias,
    without_steps,
)

Model = Callable[[], ir.Model]

CAUGHT = "parts from the full one|the reduced model answers|does not run at|changes with"
CASES: dict[str, tuple[Model, Fault, str]] = {
    "the row behind the last": (head, swapped(Emitter, "index", lambda f: lambda e, n: f(e, n + 1)), "last"),
    "the row before the last": (head, swapped(Emitter, "index", lambda f: lambda e, n: f(e, n - 1)), "last"),
    "the row behind the asked one": (head, swapped(Emitter, "index", lambda f: lambda e, n: f(e, n + 1)), "row"),
    "the number of the row ignored": (head, before_input("row", "Mul", np.zeros(1, np.int32)), "row"),
    "a step too many": (lstm, swapped(Emitter, "steps", lambda f: lambda e, n, i=1: f(e, n + 1, i)), "last"),
    "a step too few": (shifted, swapped(Emitter, "steps", lambda f: lambda e, n, i=1: f(e, n - 1, i)), "last"),
    "sequence_lens dropped": (lstm, edited(without_steps), "last"),
    "sequence_lens of its own overwritten": (own_lengths, edited(lambda p: replaced(p, "Min", "Max")), "row"),
    "a state behind its own lengths": (own_lengths, edited(lambda p: replaced(p, "GreaterOrEqual", "Or")), "row"),
    "lengths in the order that nothing else is in": (
        packed,
        swapped(unsort._Sorting, "leave_out", lengths_sorted),
        "last",
    ),
    "a backward layer stopped at the row": (backwards, swapped(rules.Recurrent, "needs", lenient), "row"),
    "a learned state taken for zeros": (
        *(partial(lstm, True), swapped(rules.recurrent, "is_zero", lambda _: lambda value: value is not None)),
        "last",
    ),
    "rows in front not counted": (
        previous,
        swapped(rules.joining._Joint, "start", lambda _: property(lambda _: 0)),
        "last",
    ),
    "where a slice begins, ignored": (shifted, shift_rule(rules.Slice, moved_rows(offset=lambda _: 0)), "last"),
    "where a slice begins, one off": (
        *(shifted, shift_rule(rules.Slice, moved_rows(offset=lambda one: one.offset + 1))),
        "last",
    ),
    "a sum over time taken for the row's": (sums, swapped(rules.axes, "check_apart", lambda _: skip_check), "last"),
    "axes of a transpose the wrong way round": (
        *(
            time_first_rows,
            shift_rule(rules.Transpose, moved_rows(time=lambda one: one.batch, batch=lambda one: one.time)),
        ),
        "last",
    ),
    "learners before time where time is first": (
        *(time_first_rows, shift_rule(rules.Reshape, moved_rows(time_first=lambda one: not one.time_first))),
        "last",
    ),
    "sizes as the first run had them": (share, swapped(Shapes, "coefficients", lambda _: first_run_alone), "row"),
    "columns cut off where rows are counted": (
        *(share, swapped(trim, "_counts_rows", lambda _: lambda *_: False)),
        "row",
    ),
    "no choice among rows that are joined in time": (
        *(previous, swapped(rules.joining.Concat, "emit", no_choice)),
        "last",
    ),
    "a lookup's indices turned": (head, swapped(rules.Gather, "needs", turned_lookup), "last"),
    "a pick on the wrong axis": (columns, edited(lambda p: gathers_last(p, 3)), "last"),
    "the next position": (positions, swapped(rules.elementwise, "broadcast", unread_time), "last"),
    "causality left out of fused attention": (
        *(partial(attention, "Attention"), swapped(rules.Attention, "emit", lambda _: not_causal)),
        "last",
    ),
    "a mask that lets all through": (attention, edited(lambda p: replaced(p, "LessOrEqual", "Or")), "last"),
    "parts of a fused projection in another order": (
        fused_projection,
        swapped(projection, "_parts", parts_turned),
        "last",
    ),
    "another part of a projection whose parts are an axis": (
        *(packed_projection, swapped(projection, "_parts", parts_turned)),
        "last",
    ),
    "columns of a projection one off": (packed_projection, swapped(projection, "_taken", columns_off), "last"),
    "batch before time where an axis is both and heads": (
        *(weighed, shift_rule(rules.Reshape, moved_rows(time_first=lambda one: not one.time_first))),
        "last",
    ),
    "a mask among the inputs ignored": (masked, edited(lambda p: always(p, "mask")), "last"),
    "the padding in the mean": (head, swapped(Emitter, "_pool", lambda _: whole_mean), "mean"),
    "the padding in the maximum": (rising, edited(lambda p: replaced(p, "Less", "LessOrEqual")), "max"),
    "an encoder's states cut as the rows are": (encoder, cut_by_longest("states"), "last"),
    "time counted in place of an encoder's steps": (
        *(partial(encoder, True), edited(lambda p: shape_of(p, "states", "ids"))),
        "last",
    ),
    "padding left to the first row": (stack, swapped(Emitter, "exist", lambda _: lambda *_: None), "last"),
    "padding set in the first layer alone": (
        *(stack, swapped(Emitter, "exist", lambda f: lambda e, v, at: f(e, v, at) if at.before > 3 else None)),
        "row",
    ),
    "a window a row too far on": (
        *(stack, seen_otherwise(lambda one: replace(one, offset=one.offset + 1))),
        "row",
    ),
    "a window a row too far back": (
        *(stack, seen_otherwise(lambda one: replace(one, offset=one.offset - 1))),
        "last",
    ),
    "of a window the first rows alone": (
        *(
            stack,
            swapped(
                Emitter,
                "part",
                lambda part: lambda e, rows, of, at: part(e, rows, of, replace(at, offset=of.first + at.before)),
            ),
        ),
        "last",
    ),
    "the answer transposed": (square, behind_answer("Transpose", perm=[0, 2, 1]), "last"),
    "the answer a thousandth off": (head, behind_answer("Mul", np.array(1.002, np.float32)), "last"),
    "weights in the precision of 16 bits": (head, edited(rounded), "last"),
    "the row behind the model's own": (
        *(partial(own_row, "rows"), swapped(Emitter, "index", lambda f: lambda e, n: f(e, n + 1))),
        "own",
    ),
    "a step too few for the model's own row": (
        *(own_row, swapped(Emitter, "steps", lambda f: lambda e, n, i=1: f(e, n - 1, i))),
        "own",
    ),
    "a layer of unequal lengths taken for one that ends by itself": (
        *(own_row, swapped(Picker, "ends", lambda _: lambda *_: True)),
        "own",
    ),
    "a length of 0 taken for the first row": (
        *(partial(own_row, "rows"), swapped(Picker, "_from_front", lambda _: lambda _, number: number)),
        "own",
    ),
    "the last row but one": (own_last, edited(lambda p: other_constant(p, -1, -2)), "own"),
    "the padding in the model's own mean": (own_mean, swapped(Picker, "_pool", lambda _: whole_mean), "own"),
    "a mean in place of the model's own sum": (own_mean, swapped(Picker, "answer", lambda _: without_bias), "own"),
    "columns cut off where the answer counts them": (
        *(own_share, swapped(trim, "_counts_rows", lambda _: lambda *_: False)),
        "own",
    ),
    "ids in a byte": (vocabulary, before_input("ids", "Clip", np.array(0, np.int32), np.array(255, np.int32)), "last"),
}


@pytest.mark.parametrize(("model", "fault", "select"), [pytest.param(*case, id=name) for name, case in CASES.items()])
def test_a_fault_of_the_pass_is_seen_before_anything_is_written(model, fault, select, tmp_path, monkeypatch):
    ir.save(model(), tmp_path / "full.onnx")
    declared = Declared(lengths=frozenset({"n"}) if model in (own_lengths, packed) else frozenset())
    given: dict[str, Any] = {"select": select, "window": 64, "declared": declared}
    reduce_file(tmp_path / "full.onnx", tmp_path / "right.onnx", **given)
    assert (tmp_path / "right.onnx").exists()
    fault(monkeypatch)
    with pytest.raises(ReductionError, match=CAUGHT) as raised:
        reduce_file(tmp_path / "full.onnx", tmp_path / "wrong.onnx", **given)
    assert type(raised.value) is ReductionError
    assert not (tmp_path / "wrong.onnx").exists()


def test_what_rounding_does_is_no_fault(tmp_path, monkeypatch):
    """The tolerance is there for sums in another order, and a millionth is one."""
    ir.save(head(), tmp_path / "full.onnx")
    behind_answer("Mul", np.array(1 + 1e-6, np.float32))(monkeypatch)
    proof = reduce_file(tmp_path / "full.onnx", tmp_path / "core.onnx", "last", window=64)[1]
    assert 0 < proof.difference < 1e-5
