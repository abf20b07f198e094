"""What Triton itself says of each model."""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path

from ensemble.lint.finding import Finding
from ensemble.lint.load.server import Died, Server, TimeIsUp, find
from ensemble.lint.load.staging import Staging
from ensemble.lint.load.stand_in import SAYS
from ensemble.lint.repository import CONFIG, ENSEMBLE, LintError, Repository

REFUSED, NOT_ASKED = "refused-by-triton", "not-asked"
NO_BACKEND = re.compile(r"unable to find backend library for backend '([^']+)'")
NO_GPU = re.compile(r"no GPUs are available|does not support GPUs|invalid or unsupported gpu id \d")
OF_A_STEP = re.compile(r"depends on '([^']+)' which (?:has no loaded version|is not valid)")
COMPLETED = re.compile(r"must specify '(?:data_type|dims)'")
NO_CONFIG = re.compile(r"model configuration is not provided")  # a backend completes the whole of it
COMPLETING = ("tensorrt", "openvino", "python", "pytorch", "tensorflow")  # a tensor that is there, from the model file
TRIES = 4  # a model is loaded anew with a stand-in, and on the CPU


def ask(repository: Repository, seconds: float = 120.0) -> list[Finding]:
    """What Triton refuses, and what it could not be asked.

    Args:
        repository: every folder of its folder is a model.
        seconds: until it is given up.

    Raises:
        LintError: there is no tritonserver, or it does not start.
    """
    executable, deadline = find(), time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="lint-") as folder:
        return _Asking(repository, Staging(repository.folder.resolve(), Path(folder)), executable, deadline).all()


class _Asking:
    def __init__(self, repository: Repository, staging: Staging, executable: Path, deadline: float) -> None:
        self._repository, self._staging = repository, staging
        self._executable, self._deadline = executable, deadline
        self._found: list[Finding] = []
        self._failed: set[str] = set()
        self._changed: dict[str, list[str]] = {}  # what was asked otherwise than it is written, by model

    def all(self) -> list[Finding]:
        self._without_files()
        ensembles = {model.name for model in self._repository.ensembles()}
        waiting = sorted(self._staging.models, key=lambda name: name in ensembles)  # steps before those that need them
        while waiting:
            asked = list(waiting)
            try:
                with Server(self._executable, self._staging.folder, self._deadline, self._repository.flags) as server:
                    for name in asked:
                        try:
                            self._one(server, name)
                        except Died:
                            why = f"tritonserver ended while it loaded it: {_last(server.log())}"
                            self._refuse(name, why)
                            waiting.remove(name)
                            break
                        waiting.remove(name)
            except TimeIsUp:
                for name in waiting:
                    self._note(name, "the time limit came before Triton had loaded it", "a higher --load-seconds")
                break
            except Died as e:
                raise LintError(f"{self._executable} ends before it answers: {_last(str(e))}") from e
        for name, changes in self._changed.items():
            for change in changes:
                self._note(name, change, "the same on a server that has what it needs")
        return self._found

    def _one(self, server: Server, name: str) -> None:
        for _ in range(TRIES):
            said = server.load(name)
            if not said or SAYS in said:
                return
            backend = NO_BACKEND.search(said)
            if backend and backend[1] not in self._stood_in(name):
                self._staging.stand_in(name, backend[1])
                self._change(
                    name,
                    f"backend {backend[1]} is not installed here, and was not asked: what the model file itself has "
                    "(names, types, dims, batch) is not known",
                )
            elif NO_GPU.search(said) and self._staging.without_gpus(name):
                self._change(name, "there is no such GPU here: it was asked on the CPU")
            else:
                break
        step = OF_A_STEP.search(said)
        if step and step[1] in self._failed:
            self._failed.add(name)
            self._note(name, f"its step {step[1]} does not load, and Triton looks no further", f"{step[1]} first")
        elif self._stood_in(name) and self._left_to_the_backend(name, said):
            return  # what is missing, the backend completes
        else:
            own = said.replace(str(self._staging.folder), str(self._repository.folder))
            self._refuse(name, _reason(own, name))

    def _left_to_the_backend(self, name: str, said: str) -> bool:
        return bool(NO_CONFIG.search(said) or (COMPLETED.search(said) and self._backend(name) in COMPLETING))

    def _without_files(self) -> None:
        """A stand-in for each model whose own file is not here: its backend says no more, and Python's waits for ever."""
        nobody = not any(model.versions for model in self._repository.models.values())
        for name, model in self._repository.models.items():
            versions = list(model.config.version_policy.specific.versions) or [1]
            if not model.versions and (nobody or model.backend != ENSEMBLE):
                for version in versions:
                    self._staging.version(name, version)
            if model.backend in (ENSEMBLE, "") or not model.filename or model.model_files:
                continue
            if model.backend == "python":
                for version in model.served or versions:
                    self._staging.empty(name, version, model.filename)
            self._staging.stand_in(name, model.backend)
            why = f"there is no {model.filename} here, and backend {model.backend} was not asked: only the configuration was"
            self._change(name, why)

    def _stood_in(self, name: str) -> set[str]:
        return {path.name[len("libtriton_") : -len(".so")] for path in self._own(name) if not path.is_symlink()}

    def _own(self, name: str) -> list[Path]:
        return list((self._staging.folder / name).glob("libtriton_*.so"))

    def _backend(self, name: str) -> str:
        model = self._repository.models.get(name)
        return model.backend if model else ""

    def _change(self, name: str, change: str) -> None:
        self._changed.setdefault(name, []).append(change)

    def _file(self, name: str) -> Path:
        file = self._repository.folder / name / CONFIG
        return file if file.is_file() else file.parent

    def _refuse(self, name: str, why: str) -> None:
        self._failed.add(name)
        key = ENSEMBLE if self._backend(name) == ENSEMBLE else "model"
        instead = "what it asks for; the rules' own findings may say more"
        self._found.append(Finding(self._file(name), key, f"Triton refuses it: {why}", instead, "error", REFUSED))

    def _note(self, name: str, why: str, instead: str) -> None:
        self._found.append(Finding(self._file(name), "model", why, instead, "note", NOT_ASKED))


def _reason(said: str, model: str) -> str:
    """The reason in an answer and the log behind it.

    >>> _reason("load failed for model 'm': version 1 is at UNAVAILABLE state: Invalid argument: no;\\n", "m")
    'no'
    >>> _reason("failed to poll from model repository\\nE1] Poll failed for model directory 'm': no", "m")
    'no'
    """
    polled = re.search(rf"Poll failed for model directory '{re.escape(model)}': (.*)", said)
    answer = polled[1] if polled else said.partition("\n")[0]
    answer = re.sub(r"^load failed for model '[^']*': ", "", answer)
    answer = re.sub(r"version \d+ is at \w+ state: (?:[A-Z][a-z]+(?: [a-z]+)*: )?", "", answer)
    return " ".join(answer.split()).rstrip('";. ')


def _last(log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip()]
    return " / ".join(lines[-3:])[-400:] or "it said nothing"
