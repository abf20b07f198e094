import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from build import ROOT
from build.model import checkpoint
from build.model.checkpoint import state as states
from build.model.interactions import DataError
from build.model.next_item import network
from build.model.next_item.evaluation import local, padded, popularity, score
from build.model.next_item.histories import Held, History, items, leave_one_out, read
from build.model.next_item.simulation import simulate
from build.model.next_item.training import train
from ensemble.errors import LastrowError

SIZES = {
    "sasrec": {"items": 30, "window": 64, "embedding": 8, "blocks": 2, "heads": 2},
    "gru4rec": {"items": 30, "embedding": 8, "hidden": 12},
}
DATA = Path(os.environ.get("LASTROW_ITEMS", ROOT.parent / "shared" / "data" / "ml100k" / "histories.txt"))


def made(kind: str) -> network.Network:
    torch.manual_seed(0)
    return network.create(kind, **SIZES[kind]).eval()


def history(*ids: int, user: str = "ada") -> History:
    return History(user, np.array(ids, np.int32))


@pytest.mark.parametrize("length", [0, 1, 7, 20])
@pytest.mark.parametrize("kind", SIZES)
def test_an_answer_does_not_change_with_the_padding(kind, length):
    model = made(kind)
    ids = torch.randint(1, 31, (1, length))
    with torch.inference_mode():
        wanted = model.last(ids, torch.tensor([length])) if length else model.head(model.cold(1))
        for width in (20, 50, 64):
            pads = (width - length, 0) if model.left else (0, width - length)
            wide = torch.nn.functional.pad(ids, pads)
            torch.testing.assert_close(model.last(wide, torch.tensor([length])), wanted, atol=1e-5, rtol=0)
            if model.left:  # the row that is served
                torch.testing.assert_close(model(wide)[:, -1], wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", SIZES)
def test_no_row_looks_ahead_and_every_row_looks_back(kind):
    model, ids = made(kind), torch.randint(1, 30, (2, 12))
    later = ids.clone()
    later[:, 6] += 1
    with torch.inference_mode():
        changed = (model(ids) - model(later)).abs().amax(-1)
    assert (changed[:, :6] == 0).all()
    assert (changed[:, 6:] > 1e-6).all()


@pytest.mark.parametrize("kind", SIZES)
def test_an_item_is_predicted_from_those_before_it(kind):
    model = made(kind)
    ids = torch.from_numpy(padded([np.arange(1, 9), np.arange(3, 6)], model.left))
    with torch.inference_mode():
        before, cold = model.before(ids), model.cold(1)[0]
        first = ids.shape[1] - 3 if model.left else 0
        torch.testing.assert_close(before[1, first], cold)
        torch.testing.assert_close(before[0, 1:], model.states(ids[:, :-1])[0])


@pytest.mark.parametrize("kind", SIZES)
def test_the_export_answers_as_pytorch_at_other_sizes(kind, tmp_path):
    model, axes = made(kind), {0: "batch", 1: "time"}
    torch.ops.aten.gru.input._dispatch_cache.clear()
    example = (torch.ones(2, 7, dtype=torch.int32),)
    program = torch.onnx.export(model, example, dynamo=True, dynamic_shapes=(axes,), opset_version=18, verbose=False)
    program.save(str(tmp_path / "model.onnx"))
    session = ort.InferenceSession(str(tmp_path / "model.onnx"))
    for size in ((1, 1), (3, 5), (2, 33)):
        ids = torch.randint(0, 31, size, dtype=torch.int32)
        (answer,) = session.run(None, {session.get_inputs()[0].name: ids.numpy()})
        with torch.inference_mode():
            np.testing.assert_allclose(answer, model(ids).numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", SIZES)
def test_a_checkpoint_tells_its_sizes(kind, tmp_path):
    model = made(kind)
    checkpoint.save(model, tmp_path / "model.pt")
    state = states.read(tmp_path / "model.pt")
    assert network.describe(state) == {"type": kind, **SIZES[kind]}
    network.create(**network.describe(state)).load_state_dict(state)


@pytest.mark.parametrize("kind", SIZES)
def test_training_beats_popularity(kind):
    torch.manual_seed(0)
    sizes = {"window": 32, "blocks": 1, "heads": 1} if kind == "sasrec" else {"hidden": 32}
    model = network.create(kind, items=400, embedding=32, **sizes)
    training, _, test = leave_one_out(simulate(400, 300))
    report = train(model, training, test, 32, budget_s=30, max_epochs=12)
    assert report.hit_rate > 1.5 * report.baseline_hit_rate
    assert not model.training
    assert '"hit_rate"' in report.to_json()


def test_simulated_users_are_reproducible_and_take_nothing_twice():
    first, again, other = simulate(300, 50), simulate(300, 50), simulate(300, 50, seed=1)
    assert all((a.item_ids == b.item_ids).all() for a, b in zip(first, again, strict=True))
    assert any(len(a) != len(b) for a, b in zip(first, other, strict=True))
    assert all(len(set(h.item_ids.tolist())) == len(h) and h.item_ids.min() >= 1 for h in first)
    assert items(first) <= 300


def test_hit_rate_and_ndcg_of_a_known_ranking():
    held = [Held(history(1), 2), Held(history(1), 3), Held(history(1), 9), Held(history(5), 5)]
    found = score(lambda asked: np.array([[2, 3, 4]] * len(asked)), held)
    assert found.users == 3  # the last one's item had been seen
    assert found.hit_rate == pytest.approx(2 / 3)
    assert found.ndcg == pytest.approx((1 + 1 / np.log2(3)) / 3)


@pytest.mark.parametrize("kind", SIZES)
def test_what_was_seen_is_never_ranked(kind):
    model, rng = made(kind), np.random.default_rng(0)
    asked = [history(*(rng.permutation(30)[:n] + 1)) for n in (25, 0, 3)]
    for ranked in (local(model, 16)(asked), popularity(asked, 30)(asked)):
        assert ranked.shape == (3, 10)
        for row, each in zip(ranked, asked, strict=True):
            assert not set(row) & set(each.item_ids.tolist())
        assert (ranked[0] == 0).sum() == 5  # of 30 items 25 were seen
    with torch.inference_mode():
        alone = model(torch.from_numpy(asked[2].item_ids)[None])[0, -1].clone()
        alone[[0, *asked[2].item_ids.tolist()]] = -torch.inf
    assert local(model, 16)(asked)[2].tolist() == alone.topk(10).indices.tolist()


def test_popularity_counts_and_breaks_ties_by_id():
    ranked = popularity([history(3, 2), history(3, 1)], 4)([history(2)])
    assert ranked[0].tolist() == [3, 1, 4, 0, 0]


def test_histories_are_read_and_held_out(tmp_path):
    (tmp_path / "a.txt").write_text("196:286,655,3\n\n7:5\n")
    (tmp_path / "a.jsonl").write_text('{"user": 196, "item_ids": [286, 655, 3]}\n{"user": "7", "item_ids": [5]}\n')
    for name in ("a.txt", "a.jsonl"):
        found = read(tmp_path / name)
        assert [(h.user, h.item_ids.tolist()) for h in found] == [("196", [286, 655, 3]), ("7", [5])]
    training, validation, test = leave_one_out(found)
    assert [h.item_ids.tolist() for h in training] == [[286], [5]]
    assert [(h.history.item_ids.tolist(), h.item_id) for h in (*validation, *test)] == [([286], 655), ([286, 655], 3)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "has no histories"),
        ("a.txt", "1:2\n5,6\n", "line 2: '5,6' has no colon"),
        ("a.txt", "1:2\n2:5,x\n", "line 2: item 'x' at position 1"),
        ("a.txt", "1:0\n", "line 1: item '0' at position 0; item ids are whole numbers from 1"),
        ("a.jsonl", "{\n", "line 1: not JSON"),
        ("a.jsonl", '{"user": 1}\n', "line 1: needed is"),
        ("a.jsonl", '{"user": 1, "item_ids": [1.5]}\n', "line 1: item 1.5 at position 0"),
    ],
)
def test_a_malformed_file_is_explained(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as raised:
        read(tmp_path / name)
    assert message in str(raised.value)
    assert name in str(raised.value)


def test_what_cannot_be_read_or_trained_on_is_explained(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read(tmp_path / "absent.txt")
    with pytest.raises(LastrowError, match="user ada has item ids 1 to 31; the model has 1 to 30"):
        train(made("gru4rec"), [history(1, 31)], [], 16)
    with pytest.raises(LastrowError, match="no user has an item"):
        train(made("gru4rec"), [history(1, 2)], [], 16)


@pytest.mark.skipif(not DATA.is_file(), reason=f"no histories at {DATA}; set LASTROW_ITEMS to their file")
def test_published_histories_are_read():
    histories = read(DATA)
    assert (len(histories), items(histories)) == (754, 1682)
    training, _, test = leave_one_out(histories)
    assert score(popularity(training, 1682), test).hit_rate == pytest.approx(0.053, abs=0.01)
