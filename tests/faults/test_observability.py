"""What can be seen of a server from outside is there and true: metrics, spans, and the log."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import yaml
from prometheus_client.samples import Sample
from tritonclient.utils import InferenceServerException

from build import ROOT
from build.server import Server, endpoints
from ensemble.client import Client
from tests.conftest import Served, learner
from tests.faults.conftest import samples, wait_until

MONITORING = ROOT / "build" / "deploy" / "monitoring"
PUBLISHED_AFTER_S, PUBLISHED_WITHIN_S = 1.5, 3.0  # the step hands its numbers over once a second
FUNCTIONS = {"sum", "by", "rate", "histogram_quantile", "absent", "and", "or", "unless", "le"}
SECONDS_OF_REFUSALS, LINES_A_SECOND = 3, 5
Series = dict[str, list[dict[str, str]]]  # every metric's label sets


@dataclass
class Collector:
    """An OTLP/HTTP collector: keeps the spans it is sent."""

    spans: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""


@dataclass(frozen=True)
class Observed:
    server: Server
    collector: Collector
    log: Path

    def samples(self) -> Iterator[Sample]:
        """Every metric, as it is now."""
        with urllib.request.urlopen(self.server.metrics_url, timeout=5) as answer:
            return samples(answer.read().decode())

    def series(self) -> Series:
        found: Series = {}
        for sample in self.samples():
            found.setdefault(sample.name, []).append(sample.labels)
        return found

    def value(self, wanted: str, **having: str) -> float:
        """The sum of the series that have these labels."""
        return sum(one.value for one in self.samples() if one.name == wanted and having.items() <= one.labels.items())


@pytest.fixture(scope="module")
def observed(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    collector, log = Collector(), tmp_path_factory.mktemp("observed") / "log"

    class Sink(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            for resource, scope in ((r, s) for r in body.get("resourceSpans", []) for s in r.get("scopeSpans", [])):
                named = {a["key"]: a["value"].get("stringValue") for a in resource["resource"]["attributes"]}
                collector.spans += [{**span, "service": named["service.name"]} for span in scope["spans"]]
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    sink = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=sink.serve_forever, daemon=True).start()
    arguments = endpoints.observed(f"http://127.0.0.1:{sink.server_port}/v1/traces", "tested")
    arguments += [*endpoints.closed(), "--trace-config=opentelemetry,bsp_schedule_delay=200"]
    try:
        with Server(served.repository, arguments=arguments, log=log) as server:
            yield Observed(server, collector, log)
    finally:
        sink.shutdown()
        sink.server_close()


def send(observed: Observed, spec: Any, ids: list[list[int]], responses: list[list[int]], request_id: str = "") -> str:
    """Ask; what a refusal says, empty for an answer."""
    rows = {"problem_ids": ids, "responses": responses}
    with grpcclient.InferenceServerClient(observed.server.grpc_url) as client:
        inputs = []
        for name, values in rows.items():
            array = np.array(values, np.int32).reshape(len(values), -1)
            inputs.append(grpcclient.InferInput(name, list(array.shape), "INT32"))
            inputs[-1].set_data_from_numpy(array)
        try:
            client.infer(spec.model.name, inputs, request_id=request_id)
        except InferenceServerException as e:
            return str(e.message())
    return ""


def test_warming_up_is_nobodys_request(observed: Observed):
    assert observed.value("nv_inference_request_success", model="preprocess") > 0
    time.sleep(PUBLISHED_AFTER_S)
    assert observed.value("lastrow_learners_total") == 0


def test_what_was_sent_is_what_is_counted(observed: Observed, served: Served):
    spec = served.spec
    names = [
        "lastrow_learners_total",
        "lastrow_truncated_total",
        "lastrow_cold_starts_total",
        "lastrow_history_length_sum",
        "lastrow_history_length_count",
    ]
    reasons = ("shape", "problem_id", "response", "padding", "too_long")

    def now() -> dict[str, float]:
        found = {name: observed.value(name) for name in names}
        found |= {
            f"le {end}": observed.value("lastrow_history_length_bucket", le=end) for end in ("0", "20", "500", "+Inf")
        }
        return found | {reason: observed.value("lastrow_refusals_total", reason=reason) for reason in reasons}

    time.sleep(PUBLISHED_AFTER_S)  # whatever was asked before
    before = now()
    lengths = [0, 0, 3, 20, 512, 513, 700]
    with Client(observed.server.grpc_url, spec=spec) as client:
        client.predict([learner(length) for length in lengths])
        client.predict(learner(20))
    longest = spec.batching.longest_history + 1
    refused = [
        ("shape", [[1, 2]], [[1]]),
        ("problem_id", [[spec.model.problems]], [[1]]),
        ("problem_id", [[1], [-2]], [[1], [1]]),
        ("response", [[1]], [[2]]),
        ("padding", [[-1, 1]], [[-1, 1]]),
        ("too_long", [[1] * longest], [[1] * longest]),
    ]
    for reason, ids, responses in refused:
        assert send(observed, spec, ids, responses), reason
    wanted = dict(zip(names, (8, 2, 2, sum(lengths) + 20, 8), strict=True))
    wanted |= {"le 0": 2, "le 20": 5, "le 500": 5, "le +Inf": 8}
    wanted |= {reason: sum(each[0] == reason for each in refused) for reason in reasons}
    wait_until(lambda: now()["too_long"] > before["too_long"], PUBLISHED_WITHIN_S, "the last refusal is counted")
    time.sleep(PUBLISHED_AFTER_S)  # the learners of other instances
    after = now()
    assert {key: after[key] - before[key] for key in wanted} == wanted


def unknown(expression: str, series: Series) -> list[str]:
    """What a PromQL expression asks for and the server does not export: metrics, labels, and labels' values."""
    text = re.sub(r"\[[^\]]*\]", "", expression)
    missing = []
    selected = []
    for name, selector in re.findall(r"\b((?:nv|lastrow)_\w+)(?:\{([^}]*)\})?", text):
        selected += series.get(name, [])
        if name not in series:
            missing.append(name)
        for label, operator, value in re.findall(r'(\w+)\s*(!?=~?)\s*"([^"]*)"', selector):
            if not any(
                label in labels and (operator != "=" or labels[label] == value) for labels in series.get(name, [])
            ):
                missing.append(f'{name}{{{label}{operator}"{value}"}}')
    for group in re.findall(r"\bby\s*\(([^)]*)\)", text):
        for label in map(str.strip, group.split(",")):
            if not any(label in labels for labels in selected):
                missing.append(f"by ({label})")
    left = re.sub(r"\{[^}]*\}|\bby\s*\([^)]*\)|\b(?:nv|lastrow)_\w+|\"[^\"]*\"", "", text)
    return missing + [word for word in re.findall(r"\b[a-z_]\w*", left) if word not in FUNCTIONS]


def expressions() -> Iterator[tuple[str, str, str]]:
    """(where, expression, texts that Grafana and Prometheus fill in from its labels)."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield f"panel {panel['title']!r}", target["expr"], target.get("legendFormat", "")
    for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield f"alert {rule['alert']}", rule["expr"], " ".join(rule["annotations"].values())


def test_dashboard_and_alerts_ask_for_what_is_exported(observed: Observed, served: Served):
    with Client(observed.server.grpc_url, spec=served.spec) as client:
        client.predict(learner(20), next_problems=True)  # quantiles are there from the first request on
    series = observed.series()
    seen = 0
    for where, expression, texts in expressions():
        assert unknown(expression, series) == [], where
        grouped = {label.strip() for group in re.findall(r"by\s*\(([^)]*)\)", expression) for label in group.split(",")}
        named = set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", texts))
        if grouped:
            assert named <= grouped, where
        seen += 1
    assert seen >= 15


@pytest.mark.parametrize(
    ("expression", "missing"),
    [
        ("rate(lastrow_learner_total[5m])", ["lastrow_learner_total"]),
        ("sum by (step) (rate(nv_inference_count[5m]))", ["by (step)"]),
        ('nv_inference_count{model="kernel"}', ['nv_inference_count{model="kernel"}']),
        ('nv_inference_count{kind!="core"}', ['nv_inference_count{kind!="core"}']),
        ("average(nv_inference_count)", ["average"]),
    ],
)
def test_what_is_not_exported_would_be_found(observed: Observed, expression: str, missing: list[str]):
    assert unknown(expression, observed.series()) == missing


def test_a_requests_spans_name_all_three_steps(observed: Observed, served: Served):
    with Client(observed.server.grpc_url, spec=served.spec) as client:
        client.predict(learner(20))
    steps = {"preprocess", "core", "postprocess"}

    def traces() -> dict[str, list[dict[str, Any]]]:
        by_trace: dict[str, list[dict[str, Any]]] = {}
        for span in list(observed.collector.spans):
            by_trace.setdefault(span["traceId"], []).append(span)
        return by_trace

    def whole() -> list[list[dict[str, Any]]]:
        """The traces that all steps, and whatever is above them, have arrived of."""
        return [
            spans
            for spans in traces().values()
            if steps <= {s["name"] for s in spans}
            and {s["parentSpanId"] for s in spans if s.get("parentSpanId")} <= {s["spanId"] for s in spans}
        ]

    wait_until(lambda: bool(whole()), 20, "spans of all steps")
    spans = whole()[0]
    assert {span["service"] for span in spans} == {"tested"}
    by_id = {span["spanId"]: span for span in spans}
    for step in steps:
        (span,) = [span for span in spans if span["name"] == step]
        above = span
        while above.get("parentSpanId"):
            above = by_id[above["parentSpanId"]]
        begun, ended = (int(span[key]) for key in ("startTimeUnixNano", "endTimeUnixNano"))
        assert int(above["startTimeUnixNano"]) <= begun < ended <= int(above["endTimeUnixNano"])
    begun = {step: int(next(s for s in spans if s["name"] == step)["startTimeUnixNano"]) for step in steps}
    assert begun["preprocess"] < begun["core"] < begun["postprocess"]


def test_a_refusal_is_a_line_with_its_id(observed: Observed, served: Served):
    said = send(observed, served.spec, [[1, 99999]], [[0, 1]], "order-66")
    assert "problem_ids: learner 0, position 1 is 99999" in said
    wait_until(lambda: "order-66" in observed.log.read_text(), 5, "the line is there")
    (line,) = [line for line in observed.log.read_text().splitlines() if "order-66" in line]
    assert "refused request order-66: problem_ids: learner 0, position 1 is 99999" in line


def test_many_refusals_do_not_fill_the_log(observed: Observed, served: Served):
    def lines() -> list[str]:
        return [line for line in observed.log.read_text().splitlines() if "refused request flood-" in line]

    begun, sent = time.monotonic(), 0
    for sent in itertools.count(1):
        assert send(observed, served.spec, [[-2]], [[0]], f"flood-{sent}")
        if time.monotonic() - begun > SECONDS_OF_REFUSALS:
            break
    instances = served.spec.steps.preprocess.instances
    # A second more: the first and the last are begun and not full.
    assert 0 < len(lines()) <= (SECONDS_OF_REFUSALS + 2) * LINES_A_SECOND * instances < sent
    left_out = [int(n) for n in re.findall(r"\((\d+) refusals before it were not logged\)", "\n".join(lines()))]
    assert left_out
    assert sum(left_out) + len(lines()) <= sent
