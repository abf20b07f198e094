"""One request's time, cut where somebody looked at a clock: the client, Triton's trace, and the steps."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# In the order in which a request passes them, and what is said of each.
STAGES = {
    "encode": "the client makes a message of the history",
    "wire": "gRPC and the socket, from the client's thread to Triton's",
    "reading": "Triton makes a request of the message, and chooses the first step",
    "queue": "in front of each step",
    "hand-over": "from Triton to each Python step: copied into shared memory, and its process woken",
    "tensors": "in each Python step, what is none of the following: inputs read, outputs made, Python itself",
    "check": "of histories and contexts, against the contract",
    "windows": "taken of the histories, padded, and what the core is told beside them",
    "session": "ONNX Runtime's run",
    "row": "the wanted one of all, where the core answers every one",
    "finite": "whether the core's answer is numbers",
    "chain": "from the core's answer to the client's",
    "hand-back": "from each Python step to Triton, and on to the next step, or to gRPC",
    "wire back": "gRPC and the socket, from Triton's thread to the client's",
    "decode": "the client makes arrays of the message",
}


class Mark(NamedTuple):
    """A request as its client saw it: its name, and when it was begun, sent, answered and read, in ns."""

    request: str
    begun: int
    sent: int
    answered: int
    read: int


class Step(NamedTuple):
    """A step at one request, in ns: when it was queued, taken out of the queue, begun and ended, and how long parts took."""

    name: str
    queued: int
    taken: int
    begun: int
    ended: int
    parts: Mapping[str, int]


def cut(mark: Mark, received: int, steps: Sequence[Step], sending: int) -> dict[tuple[str, str], int]:
    """How long a request was where: ns by (client, wire, triton or a step; stage). They add up to what its client waited.

    >>> step = Step("core", 40, 50, 60, 90, {"session": 25})
    >>> found = cut(Mark("a", 0, 10, 130, 150), 20, [step], 100)
    >>> found["core", "session"], found["core", "tensors"], found["wire", "wire back"], sum(found.values())
    (25, 5, 30, 150)

    Args:
        received, sending: when Triton had the message, and when it began to send the answer.
        steps: in the order in which the request passed them.
    """
    found = {
        ("client", "encode"): mark.sent - mark.begun,
        ("wire", "wire"): received - mark.sent,
        ("triton", "reading"): steps[0].queued - received,
    }
    for step, then in zip(steps, [*(step.queued for step in steps[1:]), sending], strict=True):
        found[step.name, "queue"] = step.taken - step.queued
        found[step.name, "hand-over"] = step.begun - step.taken
        found[step.name, "tensors"] = step.ended - step.begun - sum(step.parts.values())
        found |= {(step.name, part): ns for part, ns in step.parts.items()}
        found[step.name, "hand-back"] = then - step.ended
    found["wire", "wire back"] = mark.answered - sending
    found["client", "decode"] = mark.read - mark.answered
    return found


class Trace(NamedTuple):
    """What Triton noted of a request to one of its models: the times in ns, by their names. parent: the ensemble's."""

    model: str
    request: str
    parent: int | None
    times: Mapping[str, int]


def traces(file: Path) -> dict[int, Trace]:
    """Triton's own trace of level TIMESTAMPS, by the numbers that it gives; a file has a line for each time of each."""
    told: dict[int, dict[str, Any]] = defaultdict(dict)
    times: dict[int, dict[str, int]] = defaultdict(dict)
    for line in json.loads(file.read_text(encoding="utf-8")):
        told[line["id"]] |= line
        times[line["id"]] |= {each["name"]: each["ns"] for each in line.get("timestamps", ())}
    return {
        number: Trace(each["model_name"], each.get("request_id", ""), each.get("parent_id"), times[number])
        for number, each in told.items()
    }


Stamped = Mapping[str, Mapping[str, Sequence[Any]]]  # by model and request: begin, end, [part, begin, end] of each part


def stamps(folder: Path) -> Stamped:
    """What the steps noted, by model and request; an instance of a model has a file of its own."""
    found: dict[str, dict[str, Sequence[Any]]] = defaultdict(dict)
    for file in sorted(folder.glob("*.stamps")):
        model, noted = json.loads(file.read_text(encoding="utf-8"))
        found[model] |= {request: times for request, *times in noted}
    return found


def cuts(marks: Sequence[Mark], traced: Mapping[int, Trace], stamped: Stamped) -> list[dict[tuple[str, str], int]]:
    """Of each request how long it was where.

    Raises:
        KeyError: one was not traced, or a step that notes its times did not note it.
    """
    asked = {trace.request: number for number, trace in traced.items() if trace.parent is None}
    passed: dict[int, list[Trace]] = defaultdict(list)
    for trace in traced.values():
        if trace.parent is not None:
            passed[trace.parent].append(trace)
    found = []
    for mark in marks:
        number = asked[mark.request]
        whole = traced[number]
        through = sorted(passed[number] or [whole], key=lambda trace: trace.times["QUEUE_START"])
        steps = [_step(trace, mark.request, stamped) for trace in through]
        found.append(cut(mark, whole.times["GRPC_WAITREAD_END"], steps, whole.times["GRPC_SEND_START"]))
    return found


def _step(trace: Trace, request: str, stamped: Stamped) -> Step:
    queued, taken = trace.times["QUEUE_START"], trace.times["COMPUTE_START"]
    if trace.model in stamped:
        begun, ended, parts = stamped[trace.model][request]
        spent: dict[str, int] = defaultdict(int)
        for part, begin, end in parts:
            spent[part] += end - begin
        return Step(trace.model, queued, taken, begun, ended, spent)
    # A backend of Triton's own, the native ONNX Runtime's: it says itself when its inputs were there, and its outputs.
    begun, ended = trace.times["COMPUTE_INPUT_END"], trace.times["COMPUTE_OUTPUT_START"]
    return Step(trace.model, queued, taken, begun, ended, {"session": ended - begun})
