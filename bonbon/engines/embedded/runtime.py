"""The parts of a started embedded engine."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from bonbon.engines.embedded.embedded_candidate import Loaded
from bonbon.engines.embedded.embedded_options import EmbeddedOptions
from bonbon.engines.embedded.loaded_versions import Versions, free_memory
from bonbon.engines.embedded.outbox import Outbox
from bonbon.engines.embedded.worker import Worker
from bonbon.engines.engine import DrawRequest, PromptLogprobs, Started, Tokens
from bonbon.engines.prompt_logprobs import prompt_logprobs
from bonbon.engines.request_limits import check_ends
from bonbon.engines.text.end_tokens import end_ids
from bonbon.engines.text.prompt_reader import PromptReader
from bonbon.engines.text.tokenizer import load_tokenizer
from bonbon.extras import need
from bonbon.prompt import Prompt

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from bonbon.engines.structured.compiled_grammars import Grammars


class Runtime:
    """The worker, its versions, and the tokenizer.

    It blocks while it is created and closed, so both run off the event loop.

    Raises:
        UserError: The base model cannot be loaded, or lacks a token that `end_tokens` names.
    """

    def __init__(
        self,
        base: str,
        directory: Path,
        options: EmbeddedOptions,
        loop: asyncio.AbstractEventLoop,
        *,
        end_tokens: Sequence[str | int] | None,
    ) -> None:
        tokenizer = load_tokenizer(directory)
        self.worker = Worker(Outbox(loop), max_rows=options.max_rows, threads=options.threads)
        self.worker.start()
        try:
            self.versions = self.worker.call(
                lambda: Versions(base, directory, tokenizer, device=options.device, dtype=options.dtype)
            ).result()
            vocabulary = self.versions.base.vocabulary
            ends = end_ids(directory, tokenizer, vocabulary, end_tokens)
        except BaseException:
            self.worker.close()
            raise
        self.context_length = self.versions.base.context_length
        self.reader = PromptReader(tokenizer, vocabulary, ends, tool_parser=options.tool_parser)
        self._tokenizer, self._schema_timeout = tokenizer, options.schema_timeout
        self._grammars: Grammars | None = None
        # One thread, because a tokenizer may encode only one text at a time.
        self._readers = ThreadPoolExecutor(1, "bonbon-prompts")

    def read(self, prompt: Prompt) -> "Future[Started]":
        """Reads a prompt in a separate thread, because a long one takes a while."""
        return self._readers.submit(self.reader.read, prompt, self.context_length)

    def prompt_logprobs(self, loaded: Loaded, started: Started, alternatives: int) -> "Future[PromptLogprobs]":
        """Computes the log-probabilities of a prompt; see `Engine.prompt_logprobs`."""

        def compute() -> PromptLogprobs:
            logprobs, tops = loaded.lane.policy.prompt_logprobs(started.token_ids, loaded.adapter, alternatives)
            return prompt_logprobs(started, logprobs, tops, self.reader.detokenizer)

        return self.worker.call(compute)

    async def grammar(self, request: DrawRequest) -> "LLMatcher | None":
        """Returns the grammar that constrains a request's candidates, before their first token, or None.

        Raises:
            UserError: A schema is not supported, the request contradicts itself, or llguidance is not installed.
            EngineError: The schemas of other requests take up all the compile time.
        """
        if request.sampling.response_format is None and request.prompt.tools is None:
            return None
        writing = self._readers.submit(self.reader.grammar, request.sampling, request.prompt)
        grammar = await asyncio.wrap_future(writing)
        if grammar is None:
            return None
        param = "response_format" if request.sampling.response_format is not None else "tools"
        check_ends(request.sampling, param)
        need(f"a request with {param}", "embedded", "llguidance", param=param)
        if self._grammars is None:
            from bonbon.engines.structured.compiled_grammars import Grammars

            size, end_ids = self.reader.size, self.reader.end_ids
            self._grammars = Grammars(self._tokenizer, size, end_ids, timeout=self._schema_timeout)
        return await self._grammars.matcher(grammar, param=param)

    async def stop_compiling(self) -> None:
        """Stops compiling grammars. Call it on the event loop, before `close`."""
        if self._grammars is not None:
            await self._grammars.close()

    def tokenize(self, prompt: Prompt, add_special_tokens: bool | None) -> "Future[Tokens]":
        """Tokenizes a prompt; see `Engine.tokenize`."""
        return self._readers.submit(self.reader.tokenize, prompt, add_special_tokens=add_special_tokens)

    def detokenize(self, token_ids: Sequence[int]) -> "Future[str]":
        """Decodes token ids; see `Engine.detokenize`."""
        return self._readers.submit(self.reader.detokenize, token_ids)

    def unload(self, name: str) -> None:
        """Unloads a version. Only the worker's thread may call it."""
        if loaded := self.versions.unload(name):
            self.worker.forget(loaded)
            free_memory()

    def close(self) -> None:
        """Ends the threads and waits for them."""
        self.worker.close()
        self.worker.join()
        self._readers.shutdown()
        free_memory()
