"""The ladder's parts that need no server."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
import tomlkit
import torch

from build.bench import load, question, reply, statistic, variant
from build.bench.caller import full_windows
from build.bench.ladder import figures, ladder, local, rung, waterfall
from build.bench.ladder.ladder import hops
from build.repository.workspace import PRESETS, Workspace
from ensemble.errors import LastrowError
from ensemble.learners.history import History, windows
from ensemble.spec import DEFAULT_SPEC, Spec


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (
            None,
            ["0", *"123456", "7a", "7b", "8", "9", "10", "11a", "11b", "11c", "11d", "11e", "11f", "12", "13", "floor"],
        ),
        ("11", ["11a", "11b", "11c", "11d", "11e", "11f"]),
        ("11c,floor", ["11c", "floor"]),
        ("1", ["1"]),
        ("4-6, floor", ["4", "5", "6", "floor"]),
        ("10,0", ["0", "10"]),
    ],
)
def test_rungs_are_selected_by_number(text: str | None, numbers: list[str]):
    assert list(dict.fromkeys(r.number for r in rung.select(text))) == numbers


@pytest.mark.parametrize("text", ["14", "naive", "1-", "", "3-14"])
def test_a_rung_that_is_not_there_is_named(text: str):
    with pytest.raises(rung.RungError, match="there are 0 to 13 and floor"):
        rung.select(text)


def differing(one: dict[str, object], other: dict[str, object], path: str = "") -> set[str]:
    """Dotted keys whose values differ."""
    found = set()
    for key in one:
        if isinstance(one[key], dict):
            found |= differing(one[key], other[key], f"{path}{key}.")  # type: ignore[arg-type]
        elif one[key] != other[key]:
            found.add(path + key)
    return found


def test_each_repository_is_the_one_before_plus_one_change(spec: Spec):
    made = rung.variants(spec)
    order = ["naive", "delay", "row", "head", "int32", "length", "widths"]
    changes = [differing(made[a].spec.model_dump(), made[b].spec.model_dump()) for a, b in itertools.pairwise(order)]
    assert (made["naive"].naive_delay_us, made["delay"].naive_delay_us) == (100_000, 100)
    assert changes[0] == changes[1] == set()
    assert changes[2] == {"reduce.where"}
    assert {change.split(".")[-1] for change in changes[3]} == {"dtype"}
    assert changes[4] == {"reduce.length_aware"}
    assert changes[5] == {"model.buckets"}
    assert differing(made["widths"].spec.model_dump(), spec.model_dump()) == {"steps.core.queue_delay_us"}


def test_each_repository_on_a_gpu_is_the_one_before_plus_one_change(spec: Spec):
    made = rung.on_a_gpu(rung.variants(spec)["widths"].spec)
    order = ["cuda", "bound", "whole", "graphs", "half"]
    assert list(made) == order
    changes = [differing(made[a].spec.model_dump(), made[b].spec.model_dump()) for a, b in itertools.pairwise(order)]
    assert changes == [
        {"steps.core.io_binding"},
        {"reduce.length_aware", "model.buckets"},
        {"steps.core.graph_batch_sizes"},
        {"export.precision"},
    ]
    assert made["graphs"].spec.model.widths == (64, 128, 256, 512)
    assert {variant.spec.steps.core.device for variant in made.values()} == {"gpu"}


def test_the_ladder_below_a_gpus_rungs_stays_on_the_cpu(spec: Spec):
    served = rung.on_a_gpu(spec)["half"].spec
    below = [variant.spec for variant in rung.variants(served).values()] + rung.candidates(served, quick=True)
    assert {(s.steps.core.device, s.export.precision) for s in below} == {("cpu", "float32")}


def test_rungs_of_a_gpu_are_skipped_by_name(small_spec: Spec, tmp_path):
    space = Workspace(small_spec, tmp_path / "spec.toml", tmp_path / "model.pt", tmp_path / "models", learners=40)
    for device, reason in ((None, "no GPU on this machine"), ("gpu", "no GPU on this machine"), ("cpu", "DEVICE=cpu")):
        if device != "cpu" and torch.cuda.is_available():
            continue
        climb = ladder.Climb(space, rung.select("11,8"), ladder.Settings.quick(), tmp_path, device=device)
        assert {r.skipped for r in climb.rungs if r.number != "8"} == {reason}
        assert rung.names(climb.rungs) == ["tuned"]


def test_a_process_on_a_gpu_that_is_not_there_says_so(small_spec: Spec, small_checkpoint, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    (tmp_path / "spec.toml").write_text(tomlkit.dumps(small_spec.model_dump(mode="json", exclude_none=True)))
    with pytest.raises(local.LocalError, match="no GPU on this machine"):
        local.Local("gpu-onnxruntime", tmp_path / "spec.toml", small_checkpoint, tmp_path / "core.onnx")


def test_gpu_ratios_are_of_rungs_that_there_are():
    names = {r.name for r in rung.RUNGS}
    assert {name for _, *pair, _ in figures.GPU_RATIOS for name in pair} <= names


def test_bytes_fall_from_rung_to_rung(spec: Spec):
    made = rung.variants(spec)
    sizes = {
        name: hops(variant.spec, rung.Rung("", name, "", part="naive" if variant.naive_delay_us else "ensemble"))
        for name, variant in made.items()
    }
    assert sizes["naive"] == {"request": 8192, "reply": 512 * 14041 * 4}
    assert sizes["row"]["reply"] == 14041 * 4
    assert sizes["row"]["core to postprocess"] == 512 * 14041 * 4
    assert sizes["head"]["core to postprocess"] == 14041 * 4
    assert sizes["int32"]["request"] == 8192 // 2 * 1
    assert sizes["widths"] == sizes["length"] == sizes["int32"]


@pytest.mark.parametrize("name", ["knowledge_tracing", "sasrec", "gru4rec", "forecaster"])
def test_the_rung_of_one_model_is_the_tuned_one_in_the_other_layout(name: str):
    spec = Spec.read(DEFAULT_SPEC.with_name(f"{name}.toml"))
    single = rung.in_one_model(spec).spec
    assert differing(spec.model_dump(), single.model_dump()) == {"serve.layout"}
    (one,) = [r for r in rung.rungs(spec) if r.name == "one model"]
    assert (one.number, one.variant, one.skipped) == ("13", "single", None)
    assert hops(single, one) == {way: hops(spec, one)[way] for way in ("request", "reply")}
    # Whatever the layout of the spec, all other rungs are the ensemble's.
    others = [made.spec for made in rung.variants(single).values()] + rung.candidates(single, quick=True)
    assert {other.serve.layout for other in others} == {"ensemble"}


def test_one_model_selects_no_row(spec: Spec):
    (one,) = [r for r in rung.rungs(variant.changed(spec, reduce__where="postprocess")) if r.name == "one model"]
    assert one.skipped is not None
    assert 'reduce.where = "core"' in one.skipped


def test_a_model_that_does_it_all_has_a_part_of_its_own():
    parts = waterfall.named({"queue": 1.0, "sasrec": 2.0, "core_scores": 3.0, "naive": 4.0})
    assert {name: ms for name, ms in parts.items() if ms} == {"queue": 1.0, "core": 7.0, "one model": 2.0}


def test_candidates_share_the_cores_out(spec: Spec):
    for candidate in rung.candidates(spec, quick=False):
        core = candidate.steps.core
        assert core.instances * core.intra_op_threads == len(os.sched_getaffinity(0))
        assert core.queue_delay_us == 0


def test_windows_keep_the_newest_and_pad_with_zeros():
    ids, responses, lengths = windows([History("a", [5, 6, 7], [1, 0, 1]), History("b", [9], [1])], [2])
    assert ids.tolist() == [[6, 7], [9, 0]]
    assert responses.tolist() == [[0, 1], [1, 0]]
    assert lengths.tolist() == [2, 1]


class Sleeper:
    """Answers after a while; counts how many are under way at once."""

    busy, most, lock = 0, 0, threading.Lock()

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def ask(self, histories: Sequence[History]) -> list[np.ndarray]:
        with self.lock:
            Sleeper.busy += 1
            Sleeper.most = max(Sleeper.most, Sleeper.busy)
        time.sleep(self.seconds)
        with self.lock:
            Sleeper.busy -= 1
        return [np.zeros(1) for _ in histories]

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("streams", "size"), [(1, 1), (4, 1), (2, 3)])
def test_load_is_a_closed_loop(small_spec: Spec, streams: int, size: int):
    Sleeper.most = 0
    turn = load.run([Sleeper(0.02) for _ in range(streams)], full_windows(small_spec), size, 0.5)
    assert Sleeper.most == streams
    assert all(latency >= 20 for latency in turn.latencies_ms)
    assert max(turn.client_ms) < 20  # sleeping is not the client's work
    assert 0.5 * streams * size / 0.02 < turn.throughput <= streams * size / 0.02


def test_an_error_of_one_stream_ends_the_turn(small_spec: Spec):
    class Broken(Sleeper):
        def ask(self, histories: Sequence[History]) -> list[np.ndarray]:
            raise ConnectionError(f"it went away from {len(histories)}")

    with pytest.raises(ConnectionError, match="it went away"):
        load.run([Sleeper(0.01), Broken(0.01), Sleeper(0.01)], full_windows(small_spec), 1, 5.0)


def test_the_interval_holds_the_median_and_narrows_with_agreement():
    rng = np.random.default_rng(0)
    for spread in (0.1, 1.0):
        values = 10 + spread * rng.standard_normal(20)
        low, high = statistic.interval(values)
        assert low <= np.median(values) <= high
        assert high - low < 2 * spread


def test_parts_add_up_to_the_whole():
    def counted(success: int, queue: int, inputs: int, infer: int, requests: int) -> dict[str, tuple[int, int]]:
        spent = {"queue": queue, "compute_input": inputs, "compute_infer": infer, "success": success}
        return {phase: (int(ns), requests) for phase, ns in spent.items()}

    before = {name: counted(0, 0, 0, 0, 0) for name in ("ensemble", "preprocess", "core", "propose")}
    after = {
        "ensemble": counted(20e6, 0, 0, 0, 2),
        "preprocess": counted(3e6, 1e6, 1e6, 1e6, 2),
        "core": counted(14e6, 2e6, 0, 12e6, 2),
        "propose": counted(0, 0, 0, 0, 0),
    }
    parts = statistic.parts(before, after, "ensemble")
    assert parts == pytest.approx({"queue": 1.5, "preprocess": 1.0, "core": 6.0, "hand-over": 1.5})
    assert sum(parts.values()) == pytest.approx(10.0)
    alone = statistic.parts({"naive": before["core"]}, {"naive": after["core"]}, "naive")
    assert alone == pytest.approx({"queue": 1.0, "naive": 6.0, "hand-over": 0.0})


@pytest.mark.parametrize(
    ("network", "text", "wanted"),
    [
        ("sasrec", "3\n40\n0\n", {3, 40}),
        ("knowledge_tracing", "3\n40\n", {3, 40}),
        ("gru4rec", "ada:5,6,7\nbob:9\n", {3, 1}),
        ("forecaster", "series,a\nx,1\nx,2\ny,3\n", {2, 1}),
    ],
)
def test_lengths_are_of_any_models_histories(network: str, text: str, wanted: set[int], tmp_path):
    spec = Spec.read(DEFAULT_SPEC.with_name(f"{network}.toml"))
    (tmp_path / "lengths").write_text(text)
    assert set(question.lengths_of(tmp_path / "lengths", spec)) == wanted
    space = Workspace(spec, tmp_path / "spec.toml", tmp_path / "model.pt", tmp_path / "models")
    asked = question.mix(space, tmp_path / "lengths")
    assert {question.steps(one) for one in asked} == {max(length, spec.shortest_history) for length in wanted}


@pytest.mark.parametrize("text", ["", "0\n", "what\n"])
def test_lengths_that_are_none_are_refused_with_a_sentence(text: str, tmp_path):
    (tmp_path / "lengths").write_text(text)
    with pytest.raises(LastrowError, match="lengths"):
        question.lengths_of(tmp_path / "lengths", sequence())


def sequence(**keys: object) -> Spec:
    return variant.changed(Spec.read(PRESETS["sasrec"]), **keys)


def test_a_ladder_of_any_model_is_in_its_words_and_says_why_a_rung_is_none_of_its():
    made = rung.rungs(sequence())
    skipped = {r.name: r.skipped for r in made if r.skipped and not r.number.startswith("11")}
    assert set(skipped) == {
        "PyTorch eager, logits", "PyTorch, last row", "row in postprocess", "length-aware core", "shared memory",
    }  # fmt: skip
    assert "users a request" in {r.name for r in made}
    assert not any(word in f"{r.name} {r.change} {r.skipped}" for r in made for word in ("learner", "problem", "{"))
    assert [r.name for r in rung.select("13,14", made)] == ["one model", "picked columns"]
    with pytest.raises(rung.RungError, match="there are 0 to 14 and floor"):
        rung.select("15", made)


@pytest.mark.parametrize(
    ("keys", "name", "why"),
    [
        ({"model__buckets": []}, "widths", "there is one width"),
        ({"model__padding": "none", "model__buckets": []}, "users a request", "unequal length are not sent together"),
        ({"history": {"item_ids": {"dtype": "FP32", "shape": [3]}}, "context": {}, "answer": [{"name": "scores"}]},
         "INT32", "is an integer"),
        ({"answer": [{"name": "scores"}]}, "picked columns", "no other answer picks columns"),
        ({"answer": [{"name": "next_items", "chain": [{"top": 10}]}]}, "picked columns", "no other answer picks columns"),
    ],
)  # fmt: skip
def test_a_rung_that_a_spec_has_no_use_for_is_left_out_by_name(keys: dict[str, object], name: str, why: str):
    (found,) = [r for r in rung.rungs(sequence(**keys)) if r.name == name]
    assert found.skipped is not None
    assert why in found.skipped
    (other,) = [r for r in rung.rungs(sequence(model__padding="right")) if r.name == name]
    assert other.skipped is None


def test_each_repository_of_any_model_is_the_one_before_plus_one_change():
    made = rung.variants(sequence(model__padding="right"))
    order = ["naive", "delay", "head", "int32", "length", "widths"]
    changes = [differing(made[a].spec.model_dump(), made[b].spec.model_dump()) for a, b in itertools.pairwise(order)]
    assert changes[:2] == [set(), set()]
    assert changes[2] == {"history.item_ids.dtype", "context.candidate_ids.dtype", "inputs.item_ids.dtype"}
    assert changes[3:] == [{"reduce.length_aware"}, {"model.buckets"}]
    assert made["naive"].naive_delay_us == 100_000


def test_questions_are_as_the_contract_has_them_and_pad_each_other():
    spec = sequence()
    asked = question.drawn(spec, [3, 1])
    assert [set(one) for one in asked] == [{"item_ids"}, {"item_ids"}]
    request = question.together(spec, asked)
    assert spec.contract.check(request).tolist() == [3, 1]
    assert request["item_ids"][1, 1:].tolist() == [-1, -1]
    with_candidates = question.drawn(spec, [3], spec.answers)
    assert set(with_candidates[0]) == {"item_ids", "candidate_ids"}


def test_an_answer_is_apart_by_what_it_says_and_not_by_the_order_of_equals():
    (whole,) = [made for made in sequence().answers if made.tensors[0].name == "scores"]
    (top,) = [made for made in sequence().answers if len(made.tensors) == 2]
    row = np.array([0.0, 2.0, 4.0, 2.0])
    wanted = reply.Expected(np.array([[2, 4.0], [1, 2.0]]), row)
    assert reply.apart(top, np.array([[2, 4.0], [3, 2.0]]), wanted) == 0
    assert reply.apart(top, np.array([[2, 4.0], [0, 2.0]]), wanted) == pytest.approx(0.5)
    assert reply.apart(top, np.array([[2, 4.0], [2, 4.0]]), wanted) == np.inf
    assert reply.apart(top, np.array([[2, 4.0], [-1, 0.0]]), wanted) == np.inf
    assert reply.apart(whole, row + 0.04, reply.Expected(row, row)) == pytest.approx(0.01)
    assert reply.apart(whole, row[:3], reply.Expected(row, row)) == np.inf
