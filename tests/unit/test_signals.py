"""A request to stop, sent at every moment that a wait has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from build.server.signals import SIGNALS, StopRequest

TIMES = 300


def test_a_signal_inside_a_wait_does_not_hang():
    """In a process of its own, which a handler that waits for what it interrupted would keep for ever."""
    program = f"""
import os, signal, threading
from build.server.signals import StopRequest

def send():
    os.kill(os.getpid(), signal.SIGTERM)

for number in range({TIMES}):
    with StopRequest() as stop:
        threading.Timer(number * 1e-5, send).start()
        while not stop.wait(0.0):
            pass
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_wait_ends_with_the_signal(number: signal.Signals):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.wait(0.01)
        threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
        begun = time.monotonic()
        assert stop.wait(30.0)
        assert time.monotonic() - begun < 10.0
        assert stop.wait(0.0)
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), number)
        assert ended.value.code == 128 + number
    assert signal.getsignal(number) is before


def test_other_signals_ask_for_nothing():
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert not stop.wait(0.2)
    finally:
        signal.signal(signal.SIGUSR1, before)
