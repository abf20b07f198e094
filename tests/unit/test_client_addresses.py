"""A client of several servers: what it connects to, that it goes through them in turn, and does not wait to do so."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from build.server import free_ports
from ensemble.client import AsyncClient, Client
from ensemble.client.channel import balancing, is_several, target
from ensemble.client.retry import FIRST_BACKOFF_S, Retry
from ensemble.errors import InvalidRequestError, UnavailableError


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Says that it is alive, or, as one that stops or has a dead step, refuses."""

    def __init__(self, refusal: tuple[grpc.StatusCode, str] | None = None) -> None:
        self.refusal, self.asked = refusal, 0

    def ServerLive(self, _, context):
        self.asked += 1
        if self.refusal is not None:
            context.abort(*self.refusal)
        return service_pb2.ServerLiveResponse(live=True)


@pytest.fixture
def serve() -> Iterator:
    started = []

    def start(triton: Triton) -> str:
        server = grpc.server(ThreadPoolExecutor(2))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        started.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in started:
        server.stop(None)


def live(client: Client) -> bool:
    return client._call("ServerLive", service_pb2.ServerLiveRequest(), client.retry(client.deadline(None))).live


def reached(client: Client, *tritons: Triton) -> None:
    """Connections are made side by side: until all are there, the calls go to those that are."""
    deadline = time.monotonic() + 10
    while not all(triton.asked for triton in tritons):
        assert time.monotonic() < deadline
        live(client)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("10.0.0.1:8001", "10.0.0.1:8001"),
        (["10.0.0.1:8001"], "ipv4:10.0.0.1:8001"),
        (["10.0.0.1:8001", "10.0.0.2:8001", "10.0.0.1:8001"], "ipv4:10.0.0.1:8001,10.0.0.2:8001"),
        (("localhost:8001", "10.0.0.2:1"), "ipv4:127.0.0.1:8001,10.0.0.2:1"),
        (["[::1]:8001", "[::2]:8001"], "ipv6:[::1]:8001,[::2]:8001"),
        ("dns:///fleet:8001", "dns:///fleet:8001"),
    ],
)
def test_what_grpc_connects_to(given, wanted: str):
    assert target(given) == wanted
    with Client(given) as client:
        assert client.url == wanted


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "the URLs are none"),
        (["10.0.0.1:8001", "[::1]:8001"], "IPv4 and IPv6; give addresses of one kind"),
        (["10.0.0.1"], "host:port"),
        (["dns:fleet:8001"], "'dns:fleet:8001' stands among several"),
        (["no-such-name.invalid:8001"], "nobody knows the address of 'no-such-name.invalid:8001'"),
        (7, "the URL is 7"),
        ([7], "the URL is 7"),
    ],
)
def test_what_is_no_list_of_addresses(given, said: str):
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidRequestError, match=said):
            kind(given)


def test_who_may_be_several():
    assert is_several("fleet.example:8001")
    assert not any(map(is_several, ("127.0.0.1:8001", "localhost:8001", "[::1]:8001", "ipv4:10.0.0.1:8001")))
    assert balancing("127.0.0.1:8001") == []


def test_they_are_asked_in_turn(serve):
    tritons = Triton(), Triton(), Triton()
    with Client([serve(triton) for triton in tritons]) as client:
        reached(client, *tritons)
        before = [triton.asked for triton in tritons]
        for _ in range(30):
            assert live(client)
        assert [now.asked - then for now, then in zip(tritons, before, strict=True)] == [10, 10, 10]


@pytest.mark.parametrize(
    "refusal",
    [
        (grpc.StatusCode.UNAVAILABLE, "the server is stopping"),
        (grpc.StatusCode.INTERNAL, "Stub process 'core_0_0' is not healthy."),
    ],
)
def test_what_one_refuses_the_next_answers_at_once(serve, refusal):
    bad, good = Triton(refusal), Triton()
    with Client([serve(bad), serve(good)]) as client:
        reached(client, bad, good)
        start = time.monotonic()
        for _ in range(20):
            assert live(client)
        assert time.monotonic() - start < 10 * FIRST_BACKOFF_S / 2  # ten of them were refused first
        assert bad.asked >= 10


def test_what_is_wrong_with_a_request_is_not_asked_again(serve):
    first, second = (Triton((grpc.StatusCode.INTERNAL, "logits has 1 values that are not finite")) for _ in range(2))
    with Client([serve(first), serve(second)]) as client:
        with pytest.raises(Exception, match="not finite"):
            live(client)
        assert first.asked + second.asked == 1


def test_one_alone_is_given_time(serve):
    triton = Triton((grpc.StatusCode.UNAVAILABLE, "the server is stopping"))
    with Client(serve(triton), retries=1) as client:
        start = time.monotonic()
        with pytest.raises(UnavailableError):
            live(client)
        assert time.monotonic() - start >= FIRST_BACKOFF_S / 2
    assert triton.asked == 2


def test_one_that_is_not_there_keeps_nobody(serve):
    gone, triton = f"127.0.0.1:{free_ports(1)[0]}", Triton()
    with Client([gone, serve(triton)], retries=0) as client:
        assert all(live(client) for _ in range(20))
    assert triton.asked == 20


def test_only_the_first_wait_is_left_out():
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())
    with Client(["127.0.0.1:1", "127.0.0.1:2"]) as client:
        retry = client.retry(client.deadline(None))
        assert isinstance(retry, Retry)
        waits = []
        for _ in range(3):
            retry.begin()
            waits.append(retry.after(error))
    assert waits[0] == 0
    assert min(waits[1:]) >= FIRST_BACKOFF_S / 2
