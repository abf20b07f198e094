"""Model Analyzer's configurations, its results, and the choice among them; no server."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from build import ROOT
from build.analyzer import analysis, page, profile, result, sweep
from build.analyzer.result import Point, Setting
from build.bench import contest, variant
from build.repository import config, manifest
from build.repository.workspace import PRESETS
from ensemble.spec import DEFAULT_SPEC, Spec
from ensemble.tables import CORE

SETTING = Setting((("preprocess", 1), ("core", 1), ("postprocess", 1), ("propose", 1)), 0, 32)


def test_the_tracked_files_are_what_the_spec_asks_for(spec: Spec):
    wanted = {name: text.encode() for name, text in profile.files(spec).items()}
    tracked = {name: (profile.CONFIGS / name).read_bytes() for name in wanted}
    assert tracked == wanted, "run `make repo`"
    assert (profile.CONFIGS / manifest.NAME).read_bytes() == manifest.of(wanted), "run `make repo`"


@pytest.fixture
def configs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of the test's own, in place of analyzer_configs/."""
    monkeypatch.setattr(profile, "CONFIGS", tmp_path / "configs")
    return tmp_path / "configs"


def test_what_somebody_put_among_the_configurations_stays(spec: Spec, configs: Path, monkeypatch: pytest.MonkeyPatch):
    profile.write(spec)
    (configs / "mine.yaml").write_text("mine")
    (configs / "old").mkdir()
    (configs / "old" / "core-sweep.yaml").write_text("older")
    fewer = [kind for kind in profile.PROFILES if kind.name != "gpu-core"]
    monkeypatch.setattr(profile, "PROFILES", fewer)
    profile.write(spec)
    assert not (configs / "gpu-core.yaml").exists()
    assert (configs / "mine.yaml").read_text() == "mine"
    assert (configs / "old" / "core-sweep.yaml").read_text() == "older"
    written = {path.name for path in configs.iterdir()} - {"mine.yaml", "old", manifest.NAME}
    assert written == set(profile.files(spec))


def test_a_configuration_that_somebody_changed_stays_and_is_named(spec: Spec, configs: Path, capsys, monkeypatch):
    profile.write(spec)
    own = configs / "core-sweep.yaml"
    own.write_text(own.read_text() + "# mine\n")
    text = own.read_text()
    (configs / "input-core.json").unlink()
    for _ in range(2):
        profile.write(spec)
        assert own.read_text() == text
        assert f"{own} is not what `make repo` wrote" in " ".join(capsys.readouterr().err.split())
    assert (configs / "input-core.json").is_file()
    with monkeypatch.context() as none:
        none.setattr(profile, "PROFILES", ())
        profile.write(spec)
    assert own.read_text() == text
    profile.write(spec)
    other = spec.model_copy(update={"model": spec.model.model_copy(update={"problems": 40})})
    before = (configs / "input-core.json").read_bytes()
    profile.write(other)
    assert (configs / "input-core.json").read_bytes() != before


@pytest.mark.parametrize("wanted", profile.PROFILES, ids=lambda p: p.name)
def test_every_configuration_names_models_that_the_repository_has(spec: Spec, wanted: profile.Profile):
    read = yaml.safe_load(profile.files(spec)[f"{wanted.name}.yaml"])
    models = config.repository(spec)
    (profiled,) = read["profile_models"]
    assert profiled in models
    if wanted.part == "ensemble":
        steps = [step.model_name for step in models[spec.model.name].ensemble_scheduling.step]
        if wanted.search == "quick":
            assert read["cpu_only_composing_models"] == steps
        else:
            assert [name for entry in read["ensemble_composing_models"] for name in entry] == steps
    assert read["output_model_repository_path"] != read["model_repository"]
    assert (ROOT / read["profile_models"][profiled]["perf_analyzer_flags"]["input-data"]).is_file()


def test_delays_are_swept_on_the_core_alone(spec: Spec):
    read = yaml.safe_load(profile.files(spec)["ensemble-sweep.yaml"])
    delayed = {
        step: values["model_config_parameters"]["dynamic_batching"]["max_queue_delay_microseconds"]
        for entry in read["ensemble_composing_models"]
        for step, values in entry.items()
        if "dynamic_batching" in values["model_config_parameters"]
    }
    assert list(delayed) == [CORE]
    assert {100, 100_000} <= set(delayed[CORE])


def test_the_short_form_has_six_configurations_of_the_ensemble_and_ten_of_the_core(spec: Spec):
    two = dataclasses.replace(profile.ENSEMBLE_SWEEP, instances=(1, 2))
    short = profile.quick(two)
    assert profile.points(short, spec) / len(short.concurrency) >= 6
    short = profile.quick(dataclasses.replace(profile.CORE_SWEEP, instances=(1, 2)))
    assert profile.points(short, spec) / len(short.concurrency) >= 10


@pytest.mark.parametrize("batch", [1, 32, 128])
def test_a_sweep_tries_what_clients_may_send_now(spec: Spec, batch: int):
    own = spec.model_copy(update={"batching": spec.batching.model_copy(update={"max_batch_size": batch})})
    fitted = profile.fitted(profile.ENSEMBLE_SWEEP, own)
    assert batch in fitted.batches
    assert max(fitted.batches) >= batch
    assert profile.quick(fitted).batches == (max(fitted.batches),)
    assert max(fitted.instances) <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize("part", ["ensemble", "core"])
@pytest.mark.parametrize("buckets", [[], [16, 32]])
def test_perf_analyzer_gets_valid_learners(small_spec: Spec, part: profile.Part, buckets: list[int]):
    model = small_spec.model.model_copy(update={"buckets": buckets})
    spec = small_spec.model_copy(update={"model": model})
    learners = profile.histories(spec)
    requests = json.loads(profile.request(spec, part, learners))["data"]
    assert len(requests) == profile.LEARNERS == len(learners)
    asked = config.repository(spec)[spec.model.name if part == "ensemble" else CORE]
    for request in requests:
        assert list(request) == [tensor.name for tensor in asked.input]
        for tensor in asked.input:
            shape, content = request[tensor.name]["shape"], request[tensor.name]["content"]
            assert len(shape) == len(tensor.dims)
            assert all(dim in (-1, given) for dim, given in zip(tensor.dims, shape, strict=True))
            assert len(content) == shape[0]
        ids, responses = (request[tensor.name]["content"] for tensor in asked.input[:2])
        assert all(0 <= number < spec.model.problems for number in ids)
        assert set(responses) <= {0, 1}


@pytest.fixture
def sequence() -> Spec:
    """A preset of the next item that also takes its user's age, and how far behind each item lies."""
    made = variant.table(Spec.read(PRESETS["sasrec"]))
    made["history"]["gaps"] = {"dtype": "FP32", "shape": [2]}
    made["context"] |= {"age": {"values": [1, 99]}, "note": {"values": [0, 9], "optional": True}}
    made["inputs"] |= {"gaps": {"from": "gaps"}, "age": {"from": "age"}}
    return Spec.model_validate(made)


@pytest.mark.parametrize("part", ["ensemble", "core"])
def test_perf_analyzer_gets_what_any_model_is_asked(sequence: Spec, part: profile.Part):
    asked = profile.histories(sequence)
    requests = json.loads(profile.request(sequence, part, asked))["data"]
    assert len(requests) == len(asked) == profile.LEARNERS
    message = config.repository(sequence)[sequence.model.name if part == "ensemble" else CORE]
    # Every answer is asked for, so that what one of them is made of is there; what none needs is left out.
    wanted = {tensor.name: tensor for tensor in message.input if tensor.name != "note"}
    for request in requests:
        assert set(request) == set(wanted)
        for name, tensor in wanted.items():
            shape, content = request[name]["shape"], request[name]["content"]
            assert all(dim in (-1, size) for dim, size in zip(tensor.dims, shape, strict=True))
            assert len(content) == math.prod(shape)
            assert not any(isinstance(value, list) for value in content)
        if part == "ensemble":
            assert all(1 <= number <= 10000 for number in request["item_ids"]["content"])
            assert 1 <= request["age"]["content"][0] <= 99
            assert len(request["gaps"]["content"]) == 2 * len(request["item_ids"]["content"])
            assert request["candidate_ids"]["content"]
    assert len({len(request[next(iter(wanted))]["content"]) for request in requests}) > 1


@pytest.mark.parametrize("wanted", profile.PROFILES, ids=lambda p: p.name)
def test_every_configuration_is_of_any_models_own_steps(sequence: Spec, wanted: profile.Profile):
    paths = profile.Paths(Path("models"), Path("work"), Path("input.json"))
    text = profile.render(wanted, sequence, paths)
    read, models = yaml.safe_load(text), config.repository(sequence)
    assert "learner" not in text.lower()
    (profiled,) = read["profile_models"]
    assert profiled in models
    if wanted.part == "ensemble" and wanted.search != "quick":
        counted = {
            step: values["model_config_parameters"]["instance_group"][0]
            for entry in read["ensemble_composing_models"]
            for step, values in entry.items()
        }
        assert set(counted) == set(models) - {sequence.model.name}
        assert counted["preprocess"]["count"] == [1, 2]
        assert counted["core_candidate_scores"] == {"kind": "KIND_GPU" if wanted.gpu else "KIND_CPU", "count": [1]}


@pytest.mark.parametrize("name", ["knowledge_tracing", "sasrec", "gru4rec", "forecaster"])
def test_one_model_is_swept_as_it_is_served(name: str):
    spec = variant.changed(Spec.read(DEFAULT_SPEC.with_name(f"{name}.toml")), serve__layout="single")
    found = profile.files(spec)
    assert set(found) == {"single-sweep.yaml", "input-single.json"}
    read = yaml.safe_load(found["single-sweep.yaml"])
    (profiled,) = config.repository(spec)
    swept = read["profile_models"][profiled]["model_config_parameters"]
    assert swept["instance_group"] == [{"kind": "KIND_CPU", "count": [1, 2]}]
    assert swept["dynamic_batching"] == [{"max_queue_delay_microseconds": [0, 100, 100_000]}]
    assert swept["max_batch_size"] == [8, 32]
    assert "ensemble_composing_models" not in read
    assert profile.points(profile.SINGLE_SWEEP, spec) == 2 * 2 * 3 * 2
    assert set(json.loads(found["input-single.json"])["data"][0]) <= {tensor.name for tensor in spec.requested}


@pytest.mark.parametrize("layout", ["ensemble", "single"])
@pytest.mark.parametrize("spinning", [True, False])
def test_layout_and_spinning_go_into_the_spec_and_come_out_the_same(spec: Spec, layout: str, spinning: bool):
    instances = SETTING.instances if layout == "ensemble" else (("core", 2),)
    wanted = dataclasses.replace(SETTING, instances=instances, layout=layout, spinning=spinning)
    applied = wanted.applied(spec)
    assert (applied.serve.layout, applied.steps.core.spinning) == (layout, spinning)
    assert Setting.of(applied) == wanted
    assert ("one model" in str(wanted), "not spin" in str(wanted)) == (layout == "single", not spinning)


def test_what_was_chosen_is_measured_with_threads_that_spin_and_that_do_not(spec: Spec):
    found = analysis.contenders(
        spec, [SETTING, dataclasses.replace(SETTING, layout="single", instances=(("core", 64),))]
    )
    told = [(made.serve.layout, made.steps.core.spinning) for made in found]
    # The present one is measured anyway; 64 sessions have one thread each, beside which nothing waits.
    assert told == [("ensemble", False), ("single", True)]


def test_steps_that_share_their_settings_come_out_alike(sequence: Spec):
    counted = {step: 2 if step == "postprocess" else 1 for step in profile.steps(sequence)}
    applied = Setting(tuple(counted.items()), 100, 8).applied(sequence)
    assert (applied.steps.postprocess.instances, applied.steps.core.instances) == (2, 1)
    assert (applied.batching.max_batch_size, applied.steps.core.queue_delay_us) == (8, 100)
    found = dict(Setting.of(applied).instances)
    assert found == counted | {step: 2 for step in counted if step.startswith("postprocess")}


@given(
    st.lists(
        st.tuples(st.floats(1, 1e4), st.floats(0.1, 1e4)).map(lambda pair: Point(SETTING, 1, *pair, pair[1])),
        max_size=30,
    )
)
def test_no_measurement_beats_the_front(points: list[Point]):
    line = result.front([dataclasses.replace(p, mean_ms=p.p99_ms) for p in points])
    for point in points:
        beaten = [p for p in line if point.throughput > p.throughput and point.p99_ms < p.p99_ms]
        assert not beaten
    assert [p.p99_ms for p in line] == sorted(p.p99_ms for p in line)
    assert [p.throughput for p in line] == sorted(p.throughput for p in line)


def test_the_best_keep_the_budget_and_name_each_setting_once():
    other = dataclasses.replace(SETTING, queue_delay_us=100)
    points = [
        Point(SETTING, 1, 100.0, 9.0, 12.0),
        Point(SETTING, 16, 300.0, 50.0, 80.0),
        Point(SETTING, 4, 200.0, 20.0, 30.0),
        Point(other, 4, 220.0, 20.0, 40.0),
    ]
    assert result.best(points, 35.0, 3) == [points[2]]
    assert result.best(points, 45.0, 3) == [points[3], points[2]]
    assert result.best(points, 1.0, 3) == []


@pytest.mark.parametrize("instances", [1, 2, 3, 64])
def test_a_setting_goes_into_the_spec_and_comes_out_the_same(spec: Spec, instances: int):
    wanted = Setting((("preprocess", 2), ("core", instances), ("postprocess", 1), ("propose", 1)), 100, 8)
    applied = wanted.applied(spec)
    assert Setting.of(applied) == wanted
    threads = applied.steps.core.intra_op_threads
    assert instances == 1 or threads * instances <= max(len(os.sched_getaffinity(0)), instances)


def test_results_are_read_from_model_analyzers_files(spec: Spec, tmp_path: Path):
    wanted = dataclasses.replace(SETTING, queue_delay_us=500)
    written = config.repository(wanted.applied(spec))
    run = sweep.Sweep(profile.ENSEMBLE_SWEEP, spec, tmp_path)
    names = []
    for name in [spec.model.name, *profile.steps(spec)]:
        folder = run.variants / f"{name}_config_3"
        folder.mkdir(parents=True)
        (folder / "config.pbtxt").write_text(config.to_text(written[name]))
        names.append(folder.name)
    run.results.parent.mkdir(parents=True)
    run.results.write_text(
        "Model,Concurrency,Model Config Path,Throughput (infer/sec),Avg Latency (ms),p99 Latency (ms)\n"
        f'x,16,"{names[0]}: {", ".join(names[1:])}",301.5,42.0,88.25\n'
    )
    assert result.read(run) == [Point(wanted, 16, 301.5, 42.0, 88.25)]
    run.results.write_text("Model\nx\n")
    with pytest.raises(sweep.SweepError, match="measure again"):
        result.read(run)


def test_a_full_disk_is_said_before_a_sweep(spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "models").mkdir()
    monkeypatch.setattr(sweep, "FREE_BYTES", 10**18)
    with pytest.raises(sweep.SweepError, match="make room"):
        sweep.prepare(profile.ENSEMBLE_SWEEP, spec, tmp_path / "models", tmp_path / "work")


@pytest.mark.parametrize(
    ("said", "files", "expected"),
    [
        ("OSError: [Errno 28] No space left on device: 'x'", {}, "make room"),
        ("", {"tritonserver.log": "E1123 10:00:00.0 1 x.cc:1] \"failed to load 'core'\"\n"}, "failed to load 'core'"),
        ("", {"results/perf_analyzer_error.log": "a\nerror: unknown option\n"}, "unknown option"),
        ("[Model Analyzer] Unable to find model\n", {}, "Unable to find model"),
        ("Killed\n", {}, "exit code 9: Killed"),
    ],
)
def test_a_failed_sweep_says_why(spec: Spec, tmp_path: Path, said: str, files: dict[str, str], expected: str):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert expected in sweep._explain(said, sweep.Sweep(profile.ENSEMBLE_SWEEP, spec, tmp_path), 9)


def test_the_page_needs_nothing_beside_it(spec: Spec, tmp_path: Path):
    slow = dataclasses.replace(SETTING, queue_delay_us=profile.SEED_DELAY_US)
    points = [Point(SETTING, c, 100.0 * c, 9.0, 12.0 * c) for c in (1, 4)] + [Point(slow, 1, 9.0, 110.0, 112.0)]
    cell = {"p50_ms": 3.0, "p99_ms": 5.0, "throughput": 300.0, "parts_ms": {"client": 1.0, "wire": 0.5, "core": 1.5}}
    report = {
        "model": "<model>",
        "window": 512,
        "median_length": 20,
        "machine": {
            "processor": "x",
            "cores": 2,
            "memory_gib": 4,
            "gpu": None,
            "tritonserver": "t",
            "packages": {"torch": "1", "onnxruntime-gpu": "1"},
        },
        "commit": "1234567",
        "dirty": False,
        "time": "2026-01-02 03:04",
        "version": "1.0",
        "present": {"ensemble": dataclasses.asdict(SETTING)},
        "sweeps": {"ensemble": [dataclasses.asdict(point) for point in points]},
        "best": [{"title": "1. best", "mark": "chosen", "one": cell, "many": cell}],
        "files": ["results/plots/a.png"],
    }
    written = page.write(json.loads(json.dumps(report)), tmp_path)
    assert {path.name for path in written} == {"report.html", "ensemble.png", "breakdown.png"}
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("<svg") == 2
    assert "&lt;model&gt;" in text
    assert not re.search(r'(?:src|href)="(?:https?:)?//', text)
    assert "100 ms delay" in text
    assert "commit 1234567, 2026-01-02." in text


def test_contenders_are_told_apart_by_what_is_tuned(spec: Spec):
    names = {contest.setting(dataclasses.replace(SETTING, queue_delay_us=delay).applied(spec)) for delay in (0, 100)}
    assert len(names) == 2
