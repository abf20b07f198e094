"""What is held out of a preset's training, and who is judged by it: each way in which a score could lie is seen."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from build.bench import quality, variant
from build.core import accuracy
from build.core.inference import Inference
from build.model import checkpoint, preset
from build.model.forecast.training import held
from build.model.next_item.evaluation import judge, local, score
from build.model.next_item.histories import Held, History, leave_one_out
from build.model.next_item.network import Network, create
from build.model.next_item.preset import NextItem
from build.model.next_item.training import train
from build.model.trial import Trial
from build.repository.workspace import PRESETS
from ensemble.chain import answer
from ensemble.errors import LastrowError
from ensemble.interface import Interface
from ensemble.sequence import Sequence
from ensemble.spec import Spec

SMALL: dict[str, dict[str, Any]] = {
    "sasrec": {"sizes__items": 60, "sizes__columns": 61, "network__embedding": 16, "model__buckets": (8, 16)},
    "gru4rec": {"sizes__items": 60, "sizes__columns": 61, "network__embedding": 16, "network__hidden": 16},
    "forecaster": {"sizes__horizon": 6, "model__shortest_history": 4, "network__hidden": 16},
}


def small(name: str, **changes: Any) -> Sequence:
    window = 32 if name == "forecaster" else 16
    made = variant.changed(Spec.read(PRESETS[name]), model__window=window, **{**SMALL[name], **changes})
    assert isinstance(made, Sequence)
    return made


def author(spec: Sequence, kind: preset.Preset) -> Inference:
    torch.manual_seed(0)
    return Inference.of(kind.create().eval(), Path("none.onnx"), spec)


class Server:
    """A client of a server that answers as the model does, or spoils it."""

    def __init__(self, of: Inference, spoil: Any = lambda tensor: tensor) -> None:
        self.of, self.spoil = of, spoil

    def interface(self) -> Interface:
        return Interface.of(self.of.spec)

    def predict(self, asked: SequenceOf[dict[str, np.ndarray]], answers: list[str], **_: Any) -> list[Any]:
        (number,) = [n for n, each in enumerate(self.of.spec.answer) if each.name == answers[0]]
        made, found = self.of.spec.answers[number], []
        for request in asked:
            given = {name: value[None] for name, value in request.items()}
            tensors = answer(made.chain, self.of.rows(given)[0], given)
            first, *others = (tensor[0] for tensor in tensors)
            first = self.spoil(first[first >= 0] if first.dtype.kind == "i" else first)
            found.append(dict(zip((tensor.name for tensor in made.tensors), [first, *others], strict=True)))
        return found


@pytest.mark.parametrize("name", SMALL)
def test_what_is_served_right_is_worth_what_the_model_is(name: str):
    spec = small(name)
    kind = preset.of(spec, None, 12)
    trial, model = kind.trial(30), author(spec, kind)
    found = quality.measure(Server(model), model, trial)  # type: ignore[arg-type]
    served, by_itself, baseline = found.scores.values()
    assert served == pytest.approx(by_itself)
    assert set(baseline) == set(served)
    assert found.requests == len(trial.requests) <= 30
    assert found.same in (None, found.requests)
    assert found.largest_difference < 1e-6


def shuffled(ids: np.ndarray) -> np.ndarray:
    return ids[::-1].copy()


def of_another_history(ids: np.ndarray) -> np.ndarray:
    return (ids + 1) % 61


@pytest.mark.parametrize("spoil", [shuffled, of_another_history, lambda ids: ids[:-1]])
def test_a_ranking_that_is_served_otherwise_is_seen(spoil: Any):
    spec = small("sasrec")
    kind = preset.of(spec, None, 12)
    model = author(spec, kind)
    with pytest.raises(LastrowError, match=r"what is served of sasrec is up to .* off PyTorch; allowed is 1e-04"):
        quality.measure(Server(model, spoil), model, kind.trial(5))  # type: ignore[arg-type]


def test_a_forecast_that_is_served_otherwise_is_seen():
    spec = small("forecaster")
    kind = preset.of(spec, None, 2)
    model = author(spec, kind)
    with pytest.raises(LastrowError, match="what is served of forecaster"):
        quality.measure(Server(model, lambda values: np.roll(values, 1, 0)), model, kind.trial(5))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
def test_a_trial_ranks_as_the_training_does(name: str):
    spec = small(name)
    kind = NextItem(spec, None, 40)
    trial, model = kind.trial(), kind.create().eval()
    by_itself = Inference.of(model, Path("none.onnx"), spec)
    ranked = [
        trial.answered(number, by_itself.rows({name: value[None] for name, value in request.items()})[0][0])
        for number, request in enumerate(trial.requests)
    ]
    _, _, test = kind.split()
    wanted = score(local(model, spec.model.window), test)
    assert list(trial.worth(ranked).values()) == pytest.approx([wanted.hit_rate, wanted.ndcg])


def test_an_item_that_was_had_is_neither_ranked_nor_asked_about():
    ada = History("ada", np.array([3, 9], np.int32))
    with pytest.raises(LastrowError, match="item 9 is ranked for user ada, who has had it"):
        judge([np.array([5, 9, 7])], [Held(ada, 7)])
    assert judge([np.array([5, 7])], [Held(ada, 7)]).hit_rate == 1
    assert score(lambda asked: np.array([[7]] * len(asked)), [Held(ada, 7), Held(ada, 9)]).users == 1


@pytest.mark.parametrize("planted", [False, True], ids=["next", "the same item again"])
def test_the_target_is_the_item_after(planted: bool, monkeypatch: pytest.MonkeyPatch):
    """Users walk round a circle: who learns the next item knows it; who is given the item itself has learned nothing."""
    if planted:
        monkeypatch.setattr(Network, "before", lambda self, item_ids: self.states(item_ids))
    torch.manual_seed(0)
    items, rng = 60, np.random.default_rng(0)
    starts = rng.integers(items, size=1000)
    users = [History(str(n), ((start + np.arange(12)) % items + 1).astype(np.int32)) for n, start in enumerate(starts)]
    training, _, test = leave_one_out(users)
    model = create("gru4rec", items=items, embedding=16, hidden=32)
    found = train(model, training, test, 16, budget_s=600, max_epochs=40)
    assert (found.ndcg < 0.6) if planted else (found.ndcg > 0.9)


def test_a_forecast_is_held_against_the_rows_behind_its_window():
    spec = small("forecaster")
    kind = preset.of(spec, None, 2)
    trial = kind.trial(20)
    (asked,) = spec.history
    _, follows = held(kind.series(), spec.model.window, 6)  # type: ignore[attr-defined]
    everything = kind.trial()
    right = [np.repeat(each[:, None], 3, 1) for each in follows]
    assert list(everything.worth(right).values()) == pytest.approx([0, 0, 1])
    early = [np.roll(each, 1, 0) for each in right]
    assert everything.worth(early)["mean absolute error"] > 1
    assert len(trial.requests) == 20
    assert trial.requests[0][asked].shape == (32, 8)


def test_a_spec_that_ranks_nothing_is_told():
    spec = small("sasrec")
    spec = spec.model_copy(update={"answer": tuple(each for each in spec.answer if each.name != "next_items")})
    with pytest.raises(LastrowError, match=r'needs an \[\[answer\]\] with chain = \[\{ leave_out = "item_ids" \}, '):
        NextItem(spec, None, 12).trial()
    with pytest.raises(LastrowError, match="a network of type 'onnx' is not trained here, and so nothing is held out"):
        preset.of(variant.changed(spec, network={"type": "onnx"}))


@pytest.mark.parametrize("name", SMALL)
def test_each_precision_is_measured_as_the_preset_is(name: str, tmp_path: Path):
    spec = small(name, parity__int8_max_abs_difference=1e-7, parity__float16_max_abs_difference=0.5)
    kind = preset.of(spec, None, 12)
    torch.manual_seed(0)
    model = kind.create().eval()
    checkpoint.save(model, tmp_path / "model.pt")
    trial = kind.trial(40)
    found = accuracy.cost(spec, tmp_path / "model.pt", trial)
    by_itself = worth_of(Inference.of(model, Path("none.onnx"), spec), trial)
    assert found["float32"].worth == pytest.approx(by_itself, rel=1e-4)
    assert found["float32"].largest_difference == 0
    assert 0 < found["float16"].largest_difference < 0.05
    assert found["float16"].refused is None
    assert 0 < found["int8"].largest_difference < 0.2
    assert "off float32 at most, and 1e-07 is allowed (parity.int8_max_abs_difference)" in str(found["int8"].refused)


def worth_of(model: Inference, trial: Trial) -> dict[str, float]:
    rows = [model.rows({name: value[None] for name, value in request.items()})[0][0] for request in trial.requests]
    return dict(trial.worth([trial.answered(number, row) for number, row in enumerate(rows)]))
