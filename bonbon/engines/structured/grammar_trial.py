"""The process in which grammars are compiled first; see `grammar_check`."""

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bonbon.errors import EngineError

SCRIPT = Path(__file__).with_name("grammar_check.py")
START_TIMEOUT = 120.0
"""The seconds that the process may take to start and to read the tokenizer."""


class LimitExceeded(Exception):
    """Raised when a grammar exceeds its limits of time, memory or stack."""


class GrammarTrial:
    """One process, started when it is first needed, and again after a grammar crashed it. For one caller at a time.

    Args:
        tokenizer: The description of the tokenizer; see `grammar_check.read_tokenizer`.
        timeout: The seconds that a grammar may take.
    """

    def __init__(self, tokenizer: Mapping[str, Any], *, timeout: float) -> None:
        self._tokenizer, self._timeout = tokenizer, timeout
        self._process: Process | None = None

    async def error_of(self, grammar: str) -> str:
        """Returns what is wrong with a grammar, or an empty text.

        Raises:
            LimitExceeded: The grammar exceeded its limits.
            EngineError: The process cannot be started.
        """
        process = self._process
        if process is None or process.returncode is not None:
            process = self._process = await self._started()
        answer = await self._request(process, grammar, self._timeout)
        if answer is None:
            raise LimitExceeded
        return answer

    async def close(self) -> None:
        """Kills the process."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _started(self) -> Process:
        # -P keeps files beside the script from shadowing modules of the same name.
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", str(SCRIPT), stdin=PIPE, stdout=PIPE, stderr=DEVNULL
        )
        self._process = process
        if await self._request(process, self._tokenizer, START_TIMEOUT) is None:
            raise EngineError("the process that checks schemas crashed or did not start in time; try again")
        return process

    async def _request(self, process: Process, message: Any, seconds: float) -> str | None:
        """Sends a line and returns the answer.

        Kills the process and returns None when it ends or does not answer in time.
        """
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(seconds):
                process.stdin.write(json.dumps(message).encode() + b"\n")
                await process.stdin.drain()
                line = await process.stdout.readline()
            if line:
                return str(json.loads(line))
        except (TimeoutError, ConnectionError):
            pass
        except BaseException:  # Cancelled: the pending answer would be taken for the answer to the next request.
            self._process = None
            with suppress(ProcessLookupError):
                process.kill()
            raise
        await self.close()
        return None
