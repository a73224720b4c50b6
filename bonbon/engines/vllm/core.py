"""One vLLM engine: a model in processes of its own, and the adapters on it. Processes that die are started again."""

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
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
from vllm.model_executor.models import ModelRegistry, supports_lora
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import RequestOutputCollector

from bonbon.concurrency.shielded import shielded
from bonbon.engines.vllm.sampling_params import ONE_OF_TWO
from bonbon.engines.vllm.vllm_errors import DIED, first_line, translated
from bonbon.errors import BonbonError, EngineError, UserError

LOOK = 1.0
"""Seconds between two looks at vLLM's processes."""
RETRY_FIRST, RETRY_LONGEST = 1.0, 600.0
"""Seconds before dead processes are started again, doubling from the first to the longest."""
SOUND = 300.0
"""Seconds that processes must have lived for the next pause to be the first one again."""

log = structlog.get_logger(__name__)


class Core:
    """Draws from one set of weights, with or without an adapter.

    Args:
        directory: a model in Hugging Face format, safetensors only.
        arguments: of vLLM's AsyncEngineArgs, besides the model.
    """

    def __init__(self, directory: Path, arguments: dict[str, Any]) -> None:
        self.directory, self._arguments = directory, arguments
        self._serials = count(1)
        self._adapters: dict[int, LoRARequest] = {}
        self._llm: AsyncLLM | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._reason = "the engine is not started"

    async def start(self) -> None:
        """Start vLLM's processes, with the adapters that were attached before, and keep them running.

        Raises:
            UserError: vLLM cannot serve the model with these arguments.
            EngineError: this vLLM cannot report what an engine has to.
        """
        await self._bring_up()
        self.keep_trying()

    async def start_or_keep_trying(self) -> None:
        """Like `start`, but where that fails it is tried again until it succeeds or `stop` is called."""
        try:
            await self._bring_up()
        except (BonbonError, VLLMError) as error:
            self._reason = f"vLLM cannot be started, and it is tried again: {error}"
        self.keep_trying()

    def keep_trying(self) -> None:
        """From now until `stop` is called, start vLLM's processes whenever they are not there."""
        self._keeper = asyncio.create_task(self._keep(), name=f"vLLM on {self.directory}")

    async def stop(self) -> None:
        """End vLLM's processes and wait for them."""
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        self._reason = "the engine is stopped"
        await asyncio.to_thread(self._close)

    @asynccontextmanager
    async def draw(
        self, prompt: TokensInput, params: SamplingParams, adapter: LoRARequest | None
    ) -> AsyncIterator[RequestOutputCollector]:
        """Start a request; what it draws comes from the collector. It is aborted when the block ends before it does.

        Raises:
            UserError: vLLM refuses the parameters.
            EngineError: vLLM has failed.
        """
        with translated():
            llm = self._running
            adding = asyncio.ensure_future(llm.add_request(uuid4().hex, prompt, params, lora_request=adapter))
            try:
                # To its end, even when cancelled: only what has been added can be aborted.
                collector = await shielded(adding)
            except asyncio.CancelledError:
                if not adding.cancelled() and adding.exception() is None:
                    await self.abort([adding.result()])
                raise
            except VLLMClientError as error:
                if params.structured_outputs is None:
                    raise
                raise UserError(
                    f"vLLM cannot hold a draw to this response_format ({first_line(error)}); simplify its schema",
                    param="response_format",
                ) from error
            try:
                yield collector
            finally:
                await shielded(self.abort([collector]))

    async def abort(self, collectors: Iterable[RequestOutputCollector]) -> None:
        """Drop requests; those that have ended are left as they are."""
        if self._llm is not None and not self._llm.errored:
            await self._llm.abort([collector.request_id for collector in collectors], internal=True)

    async def attach(self, name: str, directory: Path) -> LoRARequest:
        """Load an adapter that was checked before, under a name and an id that were never used before."""
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
        """Forget an adapter, also where vLLM's processes are gone and it with them."""
        self._adapters.pop(adapter.lora_int_id, None)
        if self._llm is not None and not self._llm.errored:
            with translated():
                await self._llm.remove_lora(adapter.lora_int_id)

    async def check(self) -> None:
        """Raise EngineError when vLLM's processes are gone."""
        with translated():
            await self._running.check_health()

    @property
    def _running(self) -> AsyncLLM:
        if self._llm is None:
            raise EngineError(self._reason)
        return self._llm

    async def _keep(self) -> None:
        """Start vLLM's processes again whenever they have died."""
        loop = asyncio.get_running_loop()
        pause, born = RETRY_FIRST, loop.time()
        while True:
            await asyncio.sleep(LOOK)
            if self._llm is not None and not self._llm.errored:
                continue
            died = loop.time()
            if died - born > SOUND:
                pause = RETRY_FIRST
            log.error("vLLM's process is gone", model=str(self.directory), start_in=pause)
            self._reason = DIED
            await asyncio.to_thread(self._close)
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_LONGEST)
            try:
                await self._bring_up()
            except (BonbonError, VLLMError) as error:
                self._reason = f"{DIED}, so far in vain: {error}"
            else:
                log.info("vLLM runs again", model=str(self.directory), seconds=round(loop.time() - died, 1))
            born = loop.time()

    async def _bring_up(self) -> None:
        try:
            # To its end, even when cancelled: what a thread starts can only be stopped when it is known.
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
            with _interrupts_held():
                llm = AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(self.directory), **self._arguments))
        except Exception as error:
            # What fails in vLLM's processes is told here by this alone.
            elsewhere = "See root cause above" in str(error)
            reason = "its processes fail" if elsewhere else f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"vLLM cannot serve model {self.directory} ({reason}); {self._remedy(error)}") from error
        config, lora = llm.model_config, llm.vllm_config.lora_config
        self.context_length: int = config.max_model_len
        self.vocabulary: int = config.get_vocab_size()
        self.max_rank: int = lora.max_lora_rank if lora else 0
        self._llm = llm

    def _remedy(self, error: Exception) -> str:
        """What to do about a start that failed with `error`.

        Where the cause arose in another process, only vLLM's output has it.
        """
        if isinstance(error, ValidationError):  # of the model's configuration and the options: nothing was loaded
            return (
                "set engine = 'embedded' where this vLLM does not know the model's architecture, or correct what the "
                "message names in engine_options"
            )
        if self._arguments.get("enable_lora") and not takes_adapters(self.directory, self._arguments):
            return (
                "this vLLM puts no adapters on models of this architecture: set engine_options.enable_lora = false, "
                "and train.method = full"
            )
        return (
            "its output above says why; if it is that memory is short, set kv_cache_memory_bytes, "
            "gpu_memory_utilization or max_model_len in engine_options"
        )

    async def _first_draw(self) -> None:
        """See `_settle`. Raises UserError when vLLM's processes do not survive it."""
        try:
            await self._settle()
        except EngineError as error:
            if not self._running.errored:
                raise
            raise UserError(
                f"vLLM loads model {self.directory}, and dies at its first draw; {self._remedy(error)}"
            ) from error

    async def _settle(self) -> None:
        """Have log-probabilities reported before top_p and top_k, and see that they are. Before any other draw."""
        llm = self._running
        await llm.collective_rpc("end_with", args=(os.getpid(),))
        await llm.collective_rpc("report_untruncated_logprobs")
        async with self.draw(tokens_input([0]), ONE_OF_TWO, None) as collector:
            (piece,) = (await collector.get()).outputs
        if min(piece.logprobs.logprobs) == -float("inf"):
            raise EngineError(
                "this vLLM reports log-probabilities after top_k, whatever it is told; start with "
                "VLLM_USE_V2_MODEL_RUNNER=0 in the environment"
            )

    def _close(self) -> None:
        llm, self._llm = self._llm, None
        if llm is None:
            return
        if handler := llm.output_handler:  # or it would report that they are gone
            handler.get_loop().call_soon_threadsafe(handler.cancel)
        llm.shutdown()
        del llm  # now, in one piece: at the interpreter's exit its destructor would fail
        gc.collect()


def takes_adapters(directory: Path, arguments: dict[str, Any]) -> bool:
    """Whether vLLM can put LoRA adapters on a model; also true where vLLM cannot say."""
    try:
        config = AsyncEngineArgs(model=str(directory), **arguments).create_model_config()
        if config.is_moe and current_platform.is_cpu():
            return False  # 0.32 computes experts beside adapters with Triton, which the CPU has not
        architecture, _ = ModelRegistry.resolve_model_cls(config.architectures, config)
    except Exception as error:  # noqa: BLE001 - this only words the message about another failure
        log.debug("vLLM does not say whether it takes adapters", error=f"{type(error).__name__}: {error}")
        return True
    return bool(supports_lora(architecture))


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes started within never get SIGINT: Ctrl-C must let requests end, and vLLM's processes with them."""
    resource_tracker.ensure_running()  # its start would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
