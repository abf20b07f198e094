"""The client without a server: refusals before sending, retries that end, and errors that say why."""

import asyncio
import concurrent.futures
import math
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from build.server import free_ports
from ensemble.client import AsyncClient, Client
from ensemble.client.retry import LONGEST_BACKOFF_S, failure
from ensemble.errors import (
    ClosedClientError,
    DeadlineExceededError,
    HistoryError,
    InvalidRequestError,
    ServingError,
    UnavailableError,
)
from ensemble.learners.history import History

HISTORY = History("ada", [1, 2], [0, 1])


@pytest.fixture
def nowhere() -> str:
    return f"127.0.0.1:{free_ports(1)[0]}"


def test_unreachable_is_tried_again_and_then_named(nowhere):
    with Client(nowhere, deadline_s=5, retries=2) as client:
        start = time.monotonic()
        with pytest.raises(UnavailableError, match=nowhere):
            client.predict(HISTORY)
        # Two waits of at least 25 and 50 ms lie between three tries.
        assert 0.075 <= time.monotonic() - start < 5


def test_retries_end_with_the_deadline(nowhere):
    with Client(nowhere, deadline_s=0.4, retries=1000) as client:
        start = time.monotonic()
        with pytest.raises((UnavailableError, DeadlineExceededError)):
            client.predict(HISTORY)
        assert time.monotonic() - start < 1.5


async def test_asyncio_is_no_different(nowhere):
    async with AsyncClient(nowhere, deadline_s=2, retries=1) as client:
        with pytest.raises(UnavailableError, match=nowhere):
            await client.predict(HISTORY)


@pytest.mark.parametrize(
    ("status", "details", "error"),
    [
        ("UNAVAILABLE", "", UnavailableError),
        ("CANCELLED", "", UnavailableError),
        ("NOT_FOUND", "'knowledge_tracing' has no available versions", UnavailableError),
        ("NOT_FOUND", "'knowledge_tracing' is not found", ServingError),
        ("INVALID_ARGUMENT", "", InvalidRequestError),
        ("DEADLINE_EXCEEDED", "", DeadlineExceededError),
        ("INTERNAL", "", ServingError),
    ],
)
def test_errors_by_status(nowhere, status, details, error):
    with Client(nowhere, retries=5) as client:
        found = grpc.aio.AioRpcError(
            grpc.StatusCode[status], grpc.aio.Metadata(), grpc.aio.Metadata(), details=f"it says why {details}"
        )
        named = failure(nowhere, found)
        assert type(named) is error
        assert "it says why" in str(named)
        assert named.status == status
        retry = client.retry(time.monotonic() + 60)
        retry.begin()
        if error is UnavailableError:
            waits = [retry.after(found)]
            for _ in range(4):
                retry.begin()
                waits.append(retry.after(found))
            assert all(0.025 * 2**n <= wait <= 0.05 * 2**n for n, wait in enumerate(waits))
        else:
            with pytest.raises(error):  # at once, without a wait
                retry.after(found)


@pytest.fixture
def mute(nowhere) -> Iterator[str]:
    """Where a server takes connections and never answers."""
    with socket.create_server(("127.0.0.1", int(nowhere.rpartition(":")[2]))):
        yield nowhere


def test_a_closed_client_says_so(nowhere):
    client = Client(nowhere)
    client.close()
    client.close()
    for call in (lambda: client.predict(HISTORY), client.status):
        with pytest.raises(ClosedClientError, match=rf"client of {nowhere} is closed; make a new one"):
            call()


async def test_a_closed_asyncio_client_says_so(nowhere):
    client = AsyncClient(nowhere)
    with pytest.raises(UnavailableError):
        await client.predict(HISTORY, deadline_s=0.1)
    await client.close()
    await client.close()
    for call in (lambda: client.predict(HISTORY), client.status):
        with pytest.raises(ClosedClientError, match=rf"client of {nowhere} is closed; make a new one"):
            await call()


@pytest.mark.parametrize("server", ["mute", "nowhere"], ids=["under way", "before the next try"])
def test_a_client_closed_meanwhile_is_named_and_does_not_try_again(server, request):
    client = Client(request.getfixturevalue(server), deadline_s=20, retries=1000)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        call = pool.submit(client.predict, HISTORY)
        time.sleep(0.4)
        assert call.running()
        client.close()
        with pytest.raises(ClosedClientError, match="is closed"):
            call.result(0.25)  # at once, though the waits have become longer


@pytest.mark.parametrize("server", ["mute", "nowhere"], ids=["under way", "before the next try"])
async def test_so_is_an_asyncio_client(server, request):
    client = AsyncClient(request.getfixturevalue(server), deadline_s=20, retries=1000)
    calls = [asyncio.create_task(client.predict(HISTORY)) for _ in range(8)]
    await asyncio.sleep(2)  # the waits are 0.5 to 1 s by then, and of eight callers
    assert not any(call.done() for call in calls)
    await client.close()
    ended, under_way = await asyncio.wait(calls, timeout=0.25)
    assert not under_way
    for call in ended:
        with pytest.raises(ClosedClientError, match="is closed"):
            call.result()


async def test_a_caller_that_is_cancelled_is_not_told_of_anything_else(mute):
    async with AsyncClient(mute, deadline_s=20) as client:
        call = asyncio.create_task(client.predict(HISTORY))
        await asyncio.sleep(0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert asyncio.all_tasks() == {asyncio.current_task()}


def test_the_waits_stay_short_however_many_there_were(nowhere):
    unavailable = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())
    with Client(nowhere, retries=10_000) as client:
        retry = client.retry(math.inf)
        retry.tries = 5_000
        assert retry.after(unavailable) <= LONGEST_BACKOFF_S


@pytest.mark.parametrize("deadline", [0, 0.0, -1, -math.inf, math.nan, np.float32("nan"), "10", True])
def test_a_deadline_that_can_only_fail_is_refused(nowhere, deadline):
    message = rf"deadline_s is {re.escape(repr(deadline))}; give seconds above 0, or math.inf"
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidRequestError, match=message):
            kind(nowhere, deadline_s=deadline)
    with Client(nowhere) as client, pytest.raises(InvalidRequestError, match=message):
        client.predict(HISTORY, deadline_s=deadline)


async def test_an_asyncio_call_refuses_such_a_deadline_too(nowhere):
    async with AsyncClient(nowhere) as client:
        with pytest.raises(InvalidRequestError, match="deadline_s is nan"):
            await client.predict(HISTORY, deadline_s=math.nan)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:8001", r"give host:port .*127\.0\.0\.1:8001, without http://$"),
        ("https://example.org", "without https://$"),
        ("grpc://127.0.0.1:8001", "without grpc://$"),
        ("grpcs://127.0.0.1:8001", "without grpcs://$"),
        ("127.0.0.1", "the URL is '127.0.0.1'; give host:port"),
        ("127.0.0.1:8001/", "give host:port"),
        ("127.0.0.1:8001/v2", "give host:port"),
        ("127.0.0.1:8001\n", "give host:port"),
        ("127.0.0.1:", "give host:port"),
        ("", "the URL is ''; give host:port"),
        (None, "the URL is None; give host:port"),
    ],
)
def test_what_is_no_host_and_port_is_named(url, message):
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidRequestError, match=message):
            kind(url)


@pytest.mark.parametrize("url", ["[::1]:1", "localhost:1", "dns:///localhost:1", "ipv4:127.0.0.1:1", "unix:/none"])
def test_what_grpc_resolves_is_asked(url):
    with Client(url, retries=0, deadline_s=2) as client, pytest.raises(UnavailableError, match="is not available"):
        client.predict(HISTORY)


def test_a_spec_of_very_large_messages_is_asked_for(spec, nowhere):
    large = spec.model_copy(update={"batching": spec.batching.model_copy(update={"longest_history": 10**8})})
    with Client(nowhere, spec=large, retries=0, deadline_s=2) as client, pytest.raises(UnavailableError):
        client.predict(HISTORY)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "a History or a list of them is needed; None is of type NoneType"),
        (5, "5 is of type int"),
        ("ada", "'ada' is of type str"),
        ({HISTORY}, "is of type set"),
        ({"ada": HISTORY}, "is of type dict"),
        (
            [[1, 2], [0, 1]],
            "histories at position 0 is [1, 2]; needed is a History, made with History(learner, problem_ids",
        ),
        ([HISTORY, None], "histories at position 1 is None"),
    ],
)
async def test_what_is_no_history_is_refused(nowhere, given, message):
    with Client(nowhere) as client, pytest.raises(HistoryError, match=re.escape(message)):
        client.predict(given)
    async with AsyncClient(nowhere) as asynchronous:
        with pytest.raises(HistoryError, match=re.escape(message)):
            await asynchronous.predict(given)


@pytest.mark.parametrize("retries", [-1, None, "3", math.nan, True])
def test_what_is_no_number_of_retries_is_refused(nowhere, retries):
    with pytest.raises(InvalidRequestError, match=r"retries is .*; give a number from 0 up"):
        Client(nowhere, retries=retries)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"root_certificates": "absent.pem"}, "cannot read the root_certificates file {}/absent.pem: No such file"),
        ({"root_certificates": "."}, "cannot read the root_certificates file {}: Is a directory"),
        ({"root_certificates": "text"}, "the root_certificates file {}/text has nothing in PEM format"),
        ({"root_certificates": "empty"}, "the root_certificates file {}/empty has nothing in PEM format"),
        ({"private_key": "pem"}, "private_key and certificate_chain go together; give both, or neither"),
        ({"certificate_chain": "pem"}, "private_key and certificate_chain go together; give both, or neither"),
    ],
)
@pytest.mark.parametrize("kind", [Path, str])
def test_wrong_certificates_are_named(tmp_path: Path, kind, files, message):
    """In a process of its own: gRPC ends the one that gives it half of a pair."""
    for name, content in (("text", "words"), ("empty", ""), ("pem", "-----BEGIN CERTIFICATE-----\n")):
        (tmp_path / name).write_text(content)
    given = {name: kind(tmp_path / file) for name, file in files.items()}
    program = f"""
from pathlib import Path, PosixPath
from ensemble.client import Client, Tls
from ensemble.errors import ServingError
try:
    Client("127.0.0.1:1", tls=Tls(**{given!r}), retries=0, deadline_s=2).status()
except ServingError as e:
    print(e)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert message.format(tmp_path) in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["predict", "absent.csv"], 1, "error: cannot read absent.csv: No such file"),
        (["predict", "-", "--top", "11"], 1, "error: --top 11: the server proposes 10; raise next_problems.count"),
        (["predict", "-", "--spec", "absent.toml"], 1, "error: cannot read the spec absent.toml"),
        (["predict"], 2, "Missing argument"),
        (["status", "--url", "127.0.0.1:1", "--deadline", "1"], 1, "error: 127.0.0.1:1 "),
        (["status", "--url", "http://127.0.0.1:1"], 1, "127.0.0.1:8001, without http://"),
        (["status", "--deadline", "nan"], 2, "Invalid value for '--deadline'"),
    ],
)
def test_command_line_errors_are_one_line(arguments, code, message):
    done = subprocess.run(
        [sys.executable, "-m", "ensemble", *arguments], input="", capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    if code == 1:
        assert done.stderr.count("\n") == 1
