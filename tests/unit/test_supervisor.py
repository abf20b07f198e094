"""What the supervisor works out without a server; the rest is in tests/faults."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from build import server
from build.server import ServerError, check_repository, supervisor
from build.server.supervisor import Ports


def test_pauses_between_starts_double_and_end():
    assert [supervisor._pause(failed) for failed in range(4)] == [0, 0.5, 1, 2]
    assert supervisor._pause(50) == supervisor.LONGEST_PAUSE_S


def test_http_and_metrics_stay_where_they_are_when_grpc_listens_wider():
    arguments = Ports(1, 2, 3, address="0.0.0.0").arguments()  # noqa: S104 what is tested
    assert {"--grpc-address=0.0.0.0", "--http-address=127.0.0.1", "--metrics-address=127.0.0.1"} <= set(arguments)


def test_what_the_server_counts_is_summed_over_its_models():
    metrics = """# HELP nv_inference_pending_request_count Pending requests awaiting execution per model
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="core",version="1"} 3
nv_inference_pending_request_count{model="postprocess",version="1"} 4
nv_inference_pending_request_count{model="preprocess",version="1"} 9
"""
    version = {"name": "knowledge_tracing", "inference_stats": {"success": {"count": 20, "ns": 100_000_000}}}
    pages = {
        "/v2/health/ready": "",
        "/metrics": metrics,
        "/v2/models/knowledge_tracing/stats": json.dumps({"model_stats": [version, version]}),
    }

    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path in pages else 400)  # Triton's answer for a model that it has not
            self.end_headers()
            self.wfile.write(pages.get(self.path, "").encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer((server.LOOPBACK, 0), Page) as page:
        threading.Thread(target=page.serve_forever, daemon=True).start()
        running = object.__new__(supervisor._Running)
        running._ports = Ports(http=page.server_port, grpc=0, metrics=page.server_port)
        assert running.progress("knowledge_tracing") == (40, 7)
        assert running.mean_s("knowledge_tracing") == pytest.approx(0.005)
        assert running.mean_s("another") == 0
        assert running.ready()
        page.shutdown()
    assert not running.ready()
    assert running.progress("knowledge_tracing") == (0, 0)


def test_a_repository_that_would_never_finish_loading(tmp_path: Path):
    with pytest.raises(ServerError, match="there is no model repository"):
        check_repository(tmp_path / "none")
    for name in ("step", "other"):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "config.pbtxt").write_text(f'name: "{name}"\nbackend: "python"\n')
        (tmp_path / name / "1" / "model.py").touch()
    check_repository(tmp_path)
    (tmp_path / "step" / "1" / "model.py").unlink()
    with pytest.raises(ServerError, match=r"step/1/model\.py is missing; run `make repo`"):
        check_repository(tmp_path)
    (tmp_path / "step" / "config.pbtxt").write_text('backend: "python" default_model_filename: "step.py"')
    check_repository(tmp_path)
    (tmp_path / "step" / "config.pbtxt").write_text('platform: "ensemble"')
    check_repository(tmp_path)
