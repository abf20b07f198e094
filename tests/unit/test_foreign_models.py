"""A core of a model as its author wrote it answers as the author's own inference, which knows nothing of this project."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from build.core import recipe
from build.core.inference import run
from build.core.reduce.file import open_session
from build.core.served import types
from ensemble.chain import answer
from ensemble.sample import draw
from ensemble.sequence import Sequence
from ensemble.spec import Spec
from ensemble.values import is_padding
from tests.zoo import foreign_types
from tests.zoo.foreign import WINDOW, Foreign, Given

TELLING = (
    "Packed", "EncoderDecoder", "Towers", "Likes", "Blind", "Signed", "TargetIndex", "Double", "Named", "AdditiveMask",
    "Below", "MaskToken", "Caser",
)  # fmt: skip
SIZES = [(1,), (2,), (WINDOW - 1,), (WINDOW,), (WINDOW + 5,), (1, WINDOW + 5, 3, WINDOW), (5, 5)]


def described(made: type[Foreign]) -> Sequence:
    network = {"type": "module", "factory": f"{made.__module__}:{made.__name__}"}
    spec = Spec.model_validate(
        {**made.spec, "network": network, "batching": {"max_batch_size": 8, "longest_history": 40}}
    )
    assert isinstance(spec, Sequence)
    return spec


def own(spec: Sequence, request: dict[str, np.ndarray], number: int, length: int) -> tuple[Given, Given]:
    """One history's window and its contexts, without padding, as its author has them."""
    first = max(length - WINDOW, 0)
    steps = {name: torch.from_numpy(request[name][number, first:length].copy()) for name in spec.contract.inputs}
    contexts = {}
    for name, allowed in spec.contract.contexts.items():
        if name in request:
            value = request[name][number]
            value = value[~is_padding(request[name], allowed)[number]] if allowed.is_open else value
            contexts[name] = torch.as_tensor(value - first if name == spec.row.index else value)
    typed = [{n: v if v.is_floating_point() else v.long() for n, v in given.items()} for given in (steps, contexts)]
    return typed[0], typed[1]


@pytest.mark.parametrize("name", TELLING)
def test_a_core_answers_as_the_author_does(name, tmp_path):
    made = foreign_types.MODELS[name]
    spec = described(made)
    torch.manual_seed(0)
    model = made().eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    recipe.make(spec, Path(tmp_path / "weights.pt"), tmp_path / "core.onnx")
    session = open_session(tmp_path / "core.onnx")
    for seed, lengths in enumerate([*SIZES, *SIZES, *([(0,), (3, 0, WINDOW)] if spec.shortest_history == 0 else [])]):
        request = draw(spec.contract, lengths, seed)
        if seed % 2:
            request = {key: value for key, value in request.items() if key not in dict(spec.contract.defaults)}
        fed = spec.contract.feed(request, spec.contract.check(request), types(spec))
        (rows, *_) = run(session, fed, [tensor.name for tensor in spec.cores[0].outputs])
        (answers,) = answer(spec.answers[0].chain, rows, request)
        for number, length in enumerate(lengths):
            with torch.inference_mode():
                wanted = made.alone(model, *own(spec, request, number, length)).float().numpy()
            apart = np.abs(answers[number].reshape(wanted.shape) - wanted).max()
            assert apart <= made.close * max(np.abs(wanted).max(), 1e-6), (lengths, number)
