"""Tests of the KL estimator against the exact sum over every completion of tiny random models."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from bonbon.engines.engine import VersionFiles, VersionKind
from bonbon.errors import UserError
from bonbon.theory import Estimate, clustered_mean
from tests.support.zoo.policies import POLICIES
from trainer.evaluation.divergence import Completion, Divergence
from trainer.evaluation.kl import KL, divergence

VOCABULARY, LENGTH, END = 5, 4, 0
TEMPERATURE = 0.8
Rows = NDArray[np.float64]
PROMPTS = [(1, 2), (3,), (4, 4, 1), (2, 1, 3, 4)]


@dataclass
class Exact:
    """One prompt's completions with their log-probabilities under a version and under the base."""

    completions: list[tuple[int, ...]]
    ours: Rows
    theirs: Rows

    @property
    def kl(self) -> float:
        return float((np.exp(self.ours) * (self.ours - self.theirs)).sum())


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, VersionFiles]:
    """A base, an adapter on it and a full version, all random."""
    root = tmp_path_factory.mktemp("versions")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.25,
        eos_token_id=END,
    )
    base = LlamaForCausalLM(config)
    base.save_pretrained(root / "base")
    LlamaForCausalLM(config).save_pretrained(root / "full")
    adapted = get_peft_model(
        LlamaForCausalLM.from_pretrained(root / "base"),
        LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False),
    )
    with torch.no_grad():
        for key, weight in adapted.named_parameters():
            if "lora_" in key:
                weight.normal_(0, 0.15)
    adapted.save_pretrained(root / "adapter")
    return {kind: VersionFiles(kind, kind, root / kind) for kind in VersionKind}


def load(version: VersionFiles, base: VersionFiles) -> Any:
    if version.kind is VersionKind.ADAPTER:
        model = LlamaForCausalLM.from_pretrained(base.directory)
        return PeftModel.from_pretrained(model, version.directory).eval()
    return LlamaForCausalLM.from_pretrained(version.directory).eval()


def enumerate_completions(prefix: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    for token in range(VOCABULARY):
        here = (*prefix, token)
        if token == END or len(here) == LENGTH:
            yield here
        else:
            yield from enumerate_completions(here)


@torch.inference_mode()
def logprobs(model: Any, prompt: tuple[int, ...], completions: list[tuple[int, ...]]) -> Rows:
    """Returns log-probabilities computed without padding, shortest first, independently of the code under test."""
    sums: list[float] = []
    for _, alike in groupby(completions, key=len):
        tokens = torch.tensor(list(alike))
        ids = torch.cat([torch.tensor([prompt]).expand(len(tokens), -1), tokens], dim=1)
        steps = (model(input_ids=ids).logits[:, len(prompt) - 1 : -1] / TEMPERATURE).log_softmax(-1)
        sums += steps.gather(-1, tokens[..., None])[..., 0].sum(-1).tolist()
    return np.asarray(sums)


def exact(versions: dict[str, VersionFiles], version: str) -> list[Exact]:
    completions = sorted(enumerate_completions(), key=len)
    ours, theirs = (load(versions[name], versions["base"]) for name in (version, "base"))
    return [
        Exact(completions, logprobs(ours, prompt, completions), logprobs(theirs, prompt, completions))
        for prompt in PROMPTS
    ]


def draw(distribution: list[Exact], count: int, seed: int) -> list[Completion]:
    rng = np.random.default_rng(seed)
    return [
        Completion(prompt, one.completions[i], TEMPERATURE)
        for prompt, one in zip(PROMPTS, distribution, strict=True)
        for i in rng.choice(len(one.completions), count, p=np.exp(one.ours) / np.exp(one.ours).sum())
    ]


def per_prompt(values: list[Divergence], count: int) -> list[list[Divergence]]:
    return [values[i : i + count] for i in range(0, len(values), count)]


@pytest.mark.parametrize("version", ["adapter", "full"])
def test_estimates_agree_with_the_exact_sum(versions: dict[str, VersionFiles], version: str) -> None:
    distribution = exact(versions, version)
    assert sum(np.exp(one.ours).sum() for one in distribution) == pytest.approx(len(PROMPTS), abs=1e-4)
    count = 1500
    done: list[int] = []
    estimator = KL(versions["base"], versions[version], batch_size=500)
    values = estimator(draw(distribution, count, seed=1), done.append)
    assert sum(done) == len(values)
    for one, drawn in zip(distribution, per_prompt(values, count), strict=True):
        assert one.kl > 0.05
        # A prompt's own draws are independent, so each stands for a cluster here.
        rao_blackwell = clustered_mean([value.rao_blackwell for value in drawn])
        k1 = clustered_mean([value.k1 for value in drawn])
        assert covers(rao_blackwell, one.kl)
        assert covers(k1, one.kl)
        assert rao_blackwell.high - rao_blackwell.low < 0.8 * (k1.high - k1.low)
        assert min(value.rao_blackwell for value in drawn) >= 0


def covers(estimate: Estimate, truth: float) -> bool:
    """Returns whether the truth is within 1.5 of the 95 % half-widths: 99.7 %, because many intervals are checked."""
    return abs(estimate.value - truth) <= 1.5 * (estimate.high - estimate.value)


def test_intervals_cover_the_exact_value_as_often_as_they_say(versions: dict[str, VersionFiles]) -> None:
    distribution = exact(versions, "adapter")
    runs, count = 80, 40
    estimator = KL(versions["base"], versions["adapter"], batch_size=2000)
    values = estimator(draw(distribution, runs * count, seed=2), lambda steps: None)
    hit = 0
    for one, drawn in zip(distribution, per_prompt(values, runs * count), strict=True):
        for run in range(runs):
            estimate = clustered_mean([value.rao_blackwell for value in drawn[run * count : (run + 1) * count]])
            hit += estimate.low <= one.kl <= estimate.high
    assert hit / (runs * len(PROMPTS)) == pytest.approx(0.95, abs=0.04)


MIXED = [
    Completion(prompt, tokens, temperature)
    for prompt in PROMPTS
    for tokens in ((1, 2, END), (2,), ())
    for temperature in (0.5, 1.0, 1.5)
]


def test_a_batch_is_each_completion_alone(versions: dict[str, VersionFiles]) -> None:
    """Lengths and temperatures are mixed, the order is kept, and an empty completion has divergence 0."""
    together, alone = (
        KL(versions["base"], versions["adapter"], batch_size=size)(MIXED, lambda steps: None) for size in (5, 1)
    )
    for one, first, second in zip(MIXED, together, alone, strict=True):
        assert first == pytest.approx(second, abs=1e-5)
        assert bool(one.tokens) == (first != Divergence(0.0, 0.0))
    by_temperature = [np.mean([abs(value.k1) for value in together[i::3]]) for i in range(3)]
    assert by_temperature == sorted(by_temperature, reverse=True)


def test_the_base_does_not_diverge_from_itself(versions: dict[str, VersionFiles]) -> None:
    again = VersionFiles("again", VersionKind.FULL, versions["base"].directory)
    for version in (versions["base"], again):
        assert set(KL(versions["base"], version)(MIXED, lambda steps: None)) == {Divergence(0.0, 0.0)}


def test_a_token_the_policy_never_draws_adds_nothing() -> None:
    policy = torch.tensor([[0.0, 0.0, -torch.inf]])
    other = torch.tensor([[0.0, 0.0, 0.0]])
    value = divergence(policy, other, torch.tensor([1]), 1.0)
    assert value.rao_blackwell == pytest.approx(log(3 / 2))
    assert value.k1 == pytest.approx(log(3 / 2))
    impossible = divergence(other, policy, torch.tensor([1]), 1.0)
    assert impossible.rao_blackwell == torch.inf


def test_half_precision_logits_are_not_what_is_compared(versions: dict[str, VersionFiles], tmp_path: Path) -> None:
    """Weights in bf16 are computed with in 32 bits, and the caller's matrix precision is restored afterwards."""
    for kind in ("base", "full"):
        LlamaForCausalLM.from_pretrained(versions[kind].directory).to(torch.bfloat16).save_pretrained(tmp_path / kind)
    half = [VersionFiles(kind, VersionKind(kind), tmp_path / kind) for kind in ("base", "full")]
    whole = []
    for files in half:
        model = LlamaForCausalLM.from_pretrained(files.directory).to(torch.float32)
        model.save_pretrained(tmp_path / f"{files.name} in 32 bits")
        whole.append(VersionFiles(files.name, files.kind, tmp_path / f"{files.name} in 32 bits"))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        found, expected = (KL(base, version)(MIXED, lambda steps: None) for base, version in (half, whole))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


@pytest.mark.parametrize(("name", "limit"), [("Phi-3, LongRoPE", 64), ("Llama, dynamic RoPE", 128)])
def test_a_completion_that_changes_the_rotary_embedding_of_others_is_refused(
    name: str, limit: int, tmp_path: Path
) -> None:
    policy = POLICIES[name]
    base = VersionFiles("base", VersionKind.BASE, policy.save(tmp_path / "base"))
    adapter = VersionFiles("adapter", VersionKind.ADAPTER, policy.save_adapter(tmp_path / "adapter", base.directory))
    short = Completion((5, 6), (7, 8, 9), 1.0)
    fitting, too_long = (Completion((9,) * (length - 4), (7, 7, 8, 9), 1.0) for length in (limit, limit + 1))
    together, alone = (KL(base, adapter, batch_size=size)([short, fitting], lambda steps: None) for size in (2, 1))
    for one, other in zip(together, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    with pytest.raises(UserError, match=f"1 of 2 completions have texts of more than {limit} tokens") as error:
        KL(base, adapter)([short, too_long], lambda steps: None)
    assert error.value.param == "engine_options.max_model_len"


def test_a_token_that_the_model_does_not_know_is_refused(versions: dict[str, VersionFiles]) -> None:
    for completion in (Completion((1, VOCABULARY), (2,), 1.0), Completion((1,), (VOCABULARY,), 1.0)):
        with pytest.raises(UserError, match=f"a completion has the token id {VOCABULARY}, and the model has"):
            KL(versions["base"], versions["adapter"])([MIXED[0], completion], lambda steps: None)
