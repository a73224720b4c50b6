"""`bonbon` in a process forked from one that has imported everything: as the command line, without its start."""

import os
import sys
from pathlib import Path
from typing import Any

from tests.support.service.forked_service import CONTEXT


class ForkedCommand:
    """A command under way. What it writes to standard output and error is in `log`."""

    def __init__(self, directory: Path, *arguments: str, **environment: str) -> None:
        self.log = directory / "command.log"
        given = (self.log, directory, arguments, environment)
        self._process: Any = CONTEXT.Process(target=_run, args=given, daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        pid: int = self._process.pid
        return pid

    @property
    def written(self) -> str:
        """What it has written so far."""
        return self.log.read_text() if self.log.exists() else ""

    def wait(self, seconds: float = 120.0) -> int | None:
        """The exit status, when it has ended; None when it has not ended in time."""
        self._process.join(seconds)
        status: int | None = self._process.exitcode
        return status


def _run(log: Path, directory: Path, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    with log.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(directory)
    for name in [name for name in os.environ if name.startswith("BONBON_")]:
        del os.environ[name]
    os.environ |= environment
    sys.argv = ["bonbon", *arguments]
    from bonbon.cli.main import main

    main()
