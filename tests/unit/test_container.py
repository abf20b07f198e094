"""The container's recipe, as far as it can be held to its word without building it."""

import json
import re

import pytest

from build import ROOT
from build.deploy.container import health

FOLDER = ROOT / "build" / "deploy" / "container"


@pytest.fixture(scope="module")
def recipe() -> list[tuple[str, str]]:
    """(INSTRUCTION, its words), continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (FOLDER / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def only(recipe: list[tuple[str, str]], instruction: str) -> str:
    (found,) = [rest for word, rest in recipe if word == instruction]
    return found


def test_the_base_is_the_callers_choice(recipe):
    assert recipe[0] == ("ARG", "BASE")
    assert only(recipe, "FROM") == "${BASE}"


def test_it_runs_as_a_numbered_user_who_is_not_root(recipe):
    user, group = only(recipe, "USER").split(":")
    assert int(user) > 0
    assert int(group) > 0
    last = [word for word, _ in recipe]
    assert "RUN" not in last[last.index("USER") :]


def test_what_is_copied_exists_and_nobody_can_write_it(recipe):
    copied = [rest.split() for word, rest in recipe if word == "COPY"]
    assert [words[-1] for words in copied] == ["/models", "/opt/lastrow/endpoints.py", "/opt/lastrow/health.py"]
    for *options, source, _ in copied:
        assert (ROOT / source).exists()
        (mode,) = [option.removeprefix("--chmod=") for option in options if option.startswith("--chmod=")]
        assert int(mode, 8) & 0o222 == 0
        assert "--chown=0:0" in options


def test_it_starts_by_what_closes_management(recipe):
    command = json.loads(only(recipe, "ENTRYPOINT"))
    assert command[:3] == ["python3", "-I", "/opt/lastrow/endpoints.py"]
    assert not any(name in argument for argument in command for name in ("restricted", "model-control"))
    assert "--model-repository=/models" in command
    assert {f"--{protocol}-address=0.0.0.0" for protocol in ("http", "grpc", "metrics")} <= set(command)


def test_its_health_is_asked_by_what_was_copied(recipe):
    options, _, command = only(recipe, "HEALTHCHECK").partition(" CMD ")
    assert json.loads(command) == ["python3", "-I", "/opt/lastrow/health.py", "/models"]
    (timeout,) = re.findall(r"--timeout=(\d+)s", options)
    assert int(timeout) > health.TIMEOUT_S


def test_nothing_else_of_the_project_goes_to_the_builder(recipe):
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    sources = {rest.split()[-2] for word, rest in recipe if word == "COPY"}
    assert {line[1:] for line in ignored if line.startswith("!")} == sources
