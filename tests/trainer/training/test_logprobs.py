"""Tests of candidates' log-probabilities against independent computations, with and without shared prompts."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
)

from bonbon.errors import UserError
from bonbon.progress import Bars
from bonbon.settings import TrainSettings
from tests.support.data.sampled_groups import EOS, VOCABULARY, draw, make_base
from tests.support.data.written_groups import group_row, groups_of
from tests.support.models.learners import learner_of
from tests.support.zoo.policies import POLICIES
from trainer.data.batches import make_batch
from trainer.data.groups import Groups
from trainer.training.accelerator import make_accelerator
from trainer.training.learning.logprobs import Logprobs, candidate_logprobs

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ENDS = {"bos_token_id": 2, "eos_token_id": EOS, "pad_token_id": 0}


def gpt2() -> Any:
    """A model with learnt positions, and with dropout, which evaluation disables."""
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2, **ENDS)
    )


def sliding_window() -> Any:
    """A model whose tokens see the six before them, but which ignores that window when it gets a custom mask."""
    config = MistralConfig(
        vocab_size=VOCABULARY, num_key_value_heads=2, initializer_range=0.2, sliding_window=6, **SHAPE, **ENDS
    )
    return MistralForCausalLM(config)


def linear_biases() -> Any:
    """A model with ALiBi: attention falls with the distance in the sequence."""
    config = MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4, max_seq_len=64, initializer_range=0.2)
    return MptForCausalLM(config)


def strict_about_masks() -> Any:
    """A model whose ALiBi requires a two-dimensional mask and fails for a four-dimensional one."""
    config = BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2, **ENDS)
    return BloomForCausalLM(config)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoModelForCausalLM.from_pretrained(make_base(tmp_path_factory.mktemp("models") / "tiny")).eval()


@pytest.fixture
def groups(tmp_path: Path) -> Groups:
    """Groups of mixed temperatures, lengths and sizes; the first is short, and some candidates are empty."""
    rng = np.random.default_rng(0)

    def group(prompt: list[int], lengths: list[int], temperature: float) -> dict[str, Any]:
        candidates = [rng.integers(3, VOCABULARY, length).tolist() for length in lengths]
        rewards = [float(place) for place in range(len(lengths))]
        return group_row(rewards, prompt_token_ids=prompt, candidates=candidates, temperature=temperature)

    return groups_of(
        tmp_path / "groups.parquet",
        [
            group([2, 7], [1, 2, 1], 1.0),
            group([2, 5, 9, 11], [6, 0, 9, 3], 0.7),
            group([3], [12, 1], 1.5),
            group([2, 5, 6, 7, 8, 9, 10], [0, 0], 1.0),
        ],
    )


def chosen(groups: Groups) -> list[Any]:
    return [groups.candidates_of(row) for row in range(len(groups))]


def one_by_one(model: Any, groups: Groups) -> list[float]:
    """Returns log-probabilities computed token by token in 64 bits, without padding, batches or the code under test."""
    sums = []
    for candidate in range(len(groups.owners)):
        row = int(groups.owners[candidate])
        prompt, completion = groups.prompts[row].tolist(), groups.completions[candidate].tolist()
        logits = model(torch.tensor([prompt + completion])).logits[0].double() / float(groups.temperatures[row])
        logprobs = logits.log_softmax(-1)
        sums.append(math.fsum(float(logprobs[len(prompt) + i - 1, token]) for i, token in enumerate(completion)))
    return sums


def logprobs_of(model: Any, *, size: int = 2) -> Logprobs:
    return Logprobs(model, make_accelerator(TrainSettings(precision="no")), size, Bars(show=False))


@torch.no_grad()
@pytest.mark.parametrize("share", [False, True], ids=["alone", "shared"])
@pytest.mark.parametrize("make", [None, gpt2], ids=["llama", "gpt2"])
def test_a_batch_equals_one_sequence_at_a_time(
    model: Any, groups: Groups, share: bool, make: Callable[[], Any] | None
) -> None:
    """Candidates either share their prompt's sequence or have their own."""
    torch.manual_seed(0)
    some = make().eval() if make else model
    batch = make_batch(groups, chosen(groups), share_prompts=share)
    assert len(batch.input_ids) == (4 if share else 11)
    logprobs = candidate_logprobs(some, batch)
    assert logprobs.dtype == torch.float32
    assert logprobs.tolist() == pytest.approx(one_by_one(some, groups), abs=1e-4)
    assert logprobs[groups.tokens == 0].tolist() == [0.0] * 3
    assert batch.tokens == (2 + 4 + 1 + 7 if share else 3 * 2 + 4 * 4 + 2 * 1 + 2 * 7) + int(groups.tokens.sum())


@torch.no_grad()
@pytest.mark.parametrize("share", [False, True], ids=["alone", "shared"])
def test_neither_padding_nor_company_changes_anything(model: Any, groups: Groups, share: bool) -> None:
    together = candidate_logprobs(model, make_batch(groups, chosen(groups), share_prompts=share))
    alone = [candidate_logprobs(model, make_batch(groups, [some], share_prompts=share)) for some in chosen(groups)[:3]]
    torch.testing.assert_close(together[:9], torch.cat(alone), rtol=0, atol=1e-5)


@torch.no_grad()
def test_some_candidates_of_a_group_in_any_order(model: Any, groups: Groups) -> None:
    """The losses on pairs use candidates this way."""
    everything = candidate_logprobs(model, make_batch(groups, chosen(groups), share_prompts=False))
    places = [np.array([1, 2]), np.array([3, 6])]
    batch = make_batch(groups, places, share_prompts=True)
    torch.testing.assert_close(candidate_logprobs(model, batch), everything[[1, 2, 3, 6]], rtol=0, atol=1e-5)
    assert batch.candidates.tolist() == [1, 2, 3, 6]


def test_gradients_are_the_same_when_prompts_are_shared(model: Any, groups: Groups) -> None:
    weight = model.model.layers[0].self_attn.q_proj.weight
    gradients = []
    for share in (False, True):
        logprobs = candidate_logprobs(model, make_batch(groups, chosen(groups), share_prompts=share))
        gradients.append(torch.autograd.grad((logprobs * torch.arange(11)).sum(), weight)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)
    assert float(gradients[0].abs().max()) > 0.1


@torch.no_grad()
@pytest.mark.parametrize("make", [None, gpt2], ids=["llama", "gpt2"])
def test_prompts_are_shared_where_that_changes_nothing(
    model: Any, groups: Groups, make: Callable[[], Any] | None
) -> None:
    torch.manual_seed(0)
    some = make() if make else model
    logprobs = logprobs_of(some)
    logprobs.try_sharing_prompts(groups)
    assert logprobs.shares_prompts
    passes = logprobs.batches(groups, chosen(groups))
    assert [batch.shared for batch in passes] == [True, True]
    found = logprobs.of(groups, np.arange(len(groups)), "")
    assert found.tolist() == pytest.approx(one_by_one(some, groups), abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("make", [sliding_window, linear_biases, strict_about_masks])
def test_a_model_that_cannot_share_prompts_is_found_out(groups: Groups, make: Callable[[], Any]) -> None:
    """Only long groups reveal it, wherever they are among the others."""
    torch.manual_seed(0)
    model = make().eval()
    logprobs = logprobs_of(model)
    logprobs.try_sharing_prompts(groups)
    found = logprobs.of(groups, np.arange(len(groups)), "")
    assert found.tolist() == pytest.approx(one_by_one(model, groups), abs=1e-4)


@torch.no_grad()
def test_longer_candidates_than_were_tried_do_not_share_their_prompt(tmp_path: Path, groups: Groups) -> None:
    """Later draws may exceed a window that no logged text had reached."""
    torch.manual_seed(0)
    model = sliding_window().eval()
    short = groups_of(tmp_path / "short.parquet", [group_row([0.0, 1.0], prompt_token_ids=[2, 7])])
    logprobs = logprobs_of(model)
    logprobs.try_sharing_prompts(short)
    assert [batch.shared for batch in logprobs.batches(short, chosen(short))] == [True]
    found = logprobs.of(groups, np.arange(len(groups)), "")
    assert found.tolist() == pytest.approx(one_by_one(model, groups), abs=1e-4)


@torch.no_grad()
def test_a_text_that_changes_the_rotary_embedding_of_others_is_refused(tmp_path: Path) -> None:
    """LongRoPE rotates the positions of all texts in a forward pass according to the longest one."""
    base = POLICIES["Phi-3, LongRoPE"].save(tmp_path / "base")
    learner = learner_of(base, TrainSettings(lora_rank=2, micro_batch_size=2))

    def groups_with(longest: int) -> Groups:
        rows = [group_row([0.0, 1.0], candidates=[[7] * length, [8]]) for length in (5, longest - 2)]
        return groups_of(tmp_path / f"{longest}.parquet", rows)

    fitting, too_long = groups_with(64), groups_with(65)
    learner.logprobs.try_sharing_prompts(fitting)
    together = learner.of_policy(fitting, np.arange(2), "")
    alone = torch.cat([learner.of_policy(fitting, np.array([row]), "")[2 * row : 2 * row + 2] for row in range(2)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)
    for refused in (
        lambda: learner.logprobs.try_sharing_prompts(too_long),
        lambda: learner.of_policy(too_long, np.arange(2), ""),
    ):
        with pytest.raises(UserError, match="1 of 2 groups have texts of more than 64 tokens") as error:
            refused()
        assert error.value.param == "engine_options.max_model_len"


def test_every_row_is_looked_at_once_the_longest_first(model: Any, groups: Groups) -> None:
    logprobs = logprobs_of(model, size=3)
    passes = logprobs.batches(groups, chosen(groups))
    assert [sorted(set(groups.owners[batch.candidates].tolist())) for batch in passes] == [[1, 2, 3], [0]]
    some = logprobs.of(groups, np.array([0, 2]), "")
    whole = logprobs.of(groups, np.arange(len(groups)), "")
    asked = np.isin(groups.owners, [0, 2])
    torch.testing.assert_close(some[asked], whole[asked])
    assert not some[~asked].any()


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.4])
def test_equals_what_the_sampler_summed_while_drawing(model: Any, tmp_path: Path, temperature: float) -> None:
    """This includes truncated draws, to which no end of sequence is added."""
    torch.manual_seed(1)
    prompt = [2, 17, 5]
    drawn = draw(model, prompt, 32, temperature=temperature, max_tokens=12)
    assert any(EOS in tokens for tokens, _ in drawn)
    assert any(EOS not in tokens for tokens, _ in drawn)
    row = group_row(
        [float(place) for place in range(32)],
        prompt_token_ids=prompt,
        candidates=[tokens for tokens, _ in drawn],
        temperature=temperature,
    )
    groups = groups_of(tmp_path / "drawn.parquet", [row])
    logprobs = candidate_logprobs(model, make_batch(groups, chosen(groups), share_prompts=True))
    assert logprobs.tolist() == pytest.approx([logprob for _, logprob in drawn], abs=1e-4)


@torch.no_grad()
def test_all_completions_of_one_token_sum_to_one(model: Any, tmp_path: Path) -> None:
    rewards = [float(token) for token in range(VOCABULARY)]
    candidates = [[token] for token in range(VOCABULARY)]
    row = group_row(rewards, prompt_token_ids=[2, 8], candidates=candidates, temperature=0.8)
    groups = groups_of(tmp_path / "groups.parquet", [row])
    logprobs = candidate_logprobs(model, make_batch(groups, chosen(groups), share_prompts=True))
    assert float(logprobs.exp().sum()) == pytest.approx(1, abs=1e-5)
