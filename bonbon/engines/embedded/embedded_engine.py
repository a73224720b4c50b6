"""The embedded engine runs in this process, with transformers and peft, on a GPU or on the CPU."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from bonbon.engines.embedded.embedded_candidate import EmbeddedCandidate, Job, Loaded
from bonbon.engines.embedded.embedded_options import EmbeddedOptions
from bonbon.engines.engine import Delta, DrawRequest, Engine, PromptLogprobs, Started, Tokens, VersionFiles, VersionKind
from bonbon.engines.golden_prompts import check_started
from bonbon.engines.request_limits import check_bias, check_length, check_request
from bonbon.errors import HOW_TO_START, BonbonError, EngineError, UnknownVersion, UserError
from bonbon.extras import install
from bonbon.prompt import Prompt

if TYPE_CHECKING:
    from bonbon.engines.embedded.runtime import Runtime


class EmbeddedEngine(Engine):
    """Samples with a model in this process.

    One thread owns the models. Concurrent requests share micro-batches, whatever their prompts, sampling parameters and
    adapters. The engine serves the event loop it was started on.

    Args:
        base: The name of the base version.
        directory: The base model in Hugging Face format.
        options: The engine's options; see EmbeddedOptions.
        end_tokens: The tokens that end a completion, instead of those that the model's files name.
    """

    def __init__(
        self,
        base: str,
        directory: Path,
        options: EmbeddedOptions | None = None,
        *,
        end_tokens: Sequence[str | int] | None = None,
    ) -> None:
        self._base, self._directory, self._options = base, directory, options or EmbeddedOptions()
        self._end_tokens = end_tokens
        self._runtime: Runtime | None = None
        self._random = Random()

    @property
    def base(self) -> str:
        return self._base

    @property
    def context_length(self) -> int:
        return self._running.context_length

    async def start(self) -> None:
        if self._runtime is not None:
            return
        self._runtime = await asyncio.to_thread(self._open, asyncio.get_running_loop())
        remedy = "serve it with engine = 'vllm', or serve another model"
        await check_started(self, self._directory, name="the embedded engine", remedy=remedy)

    async def stop(self) -> None:
        if self._runtime is not None:
            runtime, self._runtime = self._runtime, None
            await runtime.stop_compiling()
            await asyncio.to_thread(runtime.close)

    async def draw(self, request: DrawRequest) -> AsyncGenerator[Started | Delta]:
        runtime = self._running
        check_request(request)
        check_bias(request.sampling, runtime.versions.base.vocabulary)
        loaded = self._version(request.version)
        started = await asyncio.wrap_future(runtime.read(request.prompt))
        check_length(len(started.token_ids), request, runtime.context_length)
        job = Job(request, loaded, started.token_ids, runtime.reader, await runtime.grammar(request))
        runtime.worker.submit(job, [EmbeddedCandidate(job, index, self._random) for index in range(request.n)])
        left = request.n
        try:
            yield started
            while left:
                event = await job.events.get()
                if isinstance(event, BonbonError):
                    raise event
                left -= event.finish_reason is not None
                yield event
        finally:
            if left:
                runtime.worker.abort(job)

    async def prompt_logprobs(self, request: DrawRequest) -> PromptLogprobs:
        runtime = self._running
        loaded = self._version(request.version)
        started = await asyncio.wrap_future(runtime.read(request.prompt))
        check_length(len(started.token_ids), request, runtime.context_length, max_tokens=0)
        found = runtime.prompt_logprobs(loaded, started, request.sampling.top_logprobs)
        return await asyncio.wrap_future(found)

    async def tokenize(self, prompt: Prompt, *, add_special_tokens: bool | None = None) -> Tokens:
        return await asyncio.wrap_future(self._running.tokenize(prompt, add_special_tokens))

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return await asyncio.wrap_future(self._running.detokenize(token_ids))

    def adapts_output_layer(self) -> bool:
        return True

    async def load(self, version: VersionFiles) -> None:
        runtime = self._running
        if version.name in runtime.versions.loaded:
            return
        from bonbon.engines.adapters.adapter_files import read_adapter

        adapter = None
        if version.kind is VersionKind.ADAPTER:
            adapter = await asyncio.to_thread(read_adapter, version.directory)
        await asyncio.wrap_future(runtime.worker.call(lambda: runtime.versions.load(version, adapter)))

    async def unload(self, name: str) -> None:
        runtime = self._running
        await asyncio.wrap_future(runtime.worker.call(lambda: runtime.unload(name)))

    async def loaded(self) -> frozenset[str]:
        return frozenset(self._running.versions.loaded)

    async def check(self) -> None:
        if reason := self._running.worker.ended:
            raise EngineError(reason)

    @property
    def _running(self) -> "Runtime":
        if self._runtime is None:
            raise EngineError(f"the engine is not started: {HOW_TO_START.format('engine')}")
        return self._runtime

    def _version(self, name: str) -> Loaded:
        loaded = self._running.versions.loaded.get(name)
        if loaded is None:
            raise UnknownVersion(f"version {name!r} is not loaded", param="model")
        return loaded

    def _open(self, loop: asyncio.AbstractEventLoop) -> "Runtime":
        try:
            from bonbon.engines.embedded.runtime import Runtime
        except ModuleNotFoundError as error:
            raise UserError(
                f"the embedded engine needs {error.name}, which is not installed: run {install('embedded')}"
            ) from error
        return Runtime(self._base, self._directory, self._options, loop, end_tokens=self._end_tokens)
