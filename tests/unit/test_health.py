"""The health port by itself: what it says, to whom, and that a stop is said at once."""

from __future__ import annotations

import http.client
import socket

import pytest

from build.server import ServerError, health
from build.server.health import Health


def ask(port: int, method: str = "GET", path: str = "/") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request(method, path)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


def test_it_says_what_is_the_case():
    answers = [True]
    with Health("127.0.0.1", 0, lambda: answers[0]) as told:
        assert ask(told.port) == (503, "the server starts, or something of it is broken\n")
        told.status = health.SERVING
        assert ask(told.port, path="/health")[0] == 200
        answers[0] = False  # it hangs, say
        assert ask(told.port)[0] == 503
        told.status = health.STOPPING
        assert ask(told.port)[0] == 404
    with pytest.raises(ConnectionRefusedError):
        ask(told.port)


def test_a_stop_that_comes_while_it_asks_is_said():
    def stopped() -> bool:
        told.status = health.STOPPING
        return False

    with Health("127.0.0.1", 0, stopped) as told:
        told.status = health.SERVING
        assert ask(told.port)[0] == 404


def test_balancers_that_ask_otherwise():
    with Health("127.0.0.1", 0, lambda: True) as told:
        told.status = health.SERVING
        assert ask(told.port, "HEAD") == (200, "")
        assert ask(told.port, "OPTIONS") == (200, "server, model and every step are alive\n")


def test_one_caller_who_says_nothing_keeps_nobody():
    with Health("127.0.0.1", 0, lambda: True) as told, socket.create_connection(("127.0.0.1", told.port)):
        assert ask(told.port)[0] == 503


def test_a_port_that_is_taken():
    with Health("127.0.0.1", 0, lambda: True) as told:
        said = f"port {told.port} on 127.0.0.1 is not free .*--health-port \\(make serve: HEALTH_PORT=\\)"
        with pytest.raises(ServerError, match=said):
            Health("127.0.0.1", told.port, lambda: True)
