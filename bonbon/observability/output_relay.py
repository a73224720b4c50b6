"""Makes every line that this process and those it starts write a JSON object, whoever writes it."""

import atexit
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MAX_DELAY = 5.0
"""The seconds that `end_relay` waits at most for whoever reads standard error."""


@dataclass(frozen=True, slots=True)
class _Relay:
    """The relay's process, this process's end of their socket, and what standard output and error were before."""

    process: subprocess.Popen[bytes]
    socket: socket.socket
    output: int
    error: int
    owner: int


_relay: _Relay | None = None


def relay_output() -> None:
    """Sends standard output and error through another process, which writes each line to standard error.

    It passes JSON objects on as they are, and wraps every other line in one. Libraries in C, the interpreter when it
    crashes and vLLM's processes write past Python's log, so that only another process can read them all.
    """
    global _relay
    # The relay ends when this process does. It inherits the blocked signals and never unblocks them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGINT, signal.SIGTERM})
    try:
        script = Path(__file__).with_name("json_lines.py")
        # A socket, unlike a pipe, can be shut down while other processes still have it open.
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen([sys.executable, "-I", "-S", str(script)], stdin=theirs.fileno(), stdout=2)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _relay = _Relay(process, ours, os.dup(1), os.dup(2), os.getpid())
    _redirect(ours.fileno(), ours.fileno())


def end_relay() -> None:
    """Waits until every line is written, if this process called `relay_output`; the interpreter calls it at its end.

    What this process writes afterwards goes where it went before. Processes that outlive it can no longer write.
    """
    global _relay
    if _relay is None or _relay.owner != os.getpid():
        return
    relay, _relay = _relay, None
    _redirect(relay.output, relay.error)
    relay.socket.shutdown(socket.SHUT_WR)
    with suppress(subprocess.TimeoutExpired):
        relay.process.wait(MAX_DELAY)


# Registered before other modules register what may still write.
atexit.register(end_relay)


def _redirect(output: int, error: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os.dup2(output, 1)
    os.dup2(error, 2)
