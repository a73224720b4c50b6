"""The process ends even if an orderly shutdown does not finish."""

import asyncio
import sys
import threading
from pathlib import Path

from service.http_server.exit_deadline import Backstop

STUCK = """
import signal, threading, time
from concurrent.futures import ThreadPoolExecutor
from service.http_server.exit_deadline import Backstop

ThreadPoolExecutor(1).submit(time.sleep, 600)  # as a disk that hangs: the interpreter would wait for it
backstop = Backstop()
signal.signal(signal.SIGTERM, lambda *_: backstop.within({seconds}))
print("ready", flush=True)
signal.pause()
"""


async def test_a_thread_that_is_held_up_does_not_keep_the_process(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STUCK.format(seconds=0.2), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        await process.stdout.readline()
        process.terminate()
        assert await process.wait() == 1


def test_the_earliest_end_counts() -> None:
    ended = threading.Event()
    backstop = Backstop(lambda status: ended.set())
    backstop.within(600.0)
    assert not ended.wait(0.3)
    backstop.within(0.05)
    assert ended.wait(30)
