"""Batches, bursts and callers that go away: who is answered is answered right, who is not is told so at once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import os
import shutil
import signal
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient

from build.bench import variant
from build.repository import assembly as repository
from build.server import Server, find
from ensemble.client import AsyncClient, Client
from ensemble.errors import DeadlineExceededError
from ensemble.learners.history import History
from ensemble.spec import Spec
from tests.conftest import Served, learner
from tests.faults.conftest import regions, samples, still_answers, wait_until
from tests.faults.traffic import Known, Outcome, Traffic, ask

STEPS = ("preprocess", "core", "postprocess")
BURST, BURST_S = 1000, 2.0
ASKED_EVERY = 5
# What a step may keep waiting, where its refusals are looked for; the first step is a hundred times faster than the core.
QUEUES, OTHER_QUEUES = {"preprocess": 1, "core": 4, "postprocess": 1}, 16
REFUSED_WITHIN_S, SERVED_WITHIN_S = 0.05, 5.0
GONE, DRAINED_WITHIN_S = 200, 60.0
GROWTH_MB = 50.0
BAD = History("bad", [1, 2, 14041], [0, 1, 1])


def changed(served: Served, folder: Path, **values: object) -> Path:
    """The repository, for a spec with other values by their dotted keys, two underscores for the dot."""
    shutil.copytree(served.repository, folder)  # the core stays as it is, and is not made a second time
    return repository.build(variant.changed(served.spec, **values), served.checkpoint, folder).folder


def pending(server: Server) -> float:
    """How many requests wait before any model."""
    with urllib.request.urlopen(server.metrics_url, timeout=5) as answer:
        page = answer.read().decode()
    return sum(sample.value for sample in samples(page) if sample.name == "nv_inference_pending_request_count")


def entered(server: Server) -> list[int]:
    """How many requests each step has worked on."""
    with grpcclient.InferenceServerClient(server.grpc_url) as triton:
        stats = {step: triton.get_inference_statistics(step).model_stats for step in STEPS}
    return [sum(version.inference_stats.success.count for version in stats[step]) for step in STEPS]


def resident(server: Server) -> float:
    """Megabytes of the server and its stubs, what they share counted once."""
    return sum(process.memory_full_info().pss for process in server.processes.tree()) / 2**20


def test_one_bad_request_among_seven_good_ones_fails_alone(served: Served, known: Known):
    async def round_of_eight() -> list[str]:
        async with AsyncClient(served.server.grpc_url, spec=served.spec, retries=0) as client:
            eight = [*known.histories[3:10], BAD]
            outcomes = await asyncio.gather(*(ask(client, history, known) for history in eight))
        assert [outcome.status for outcome in outcomes] == ["OK"] * 7 + ["INVALID_ARGUMENT"]
        assert "learner 0, position 2 is 14041" in outcomes[-1].message
        assert all(outcome.same for outcome in outcomes[:7])
        return [outcome.status for outcome in outcomes]

    for _ in range(25):
        asyncio.run(round_of_eight())


def test_a_learner_gets_the_same_answer_in_any_company(served: Served, client: Client, known: Known):
    order = np.random.default_rng(0)
    for size in (2, 5, 13, 32):
        batch = [known.histories[i] for i in order.integers(0, len(known.histories), size)]
        for history, answer in zip(batch, client.predict(batch), strict=True):
            assert known.holds(history.learner, answer.probabilities)
    with Traffic(served.server.grpc_url, served.spec, known, callers=16) as traffic:
        traffic.wait_for(800)
    assert set(traffic.statuses()) == {"OK"}
    assert traffic.wrong() == []


@pytest.mark.parametrize("step", STEPS)
def test_a_burst_is_served_or_refused_at_once(served: Served, known: Known, tmp_path: Path, step: str):
    limits = {"batching__max_queue_size": OTHER_QUEUES, f"steps__{step}__max_queue_size": QUEUES[step]}
    repository = changed(served, tmp_path / "models", **limits)
    with Server(repository, log=tmp_path / "log") as server:
        before = entered(server)
        # Short histories are quick in the core: more of them at a time reach the step behind it.
        longest = 20 if step == "postprocess" else None
        # Before the first queue it is the server that turns a request away, before the others it is the first step.
        other = variant.changed(served.spec, model__name="nobody") if step == "preprocess" else served.spec
        outcomes, others = asyncio.run(burst(server.grpc_url, served.spec, known, other, longest))
        answered = sum(o.status == "OK" for o in outcomes)
        # A step counts a batch only after its answers have gone out.
        wait_until(
            lambda: entered(server)[-1] - before[-1] == answered, 5, "the last step has counted what it answered"
        )
        told = [(o.begun, o.took_s) for o in others if "unknown model" in o.message or "position 2" in o.message]
        assert told
        steps = [BURST, *(now - then for now, then in zip(entered(server), before, strict=True))]
        if step != "preprocess":
            steps[1] -= len(told)  # the first step has worked on those too
        refused_by = dict(zip(STEPS, (came - went for came, went in itertools.pairwise(steps)), strict=True))
        served_s = [o.took_s for o in outcomes if o.status == "OK"]
        refused = [o for o in outcomes if o.status == "UNAVAILABLE"]
        # What it takes at the same moment to be turned away before that queue is the machine's and the caller's share.
        elsewhere = np.interp([o.begun for o in refused], *zip(*told, strict=True))
        quickly = float(np.percentile([o.took_s for o in refused] - elsewhere, 95))
        print(
            f"{step}: {len(served_s)} in at most {max(served_s):.2f} s, refused by {refused_by}, 95 % in {quickly:.3f} s "
            f"more than the {np.median(elsewhere):.3f} s of {len(told)} turned away before the queue"
        )
        assert len(served_s) + len(refused) == len(outcomes) == BURST
        assert served_s
        assert len(told) + sum("Exceeds maximum queue size" in o.message for o in others) == len(others)
        assert all("Exceeds maximum queue size" in o.message for o in refused)
        # Triton itself counts none of them at the step that refused: only how many each step took tells.
        assert min(refused_by.values()) >= 0
        assert refused_by[step] > 0
        assert sum(refused_by.values()) == len(refused)
        # The last step refuses what has waited for the core already: that wait is the core's queue, which has an end too.
        assert quickly < (SERVED_WITHIN_S if step == "postprocess" else REFUSED_WITHIN_S)
        assert max(served_s) < SERVED_WITHIN_S
        assert all(o.same for o in outcomes)
        assert pending(server) == 0
        still_answers(server, served.spec, known)


async def burst(
    url: str, spec: Spec, known: Known, other: Spec | None = None, longest: int | None = None
) -> tuple[list[Outcome], list[Outcome]]:
    """All of them in two seconds, several times what two cores serve.

    Returns:
        Their outcomes, and those of bad requests in between, for the model of the other spec.
    """
    async with (
        AsyncClient(url, spec=spec, retries=0, deadline_s=60) as client,
        AsyncClient(url, spec=other or spec, retries=0, deadline_s=60) as other_client,
    ):
        histories = [h for h in known.histories if longest is None or len(h.problem_ids) <= longest]
        tasks, others = [], []
        begun = time.monotonic()
        for number, i in enumerate(np.random.default_rng(0).integers(0, len(histories), BURST)):
            tasks.append(asyncio.create_task(ask(client, histories[i], known)))
            if number % ASKED_EVERY == 0:
                others.append(asyncio.create_task(ask(other_client, BAD, known)))
            await asyncio.sleep(begun + number / BURST * BURST_S - time.monotonic())
        return await asyncio.gather(*tasks), await asyncio.gather(*others)


def test_a_wait_before_a_step_has_an_end(served: Served, known: Known, tmp_path: Path):
    folder = changed(served, tmp_path / "models", batching__queue_timeout_us=100_000)
    with Server(folder, log=tmp_path / "log") as server:
        outcomes, bad = asyncio.run(burst(server.grpc_url, served.spec, known))
        statuses = {o.status for o in outcomes}
        assert statuses == {"OK", "UNAVAILABLE"}
        assert {"INVALID_ARGUMENT"} <= {o.status for o in bad} <= {"INVALID_ARGUMENT", "UNAVAILABLE"}
        late = [o for o in outcomes if "timeout expired" in o.message]
        assert late
        assert max(o.took_s for o in late) < SERVED_WITHIN_S
        assert all(o.same for o in outcomes)
        assert pending(server) == 0
        still_answers(server, served.spec, known)


def test_callers_that_give_up_leave_nothing_behind(served: Served, known: Known, tmp_path: Path):
    """A third each: the deadline passes, the call is cancelled, the process is killed."""
    arguments = find().client_shared_memory()  # of the callers that are killed
    with Server(served.repository, arguments=arguments, log=tmp_path / "log") as server:
        asyncio.run(give_up(server.grpc_url, served.spec, GONE // 3))
        with Client(server.grpc_url, spec=served.spec, deadline_s=DRAINED_WITHIN_S) as client:
            # Buffers have grown to the largest batch then.
            client.predict([learner(512)] * served.spec.batching.max_batch_size)
        before, memory = regions(), resident(server)
        asyncio.run(give_up(server.grpc_url, served.spec, GONE - GONE // 3))
        # What a step has been handed it works on, though nobody waits for it any more: 134 times 8 full windows.
        wait_until(lambda: pending(server) == 0, DRAINED_WITHIN_S, "nothing pending")
        killed(server.grpc_url, GONE // 3)
        wait_until(lambda: pending(server) == 0, 10, "nothing pending")
        still_answers(server, served.spec, known)
        growth = resident(server) - memory
        print(f"resident memory grew by {growth:.1f} MB")
        wait_until(lambda: regions() <= before, 5, "no shared memory of theirs")
        assert growth < GROWTH_MB


async def give_up(url: str, spec: Spec, count: int) -> None:
    """Half of the calls end by their deadline, half by being cancelled, at moments spread over the way."""
    histories = [learner(512, seed) for seed in range(8)]
    async with AsyncClient(url, spec=spec, retries=0) as client:
        for number in range(count):
            late = 0.001 + 0.05 * (number % 17) / 17
            if number % 2:
                with contextlib.suppress(DeadlineExceededError):
                    await client.predict(histories, deadline_s=late)
            else:
                task = asyncio.create_task(client.predict(histories))
                await asyncio.sleep(late)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task


def killed(url: str, count: int) -> None:
    """Callers in processes of their own, some with tensors in shared memory, killed with a request under way."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ensemble.client", "tests.conftest"])
    for number in range(count):
        receive, send = context.Pipe(duplex=False)
        caller = context.Process(target=call_for_ever, args=(url, number % 2 == 0, send), daemon=True)
        caller.start()
        send.close()  # the caller's is the only one now: its end, if it fails, ends the wait for its word
        assert receive.recv() == "asked"
        time.sleep(0.001 * (number % 30))
        os.kill(caller.pid, signal.SIGKILL)
        caller.join()


def call_for_ever(url: str, shared_memory: bool, asked) -> None:
    """What a caller does until it is killed."""
    with Client(url, shared_memory=shared_memory, deadline_s=DRAINED_WITHIN_S) as client:
        histories = [learner(512, seed) for seed in range(8)]
        client.predict(histories)
        asked.send("asked")
        while True:
            client.predict(histories)
