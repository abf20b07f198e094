"""Sequence models that people serve, small and with random weights: cut exactly, or refused with what to change."""

from __future__ import annotations

import logging
import re
import warnings
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from build.core.reduce import Declared, Select
from tests.unit.reduce.example import Example, Options
from tests.unit.reduce.inputs import BATCH, TIME, Given
from tests.unit.reduce.test_fuzz import examine
from tests.zoo.models import (
    GPT2,
    LONGEST,
    SAKT,
    Bert,
    BertEveryRow,
    DeepAR,
    Forecast,
    ForecastLast,
    GPT2Unmasked,
    GRU4Rec,
    OwnRow,
    SASRec,
    T5Encoder,
    Tagger,
    TimeMajor,
    TimeMajorPacked,
)

IDS_IN = Given("ids", "ids", (BATCH, TIME), np.int64)
COUNT = Given("n", "length", (BATCH,), np.int64)
MASK = Given("attention_mask", "mask", (BATCH, TIME), np.int64)
SEGMENT = Given("segment", "ids", (BATCH, TIME), np.int64, 2)
TOKENS = Given("ids", "ids", (TIME, BATCH), np.int64)
SERIES = Given("x", "values", (BATCH, TIME, 3), np.float32)
QUESTIONS = (
    *(Given("q", "ids", (BATCH, TIME), np.int64), Given("r", "ids", (BATCH, TIME), np.int64, 2)),
    Given("query", "ids", (BATCH, TIME), np.int64),
)
MASKED = Declared(masks=frozenset({"attention_mask"}))


@dataclass(frozen=True)
class Case:
    """A model, and what becomes of it; refusal: part of what is told, empty where the cut is right.

    `select`, `time_axis`, `declared` and `output`: options of the pass.
    """

    make: type[nn.Module]
    given: tuple[Given, ...]
    refusal: str = ""
    select: Select = "last"
    time_axis: int = 1
    declared: Declared = field(default_factory=Declared)
    output: str = "answer"


NO_ROWS = "of a model that selects its row itself, take --select own"
UNKNOWN = "'attention_mask' .* --mask NAME"

CASES = {
    "sasrec": Case(SASRec, (IDS_IN,)),
    "gru4rec": Case(GRU4Rec, (IDS_IN,)),
    "gru4rec, its own row": Case(OwnRow, (IDS_IN, COUNT), select="own"),
    "gru4rec, the last row of its own": Case(OwnRow, (IDS_IN, COUNT), NO_ROWS),
    "sakt": Case(SAKT, QUESTIONS),
    "gpt2": Case(GPT2, (IDS_IN, MASK), declared=MASKED),
    "gpt2, nothing said": Case(GPT2, (IDS_IN, MASK), UNKNOWN),
    "gpt2 without a mask": Case(GPT2Unmasked, (IDS_IN,)),
    "bert": Case(Bert, (IDS_IN, MASK, SEGMENT), select="own", declared=MASKED),
    "bert, every row": Case(BertEveryRow, (IDS_IN, MASK, SEGMENT), select="row", declared=MASKED),
    "bert, the last row": Case(BertEveryRow, (IDS_IN, MASK, SEGMENT), declared=MASKED),
    "bert, nothing said": Case(BertEveryRow, (IDS_IN, MASK, SEGMENT), UNKNOWN, select="row"),
    "t5, mean": Case(T5Encoder, (IDS_IN, MASK), select="mean", declared=MASKED),
    "t5, nothing said": Case(T5Encoder, (IDS_IN, MASK), UNKNOWN, select="mean"),
    "time first": Case(TimeMajor, (TOKENS,), time_axis=0),
    "time first, not said": Case(TimeMajor, (TOKENS,), "Name another output or time axis|changes with"),
    "time first, packed": Case(TimeMajorPacked, (TOKENS, COUNT), time_axis=0),
    "tagger": Case(Tagger, (IDS_IN,), select="row"),
    "tagger, the last row": Case(Tagger, (IDS_IN,), "looks ahead .* take --select row"),
    "forecast": Case(Forecast, (SERIES,)),
    "forecast, its own row": Case(ForecastLast, (SERIES,), select="own"),
    "deepar, mean": Case(DeepAR, (SERIES, Given("static", "values", (BATCH, 4), np.float32))),
    "deepar, spread": Case(DeepAR, (SERIES, Given("static", "values", (BATCH, 4), np.float32)), output="second"),
}


@cache
def exported(make: type[nn.Module], given: tuple[Given, ...]) -> ir.Model:
    torch.manual_seed(0)
    model = make().eval()
    sizes, lengths = {BATCH: 2, TIME: 7}, np.array([7, 4])
    rng = np.random.default_rng(0)
    examples = tuple(torch.from_numpy(each.draw(sizes, lengths, rng)) for each in given)
    first = model(*examples)
    names = ["answer", "second"][: len(first) if isinstance(first, tuple) else 1]
    axes = {each.name: {n: str(axis) for n, axis in enumerate(each.axes) if isinstance(axis, str)} for each in given}
    answer = first[0] if isinstance(first, tuple) else first
    rows = {n: axis for n, axis in enumerate(given[0].axes[:2]) if answer.shape[n] == sizes[str(axis)]}
    with warnings.catch_warnings(), TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        # The older exporter, which is the faster one, writes the example's sizes into nn.MultiheadAttention.
        if any(isinstance(module, nn.MultiheadAttention) for module in model.modules()):
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            program = torch.onnx.export(
                *(model, examples),
                dynamo=True,
                dynamic_shapes=tuple(axes.values()),
                verbose=False,
                input_names=list(axes),
                output_names=names,
                opset_version=18,
            )
            assert program is not None
            return program.model
        file = Path(folder) / "model.onnx"
        torch.onnx.export(
            *(model, examples, str(file)),
            dynamo=False,
            input_names=[each.name for each in given],
            output_names=names,
            dynamic_axes={**axes, **dict.fromkeys(names, rows)},
            opset_version=17,
        )
        return ir.from_proto(ir.to_proto(ir.load(file)))


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
def test_a_model_that_people_serve_is_cut_exactly_or_told_what_to_change(case):
    options = Options(case.select, case.time_axis, (case.output,), LONGEST, case.declared)
    refusal = examine(Example(exported(case.make, case.given), case.given, options, False, frozenset()))
    if case.refusal:
        assert re.search(case.refusal, refusal), refusal or "it is written"
    else:
        assert not refusal
