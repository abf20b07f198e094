"""First step of the ensemble: checks learners' histories and hands the core windows of one of a few widths.

Tensors are taken by their order in config.pbtxt, so the names stay the spec's business:
    inputs   problem_ids, responses INT32 or INT64 [batch, any]
    outputs  recent_problem_ids, recent_responses [batch, window], of the types in config.pbtxt; lengths INT32 [batch, 1]
"""

import json

import numpy as np
import triton_python_backend_utils as pb_utils

PADDING = -1


def check(problem_ids, responses, problems, shortest_history=0, names=("problem_ids", "responses")):
    """Count the interactions of every learner, or say what is wrong with the request.

    Args:
        problem_ids: INT32 or INT64 [batch, time], 0 to problems - 1, oldest first, -1 only after the last interaction.
        responses: of the same shape, 0 or 1, -1 exactly where problem_ids is -1.
        problems: how many problems the model knows.
        shortest_history: interactions that a learner needs at least.
        names: what the two tensors are called in messages.

    Returns:
        INT32 [batch], the number of interactions before the padding.

    Raises:
        ValueError: names tensor, learner, position, value and what is allowed there.
    """
    ids_name, responses_name = names
    if problem_ids.shape[0] == 0:
        raise ValueError(f"{ids_name} has 0 learners; send at least 1")
    if problem_ids.shape != responses.shape:
        raise ValueError(
            f"{ids_name} has shape {list(problem_ids.shape)} and {responses_name} {list(responses.shape)}; "
            "both need the same [learners, interactions]"
        )
    # As unsigned numbers every negative is far above any limit: one comparison a tensor instead of two.
    ids, answers = (values.view(f"u{values.itemsize}") for values in (problem_ids, responses))
    if ids.size and ids.max() < problems and answers.max() <= 1:
        lengths = np.full(len(ids), ids.shape[1], np.int32)  # the usual request: no padding, nothing wrong
    else:
        lengths = _count(problem_ids, responses, ids < problems, answers <= 1, problems, names)
    if lengths.min() < shortest_history:
        learner = int((lengths < shortest_history).argmax())
        raise ValueError(
            f"{ids_name}: learner {learner} has {lengths[learner]} interactions; this model answers from "
            f"{shortest_history} on"
        )
    return lengths


def _count(problem_ids, responses, known, answered, problems, names):
    """`check` for requests with padding or with something wrong in them."""
    lengths = known.sum(axis=1, dtype=np.int32)
    before_padding = np.arange(problem_ids.shape[1]) < lengths[:, None]
    padding = (problem_ids == PADDING) & (responses == PADDING)
    right = np.where(before_padding, known & answered, padding)
    if not right.all():
        learner, position = np.argwhere(~right)[0]
        raise ValueError(_explain(problem_ids[learner], responses[learner], learner, position, problems, names))
    return lengths


def _explain(problem_ids, responses, learner, position, problems, names):
    """Why the interaction at `position` of one learner's [time] arrays is refused."""
    ids_name, responses_name = names
    where = f"learner {learner}, position {position}"
    problem, response = problem_ids[position], responses[position]
    if problem == PADDING and (problem_ids[position + 1 :] != PADDING).any():
        return (
            f"{ids_name}: {where} is -1, but interactions follow it; -1 is allowed only as padding after the last one"
        )
    if problem != PADDING and not 0 <= problem < problems:
        return (
            f"{ids_name}: {where} is {problem}; allowed are 0 to {problems - 1}, "
            "and -1 as padding after the last interaction"
        )
    if problem == PADDING:
        return f"{responses_name}: {where} is {response}; where {ids_name} is -1 only -1 is allowed"
    return (
        f"{responses_name}: {where} is {response}; allowed are 0 (wrong) and 1 (correct), and -1 where {ids_name} is -1"
    )


def recent(values, lengths, window, dtype=np.int32):
    """The most recent `window` valid entries of every learner, oldest first, then zeros.

    Zero and not -1: the core looks embeddings up for padding too, before `lengths` makes it ignore them.

    Args:
        values: INT32 or INT64 [batch, time], valid up to `lengths` [batch], -1 behind.

    Returns:
        [batch, window], of `dtype`.
    """
    batch, time = values.shape
    kept = np.zeros((batch, window), dtype)
    if time <= window:
        np.maximum(values, 0, out=kept[:, :time], casting="same_kind")
        return kept
    columns = np.maximum(lengths - window, 0)[:, None] + np.arange(window)
    kept[:] = np.take_along_axis(values, columns, axis=1)
    kept[columns >= lengths[:, None]] = 0
    return kept


def narrowest(widths, longest):
    """The smallest of the rising `widths` that holds `longest` interactions; the largest where none does."""
    return next((width for width in widths if width >= longest), widths[-1])


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.input_names = tuple(tensor["name"] for tensor in config["input"])
        self.output_names = tuple(tensor["name"] for tensor in config["output"])
        self.types = [pb_utils.triton_string_to_numpy(tensor["data_type"]) for tensor in config["output"][:2]]
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        self.widths = [int(width) for width in parameters["widths"].split(",")]
        self.problems = int(parameters["problems"])
        self.shortest_history = int(parameters["shortest_history"])

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        problem_ids, responses = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.input_names
        )
        try:
            lengths = check(problem_ids, responses, self.problems, self.shortest_history, self.input_names)
        except ValueError as e:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(e), pb_utils.TritonError.INVALID_ARG))
        valid = np.minimum(lengths, self.widths[-1])
        width = narrowest(self.widths, valid.max())
        windows = (recent(values, lengths, width, dtype) for values, dtype in zip((problem_ids, responses), self.types))
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, value) for name, value in zip(self.output_names, (*windows, valid[:, None]))]
        )
