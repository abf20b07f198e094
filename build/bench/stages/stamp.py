"""A step that notes when it was called, and how long its parts took: `served.py` beside this file is the step itself.

Only the copy of a repository that is measured has it: there this file is the step's `model.py`. Times are nanoseconds of
CLOCK_MONOTONIC, which all processes of a machine share, Triton's own time stamps too. They are kept in memory until the
model is unloaded: a file that is written to while somebody waits would be part of what is measured.
"""

import functools
import importlib
import json
import os
import time
from pathlib import Path

FOLDER = "LASTROW_STAMPS"  # environment variable: where each step writes what it noted

# Triton loads a model's file as one of a package, and a backend's, whose folder is on its path, by itself.
served = importlib.import_module(".served", __package__) if __package__ else importlib.import_module("served")

spans: list = []  # of the call under way, as [part, begin, end]


def timed(part, function):
    """The function, noting its times as those of a part of the step."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        begin = time.monotonic_ns()
        try:
            return function(*args, **kwargs)
        finally:
            spans.append([part, begin, time.monotonic_ns()])

    return run


def time_parts():
    """Whatever of the parts this step has: `preprocess` is what a step that does it all checks with."""
    for module in (served, getattr(served, "preprocess", None)):
        for part, name in (("chain", "answer"), ("finite", "damage"), ("check", "check_ids"), ("row", "last_rows")):
            if module is not None and hasattr(module, name):
                setattr(module, name, timed(part, getattr(module, name)))
        contract = getattr(module, "Contract", None)
        if contract is not None:
            for part, name in (("check", "check"), ("windows", "feed")):
                setattr(contract, name, timed(part, getattr(contract, name)))
    binding = getattr(served, "binding", None)
    if binding is not None:  # it computes: a session, and buffers that stay where they are
        binding.Binder.run = timed("session", binding.Binder.run)
        binding.ort.InferenceSession.run = timed("session", binding.ort.InferenceSession.run)


class TritonPythonModel(served.TritonPythonModel):  # type: ignore[name-defined]
    def initialize(self, args):
        super().initialize(args)
        self.model = args["model_name"]
        self.file = Path(os.environ[FOLDER]) / f"{args['model_instance_name']}.stamps"
        self.noted = []
        time_parts()

    def execute(self, requests):
        begin = time.monotonic_ns()
        responses = super().execute(requests)
        end = time.monotonic_ns()
        self.noted.append([requests[0].request_id(), begin, end, spans[:]])
        spans.clear()
        return responses

    def finalize(self):
        self.file.write_text(json.dumps([self.model, self.noted]))
        end = getattr(super(), "finalize", None)
        if end:
            end()
