"""Tests every model of the zoo in every stage: the result is right, or it is refused before anything is sampled."""

import re
from pathlib import Path

import pytest
import torch

from bonbon.engines.embedded.embedded_engine import EmbeddedEngine
from bonbon.engines.embedded.embedded_options import EmbeddedOptions
from bonbon.errors import UserError
from bonbon.rewards import build_reward
from bonbon.rewards.reward_check import check_reward
from bonbon.settings import RewardSpec
from tests.support.paths import DOCS
from tests.support.zoo import results
from tests.support.zoo.page import page
from tests.support.zoo.policies import POLICIES
from tests.support.zoo.reading import PROMPT, TEXTS, expected_scores
from tests.support.zoo.rewards import REWARDS
from tests.support.zoo.stages import NEAR, PROMOTED, STAGES, TRAINED, run_stages
from tests.support.zoo.training import FULL, SETTINGS, train_on_any_tokens

TO_THE_END = ("Llama 3", "Phi-3, LongRoPE", "Gemma 3, multimodal", "GPT-2", "Qwen3-MoE")
"""The models whose trained versions the regular tests evaluate, promote and serve: tied weights, sentencepiece with
a context that is shortened, a multimodal model, a model of text alone, and experts. `make zoo` does so with all."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", POLICIES)
async def test_policy_on_the_embedded_engine(name: str, tmp_path: Path) -> None:
    policy = POLICIES[name]
    base = policy.save(tmp_path / "base")
    left_out = () if name in TO_THE_END or results.recording() else PROMOTED
    engine = EmbeddedEngine("base", base, EmbeddedOptions(threads=1))
    result = await run_stages(policy, engine, base, tmp_path, [stage for stage in STAGES if stage not in left_out])
    if results.REFUSED in result:  # vLLM may draw from it, and what is drawn is trained on
        by_stage = zip(TRAINED, (SETTINGS, FULL), strict=True)
        trained = {stage: train_on_any_tokens(base, tmp_path, settings) for stage, settings in by_stage}
        assert max(trained.values()) < NEAR, trained
        result = {**result, **trained}
    results.check("embedded", name, result, left_out=left_out)


@pytest.mark.parametrize("name", REWARDS)
async def test_reward(name: str, tmp_path: Path) -> None:
    head = REWARDS[name]
    directory = head.save(tmp_path)
    reward = build_reward(RewardSpec(kind="classifier", target=str(directory), device="cpu", **head.options))
    if head.refused:
        with pytest.raises(UserError, match=head.refused) as caught:
            await reward.start()
        results.check("rewards", name, results.refusal(caught.value, directory))
        return
    await reward.start()
    try:
        await check_reward(reward)
        together = await reward.score(PROMPT, TEXTS)
        alone = [(await reward.score(PROMPT, [text]))[0] for text in TEXTS]
    finally:
        await reward.stop()
    expected = expected_scores(head, directory)
    differences = {
        "score": max(abs(one - other) for one, other in zip(alone, expected, strict=False)),
        "batch": max(abs(one - other) for one, other in zip(alone, together, strict=True)),
    }
    assert max(differences.values()) < NEAR, differences
    assert len({round(score, 4) for score in alone}) == len(TEXTS)
    results.check("rewards", name, differences)


def test_what_is_recorded_is_what_is_there() -> None:
    """The result files contain no removed models, and each refusal names a setting or a remedy."""
    assert set(results.recorded("embedded")) == set(POLICIES)
    assert set(results.recorded("rewards")) == set(REWARDS)
    assert all(set(PROMOTED) < set(results.recorded("embedded")[name]) for name in TO_THE_END)
    assert set(results.recorded("vllm")) <= set(POLICIES)
    said = [
        value
        for table in ("embedded", "vllm", "rewards")
        for result in results.recorded(table).values()
        for value in result.values()
        if isinstance(value, str)
    ]
    assert said
    for message in said:
        assert re.search(r"[;:] (set|serve|save) |set `", message), message


def test_the_page_of_models_shows_what_is_recorded() -> None:
    assert (DOCS / "models.md").read_text() == page(), "make zoo writes it anew"
