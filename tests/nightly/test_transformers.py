"""Models of the transformers library, which the extra of that name brings: built in parity, their inputs recognised."""

from __future__ import annotations

import pytest

from build.repository import assembly
from tests import zoo

pytest.importorskip("transformers", reason="needs the extra: pip install .[transformers]")

MASKED = ["input_ids", "attention_mask"]


@pytest.mark.parametrize(
    ("like", "made", "inputs"),
    [
        ("gpt2", "GPT2", MASKED),
        ("gpt2", "GPT2Unmasked", MASKED[:1]),
        ("gpt2", "Llama", MASKED),
        ("bert", "Bert", [*MASKED, "token_type_ids"]),
        ("bert_every_row", "BertEveryRow", [*MASKED, "token_type_ids"]),
        ("t5_encoder", "T5Encoder", MASKED),
    ],
)
def test_a_model_of_the_library_is_built_in_parity(like, made, inputs, tmp_path):
    spec = zoo.read(like, network__factory=f"tests.zoo.library:{made}", inputs=inputs)
    built = assembly.build(spec, zoo.save(spec, tmp_path / "weights.pt"), tmp_path / "models")
    assert built.parity <= 1e-4
