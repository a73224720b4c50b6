"""Makes every line that this process and those it starts write a JSON object, whoever writes it."""

import atexit
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from termios import TIOCOUTQ

MAX_DELAY = 5.0
"""The seconds that `drain_relay` waits at most for whoever reads standard error."""
POLL = 0.01

_relay: tuple[subprocess.Popen[bytes], socket.socket] | None = None
"""The relay, and this process's end of its socket."""


def relay_output() -> None:
    """Sends standard output and error through another process, which writes each line to standard error.

    It passes JSON objects on as they are, and wraps every other line in one. Libraries in C, the interpreter when it
    crashes and vLLM's processes write past Python's log, some of them while this process ends, so that only another
    process can read them all. The relay ends when this process has ended, even if processes that it started have not.
    """
    global _relay
    ours, theirs = socket.socketpair()
    life, alive = os.pipe()
    os.register_at_fork(after_in_child=lambda: os.close(alive))
    # The relay inherits the blocked signals and never unblocks them, so that it ends after this process.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGINT, signal.SIGTERM})
    try:
        script = str(Path(__file__).with_name("json_lines.py"))
        command = [sys.executable, "-I", "-S", script, str(life)]
        process = subprocess.Popen(command, stdin=theirs.fileno(), stdout=2, pass_fds=[life])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        os.close(life)
    _flush()
    os.dup2(ours.fileno(), 1)
    os.dup2(ours.fileno(), 2)
    _relay = process, ours
    atexit.register(drain_relay)


def drain_relay() -> None:
    """Waits until the relay, if there is one, has read every line.

    Where this process is the first one of a container, its end kills the relay.
    """
    if _relay is None:
        return
    _, ours = _relay
    _flush()
    end = time.monotonic() + MAX_DELAY
    # For a local socket, TIOCOUTQ is the memory of what the other end has not read yet.
    while any(fcntl.ioctl(ours, TIOCOUTQ, bytes(4))) and time.monotonic() < end:
        time.sleep(POLL)
    time.sleep(POLL)  # for the line that was read last


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
