"""Grammars that candidates of the embedded engine are held to, compiled for the model's tokenizer by llguidance."""

import asyncio
import re
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from bonbon.engines.structured.grammar_check import limits, read_tokenizer
from bonbon.engines.structured.grammar_trial import GrammarTrial, TooMuch
from bonbon.errors import EngineError, UserError

KEPT = 64
"""Compiled grammars that are kept for the next request with the same one."""
TURNS = 3
"""A request waits for so many grammars' deadlines before it is told to try again."""
REMEMBERED = 600.0
"""Seconds for which a grammar that took too much is refused at once. Not for ever: the machine may have been busy."""
UNSUPPORTED = re.compile(r"Unimplemented keys: \[(.*?)\]")


class Grammars:
    """Compiles grammars, each once. Used on one event loop, which it does not block.

    A grammar is tried out in another process first, because it is the client's: see `grammar_check`.

    Args:
        tokenizer: a Hugging Face tokenizer.
        size: how many token ids there are: the tokenizer's, or the model's if it has more.
        end_ids: the ids that end a candidate.
        timeout: seconds that a grammar may take to compile.
    """

    def __init__(self, tokenizer: Any, size: int, end_ids: Collection[int], *, timeout: float) -> None:
        self._hf, self._size, self._end_ids, self._timeout = tokenizer, size, end_ids, timeout
        self._compiled: OrderedDict[str, LLMatcher | str] = OrderedDict()
        self._too_much: OrderedDict[str, float] = OrderedDict()  # and until when that is remembered
        self._one = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "bonbon-grammars")
        self._tokenizer: LLTokenizer | None = None
        self._trial: GrammarTrial | None = None

    async def matcher(self, grammar: str, *, param: str) -> LLMatcher:
        """The grammar before its first token. Each candidate takes a copy.

        Args:
            grammar: see `bonbon.engines.structured.grammar`.
            param: the request's field that it comes from.

        Raises:
            UserError: the grammar is not sound, not supported, or takes too much to compile; or the tokenizer cannot
                be held to any.
            EngineError: others' grammars took all the time.
        """
        found = self._compiled.get(grammar)
        if found is None:
            self._check(grammar, param)
            try:
                async with asyncio.timeout(TURNS * self._timeout):
                    await self._one.acquire()
            except TimeoutError:
                raise EngineError("the engine is busy compiling other schemas; try again") from None
            try:
                self._check(grammar, param)
                found = self._compiled.get(grammar) or await self._compile(grammar, param)
            finally:
                self._one.release()
            self._compiled[grammar] = found
        self._compiled.move_to_end(grammar)
        while len(self._compiled) > KEPT:
            self._compiled.popitem(last=False)
        if isinstance(found, str):
            raise UserError(found, param=param)
        return found

    async def close(self) -> None:
        """End the process and the thread."""
        if self._trial is not None:
            await self._trial.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _compile(self, grammar: str, param: str) -> LLMatcher | str:
        """The compiled grammar, or why there is none."""
        loop = asyncio.get_running_loop()
        if self._tokenizer is None:
            description = await loop.run_in_executor(self._thread, self._description)
            self._tokenizer = await loop.run_in_executor(self._thread, _read, description)
            self._trial = GrammarTrial(description, timeout=self._timeout)
        assert self._trial is not None
        try:
            error = await self._trial.error_of(grammar)
            if error:
                return _message(error, param)
            async with asyncio.timeout(TURNS * self._timeout):
                return await loop.run_in_executor(self._thread, _matcher, self._tokenizer, grammar)
        except (TooMuch, TimeoutError):
            self._too_much[grammar] = loop.time() + REMEMBERED
            while len(self._too_much) > KEPT:
                self._too_much.popitem(last=False)
            raise self._refusal(param) from None

    def _check(self, grammar: str, param: str) -> None:
        """Raise UserError where the grammar has taken too much lately."""
        if self._too_much.get(grammar, 0.0) > asyncio.get_running_loop().time():
            raise self._refusal(param)

    def _refusal(self, param: str) -> UserError:
        return UserError(
            f"the schemas in {param} take more than {self._timeout:g} s, or too much memory, to compile: simplify "
            "their patterns, references and bounds",
            param=param,
        )

    def _description(self) -> dict[str, Any]:
        """See `grammar_check.read_tokenizer`.

        Where the model has no token that ends a text, a special one stands for it, which no text has.
        """
        backend = getattr(self._hf, "backend_tokenizer", None)
        if backend is None:
            raise _unreadable("it is not one of the tokenizers library")
        known = set(self._hf.get_vocab().values())
        ends = sorted(known.intersection(self._end_ids)) or self._hf.all_special_ids[:1]
        if not ends:
            raise _unreadable("no token of it ends a text; set end_tokens")
        copy = type(backend).from_str(backend.to_str())
        copy.no_padding()
        copy.no_truncation()
        return {"tokenizer": copy.to_str(), "vocabulary": self._size, "ends": ends}


def _read(description: dict[str, Any]) -> LLTokenizer:
    try:
        return read_tokenizer(description)
    except ValueError as error:
        raise _unreadable(str(error)[:200]) from error


def _matcher(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    return LLMatcher(tokenizer, grammar, log_level=0, limits=limits())


def _unreadable(why: str) -> UserError:
    return UserError(
        f"candidates of this model cannot be held to a format, because of its tokenizer ({why}): leave response_format "
        "and forced tool calls out",
        param="response_format",
    )


def _message(error: str, param: str) -> str:
    if found := UNSUPPORTED.search(error):
        keywords = found[1].replace('"', "")
        return f"a schema in {param} has keywords that are not supported here, {keywords}: leave them out"
    return f"a schema in {param} cannot be used ({' '.join(error.split())[:300]}): correct or simplify it"
