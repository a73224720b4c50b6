"""Builds vLLM's sampling parameters."""

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

PROBE_PARAMS = SamplingParams(
    max_tokens=1, top_k=1, logprobs=2, flat_logprobs=True, ignore_eos=True, output_kind=RequestOutputKind.DELTA
)
"""Parameters that sample one token out of one, with the log-probabilities of the two most likely ones."""


def sampling_params(request: DrawRequest, reader: "PromptReader") -> SamplingParams:
    """Returns vLLM's parameters for `request`, whose prompt `reader` has read.

    Its tokens arrive as they are sampled when deltas are wanted. Otherwise the first token arrives by itself, and the
    rest of each candidate in one piece. Raises UserError when vLLM refuses the parameters.
    """
    sampling = request.sampling
    structure = _structure(request, reader)
    try:
        return SamplingParams(
            # vLLM requires n = 1 at temperature 0.
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
            # The ids above end a sequence, except that structured output ends with vLLM's own end token.
            ignore_eos=structure is None,
            logprobs=sampling.top_logprobs,
            flat_logprobs=True,
            detokenize=bool(sampling.stop),
            structured_outputs=structure,
            output_kind=RequestOutputKind.DELTA,
            stream_interval=None if request.deltas else sampling.max_tokens,
            skip_clone=True,
        )
    except VLLMClientError as error:
        raise UserError(f"vLLM refuses the sampling parameters: {error}") from error


def prompt_logprobs_params(alternatives: int) -> SamplingParams:
    """Returns vLLM's parameters for the log-probabilities of a prompt.

    It samples one token, because it cannot sample none.
    """
    return SamplingParams(max_tokens=1, prompt_logprobs=alternatives, detokenize=False, ignore_eos=True)


def salted_prompt(token_ids: Sequence[int], salt: str) -> TokensInput:
    """Returns the prompt in vLLM's format. Only prompts with the same `salt` share blocks of its prefix cache."""
    return tokens_input(list(token_ids), cache_salt=salt or None)


def _seed(seed: int) -> int:
    """Spreads out a seed: vLLM seeds candidate i with seed + i, so neighbouring seeds would share candidates."""
    return int.from_bytes(blake2b(str(seed).encode(), digest_size=8).digest(), "big") >> 2


def _structure(request: DrawRequest, reader: "PromptReader") -> StructuredOutputsParams | None:
    """Returns what constrains the candidates. Only tools need a grammar; vLLM handles a response format itself."""
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
