"""First step of the ensemble: checks histories and hands the core windows of one of a few widths.

What is checked and how windows are taken stands in contract.py beside this file, a copy of `ensemble/contract.py`, and what
this model asks for in the parameter `contract`. Where there is a parameter `function`, one's own function in own/ makes of a
request what is checked; how, stands in function.py, a copy too.

It also tells what it sees: Prometheus metrics beside Triton's own, and a line in the log for a refused request. Where the
environment variable LASTROW_DRAIN names a file, requests are refused as soon as that file is there, so that a server which
is about to stop finishes what it has and takes nothing new.

Each input comes with an axis of 1 behind the batch, which is dropped:
    inputs   of the contract, histories [batch, any, ...] and contexts [batch, ...], or what the function takes [batch, ...]
    outputs  what the core gets, of the types in config.pbtxt: [batch, width, ...]; of one number a history [batch, 1]; and
             what last steps see of what the function made, [batch, any]
"""

import collections
import json
import os
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from .contract import Contract, RefusedError, batch_of
from .function import FOLDER, Function

DRAIN = "LASTROW_DRAIN"
PUBLISHED_EVERY_S = 1.0
NOTES = 1 << 16
LOGGED_A_SECOND = 5  # refusals, by one instance
HISTORY_LENGTHS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)  # upper ends of the histogram's buckets


class Metrics:
    """What this step publishes on Triton's own metrics endpoint, summed up and handed over once a second.

    Handing a number over costs 50 us, more than a request's whole check: requests only leave a note, and a thread counts.
    The histogram of history lengths is a counter a bucket, as Prometheus reads histograms, because Triton's own kind would
    have to be told of every learner and is unknown to older servers.
    """

    def __init__(self, contract, reasons):
        self.window, words = contract.widths[-1], contract.words
        # Far more than a second's requests: were the thread to end, its notes would still not fill the memory.
        self._lengths = collections.deque(maxlen=NOTES)
        self._refusals = collections.deque(maxlen=NOTES)
        self._stopping = threading.Event()
        self._families = []  # Triton drops a family's metrics with the last reference to the family
        many, steps = words.histories.capitalize(), words.steps.capitalize()
        self._accepted = self._counter(f"lastrow_{words.histories}_total", f"{many} of accepted requests")
        self._truncated = self._counter("lastrow_truncated_total", f"{many} whose history is longer than the window")
        self._cold = self._counter("lastrow_cold_starts_total", f"{many} without history")
        name, text = "lastrow_history_length", f"{steps} of the {words.histories} of accepted requests"
        ends = [*(str(end) for end in HISTORY_LENGTHS), "+Inf"]
        self._buckets = self._counters(f"{name}_bucket", text, "le", ends)
        self._sum = self._counter(f"{name}_sum", text)
        self._count = self._counter(f"{name}_count", text)
        self._refused = self._counters("lastrow_refusals_total", "Requests refused, by reason", "reason", reasons)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def accepted(self, lengths):
        """Note a request's history lengths, INT32 [batch]."""
        self._lengths.append(lengths)

    def refused(self, reason):
        """Note a refusal."""
        self._refusals.append(reason)

    def stop(self):
        """Hand over what is left."""
        self._stopping.set()
        self._thread.join()

    def _run(self):
        while not self._stopping.wait(PUBLISHED_EVERY_S):
            self._publish()
        self._publish()

    def _publish(self):
        noted = [self._lengths.popleft() for _ in range(len(self._lengths))]
        if noted:
            lengths = np.concatenate(noted)
            self._accepted.increment(len(lengths))
            self._truncated.increment(int((lengths > self.window).sum()))
            self._cold.increment(int((lengths == 0).sum()))
            for end, bucket in zip((*HISTORY_LENGTHS, np.inf), self._buckets.values()):
                bucket.increment(int((lengths <= end).sum()))
            self._sum.increment(int(lengths.sum()))
            self._count.increment(len(lengths))
        for reason, count in collections.Counter(self._refusals.popleft() for _ in range(len(self._refusals))).items():
            self._refused[reason].increment(count)

    def _counters(self, name, description, label, values):
        """One counter for each of a label's values, by value, all of them there from the start."""
        family = pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.COUNTER)
        self._families.append(family)
        return {value: family.Metric(labels={label: value} if label else {}) for value in values}

    def _counter(self, name, description):
        return self._counters(name, description, None, [""])[""]


class RefusalLog:
    """One line a refused request, but at most so many a second: who sends rubbish does not fill the disk."""

    def __init__(self, a_second=LOGGED_A_SECOND):
        self.a_second = a_second
        self._second = 0
        self._lines = 0
        self._left_out = 0

    def line(self, request_id, message, now):
        """What to log, or None; now is in seconds."""
        if int(now) != self._second:
            self._second, self._lines = int(now), 0
        if self._lines == self.a_second:
            self._left_out += 1
            return None
        self._lines += 1
        before = f" ({self._left_out} refusals before it were not logged)" if self._left_out else ""
        self._left_out = 0
        return f"refused request {request_id or 'without id'}: {message}{before}"


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.name = config["name"]
        self.contract = Contract.loads(config["parameters"]["contract"]["string_value"])
        self.function, takes, reasons = None, self.contract.contexts, self.contract.reasons
        if "function" in config["parameters"]:
            self.function = Function.loads(config["parameters"]["function"]["string_value"])
            self.prepare = self.function.opened(Path(__file__).with_name(FOLDER))
            takes, reasons = self.function.takes, tuple(dict.fromkeys((*reasons, *self.function.reasons)))
        numbers = [name for name, given in takes.items() if given.shape == ()]  # which Triton has as [batch, 1]
        self.inputs = [(x["name"], len(x["dims"]), x["name"] in numbers) for x in config["input"]]
        made = self.function.returns if self.function else {}
        self.allowed = {**self.contract.inputs, **self.contract.contexts}
        self.seen = [x["name"] for x in config["output"] if x["name"] in made]  # by last steps
        self.types = {x["name"]: pb_utils.triton_string_to_numpy(x["data_type"]) for x in self.windows(config)}
        self.warming_up = len(config.get("model_warmup", []))  # requests of Triton's own, which nobody sent
        self.drain_file = os.environ.get(DRAIN)
        self.refusals = RefusalLog()
        try:
            self.metrics = Metrics(self.contract, reasons)
        except (AttributeError, pb_utils.TritonModelException) as e:
            # A server that is told to publish no metrics, or too old to take any, serves all the same.
            pb_utils.Logger.log_info(f"no metrics of this step: {e}")
            self.metrics = None

    @staticmethod
    def windows(config):
        """What of the configuration is about the core's inputs."""
        return config["output"]

    def execute(self, requests):
        if self.drain_file and os.path.exists(self.drain_file):  # noqa: PTH110 a tenth of pathlib's time, every request
            return [self._error("the server is stopping: ask another one, or later", "UNAVAILABLE") for _ in requests]
        return [self._respond(request) for request in requests]

    def finalize(self):
        if self.metrics:
            self.metrics.stop()

    def _respond(self, request):
        """One request's response, whatever happens to it: what `execute` raises Triton answers to the whole batch."""
        try:
            return self._answer(request)
        except RefusedError as e:
            return self._refuse(request, e)
        except Exception as e:
            return self.failed(request, e)

    def failed(self, request, error):
        """The response to a request at which this model itself failed."""
        pb_utils.Logger.log_error(f"request {request.request_id() or 'without id'}: {traceback.format_exc()}")
        return self._error(f"{self.name} failed at this request: {type(error).__name__}: {error}", "INTERNAL")

    def _answer(self, request):
        inputs, fed = self.taken(request)
        for name in self.seen:  # an optional one that the function left out is padding alone
            padding = self.allowed[name].padding
            fed[name] = inputs.get(name, np.full((len(next(iter(fed.values()))), 1), padding, self.types[name]))
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, value if value.ndim > 1 else value[:, None]) for name, value in fed.items()]
        )

    def taken(self, request):
        """A request's inputs by name, as they are checked, and what the core gets of them; raises RefusedError."""
        inputs = self._read(request)
        if self.function is None:
            return inputs, self._fed(inputs)
        made = self.prepare(inputs)
        try:
            return made, self._fed(made)
        except RefusedError as e:
            raise self.function.said_of(e) from e

    def _read(self, request):
        inputs = {}
        for name, axes, is_number in self.inputs:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is not None:  # an optional one may be missing
                values = batch_of(tensor.as_numpy(), name, axes, self.contract.words)
                inputs[name] = values[:, 0] if is_number else values
        return inputs

    def _fed(self, inputs):
        lengths = self.contract.check(inputs)
        if self.warming_up:
            self.warming_up -= 1
        elif self.metrics:
            self.metrics.accepted(lengths)
        return self.contract.feed(inputs, lengths, self.types)

    def _refuse(self, request, refusal):
        if self.metrics:
            self.metrics.refused(refusal.reason)
        line = self.refusals.line(request.request_id(), str(refusal), time.monotonic())
        if line:
            pb_utils.Logger.log_warn(line)
        return self._error(str(refusal), "INVALID_ARG")

    @staticmethod
    def _error(message, code):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, getattr(pb_utils.TritonError, code)))
