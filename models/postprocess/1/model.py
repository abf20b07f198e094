"""Last step of the ensemble, in one model for each answer: what a client gets of what the core answered.

Triton asks a step for all of its outputs, whatever the client asked for, and leaves out a step of which nothing is wanted.
As models of their own, side by side behind the core, answers cost only those who ask for them.

How an answer is made stands in chain.py beside this file, what a request has to be in contract.py (copies of those in
`ensemble`), and which chain and contract in the parameters. Any client can call this model directly. So a request is checked
here too, and what is wrong with it is its own answer: what `execute` raises Triton answers to every request of the batch.

Tensors are taken by their order in config.pbtxt, so the names stay the spec's business. Each comes with an axis of 1 behind
the batch, which is dropped:
    inputs   rows FP32 [batch, ...]; what the chain names, INT32 or INT64 [batch, any] as the client sent it; where the
             core answers every row, rows FP32 [batch, window, columns] and at last lengths INT32 [batch]
    outputs  of the chain
"""

import json
import traceback

import triton_python_backend_utils as pb_utils

from .chain import answer, damage
from .contract import Contract, RefusedError, batch_of, check_ids, last_rows


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.name = config["name"]
        self.inputs = [(tensor["name"], len(tensor["dims"])) for tensor in config["input"]]
        self.output_names = tuple(tensor["name"] for tensor in config["output"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        self.contract = Contract.loads(parameters["contract"])
        self.chain = json.loads(parameters["chain"])
        self.selects = "select" in parameters
        self.allowed = {**self.contract.inputs, **self.contract.contexts}

    def execute(self, requests):
        return [self._respond(request) for request in requests]

    def _respond(self, request):
        """One request's response, whatever happens to it."""
        try:
            return self._answer(request)
        except RefusedError as e:
            return self._error(str(e), "INVALID_ARG")
        except Exception as e:
            pb_utils.Logger.log_error(f"request {request.request_id() or 'without id'}: {traceback.format_exc()}")
            return self._error(f"{self.name} failed at this request: {type(e).__name__}: {e}", "INTERNAL")

    def _answer(self, request):
        words = self.contract.words
        given = {
            name: batch_of(tensor.as_numpy(), name, axes, words)
            for name, axes in self.inputs
            for tensor in [pb_utils.get_input_tensor_by_name(request, name)]
            if tensor is not None  # an optional one may be missing
        }
        name, rows = next(iter(given.items()))
        if self.selects:
            last, lengths = list(given.items())[-1]
            rows = last_rows(rows, lengths.reshape(-1), (last, name), words)
        wrong = damage(rows, name, words.history)
        if wrong:
            return self._error(wrong, "INTERNAL")
        for name in given.keys() & self.allowed.keys():
            check_ids(given[name], self.allowed[name], name, words)
        outputs = answer(self.chain, rows, given)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, value) for name, value in zip(self.output_names, outputs)]
        )

    @staticmethod
    def _error(message, code):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, getattr(pb_utils.TritonError, code)))
