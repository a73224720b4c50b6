"""One running vLLM engine: a model in processes of its own, and the adapters on it."""

import gc
import signal
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any
from uuid import uuid4

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError, VLLMError
from vllm.inputs.engine import tokens_input
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.output_processor import RequestOutputCollector

from bonbon.engines.vllm_sampling import ONE_OF_TWO
from bonbon.errors import EngineError, UserError


class Core:
    """Draws from one set of weights, with or without an adapter. Made and closed off the event loop.

    Args:
        directory: a model in Hugging Face format, safetensors only.
        arguments: of vLLM's AsyncEngineArgs, besides the model.

    Raises:
        UserError: vLLM cannot serve the model with these arguments.
    """

    def __init__(self, directory: Path, arguments: dict[str, Any]) -> None:
        self.directory = directory
        self._serials = count(1)
        self._closed = False
        try:
            with _interrupts_held():
                self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(directory), **arguments))
        except Exception as error:
            raise UserError(
                f"vLLM cannot serve model {directory} ({type(error).__name__}: {_first_line(error)}); its output above "
                "says why. If memory is short, set kv_cache_memory_bytes, gpu_memory_utilization or max_model_len in "
                "engine_options"
            ) from error
        config = self._llm.model_config
        self.context_length: int = config.max_model_len
        self.vocabulary: int = config.get_vocab_size()
        lora = self._llm.vllm_config.lora_config
        self.max_rank: int = lora.max_lora_rank if lora else 0

    async def settle(self) -> None:
        """Have log-probabilities reported before top_p and top_k, and see that they are. Once, before any draw."""
        await self._llm.collective_rpc("report_whole_law")
        async with self.draw([0], ONE_OF_TWO, None) as collector:
            (piece,) = (await collector.get()).outputs
        if min(piece.logprobs.logprobs) == -float("inf"):
            raise EngineError(
                "this vLLM reports log-probabilities after top_k, whatever it is told; start with "
                "VLLM_USE_V2_MODEL_RUNNER=0 in the environment"
            )

    @asynccontextmanager
    async def draw(
        self, prompt: list[int], params: SamplingParams, adapter: LoRARequest | None
    ) -> AsyncIterator[RequestOutputCollector]:
        """Start a request; what it draws comes from the collector. It is aborted when the block ends before it does.

        Raises:
            UserError: vLLM refuses the parameters.
            EngineError: vLLM has failed.
        """
        with translated():
            try:
                collector = await self._llm.add_request(uuid4().hex, tokens_input(prompt), params, lora_request=adapter)
            except VLLMClientError as error:
                if params.structured_outputs is None:
                    raise
                raise UserError(
                    f"vLLM cannot hold a draw to this response_format ({_first_line(error)}); simplify its schema",
                    param="response_format",
                ) from error
            try:
                yield collector
            finally:
                await self.abort([collector])

    async def abort(self, collectors: Iterable[RequestOutputCollector]) -> None:
        """Drop requests; those that have ended are left as they are."""
        if not self._closed and not self._llm.errored:
            await self._llm.abort([collector.request_id for collector in collectors], internal=True)

    async def attach(self, name: str, directory: Path) -> LoRARequest:
        """Load an adapter that was checked before, under a name and an id that were never used before."""
        serial = next(self._serials)
        adapter = LoRARequest(f"{name}@{serial}", serial, str(directory))
        try:
            with translated():
                await self._llm.add_lora(adapter)
        except Exception as error:
            if isinstance(error, EngineError):
                raise
            raise UserError(
                f"vLLM cannot serve adapter {directory} ({type(error).__name__}: {_first_line(error)}); train it on "
                "modules that vLLM can adapt"
            ) from error
        return adapter

    async def detach(self, adapter: LoRARequest) -> None:
        with translated():
            await self._llm.remove_lora(adapter.lora_int_id)

    async def check(self) -> None:
        """Raise EngineError when vLLM's processes are gone."""
        with translated():
            await self._llm.check_health()

    def close(self) -> None:
        """End vLLM's processes and wait for them."""
        self._closed = True
        if handler := self._llm.output_handler:  # or it would report that they are gone
            handler.get_loop().call_soon_threadsafe(handler.cancel)
        self._llm.shutdown()
        del self._llm  # now, in one piece: at the interpreter's exit its destructor would fail
        gc.collect()


@contextmanager
def translated() -> Iterator[None]:
    """vLLM's errors as ours."""
    try:
        yield
    except VLLMClientError as error:
        raise UserError(f"vLLM refuses the request: {_first_line(error)}") from error
    except EngineDeadError as error:
        raise EngineError(
            "vLLM's engine process has died; its output says why, and the service must be restarted"
        ) from error
    except VLLMError as error:
        raise EngineError(f"vLLM failed: {type(error).__name__}: {_first_line(error)}") from error


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes started within never get SIGINT: Ctrl-C must let requests end, and vLLM's processes with them."""
    resource_tracker.ensure_running()  # its start would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")
