"""The client without a server: refusals before sending, retries that end, and errors that say why."""

import concurrent.futures
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest

from build.server import free_ports
from ensemble.client import AsyncClient, Client, Tls
from ensemble.errors import DeadlineExceededError, InvalidRequestError, ServingError, UnavailableError
from ensemble.history import History

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
        with pytest.raises(error, match="it says why") as raised:
            client.fail(found)
        assert type(raised.value) is error
        assert raised.value.status == status
        if error is UnavailableError:
            waits = [client.retry_after(found, tries, time.monotonic() + 60) for tries in range(1, 6)]
            assert all(0.025 * 2**n <= wait <= 0.05 * 2**n for n, wait in enumerate(waits))
        else:
            with pytest.raises(error):  # at once, without a wait
                client.retry_after(found, 1, time.monotonic() + 60)


def test_a_client_closed_meanwhile_is_named_and_does_not_try_again(nowhere):
    """A server that never answers: the call is under way when another thread closes its client."""
    with socket.create_server(("127.0.0.1", int(nowhere.rpartition(":")[2]))):
        client = Client(nowhere, deadline_s=20)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            call = pool.submit(client.predict, HISTORY)
            time.sleep(0.2)
            assert call.running()
            client.close()
            with pytest.raises(UnavailableError, match="Channel closed"):
                call.result(5)


def test_missing_certificates_are_named(tmp_path: Path):
    with pytest.raises(ServingError, match=r"there is no root_certificates file .*absent\.pem"):
        Client(tls=Tls(root_certificates=tmp_path / "absent.pem"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["predict", "absent.csv"], 1, "error: cannot read absent.csv: No such file"),
        (["predict", "-", "--top", "11"], 1, "error: --top 11: the server proposes 10; raise next_problems.count"),
        (["predict", "-", "--spec", "absent.toml"], 1, "error: cannot read the spec absent.toml"),
        (["predict"], 2, "Missing argument"),
        (["status", "--url", "127.0.0.1:1", "--deadline", "1"], 1, "error: 127.0.0.1:1 "),
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
