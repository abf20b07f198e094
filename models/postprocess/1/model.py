"""Last step of the ensemble, in two models: `postprocess` answers probabilities, `propose` the next problems.

Triton asks a step for all of its outputs, whatever the client asked for, and leaves out a step of which nothing is wanted.
As models of their own, side by side behind the core, proposals cost only those who ask for them.

Any client can call either model directly. So a request is checked here too, by contract.py beside this file (a copy of
`ensemble/contract.py`), and whatever is wrong with it is its own answer: what `execute` raises Triton answers to every
request of the batch.

Tensors are taken by their order in config.pbtxt, so the names stay the spec's business. Each comes with an axis of 1 behind
the batch, which is dropped:
    inputs   logits FP32 [batch, problems]; for proposals, problem_ids INT32 or INT64 [batch, any] as the client sent them;
             where the core answers every row, logits FP32 [batch, window, problems] and at last lengths INT32 [batch]
    outputs  probabilities FP32 [batch, problems]; or next_problem_ids INT32 [batch, k] and
             next_problem_probabilities FP32 [batch, k]
"""

import json
import math
import traceback

import numpy as np
import triton_python_backend_utils as pb_utils

from .contract import RefusedError, batch_of, check_answered, last_rows

# Overflows are meant, see below; np.errstate around each would cost more than the arithmetic.
np.seterr(over="ignore", invalid="ignore")


def sigmoid(logits):
    """1 / (1 + exp(-x)) in float32, in one temporary. Far negative logits overflow exp to inf, which is exactly 0."""
    probabilities = np.negative(logits)
    np.exp(probabilities, out=probabilities)
    probabilities += 1
    return np.reciprocal(probabilities, out=probabilities)


def damage(logits, name):
    """What is wrong with logits FP32 [batch, problems] that are not all finite numbers; None where all are.

    name: what they are called in the message.
    """
    # One pass, without a temporary: a NaN or an infinity stays in a sum. So does an overflow, which is why it only suspects.
    if math.isfinite(logits.sum()):
        return None
    for learner, row in enumerate(logits):
        count = int((~np.isfinite(row)).sum())
        if count:
            return (
                f"{name} has {count} values that are not finite for learner {learner}; allowed are finite numbers: "
                "the weights or the arithmetic of the core that answered them are damaged"
            )
    return None


def next_problems(probabilities, answered, target, count):
    """The `count` unanswered problems whose probability is nearest to `target`; equally near ones by their ids.

    Args:
        probabilities: FP32 [problems], of one learner.
        answered: INT32 [any], problem ids; -1 is padding.
        target: wanted probability of success, between 0 and 1.

    Returns:
        INT32 [count] ids and FP32 [count] probabilities, nearest first; -1 and 0 fill up where too few are unanswered.
    """
    distance = np.abs(probabilities - np.float32(target))
    distance[answered[answered >= 0]] = np.inf
    # Everything as near as the count-th: a partial sort alone would pick among equals by chance.
    candidates = np.flatnonzero(distance <= np.partition(distance, count - 1)[count - 1])
    nearest = candidates[np.argsort(distance[candidates], kind="stable")][:count]
    nearest = nearest[np.isfinite(distance[nearest])]
    ids = np.full(count, -1, np.int32)
    ids[: len(nearest)] = nearest
    chances = np.zeros(count, np.float32)
    chances[: len(nearest)] = probabilities[nearest]
    return ids, chances


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.name = config["name"]
        self.inputs = [(tensor["name"], len(tensor["dims"])) for tensor in config["input"]]
        self.output_names = tuple(tensor["name"] for tensor in config["output"])
        target = config["parameters"].get("target_success_rate")
        self.proposes = target is not None
        if self.proposes:
            self.target = float(target["string_value"])
            self.count = int(config["output"][0]["dims"][0])

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
        logits, *others = (
            batch_of(pb_utils.get_input_tensor_by_name(request, name).as_numpy(), name, axes)
            for name, axes in self.inputs
        )
        (logits_name, _), (last_name, _) = self.inputs[0], self.inputs[-1]
        if logits.ndim > 2:
            logits = last_rows(logits, others[-1].reshape(-1), (last_name, logits_name))
        wrong = damage(logits, logits_name)
        if wrong:
            return self._error(wrong, "INTERNAL")
        outputs = [sigmoid(logits)]
        if self.proposes:
            check_answered(others[0], logits.shape[1], self.inputs[1][0])
            proposals = [next_problems(*learner, self.target, self.count) for learner in zip(outputs[0], others[0])]
            outputs = [np.stack(column) for column in zip(*proposals)]
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, value) for name, value in zip(self.output_names, outputs)]
        )

    @staticmethod
    def _error(message, code):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, getattr(pb_utils.TritonError, code)))
