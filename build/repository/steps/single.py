"""All steps in one model: what a request is checked for, the core, and what a client gets of its answer, in one process.

A request goes from process to process once, not once a step. What is checked stands in preprocess.py beside this file, a
copy of that step, how answers are made in chain.py, and how sessions are opened, bound and captured in lastrow_onnxruntime,
a copy of what this project's ONNX Runtime backend uses. The parameter `steps` says what the ensemble's configurations would.

Requests of one batch are computed together where the core's inputs are of one shape; a short history does not wait in the
width of a long one. What is wrong with a request is its own answer.
"""

import collections
import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from . import preprocess
from .chain import answer, damage
from .lastrow_onnxruntime import binding, settings

Question = collections.namedtuple("Question", "request inputs fed")


class Core:
    """A session over one ONNX file."""

    def __init__(self, config, folder, args):
        kind, device = args["model_instance_kind"], int(args["model_instance_device_id"])
        graphs = bool(settings.graph_batch_sizes(config)) and kind == "GPU"
        self.session = settings.open_session(config, folder / f"{config['name']}.onnx", kind, device, graphs)
        self.options = binding.run_options(None)
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        bound = kind == "GPU" and settings.boolean("io_binding", settings.parameters(config).get("io_binding", "1"))
        warn = pb_utils.Logger.log_warn
        self.binder = binding.capture_all(config, self.session, "cuda", device, warn) if bound else None

    def run(self, feeds, names):
        """Outputs by `names`, [batch, ...], of a feed of every input."""
        if self.binder and self.binder.takes(feeds):
            return self.binder.run(feeds, names)
        return self.session.run(names, feeds, self.options)


class TritonPythonModel(preprocess.TritonPythonModel):
    def initialize(self, args):
        config = json.loads(args["model_config"])
        steps = json.loads(config["parameters"]["steps"]["string_value"])
        folder = Path(args["model_repository"]) / args["model_version"]
        self.cores = [Core(core, folder, args) for core in steps["cores"]]
        # Of each answer its tensors, the name of the rows that it is made of, and its chain.
        self.answers = [(tuple(tensors), rows, chain) for tensors, rows, chain in steps["answers"]]
        super().initialize(args)

    @staticmethod
    def windows(config):
        steps = json.loads(config["parameters"]["steps"]["string_value"])
        return [tensor for core in steps["cores"] for tensor in core["input"]]

    def execute(self, requests):
        responses = super().execute(requests)
        alike = collections.defaultdict(list)
        for number, found in enumerate(responses):
            if isinstance(found, Question):
                alike[tuple((name, value.shape[1:]) for name, value in found.fed.items())].append(number)
        for numbers in alike.values():
            for number, response in zip(numbers, self._computed([responses[number] for number in numbers])):
                responses[number] = response
        return responses

    def _answer(self, request):
        return Question(request, *self.taken(request))

    def _wanted(self, questions):
        """The names of the rows that their answers are made of."""
        names = {name for question in questions for name in question.request.requested_output_names()}
        return {rows for tensors, rows, _ in self.answers if names.intersection(tensors)}

    def _computed(self, questions):
        """The responses to questions whose windows are of one shape."""
        try:
            rows = self._rows(questions)
        except Exception as e:
            if len(questions) == 1:
                return [self.failed(questions[0].request, e)]
            # One request spoils the batch: each alone tells which, and the others get their answers.
            return [self._computed([question])[0] for question in questions]
        return [self._response(question, part) for question, part in zip(questions, rows)]

    def _rows(self, questions):
        """Of each question the wanted rows by name, [its histories, ...]."""
        wanted = self._wanted(questions)
        if len(questions) == 1:
            feeds = questions[0].fed
        else:
            feeds = {name: np.concatenate([each.fed[name] for each in questions]) for name in questions[0].fed}
        found = {}
        for core in self.cores:
            names = [name for name in core.outputs if name in wanted]
            if names:
                found.update(zip(names, core.run({name: feeds[name] for name in core.inputs}, names)))
        if len(questions) == 1:
            return [found]
        ends = np.cumsum([len(next(iter(question.fed.values()))) for question in questions])[:-1]
        parts = {name: np.split(rows, ends) for name, rows in found.items()}
        return [{name: part[number] for name, part in parts.items()} for number in range(len(questions))]

    def _response(self, question, rows):
        try:
            return self._answered(question, rows)
        except Exception as e:
            return self.failed(question.request, e)

    def _answered(self, question, rows):
        asked = set(question.request.requested_output_names())
        for name, values in rows.items():
            wrong = damage(values, name, self.contract.words.history)
            if wrong:
                return self._error(wrong, "INTERNAL")
        tensors = []
        for names, of, chain in self.answers:
            if asked.intersection(names):
                given = rows[of] if rows[of].ndim > 1 else rows[of][:, None]
                tensors += [pb_utils.Tensor(*each) for each in zip(names, answer(chain, given, question.inputs))]
        return pb_utils.InferenceResponse([tensor for tensor in tensors if tensor.name() in asked])
