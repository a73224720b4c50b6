"""How vLLM is told to draw."""

import json
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from vllm import SamplingParams
from vllm.exceptions import VLLMClientError
from vllm.inputs.engine import TokensInput, tokens_input
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from bonbon.engines.engine import DrawRequest
from bonbon.engines.request_limits import check_ends
from bonbon.errors import UserError

if TYPE_CHECKING:
    from bonbon.engines.text.prompt_reader import PromptReader

ONE_OF_TWO = SamplingParams(
    max_tokens=1, top_k=1, logprobs=2, flat_logprobs=True, ignore_eos=True, output_kind=RequestOutputKind.DELTA
)
"""One token out of one, with the log-probabilities of the two likeliest."""


def sampling_params(request: DrawRequest, reader: "PromptReader") -> SamplingParams:
    """vLLM's parameters for `request`, whose prompt `reader` has read.

    Its tokens come as they are drawn when deltas are wanted; otherwise the first one does, and the rest of each
    candidate in one piece. Raises UserError when vLLM refuses them.
    """
    sampling = request.sampling
    shape = _structure(request, reader)
    try:
        return SamplingParams(
            # vLLM draws once at temperature 0.
            n=request.n if sampling.temperature > 0 else 1,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=max(0, sampling.top_k),
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            frequency_penalty=sampling.frequency_penalty,
            presence_penalty=sampling.presence_penalty,
            logit_bias=dict(sampling.logit_bias) or None,
            min_tokens=sampling.min_tokens,
            seed=None if sampling.seed is None else _seed(sampling.seed),
            stop=list(sampling.stop),
            stop_token_ids=[] if sampling.ignore_eos else sorted(reader.end_ids),
            # The ids above are the ones that end a sequence; a shape is at its end when vLLM's own says so.
            ignore_eos=shape is None,
            logprobs=sampling.top_logprobs,
            flat_logprobs=True,
            detokenize=bool(sampling.stop),
            structured_outputs=shape,
            output_kind=RequestOutputKind.DELTA,
            stream_interval=None if request.deltas else sampling.max_tokens,
            skip_clone=True,
        )
    except VLLMClientError as error:
        raise UserError(f"vLLM refuses the sampling: {error}") from error


def prompt_logprobs_params(alternatives: int) -> SamplingParams:
    """vLLM's parameters for the log-probabilities of a prompt; it draws one token, for it cannot draw none."""
    return SamplingParams(max_tokens=1, prompt_logprobs=alternatives, detokenize=False, ignore_eos=True)


def salted_prompt(token_ids: Sequence[int], salt: str) -> TokensInput:
    """The prompt as vLLM takes it. Blocks of its prefix cache are shared by prompts of the same `salt` only."""
    return tokens_input(list(token_ids), cache_salt=salt or None)


def _seed(seed: int) -> int:
    """vLLM seeds candidate i with seed + i: spread out, so that neighbouring seeds share no candidate."""
    return int.from_bytes(blake2b(str(seed).encode(), digest_size=8).digest(), "big") >> 2


def _structure(request: DrawRequest, reader: "PromptReader") -> StructuredOutputsParams | None:
    """What candidates are held to. Only what tools allow takes a grammar: a schema alone is left to vLLM."""
    sampling = request.sampling
    if request.prompt.tools is not None and (grammar := reader.grammar(sampling, request.prompt)) is not None:
        check_ends(sampling, "response_format" if sampling.response_format is not None else "tools")
        return StructuredOutputsParams(grammar=grammar)
    if sampling.response_format is None:
        return None
    wanted: dict[str, Any] = json.loads(sampling.response_format)
    if wanted["type"] == "json_object":
        return StructuredOutputsParams(json_object=True)
    return StructuredOutputsParams(json=wanted["json_schema"]["schema"])
