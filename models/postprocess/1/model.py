"""Last step of the ensemble, in two models: `postprocess` answers probabilities, `propose` the next problems.

Triton asks a step for all of its outputs, whatever the client asked for, and leaves out a step of which nothing is wanted.
As models of their own, side by side behind the core, proposals cost only those who ask for them.

Tensors are taken by their order in config.pbtxt, so the names stay the spec's business:
    inputs   logits FP32 [batch, problems]; for proposals, problem_ids INT32 or INT64 [batch, any] as the client sent them;
             where the core answers every row, logits FP32 [batch, window, problems] and at last lengths INT32 [batch]
    outputs  probabilities FP32 [batch, problems]; or next_problem_ids INT32 [batch, k] and
             next_problem_probabilities FP32 [batch, k]
"""

import json
import math

import numpy as np
import triton_python_backend_utils as pb_utils

# Overflows are meant, see below; np.errstate around each would cost more than the arithmetic.
np.seterr(over="ignore", invalid="ignore")


def sigmoid(logits):
    """1 / (1 + exp(-x)) in float32, in one temporary. Far negative logits overflow exp to inf, which is exactly 0."""
    probabilities = np.negative(logits)
    np.exp(probabilities, out=probabilities)
    probabilities += 1
    return np.reciprocal(probabilities, out=probabilities)


def damage(logits):
    """What is wrong with logits FP32 [batch, problems] that are not all finite numbers; None where all are."""
    # One pass, without a temporary: a NaN or an infinity stays in a sum. So does an overflow, which is why it only suspects.
    if math.isfinite(logits.sum()):
        return None
    for learner, row in enumerate(logits):
        count = int((~np.isfinite(row)).sum())
        if count:
            return (
                f"the core answered {count} values that are not finite for learner {learner}: "
                "its weights or its arithmetic are damaged"
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
        self.input_names = tuple(tensor["name"] for tensor in config["input"])
        self.output_names = tuple(tensor["name"] for tensor in config["output"])
        target = config["parameters"].get("target_success_rate")
        self.proposes = target is not None
        if self.proposes:
            self.target = float(target["string_value"])
            self.count = int(config["output"][0]["dims"][0])

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        logits, *others = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.input_names)
        if logits.ndim > 2:
            logits = logits[np.arange(len(logits)), others[-1].reshape(-1) - 1]
        wrong = damage(logits)
        if wrong:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(wrong, pb_utils.TritonError.INTERNAL))
        outputs = [sigmoid(logits)]
        if self.proposes:
            proposals = [next_problems(*learner, self.target, self.count) for learner in zip(outputs[0], others[0])]
            outputs = [np.stack(column) for column in zip(*proposals)]
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, value) for name, value in zip(self.output_names, outputs)]
        )
