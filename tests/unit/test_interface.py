"""What a client knows of a model is the same by its spec and by the configuration that a server has of it."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from build.repository import config
from ensemble.errors import SpecError
from ensemble.interface import Answered, Interface, size
from ensemble.knowledge_tracing import narrowed
from ensemble.spec import Spec

NEXT_ITEM: dict[str, Any] = {
    "model": {"name": "sasrec", "window": 8, "padding": "left"},
    "sizes": {"items": 100, "columns": 101},
    "network": {"type": "onnx"},
    "history": {
        "item_ids": {"dtype": "INT32", "values": [1, "items"], "padding": 0},
        "prices": {"dtype": "FP32", "shape": [2]},
    },
    "context": {
        "candidate_ids": {"dtype": "INT32", "shape": [-1], "values": [1, "items"]},
        "age": {"dtype": "INT32", "values": [0, 120], "default": 0},
        "profile": {"dtype": "FP32", "shape": [3]},
    },
    "inputs": {"ids": "item_ids", "money": "prices", "age": "age", "profile": "profile"},
    "outputs": {"logits": {"shape": ["columns"]}},
    "row": {"select": "last"},
    "answer": [
        {"name": "scores"},
        {"name": "next_items", "chain": [{"leave_out": "item_ids"}, {"top": 10}]},
        {"name": "candidate_scores", "chain": [{"at": "candidate_ids"}]},
    ],
    "batching": {"max_batch_size": 4, "longest_history": 20},
    "words": {"history": "user", "histories": "users", "step": "item", "steps": "items"},
}


def next_item(**changes: Any) -> Spec:
    return Spec.model_validate({**NEXT_ITEM, **changes})


def test_both_ways_tell_the_same(spec: Spec):
    for described in (spec, next_item()):
        ensemble = config.repository(described)[described.model.name]
        read = text_format.Parse(config.to_text(ensemble), ModelConfig())
        assert Interface.of_config(read) == Interface.of(described)


def test_what_it_tells():
    of = Interface.of(next_item())
    assert [(t.name, t.dtype, t.shape, t.optional) for t in of.inputs] == [
        ("item_ids", "INT32", [-1], False),
        ("prices", "FP32", [-1, 2], False),
        ("candidate_ids", "INT32", [-1], True),
        ("age", "INT32", [1], True),
        ("profile", "FP32", [3], False),
    ]
    assert of.answers == (
        Answered("scores", ("scores",)),
        Answered("next_items", ("next_items_ids", "next_items_values")),
        Answered("candidate_scores", ("candidate_scores",), "candidate_ids"),
    )
    assert [answer.picks for answer in of.answers] == [False, True, False]
    assert {t.name: size(t, 7) for t in of.outputs} == {
        "scores": 404, "next_items_ids": 40, "next_items_values": 40, "candidate_scores": 28,
    }  # fmt: skip


def test_knowledge_tracings_answers_are_called_as_the_client_does(spec: Spec):
    assert [answer.name for answer in Interface.of(spec).answers] == ["probabilities", "next_problems"]


@pytest.mark.parametrize("missing", ["contract", "answers"])
def test_a_configuration_that_does_not_say_it_is_named(spec: Spec, missing: str):
    ensemble = config.repository(spec)[spec.model.name]
    del ensemble.parameters[missing]
    with pytest.raises(SpecError, match=rf"configuration of knowledge_tracing does not say .*'{missing}'.* its spec$"):
        Interface.of_config(ensemble)


def test_what_is_for_learners_names_another_kind(spec: Spec):
    assert narrowed(spec) is spec
    with pytest.raises(SpecError, match=r"and sasrec is another kind of model: give a spec with \[tensors\]"):
        narrowed(next_item())
