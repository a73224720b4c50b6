"""The maximum length of a model's sequences."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from bonbon.errors import UserError

NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
"""The names that models' configurations use for it."""
UNKNOWN = 1 << 30
"""transformers uses a larger number for tokenizers that do not know their maximum length."""

log = structlog.get_logger(__name__)


def context_length(config: Any, tokenizer: Any, directory: Path) -> int:
    """Returns the maximum number of tokens of prompt and completion together.

    Raises UserError when neither the configuration nor the tokenizer states it.
    """
    configured = (getattr(config, name, None) for name in NAMES)
    length = next((value for value in configured if isinstance(value, int) and value > 0), tokenizer.model_max_length)
    if length > UNKNOWN:
        raise UserError(
            f"model {directory} does not state its context length; set model_max_length in its tokenizer_config.json"
        )
    limit = rotary_limit(config)
    if limit is not None and limit < length:
        log.warning(
            "context shortened: beyond this length the model changes its rotary position embedding, and the "
            "distribution of a sequence would depend on the length of others in its batch",
            model=str(directory),
            context=limit,
            shortened_from=int(length),
        )
        length = limit
    return int(length)


def rotary_limit(config: Any) -> int | None:
    """Returns the length up to which the rotary position embedding does not depend on a sequence's length, or None.

    LongRoPE (Phi-3) rotates all positions differently as soon as the longest sequence of a batch exceeds the model's
    original training length (Ding et al., arXiv 2402.13753), and a dynamic embedding as soon as one exceeds
    `max_position_embeddings`. Within that length a sequence has the same distribution wherever it is computed.
    """
    limits: list[int] = []
    for parameters in rotary_parameters(config):
        if parameters.get("rope_type") == "longrope":
            limits.append(parameters["original_max_position_embeddings"])
        elif parameters.get("rope_type") == "dynamic":
            limits.append(config.max_position_embeddings)
    return min(limits, default=None)


def refuse_long_texts(lengths: Sequence[int], limit: int | None, what: str, remedy: str) -> None:
    """Raises UserError when a text is longer than `limit`, a model's `rotary_limit`.

    Args:
        lengths: The length of each text, prompt and completion together, in tokens.
        what: What each length stands for, in the plural.
        remedy: What to do besides serving the model with a shorter context.
    """
    too_long = sum(length > limit for length in lengths) if limit else 0
    if too_long:
        raise UserError(
            f"{too_long} of {len(lengths)} {what} have texts of more than {limit} tokens, beyond which the model "
            "changes its rotary position embedding, so their log-probabilities would depend on other texts in a batch: "
            f"serve the model with a context of {limit} tokens (engine_options.max_model_len, or --max-model-len of "
            f"vLLM servers), and {remedy}",
            param="engine_options.max_model_len",
        )


def context_of_vllm(config: Any, requested: int | None, directory: Path) -> int | None:
    """Returns the `max_model_len` to pass to vLLM, given the option `requested`; None leaves the choice to vLLM.

    vLLM uses one rotary position embedding for sequences of every length: with LongRoPE, the long one as soon as
    `max_model_len` exceeds the limit. For a dynamic one it uses at least twice the model's positions.

    Raises UserError when `requested` exceeds `rotary_limit`.
    """
    limit = rotary_limit(config)
    if limit is not None and requested is not None and requested > limit:
        raise UserError(
            f"engine_options.max_model_len = {requested}: beyond {limit} tokens model {directory} changes its "
            "rotary position embedding, so vLLM would sample from another distribution than the one trained on; set it "
            f"to {limit} or less, or leave it out",
            param="engine_options.max_model_len",
        )
    return limit if requested is None else requested


def rotary_parameters(config: Any) -> Iterator[Mapping[str, Any]]:
    """Yields the parameters of the rotary position embedding; several where they differ between kinds of layers."""
    found = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in found:
        yield found
    else:
        yield from (parameters for parameters in found.values() if isinstance(parameters, Mapping))
