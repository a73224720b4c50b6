"""What `engine_options` may hold for the vLLM engine."""

import os
from dataclasses import fields
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from bonbon.engines.structured.tool_format import ToolParser
from bonbon.errors import UserError

# Read when vLLM is imported, here and in its processes: its output must not mix with ours, nor report who uses it.
os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

OWNED: dict[str, Any] = {
    "generation_config": "vllm",
    "load_format": "safetensors",
    "logprobs_mode": "processed_logprobs",
    "runner": "generate",
    "trust_remote_code": False,
    "worker_extension_cls": "bonbon.engines.vllm.logprobs_patch.UntruncatedLogprobs",
}
"""vLLM's arguments that the engine sets itself: what it promises depends on them."""

REFUSED = {
    "code_revision": "set revision",
    "enable_prompt_embeds": "prompts are messages, text or token ids",
    "hf_config_path": "set model",
    "logits_processors": "the policy's own distribution is what is logged and trained on",
    "model": "set model",
    "model_weights": "set model",
    "override_generation_config": "sampling is each request's",
    "revision": "set revision",
    "served_model_name": "versions have the registry's names",
    "skip_tokenizer_init": "prompts are read here",
    "spec_method": "log-probabilities are not checked under speculative decoding",
    "spec_model": "log-probabilities are not checked under speculative decoding",
    "spec_tokens": "log-probabilities are not checked under speculative decoding",
    "speculative_config": "log-probabilities are not checked under speculative decoding",
    "tokenizer": "set model",
    "tokenizer_revision": "set revision",
    "watermark_config": "the policy's own distribution is what is logged and trained on",
}
"""vLLM's arguments that may not be given, and why, or what to set instead."""

DEFAULTS: dict[str, Any] = {"disable_log_stats": True, "enable_lora": True, "max_loras": 4}
"""Where the engine's defaults are not vLLM's. Four adapters: champion, previous, challenger, and one that drains."""

ON_CPU = {"enable_chunked_prefill": False}
"""vLLM 0.32's CPU worker dies when a prompt with a seed is read in chunks: it rewinds a generator that cannot be."""


class VllmOptions(BaseModel):
    """Arguments of vLLM's `AsyncEngineArgs`, passed on as they are, and what bonbon has of its own."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    full_weights: Literal["beside", "instead"] = "beside"
    """Where a version with full weights goes: beside the base, or in its place, for which requests wait."""
    tool_parser: ToolParser = "auto"
    """How the model writes calls of functions: hermes, llama3_json or mistral, the names that vLLM has for them; auto:
    as its chat template shows."""

    @property
    def max_model_len(self) -> int | None:
        """The context that vLLM is told to serve; None: its own choice."""
        given = (self.model_extra or {}).get("max_model_len")
        return given if isinstance(given, int) and given > 0 else None

    @property
    def arguments(self) -> dict[str, Any]:
        """What `AsyncEngineArgs` gets besides the model.

        Raises UserError naming an argument that vLLM does not know, or that the engine owns.
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
