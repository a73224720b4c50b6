"""Makes every line that this process and those it starts write a JSON object, whoever writes it."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

MAX_DELAY = 5.0
"""The seconds that `end_relay` waits at most for whoever reads standard error."""

_relay: tuple[subprocess.Popen[bytes], socket.socket] | None = None


def relay_output() -> None:
    """Sends standard output and error through another process, which writes each line to standard error.

    It passes JSON objects on as they are, and wraps every other line in one. Libraries in C, the interpreter when it
    crashes and vLLM's processes write past Python's log, some of them while this process ends, so that only another
    process can read them all.
    """
    global _relay
    # Only the end of all writers may end the relay. It inherits the blocked signals and never unblocks them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGINT, signal.SIGTERM})
    try:
        script = Path(__file__).with_name("json_lines.py")
        # A socket, unlike a pipe, can be shut down while other processes still have it open.
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen([sys.executable, "-I", "-S", str(script)], stdin=theirs.fileno(), stdout=2)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _redirect(ours.fileno())
    _relay = process, ours


def end_relay() -> None:
    """Waits until every line is written, if `relay_output` was called. What is written afterwards is dropped."""
    if _relay is None:
        return
    process, ours = _relay
    with open(os.devnull, "wb") as nowhere:
        _redirect(nowhere.fileno())
    ours.shutdown(socket.SHUT_WR)
    with suppress(subprocess.TimeoutExpired):
        process.wait(MAX_DELAY)


def _redirect(descriptor: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
