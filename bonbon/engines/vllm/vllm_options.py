"""The options of the vLLM engine (`engine_options`)."""

import os
from dataclasses import fields
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from bonbon.engines.structured.tool_format import ToolParser
from bonbon.errors import UserError

# Set before vLLM is imported, here and in its processes: its log goes to standard error, without usage statistics.
os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

OWNED: dict[str, Any] = {
    "generation_config": "vllm",
    "load_format": "safetensors",
    "logprobs_mode": "processed_logprobs",
    "runner": "generate",
    "trust_remote_code": False,
    "worker_extension_cls": "bonbon.engines.vllm.worker_extension.WorkerExtension",
}
"""The arguments of vLLM that the engine sets itself, because its guarantees depend on them."""

REFUSED = {
    "code_revision": "set revision",
    "enable_prompt_embeds": "prompts are messages, text or token ids",
    "hf_config_path": "set model",
    "logits_processors": "it would change the policy's distribution, which is logged and trained on",
    "model": "set model",
    "model_weights": "set model",
    "override_generation_config": "each request sets its own sampling parameters",
    "revision": "set revision",
    "served_model_name": "versions are served under their names in the registry",
    "skip_tokenizer_init": "bonbon itself tokenises prompts",
    "spec_method": "speculative decoding is not supported, because its log-probabilities are not verified",
    "spec_model": "speculative decoding is not supported, because its log-probabilities are not verified",
    "spec_tokens": "speculative decoding is not supported, because its log-probabilities are not verified",
    "speculative_config": "speculative decoding is not supported, because its log-probabilities are not verified",
    "tokenizer": "set model",
    "tokenizer_revision": "set revision",
    "watermark_config": "it would change the policy's distribution, which is logged and trained on",
}
"""The arguments of vLLM that may not be given, with the reason or with what to set instead."""

DEFAULTS: dict[str, Any] = {"disable_log_stats": True, "enable_lora": True, "max_loras": 4}
"""Defaults that differ from vLLM's. Four adapters: champion, previous, challenger, and one that is being drained."""

ON_CPU = {"enable_chunked_prefill": False}
"""Defaults on a CPU, where vLLM 0.32 crashes when it reads a seeded prompt in chunks."""


class VllmOptions(BaseModel):
    """The arguments of vLLM's `AsyncEngineArgs`, passed on unchanged, and bonbon's own options."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    full_weights: Literal["beside", "instead"] = "beside"
    """Whether a version with full weights is loaded beside the base or instead of it, for which requests have to
    wait."""
    tool_parser: ToolParser = "auto"
    """The format in which the model writes tool calls, by the name of vLLM's parser; auto detects it from the chat
    template."""

    @property
    def max_model_len(self) -> int | None:
        """Returns the context length for vLLM, or None to leave it to vLLM."""
        given = (self.model_extra or {}).get("max_model_len")
        return given if isinstance(given, int) and given > 0 else None

    @property
    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of `AsyncEngineArgs` besides the model.

        Raises UserError naming an argument that vLLM does not have, or that the engine sets itself.
        """
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform

        given = dict(self.model_extra or {})
        known = {field.name for field in fields(AsyncEngineArgs)}
        for name, value in given.items():
            if name in REFUSED:
                _refuse(name, value, REFUSED[name])
            if name in OWNED:
                _refuse(name, value, f"the engine sets it to {OWNED[name]!r}")
            if name not in known:
                _refuse(name, value, "vLLM has no such argument; its AsyncEngineArgs lists them")
        return DEFAULTS | (ON_CPU if current_platform.is_cpu() else {}) | given | OWNED


def _refuse(name: str, value: Any, why: str) -> None:
    raise UserError(f"engine_options.{name} = {value!r} is not accepted: {why}", param=f"engine_options.{name}")
