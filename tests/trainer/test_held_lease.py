"""Waiting for the lease of a trainer that was killed, and saying so."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from time import monotonic

import pytest
from structlog.testing import capture_logs

from bonbon.registry.leases import LeaseHeld, acquire
from bonbon.store.database import Database
from trainer.held_lease import HeldLease

NAME = "trainer"


def ended() -> str:
    """A process of this machine that is there no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return f"{socket.gethostname()}:{process.pid}"


@pytest.fixture
def zombie() -> Iterator[str]:
    """A process that has ended, as its parent has not noticed yet."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    yield f"{socket.gethostname()}:{process.pid}"
    process.wait()


@pytest.mark.parametrize("reaped", [True, False])
async def test_who_is_patient_says_at_once_for_whom_and_how_long_it_waits(
    database: Database, zombie: str, reaped: bool
) -> None:
    holder = ended() if reaped else zombie
    await acquire(database, NAME, holder, 2.0)
    with capture_logs() as said:
        async with HeldLease(database, NAME, 60.0, patient=True):
            pass
    (line,) = said
    assert line["event"] == "waiting for the lease of a process that has ended without giving it back"
    assert (line["holder"], line["lease"]) == (holder, NAME)
    assert line["seconds_at_most"] in (1, 2)


@pytest.mark.parametrize("holder", [f"{socket.gethostname()}:{os.getppid()}", "another-machine:1"])
async def test_nobody_waits_for_a_process_that_may_live(database: Database, holder: str) -> None:
    await acquire(database, NAME, holder, 600.0)
    begun = monotonic()
    with pytest.raises(LeaseHeld, match=f"held by {holder} until .*, unless that renews it"):
        async with HeldLease(database, NAME, 600.0, patient=True):
            pass
    assert monotonic() - begun < 300


async def test_watching_a_late_holder_is_said_at_once(database: Database) -> None:
    await acquire(database, NAME, "another-machine:1", 0.2)
    with capture_logs() as said:
        held = False
        while not held:
            try:
                async with HeldLease(database, NAME, 60.0):
                    held = True
            except LeaseHeld:
                said.clear()
    assert [(line["holder"], line["seconds_at_most"]) for line in said] == [("another-machine:1", 1)]
