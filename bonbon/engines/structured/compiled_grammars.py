"""The grammars that constrain candidates of the embedded engine, compiled for the model's tokenizer by llguidance."""

import asyncio
import re
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from bonbon.engines.structured.grammar_check import limits, read_tokenizer
from bonbon.engines.structured.grammar_trial import GrammarTrial, LimitExceeded
from bonbon.errors import EngineError, UserError

CACHE_SIZE = 64
"""The number of compiled grammars that are kept for later requests with the same one."""
TURNS = 3
"""The number of compile timeouts that a request waits for its turn, before the client is asked to retry."""
REMEMBERED = 600.0
"""Seconds for which a grammar that exceeded a limit is refused at once; afterwards the machine may be less busy."""
PLACE = re.compile(r"^at \d+\(\d+\): (?:failed to compile JSON schema: )?")
EXCERPT = re.compile(r"\n *\d+ \| .*|\n<non-verbose/>.*", re.DOTALL)
MEANINGS = [
    (re.compile(pattern, re.DOTALL), meaning)
    for pattern, meaning in (
        (r"Unimplemented keys: \[(.*?)\]", r"keywords that are not supported, \1: leave them out"),
        (r"regex parse error:\n *(.*?)\n[ ^]*\nerror: (.*)", r"the pattern \1 is not supported: \2"),
        (r"lookarounds not supported yet; \w+ in regex /(.*)/", r"the pattern \1 is not supported: it looks around"),
        (r"oneOf constraints are not supported", r"its oneOf may match several alternatives at once: use anyOf"),
        (r"Pointer '(.*)' does not exist", r"it refers to '#\1', which it does not have"),
        (r"Resource '(.*?)' is not present", r"it refers to '\1', and nothing outside the schema is fetched"),
        (r"Expected f64 for (.*)", r"expected a number for \1"),
        (r"Unknown format: (.*)", r"the format \1 is not known: leave it out"),
        (r"Unsatisfiable schema: (.*)", r"nothing can match it, because \1"),
        (r"NoExtensionBias", r"its references lead back to themselves without end"),
    )
]
"""llguidance's errors, and what they mean for the author of a schema."""


class Grammars:
    """Compiles grammars, each once. It is used on one event loop, which it does not block.

    Each grammar is first compiled in another process, because clients write it: see `grammar_check`.

    Args:
        tokenizer: A Hugging Face tokenizer.
        size: The number of token ids: that of the tokenizer or of the model, whichever is larger.
        end_ids: The ids that end a candidate.
        timeout: The seconds that a grammar may take to compile.
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
        """Returns the matcher of the grammar, before its first token. Each candidate needs a copy.

        Args:
            grammar: The grammar; see `bonbon.engines.structured.grammar`.
            param: The field of the request that it comes from.

        Raises:
            UserError: The grammar is invalid, unsupported, or too expensive to compile; or the tokenizer does not
                support grammars.
            EngineError: The grammars of other requests took all the time.
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
        while len(self._compiled) > CACHE_SIZE:
            self._compiled.popitem(last=False)
        if isinstance(found, str):
            raise UserError(found, param=param)
        return found

    async def close(self) -> None:
        """Ends the process and the thread."""
        if self._trial is not None:
            await self._trial.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _compile(self, grammar: str, param: str) -> LLMatcher | str:
        """Returns the compiled grammar, or the message about why it cannot be compiled."""
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
        except (LimitExceeded, TimeoutError):
            self._too_much[grammar] = loop.time() + REMEMBERED
            while len(self._too_much) > CACHE_SIZE:
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
        """Returns the description for `grammar_check.read_tokenizer`.

        Where the model has no end token, a special token that no text contains takes its place.
        """
        backend = getattr(self._hf, "backend_tokenizer", None)
        if backend is None:
            raise _unreadable("it is not a tokenizer of the tokenizers library")
        known = set(self._hf.get_vocab().values())
        ends = sorted(known.intersection(self._end_ids)) or self._hf.all_special_ids[:1]
        if not ends:
            raise _unreadable("it has no end token; set end_tokens")
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
        f"this model's tokenizer does not support structured output ({why}): leave out response_format and forced tool "
        "calls",
        param="response_format",
    )


def _message(error: str, param: str) -> str:
    """Returns a message about a schema from llguidance's `error`, which quotes the grammar that it was made part of."""
    cause = EXCERPT.sub("", PLACE.sub("", error))
    for pattern, meaning in MEANINGS:
        if found := pattern.search(cause):
            cause = found.expand(meaning)
            break
    return f"a schema in {param} cannot be used: {' '.join(cause.split())[:300]}"
