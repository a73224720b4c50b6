"""One vLLM engine: a model in its own processes, with its adapters. Processes that die are restarted."""

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any
from uuid import uuid4

import structlog
from pydantic import ValidationError
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError, VLLMError
from vllm.inputs.engine import TokensInput, tokens_input
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.output_processor import RequestOutputCollector

from bonbon.concurrency.shielded import end, shielded
from bonbon.engines.vllm.adapter_support import takes_adapters
from bonbon.engines.vllm.json_logging import logging_arguments
from bonbon.engines.vllm.sampling_params import PROBE_PARAMS
from bonbon.engines.vllm.vllm_errors import DIED, first_line, translated
from bonbon.errors import BonbonError, EngineError, UserError

HEALTH_INTERVAL = 1.0
"""The seconds between two health checks of vLLM's processes."""
MIN_RETRY_DELAY, MAX_RETRY_DELAY = 1.0, 600.0
"""The seconds before dead processes are restarted, doubling from the first value to the longest."""
STABLE_AFTER = 300.0
"""The seconds that processes must have run for the delay before the next restart to start over."""

log = structlog.get_logger(__name__)


class Core:
    """Samples from one set of weights, with or without an adapter.

    Args:
        directory: A model in Hugging Face format, as safetensors.
        arguments: The arguments of vLLM's AsyncEngineArgs, besides the model.
    """

    def __init__(self, directory: Path, arguments: dict[str, Any]) -> None:
        self.directory, self._arguments = directory, arguments
        self._serials = count(1)
        self._adapters: dict[int, LoRARequest] = {}
        self._llm: AsyncLLM | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._reason = "the engine is not started"

    async def start(self) -> None:
        """Starts vLLM's processes, with the adapters that were attached before, and keeps them running.

        Raises:
            UserError: vLLM cannot serve the model with these arguments.
            EngineError: This vLLM does not report what an engine needs.
        """
        await self._bring_up()
        self.keep_trying()

    async def start_or_keep_trying(self) -> None:
        """Starts like `start`, but retries a failed start until it succeeds or `stop` is called."""
        try:
            await self._bring_up()
        except (BonbonError, VLLMError) as error:
            self._reason = f"vLLM cannot be started, and bonbon keeps trying: {error}"
        self.keep_trying()

    def keep_trying(self) -> None:
        """Starts vLLM's processes whenever they are not running, until `stop` is called."""
        self._keeper = asyncio.create_task(self._keep(), name=f"vLLM on {self.directory}")

    async def stop(self) -> None:
        """Ends vLLM's processes and waits for them."""
        if self._keeper is not None:
            await end(self._keeper)
            self._keeper = None
        self._reason = "the engine has been stopped"
        await asyncio.to_thread(self._close)

    @asynccontextmanager
    async def draw(
        self, prompt: TokensInput, params: SamplingParams, adapter: LoRARequest | None
    ) -> AsyncIterator[RequestOutputCollector]:
        """Starts a request, whose outputs come from the collector.

        The request is aborted when the block ends before it does.

        Raises:
            UserError: vLLM refuses the parameters.
            EngineError: vLLM failed.
        """
        with translated():
            llm = self._running
            adding = asyncio.ensure_future(llm.add_request(uuid4().hex, prompt, params, lora_request=adapter))
            try:
                # Awaited even when cancelled, because only a request that has been added can be aborted.
                collector = await shielded(adding)
            except asyncio.CancelledError:
                if not adding.cancelled() and adding.exception() is None:
                    await self.abort([adding.result()])
                raise
            except VLLMClientError as error:
                if params.structured_outputs is None:
                    raise
                raise UserError(
                    f"vLLM does not support this response_format ({first_line(error)}); simplify its schema",
                    param="response_format",
                ) from error
            try:
                yield collector
            finally:
                await shielded(self.abort([collector]))

    async def abort(self, collectors: Iterable[RequestOutputCollector]) -> None:
        """Aborts requests; those that have ended are left alone."""
        if self._llm is not None and not self._llm.errored:
            await self._llm.abort([collector.request_id for collector in collectors], internal=True)

    async def attach(self, name: str, directory: Path) -> LoRARequest:
        """Loads an adapter that was checked before, under a name and an id that were never used before."""
        serial = next(self._serials)
        adapter = LoRARequest(f"{name}@{serial}", serial, str(directory))
        try:
            with translated():
                await self._running.add_lora(adapter)
        except Exception as error:
            if isinstance(error, EngineError):
                raise
            raise UserError(
                f"vLLM cannot serve adapter {directory} ({type(error).__name__}: {first_line(error)}); train it on "
                "modules that vLLM can adapt"
            ) from error
        self._adapters[serial] = adapter
        return adapter

    async def detach(self, adapter: LoRARequest) -> None:
        """Unloads an adapter, also where vLLM's processes have died."""
        self._adapters.pop(adapter.lora_int_id, None)
        if self._llm is not None and not self._llm.errored:
            with translated():
                await self._llm.remove_lora(adapter.lora_int_id)

    async def clear_nonfinite_cache(self) -> None:
        """Removes from the cache what a version that gave no number left there, which would break other requests."""
        if self._llm is not None and not self._llm.errored:
            with translated():
                await self._llm.collective_rpc("clear_nonfinite_cache")

    async def check(self) -> None:
        """Raises EngineError when vLLM's processes have died."""
        with translated():
            await self._running.check_health()

    @property
    def _running(self) -> AsyncLLM:
        if self._llm is None:
            raise EngineError(self._reason)
        return self._llm

    async def _keep(self) -> None:
        """Restarts vLLM's processes whenever they have died."""
        loop = asyncio.get_running_loop()
        pause, born = MIN_RETRY_DELAY, loop.time()
        while True:
            await asyncio.sleep(HEALTH_INTERVAL)
            if self._llm is not None and not self._llm.errored:
                continue
            died = loop.time()
            if died - born > STABLE_AFTER:
                pause = MIN_RETRY_DELAY
            log.error("vLLM's process died", model=str(self.directory), start_in=pause)
            self._reason = DIED
            if self._llm is not None:
                # vLLM's task that would tell them may not have noticed yet, and ends with the next line.
                self._llm.output_processor.propagate_error(EngineDeadError())
            await asyncio.to_thread(self._close)
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_RETRY_DELAY)
            try:
                await self._bring_up()
            except (BonbonError, VLLMError) as error:
                self._reason = f"{DIED}, which has failed so far: {error}"
            else:
                log.info("vLLM restarted", model=str(self.directory), seconds=round(loop.time() - died, 1))
            born = loop.time()

    async def _bring_up(self) -> None:
        try:
            # Awaited even when cancelled, because only processes whose start has completed can be stopped.
            await shielded(asyncio.to_thread(self._open))
            await self._first_draw()
            for adapter in self._adapters.values():
                with translated():
                    await self._running.add_lora(adapter)
        except BaseException:
            await shielded(asyncio.to_thread(self._close))
            raise

    def _open(self) -> None:
        try:
            with _interrupts_held(), logging_arguments() as logging:
                arguments = AsyncEngineArgs(model=str(self.directory), **logging | self._arguments)
                llm = AsyncLLM.from_engine_args(arguments)
        except Exception as error:
            # This phrase is the only sign here of an error in vLLM's processes.
            elsewhere = "See root cause above" in str(error)
            reason = "its processes failed" if elsewhere else f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"vLLM cannot serve model {self.directory} ({reason}); {self._remedy(error)}") from error
        config, lora = llm.model_config, llm.vllm_config.lora_config
        self.context_length: int = config.max_model_len
        self.vocabulary: int = config.get_vocab_size()
        self.max_rank: int = lora.max_lora_rank if lora else 0
        self._llm = llm

    def _remedy(self, error: Exception) -> str:
        """Returns what to do about a start that failed with `error`.

        Where the cause arose in another process, only vLLM's output contains it.
        """
        if isinstance(error, ValidationError):  # The configuration or the options are invalid; nothing was loaded.
            return (
                "set engine = 'embedded' if this vLLM does not support the model's architecture, or correct "
                "engine_options as the message says"
            )
        if self._arguments.get("enable_lora") and not takes_adapters(self.directory, self._arguments):
            return (
                "this vLLM does not support adapters on models of this architecture: set engine_options.enable_lora "
                "= false, and train.method = full"
            )
        return (
            "vLLM's output above has the cause: set engine = 'embedded' if vLLM does not support the model, or "
            "kv_cache_memory_bytes, gpu_memory_utilization or max_model_len in engine_options if memory is short"
        )

    async def _first_draw(self) -> None:
        """Samples for the first time; see `_settle`. Raises UserError when vLLM's processes do not survive it."""
        try:
            await self._settle()
        except EngineError as error:
            if not self._running.errored:
                raise
            raise UserError(
                f"vLLM loads model {self.directory}, but crashes at the first request; {self._remedy(error)}"
            ) from error

    async def _settle(self) -> None:
        """Makes vLLM report log-probabilities before top_p and top_k, and checks that it does.

        Runs before any other request.
        """
        llm = self._running
        await llm.collective_rpc("end_with", args=(os.getpid(),))
        await llm.collective_rpc("report_untruncated_logprobs")
        async with self.draw(tokens_input([0]), PROBE_PARAMS, None) as collector:
            (piece,) = (await collector.get()).outputs
        if min(piece.logprobs.logprobs) == -float("inf"):
            raise EngineError(
                "this vLLM reports log-probabilities only after top_k; start with VLLM_USE_V2_MODEL_RUNNER=0 in the "
                "environment"
            )

    def _close(self) -> None:
        llm, self._llm = self._llm, None
        if llm is None:
            return
        if handler := llm.output_handler:  # Otherwise it would report that the processes died.
            handler.get_loop().call_soon_threadsafe(handler.cancel)
        llm.shutdown()
        del llm  # Destroyed now, because its destructor would fail at the interpreter's exit.
        gc.collect()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Blocks SIGINT for processes started in the block: Ctrl-C must let requests end before vLLM's processes do."""
    resource_tracker.ensure_running()  # Starting it later would unblock the signal.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
