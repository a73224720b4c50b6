"""The stages that each policy of the zoo goes through, in order. Every stage compares numbers that must be equal.

A stage is a coroutine function of a `Visit` that returns the largest difference it found, in nats. To add one, append
it to `STAGES`; the visit holds the results of the stages before it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from bonbon.best_of_n import BestOfN
from bonbon.engines.candidates import Draws, collect
from bonbon.engines.engine import DrawRequest, Engine, Sampling, VersionFiles, VersionKind
from bonbon.errors import UserError
from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.reading.snapshot import Snapshot
from bonbon.prompt import Prompt
from bonbon.rewards.fake_reward import FakeReward
from bonbon.store.database import open_database
from bonbon.store.storable_text import clean_text
from tests.support.zoo.policies import Policy
from tests.support.zoo.promotion import evaluate_version, gap_in_divergences, promote_and_ask, service_on
from tests.support.zoo.results import Result, refusal
from tests.support.zoo.training import FULL, SETTINGS, gap_in_trainer, snapshot_of, train_on, weights_in

NEAR = 2e-3
"""Nats by which log-probabilities of one model, computed in 32 bits in two ways, may differ."""
BASE, ADAPTER = "base", "adapter"
QUESTION = "Where is my order?"


class Trained(NamedTuple):
    """A version that a stage has trained, and its whole model loaded by transformers, with adapters merged by peft."""

    files: VersionFiles
    model: Any


@dataclass
class Visit:
    """A policy whose base an engine serves. `base` is the directory of its files, and `work` an empty directory."""

    policy: Policy
    engine: Engine
    base: Path
    work: Path
    trained: list[Trained] = field(default_factory=list)
    _snapshot: Snapshot | None = None

    @cached_property
    def reference(self) -> Any:
        """The base as transformers loads it."""
        return AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32).eval()

    @cached_property
    def adapter(self) -> Path:
        """An adapter on the base."""
        return self.policy.save_adapter(self.work / "adapter", self.base)

    @cached_property
    def merged(self) -> Any:
        """The adapter merged into the base's weights by peft."""
        base = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
        return PeftModel.from_pretrained(base, self.adapter).merge_and_unload().eval()

    async def snapshot(self) -> Snapshot:
        """Returns groups of the base to train on."""
        if self._snapshot is None:
            self._snapshot = await snapshot_of(self.engine, self.base, self.work)
        return self._snapshot

    async def draws_of(self, version: str) -> list[Draws]:
        """Returns draws for two prompts in one batch."""
        return await asyncio.gather(*(self.draw(version, length) for length in (1, 9)))

    async def draw(self, version: str, length: int, *, n: int = 2, max_tokens: int = 12) -> Draws:
        """Draws for a prompt of `length` tokens."""
        ids = tuple(20 + 7 * at % 300 for at in range(length))
        sampling = Sampling(max_tokens=max_tokens, seed=length)
        return await collect(self.engine, DrawRequest(Prompt(token_ids=ids), version, n, sampling))


Stage = Callable[[Visit], Awaitable[float]]


@torch.no_grad()
def gap(model: Any, prompt: Sequence[int], tokens: Sequence[int], logprobs: Sequence[float]) -> float:
    """Returns the largest difference from the log-probabilities of a plain forward pass over prompt and tokens."""
    logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    expected = logits.float().log_softmax(-1)[range(len(tokens)), list(tokens)]
    return float((expected - torch.tensor(logprobs)).abs().max())


@torch.no_grad()
def total_of(model: Any, prompt: Sequence[int], tokens: Sequence[int]) -> float:
    """Returns the log-probability of all tokens by a plain forward pass over prompt and tokens."""
    logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    return float(logits.float().log_softmax(-1)[range(len(tokens)), list(tokens)].sum())


def gaps(model: Any, drawn: Sequence[Draws]) -> float:
    """Returns the largest difference over the draws of several requests."""
    return max(
        gap(model, draws.prompt.token_ids, draw.token_ids, draw.logprobs) for draws in drawn for draw in draws.draws
    )


async def serve(visit: Visit) -> float:
    """Compares requests of different lengths in one batch, one of which fills the context, with single requests."""
    engine, context = visit.engine, visit.policy.context
    assert engine.context_length == context
    alone = await visit.draw(BASE, 5)
    together = await asyncio.gather(
        *(visit.draw(BASE, length) for length in (1, 5, context // 2)), visit.draw(BASE, context - 6, max_tokens=6)
    )
    return gaps(visit.reference, [alone, *together])


async def log_best_of_n(visit: Visit) -> float:
    """Logs best-of-n of a chat, or of a text without a chat template, and checks the logged group."""
    tokenizer = visit.policy.tokenizer()
    prompt = Prompt.user(QUESTION) if tokenizer.chat_template else Prompt(text=QUESTION)
    best_of_n = BestOfN(visit.engine, FakeReward())
    answer = await best_of_n(prompt, 4, sampling=Sampling(max_tokens=10, seed=1))
    async with open_database(f"sqlite+aiosqlite:///{visit.work / 'bonbon.db'}") as database:
        log = PairLog(database)
        await log.start()
        await log.append(answer.group)
        group = await log.group(answer.group.id)
        await log.stop()
    assert group is not None
    assert group.best.reward is not None
    worst = 0.0
    for candidate in group.candidates:
        # The sum, as the trainer uses it.
        differences = [
            gap(visit.reference, group.prompt_token_ids, candidate.token_ids, answer.draws[candidate.index].logprobs),
            abs(candidate.logprob - sum(answer.draws[candidate.index].logprobs)),
        ]
        worst = max(worst, *differences)
        if prompt.text is not None:  # prompt and completion are one text
            whole = tokenizer.decode([*group.prompt_token_ids, *candidate.token_ids], skip_special_tokens=True)
            assert prompt.text + candidate.text == clean_text(whole)
    return worst


async def adapt(visit: Visit) -> float:
    """Compares an adapter in the engine with the adapter merged into the weights."""
    await visit.engine.load(VersionFiles(ADAPTER, VersionKind.ADAPTER, visit.adapter))
    drawn = await asyncio.gather(*(visit.draw(ADAPTER, length) for length in (1, 9)))
    assert gaps(visit.reference, drawn) > 10 * NEAR, "the adapter changes nothing"
    return gaps(visit.merged, drawn)


async def mix(visit: Visit) -> float:
    """Draws from base and adapter concurrently; each must draw what it draws alone."""
    asked = [(version, length) for length in (3, 7) for version in (BASE, ADAPTER)]
    together = await asyncio.gather(*(visit.draw(version, length) for version, length in asked))
    models = {BASE: visit.reference, ADAPTER: visit.merged}
    worst = max(gaps(models[version], [draws]) for (version, _), draws in zip(asked, together, strict=True))
    alone = [await visit.draw(version, length) for version, length in asked]
    for one, other in zip(alone, together, strict=True):
        assert [draw.token_ids for draw in one.draws] == [draw.token_ids for draw in other.draws]
    return worst


async def train_adapter(visit: Visit) -> float:
    """Trains an adapter and compares it in the engine and in the trainer, which also merges it where it can."""
    version, gap_of_base = await asyncio.to_thread(
        train_on, await visit.snapshot(), visit.base, visit.work / "trained", SETTINGS
    )
    await visit.engine.load(version)
    drawn = await visit.draws_of(version.name)
    await visit.engine.unload(version.name)
    base = AutoModelForCausalLM.from_pretrained(visit.base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, version.directory).eval()
    assert gaps(visit.reference, drawn) > 10 * NEAR, "training changes nothing"
    visit.trained.append(Trained(version, adapted))
    # Whole weights would change the input together with the output layer, which they share.
    continued = (SETTINGS,) if visit.policy.tied else (SETTINGS, FULL)
    in_trainer = [gap_in_trainer(visit.base, version, settings, drawn) for settings in continued]
    return max(gap_of_base, gaps(adapted, drawn), *in_trainer)


async def train_full(visit: Visit) -> float:
    """Trains a whole model and compares it in the engine, in the trainer, and as loaded by transformers."""
    version, gap_of_base = await asyncio.to_thread(
        train_on, await visit.snapshot(), visit.base, visit.work / "trained-full", FULL
    )
    assert weights_in(version.directory) == weights_in(visit.base)
    await visit.engine.load(version)
    drawn = await visit.draws_of(version.name)
    await visit.engine.unload(version.name)
    trained = AutoModelForCausalLM.from_pretrained(version.directory, dtype=torch.float32).eval()
    assert gaps(visit.reference, drawn) > 10 * NEAR, "training changes nothing"
    visit.trained.append(Trained(version, trained))
    return max(gap_of_base, gaps(trained, drawn), gap_in_trainer(visit.base, version, FULL, drawn))


async def evaluate_and_promote(visit: Visit) -> float:
    """Evaluates each trained version with the trainer, swaps it into the service and requests answers under its
    alias."""
    worst = 0.0
    async with service_on(visit.base, visit.work / "service") as service:
        for version, model in visit.trained:
            evaluation, kept = await evaluate_version(visit.base, version, await visit.snapshot())
            assert evaluation.kl.value > 0
            group = await promote_and_ask(service, version, evaluation)
            in_log = [
                abs(candidate.logprob - total_of(model, group.prompt_token_ids, candidate.token_ids))
                for candidate in group.candidates
            ]
            worst = max(worst, gap_in_divergences(model, visit.reference, kept.found), *in_log)
    return worst


STAGES: dict[str, Stage] = {
    "serve": serve,
    "log": log_best_of_n,
    "adapter": adapt,
    "mixed": mix,
    "trained": train_adapter,
    "trained in full": train_full,
    "promoted": evaluate_and_promote,
}
SERVED = ("serve", "log")
WITH_ADAPTERS = ("adapter", "mixed")
TRAINED = ("trained", "trained in full")
PROMOTED = ("promoted",)


async def run_stages(
    policy: Policy, engine: Engine, base: Path, work: Path, stages: Collection[str] = tuple(STAGES)
) -> Result:
    """Starts the engine and runs `stages`. Returns each one's largest difference, or why the engine refused the model.

    Every stage must finish unless the engine refuses the model at the start.
    """
    try:
        await engine.start()
    except UserError as error:
        return refusal(error, base)
    visit = Visit(policy, engine, base, work)
    try:
        result = {name: await stage(visit) for name, stage in STAGES.items() if name in stages}
    finally:
        await engine.stop()
    assert all(difference < NEAR for difference in result.values()), result
    return result
