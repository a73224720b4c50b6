"""The parts of a started vLLM engine."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.v1.engine.output_processor import RequestOutputCollector

from bonbon.concurrency.shielded import shielded
from bonbon.engines.adapters.adapter_files import OUTPUT_LAYER, Adapter, read_adapter
from bonbon.engines.adapters.base_check import check_fit
from bonbon.engines.engine import Delta, DrawRequest, PromptLogprobs, Started, Tokens, VersionFiles, VersionKind
from bonbon.engines.prompt_logprobs import prompt_logprobs
from bonbon.engines.text.context_length import context_of_vllm
from bonbon.engines.text.end_tokens import end_ids
from bonbon.engines.text.model_config import keeps_state, read_config
from bonbon.engines.text.prompt_reader import PromptReader
from bonbon.engines.text.tokenizer import load_tokenizer
from bonbon.engines.vllm.core import Core
from bonbon.engines.vllm.outputs import NonFiniteLogprobError, Reading, read_prompt
from bonbon.engines.vllm.sampling_params import prompt_logprobs_params, salted_prompt, sampling_params
from bonbon.engines.vllm.vllm_errors import translated
from bonbon.engines.vllm.vllm_options import VllmOptions
from bonbon.errors import EngineError, UserError
from bonbon.prompt import Prompt


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A loaded version: the engine that has its weights, its adapter, and its running requests.

    `adapts_output` says whether the adapter is on the output layer.
    """

    name: str
    core: Core
    adapter: LoRARequest | None = None
    adapts_output: bool = False
    running: set[RequestOutputCollector] = field(default_factory=set)

    def fail(self, reason: str) -> None:
        """Ends the running requests of the version with an EngineError."""
        for collector in self.running:
            collector.put(EngineError(reason))


class VllmRuntime:
    """The engines, their versions, and the tokenizer. Construct it off the event loop, and start it on the event loop.

    Raises:
        UserError: The base model cannot be read.
    """

    def __init__(
        self, base: str, directory: Path, options: VllmOptions, *, end_tokens: Sequence[str | int] | None = None
    ) -> None:
        self._base, self._directory, self._options = base, directory, options
        self._tokenizer, self._end_tokens = load_tokenizer(directory), end_tokens
        self._arguments = _arguments(options, directory)
        # One thread, because a tokenizer may encode only one text at a time.
        self._readers = ThreadPoolExecutor(1, "bonbon-prompts")
        self._loading = asyncio.Lock()
        self.versions: dict[str, Loaded] = {}

    async def start(self) -> None:
        """Starts vLLM with the base. Raises UserError when vLLM cannot serve it."""
        core = Core(self._directory, self._arguments)
        try:
            await core.start()
        except BaseException:
            self._readers.shutdown()
            raise
        try:
            ends = end_ids(self._directory, self._tokenizer, core.vocabulary, self._end_tokens)
        except BaseException:
            await core.stop()
            self._readers.shutdown()
            raise
        self.context_length, self.vocabulary = core.context_length, core.vocabulary
        parser = self._options.tool_parser
        self._reader = PromptReader(self._tokenizer, core.vocabulary, ends, tool_parser=parser)
        self.versions[self._base] = Loaded(self._base, core)

    async def stop(self) -> None:
        """Ends vLLM's processes and the thread."""
        for core in self._cores:
            await core.stop()
        await asyncio.to_thread(self._readers.shutdown)

    @property
    def _cores(self) -> set[Core]:
        return {loaded.core for loaded in self.versions.values()}

    def read(self, prompt: Prompt) -> "Future[Started]":
        """Reads a prompt in a separate thread, because a long one takes a while."""
        return self._readers.submit(self._reader.read, prompt, self.context_length)

    def tokenize(self, prompt: Prompt, add_special_tokens: bool | None) -> "Future[Tokens]":
        """Tokenizes a prompt; see `Engine.tokenize`."""
        return self._readers.submit(self._reader.tokenize, prompt, add_special_tokens=add_special_tokens)

    def detokenize(self, token_ids: Sequence[int]) -> "Future[str]":
        """Decodes token ids; see `Engine.detokenize`."""
        return self._readers.submit(self._reader.detokenize, token_ids)

    @asynccontextmanager
    async def drawing(
        self, loaded: Loaded, started: Started, request: DrawRequest
    ) -> AsyncIterator[AsyncIterator[Delta]]:
        """Samples while the block runs, and yields the deltas, to be read within the block."""
        params = sampling_params(request, self._reader)
        prompt = salted_prompt(started.token_ids, request.salt)
        try:
            async with loaded.core.draw(prompt, params, loaded.adapter) as collector:
                loaded.running.add(collector)
                try:
                    yield self._deltas(collector, Reading(request, started.token_ids, self._reader))
                finally:
                    loaded.running.discard(collector)
        except NonFiniteLogprobError:
            await shielded(loaded.core.clear_nonfinite_cache())
            raise

    async def prompt_logprobs(self, loaded: Loaded, started: Started, request: DrawRequest) -> PromptLogprobs:
        """Computes the log-probabilities of a prompt; see `Engine.prompt_logprobs`."""
        if loaded.adapts_output:
            raise UserError(
                f"{loaded.name} has an adapter on the output layer, which vLLM leaves out of a prompt's "
                "log-probabilities; leave out echo or logprobs, or train with train.lora_output_layer = false",
                param="logprobs",
            )
        if current_platform.is_cpu():
            raise UserError(
                "vLLM crashes on a CPU when it computes a prompt's log-probabilities; leave out echo or logprobs, or "
                "serve with engine = 'embedded'",
                param="logprobs",
            )
        alternatives = request.sampling.top_logprobs
        prompt = salted_prompt(started.token_ids, request.salt)
        async with loaded.core.draw(prompt, prompt_logprobs_params(alternatives), loaded.adapter) as collector:
            loaded.running.add(collector)
            try:
                with translated():
                    output = collector.get_nowait() or await collector.get()
            finally:
                loaded.running.discard(collector)
        logprobs, tops = read_prompt(output, started.token_ids, alternatives)
        return prompt_logprobs(started, logprobs, tops, self._reader.detokenizer)

    def displaces(self, version: VersionFiles) -> frozenset[str]:
        """Returns the versions that loading `version` would unload; see `Engine.displaces`.

        With `full_weights = "instead"`, these are all versions with other weights.
        """
        if self._options.full_weights == "beside" or version.name in self.versions:
            return frozenset()
        (core,) = self._cores
        return frozenset() if core.directory == self._weights(version) else frozenset(self.versions)

    async def load(self, version: VersionFiles) -> None:
        """Loads a version; see `Engine.load`."""
        async with self._loading:
            if version.name in self.versions:
                return
            if version.kind is VersionKind.BASE and version.name != self._base:
                raise UserError(
                    f"{version.name} is a base model, but this engine serves the base {self._base}; "
                    "start another service for it"
                )
            if version.kind is VersionKind.FULL:
                await asyncio.to_thread(_check_same, version, self._base, self._directory)
            if self.displaces(version):
                await self._replace(version)
            elif version.kind is VersionKind.ADAPTER:
                (core,) = (core for core in self._cores if core.directory == self._directory)
                self.versions[version.name] = await _attached(version, core, await self._read(version))
            else:
                core = Core(version.directory, self._arguments)
                await core.start()
                self.versions[version.name] = Loaded(version.name, core)

    async def unload(self, name: str) -> None:
        """Unloads a version, see `Engine.unload`; its running requests fail."""
        async with self._loading:
            if name == self._base or (loaded := self.versions.get(name)) is None:
                return
            if loaded.adapter is None and len(self._cores) == 1:
                return  # The only loaded weights stay until others replace them.
            del self.versions[name]
            loaded.fail(f"version {name} was unloaded while a request was using it")
            await loaded.core.abort(loaded.running)
            if loaded.adapter is not None:
                await loaded.core.detach(loaded.adapter)
            else:
                await loaded.core.stop()

    async def check(self) -> None:
        """Raises EngineError when an engine has died."""
        for core in self._cores:
            await core.check()

    def fail(self, reason: str) -> None:
        """Ends all running requests with an EngineError."""
        for loaded in self.versions.values():
            loaded.fail(reason)

    async def _replace(self, version: VersionFiles) -> None:
        """Replaces the loaded weights by those of a version; when that fails, loads the old ones again."""
        adapter = await self._read(version) if version.kind is VersionKind.ADAPTER else None
        (old,) = self._cores
        self.fail("the version was displaced while a request was using it")
        core = Core(self._weights(version), self._arguments)
        await old.stop()
        try:
            await core.start()
            try:
                loaded = await _attached(version, core, adapter) if adapter else Loaded(version.name, core)
            except BaseException:
                await core.stop()
                raise
        except Exception:
            await old.start_or_keep_trying()
            raise
        except BaseException:  # Cancelled, so nobody waits for the old weights either.
            old.keep_trying()
            raise
        base = {self._base: Loaded(self._base, core)} if core.directory == self._directory else {}
        self.versions = base | {version.name: loaded}

    async def _read(self, version: VersionFiles) -> Adapter:
        adapter = await asyncio.to_thread(read_adapter, version.directory)
        await asyncio.to_thread(check_fit, adapter, self._directory)
        return adapter

    def _weights(self, version: VersionFiles) -> Path:
        """Returns the directory of a version's weights; an adapter's are those of the base."""
        return version.directory if version.kind is VersionKind.FULL else self._directory

    async def _deltas(self, collector: RequestOutputCollector, reading: Reading) -> AsyncIterator[Delta]:
        while not reading.finished:
            with translated():
                output = collector.get_nowait() or await collector.get()
            for delta in reading.read(output):
                yield delta


async def _attached(version: VersionFiles, core: Core, adapter: Adapter) -> Loaded:
    """Loads an adapter on `core`. Raises UserError when its rank is too high, or vLLM does not support it."""
    max_rank = core.max_rank
    if not max_rank:
        raise UserError(
            f"adapter {adapter.directory} cannot be served: engine_options.enable_lora is false; set it to true"
        )
    if adapter.rank > max_rank:
        raise UserError(
            f"adapter {adapter.directory} has rank {adapter.rank}, but the maximum of this engine is {max_rank}; set "
            f"engine_options.max_lora_rank to {adapter.rank} or more, or train with a lower train.lora_rank"
        )
    adapts_output = any(f".{OUTPUT_LAYER}.lora_" in name for name in adapter.weights)
    return Loaded(version.name, core, await core.attach(version.name, version.directory), adapts_output)


def _arguments(options: VllmOptions, directory: Path) -> dict[str, Any]:
    """Returns vLLM's arguments besides the model, including those that this model needs in addition to the options."""
    config, arguments = read_config(directory), options.arguments
    context = context_of_vllm(config, options.max_model_len, directory)
    if context is not None:
        arguments["max_model_len"] = context
    if arguments.get("enable_chunked_prefill") is False and keeps_state(config):
        arguments.setdefault("enable_prefix_caching", False)  # vLLM caches such states only with chunked prefill.
    return arguments


def _check_same(version: VersionFiles, base: str, directory: Path) -> None:
    """Raises UserError when a version with full weights differs from the base in its architecture."""
    here, there = (read_config(where) for where in (directory, version.directory))
    for what in ("model_type", "vocab_size", "max_position_embeddings"):
        mine, its = getattr(here, what, None), getattr(there, what, None)
        if mine != its:
            raise UserError(
                f"version {version.name} has {what} {its}, but the base {base} has {mine}; "
                "serve the base that it was trained from"
            )
