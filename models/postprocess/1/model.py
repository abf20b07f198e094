"""Last step of the ensemble: turns logits into probabilities and proposes the next problems.

Tensors are taken by their order in config.pbtxt, so the names stay the spec's business:
    inputs   logits FP32 [batch, problems], problem_ids INT32 [batch, any] as the client sent them;
             where the core answers every row: logits FP32 [batch, window, problems] and lengths INT32 [batch] as third
    outputs  probabilities FP32 [batch, problems], next_problem_ids INT32 [batch, k],
             next_problem_probabilities FP32 [batch, k]; the last two are computed only for requests that ask for them
"""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


def sigmoid(logits):
    """1 / (1 + exp(-x)) in float32, in one temporary. Far negative logits overflow exp to inf, which is exactly 0."""
    probabilities = np.negative(logits)
    with np.errstate(over="ignore"):
        np.exp(probabilities, out=probabilities)
    probabilities += 1
    return np.reciprocal(probabilities, out=probabilities)


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
        self.probabilities, self.next_ids, self.next_probabilities = (t["name"] for t in config["output"])
        self.count = int(config["output"][1]["dims"][0])
        self.target = float(config["parameters"]["target_success_rate"]["string_value"])

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        logits, problem_ids, *lengths = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.input_names
        )
        if lengths:
            logits = logits[np.arange(len(logits)), lengths[0].reshape(-1) - 1]
        finite = np.isfinite(logits).all(axis=1)
        if not finite.all():
            learner = int(np.argmin(finite))
            count = int((~np.isfinite(logits[learner])).sum())
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(
                    f"the core answered {count} values that are not finite for learner {learner}: "
                    "its weights or its arithmetic are damaged",
                    pb_utils.TritonError.INTERNAL,
                )
            )
        probabilities = sigmoid(logits)
        wanted = request.requested_output_names()
        outputs = []
        if self.probabilities in wanted:
            outputs.append(pb_utils.Tensor(self.probabilities, probabilities))
        if self.next_ids in wanted or self.next_probabilities in wanted:
            proposals = [
                next_problems(row, answered, self.target, self.count)
                for row, answered in zip(probabilities, problem_ids)
            ]
            ids, chances = (np.stack(column) for column in zip(*proposals))
            outputs += [pb_utils.Tensor(self.next_ids, ids), pb_utils.Tensor(self.next_probabilities, chances)]
        return pb_utils.InferenceResponse(outputs)
