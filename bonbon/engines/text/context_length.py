"""How long a sequence of a model may be."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from bonbon.errors import UserError

NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
"""What models call it in their configurations."""
UNKNOWN = 1 << 30
"""transformers writes a larger number for a tokenizer that does not know it."""

log = structlog.get_logger(__name__)


def context_length(config: Any, tokenizer: Any, directory: Path) -> int:
    """Most tokens that prompt and completion may have together.

    Raises UserError when neither the configuration nor the tokenizer says.
    """
    said = (getattr(config, name, None) for name in NAMES)
    length = next((value for value in said if isinstance(value, int) and value > 0), tokenizer.model_max_length)
    if length > UNKNOWN:
        raise UserError(
            f"model {directory} does not say how long its context is; set model_max_length in tokenizer_config.json"
        )
    limit = rotary_limit(config)
    if limit is not None and limit < length:
        log.warning(
            "the context is shortened: beyond this length the model's rotary position embedding is another one, and "
            "what is drawn would depend on the length of the sequences beside it",
            model=str(directory),
            context=limit,
            shortened_from=int(length),
        )
        length = limit
    return int(length)


def rotary_limit(config: Any) -> int | None:
    """Length up to which the rotary position embedding does not depend on a sequence's length; None: there is none.

    LongRoPE (Phi-3) turns all positions otherwise as soon as the longest sequence of a batch exceeds the length that
    the model was first trained at (Ding et al., arXiv 2402.13753), and a dynamic embedding as soon as one exceeds
    `max_position_embeddings`. Within that length a sequence has one distribution, wherever it is computed.
    """
    limits: list[int] = []
    for parameters in rotary_parameters(config):
        if parameters.get("rope_type") == "longrope":
            limits.append(parameters["original_max_position_embeddings"])
        elif parameters.get("rope_type") == "dynamic":
            limits.append(config.max_position_embeddings)
    return min(limits, default=None)


def refuse_long_texts(lengths: Sequence[int], limit: int | None, what: str, remedy: str) -> None:
    """Raise UserError where a text is longer than `limit`, a model's `rotary_limit`.

    Args:
        lengths: of all texts, prompt and completion together, in tokens.
        what: the texts are counted as, in the plural.
        remedy: what to do besides serving the model with a shorter context.
    """
    too_long = sum(length > limit for length in lengths) if limit else 0
    if too_long:
        raise UserError(
            f"{too_long} of {len(lengths)} {what} have texts of more than {limit} tokens, beyond which the model has "
            "another rotary position embedding, so that their log-probabilities would depend on the texts beside them: "
            f"serve the model with a context of {limit} tokens (engine_options.max_model_len, or --max-model-len of "
            f"vLLM servers), and {remedy}",
            param="engine_options.max_model_len",
        )


def context_of_vllm(config: Any, asked: int | None, directory: Path) -> int | None:
    """What vLLM is told as `max_model_len`, where the options ask for `asked`; None: it chooses.

    vLLM has one rotary position embedding for sequences of every length: with LongRoPE the long one as soon as
    `max_model_len` exceeds the limit. Of a dynamic one it takes twice the positions that it has, or more.

    Raises UserError when more than `rotary_limit` is asked for.
    """
    limit = rotary_limit(config)
    if limit is not None and asked is not None and asked > limit:
        raise UserError(
            f"engine_options.max_model_len = {asked}: beyond {limit} tokens model {directory} has another rotary "
            "position embedding, and what vLLM then draws is not what is trained on; set it to "
            f"{limit} or less, or leave it out",
            param="engine_options.max_model_len",
        )
    return limit if asked is None else asked


def rotary_parameters(config: Any) -> Iterator[Mapping[str, Any]]:
    """The parameters of the rotary position embedding; several where they differ between kinds of layers."""
    found = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in found:
        yield found
    else:
        yield from (parameters for parameters in found.values() if isinstance(parameters, Mapping))
