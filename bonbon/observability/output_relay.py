"""Makes every line that this process and those it starts write a JSON object, whoever writes it."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

MAX_DELAY = 5.0
"""The seconds that `end_relay` waits at most for other processes that still write."""

_relay: subprocess.Popen[bytes] | None = None


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
        _relay = subprocess.Popen([sys.executable, "-I", "-S", str(script)], stdin=subprocess.PIPE, stdout=2)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert _relay.stdin is not None
    with _relay.stdin as pipe:
        _redirect(pipe.fileno())


def end_relay() -> None:
    """Waits until every line is written, if `relay_output` was called. What is written afterwards is dropped."""
    if _relay is None:
        return
    with open(os.devnull, "wb") as nowhere:
        _redirect(nowhere.fileno())
    with suppress(subprocess.TimeoutExpired):
        _relay.wait(MAX_DELAY)


def _redirect(descriptor: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
