"""The process that grammars are tried out in; see `grammar_check`."""

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
"""Seconds that the process may take to start and read the tokenizer."""


class TooMuch(Exception):
    """The grammar took more time, memory or stack than it may."""


class GrammarTrial:
    """One process, started when it is first needed, and again after a grammar that it died of. One caller at a time.

    Args:
        tokenizer: see `grammar_check.read_tokenizer`.
        timeout: seconds that a grammar may take.
    """

    def __init__(self, tokenizer: Mapping[str, Any], *, timeout: float) -> None:
        self._tokenizer, self._timeout = tokenizer, timeout
        self._process: Process | None = None

    async def error_of(self, grammar: str) -> str:
        """What is wrong with a grammar; empty when nothing is.

        Raises:
            TooMuch: the grammar could not be tried out to the end.
            EngineError: the process cannot be started.
        """
        process = self._process
        if process is None or process.returncode is not None:
            process = self._process = await self._started()
        answer = await self._ask(process, grammar, self._timeout)
        if answer is None:
            raise TooMuch
        return answer

    async def close(self) -> None:
        """Kill the process."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _started(self) -> Process:
        # -P: what lies beside the script must not hide modules of the same names.
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", str(SCRIPT), stdin=PIPE, stdout=PIPE, stderr=DEVNULL
        )
        self._process = process
        if await self._ask(process, self._tokenizer, START_TIMEOUT) is None:
            raise EngineError("the process that checks schemas ended or did not start in time; try again")
        return process

    async def _ask(self, process: Process, question: Any, seconds: float) -> str | None:
        """The answer to a line; None when the process ends, or does not answer in time: then it is killed."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(seconds):
                process.stdin.write(json.dumps(question).encode() + b"\n")
                await process.stdin.drain()
                line = await process.stdout.readline()
            if line:
                return str(json.loads(line))
        except (TimeoutError, ConnectionError):
            pass
        except BaseException:  # cancelled: the answer would be taken for that to the next question
            self._process = None
            with suppress(ProcessLookupError):
                process.kill()
            raise
        await self.close()
        return None
