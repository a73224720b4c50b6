"""Evaluates, registers, promotes and serves a trained version of the zoo."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch

from bonbon.engines.embedded.embedded_engine import EmbeddedEngine
from bonbon.engines.embedded.embedded_options import EmbeddedOptions
from bonbon.engines.engine import VersionFiles, VersionKind
from bonbon.pairs.group_records import Group
from bonbon.pairs.reading.snapshot import Snapshot, Split
from bonbon.rewards.fake_reward import FakeReward
from bonbon.settings import EvaluateSettings, ServiceSettings, Settings
from tests.support.service.running_service import Running, running
from trainer.data.logged_prompts import logged_prompts
from trainer.evaluation.divergence import Completion, Divergence
from trainer.evaluation.evaluate import Served, evaluate
from trainer.evaluation.evaluation import Evaluation
from trainer.evaluation.kl import KL

N = 2
PROMPTS = 3


def engine_on(base: Path) -> EmbeddedEngine:
    """Returns a new engine, which the caller starts and stops."""
    return EmbeddedEngine("base", base, EmbeddedOptions(threads=1))


class Kept:
    """Records the arguments and results of an estimator."""

    def __init__(self, estimator: KL) -> None:
        self.name, self._estimator = estimator.name, estimator
        self.found: list[tuple[Completion, Divergence]] = []

    def __call__(self, completions: Sequence[Completion], advance: Callable[[int], None]) -> list[Divergence]:
        values = self._estimator(completions, advance)
        self.found += zip(completions, values, strict=True)
        return values


async def evaluate_version(base: Path, version: VersionFiles, snapshot: Snapshot) -> tuple[Evaluation, Kept]:
    """Evaluates the version with the trainer on a few prompts, and returns the divergences behind the evaluation."""
    kept = Kept(KL(VersionFiles("base", VersionKind.BASE, base), version, batch_size=4))
    evaluation = await evaluate(
        engine=engine_on(base),
        reward=FakeReward(),
        held_out_reward=None,
        divergence=kept,
        prompts=logged_prompts(snapshot, Split.TRAIN),
        version=version,
        served=Served(None, N),
        n=N,
        settings=EvaluateSettings(prompts=PROMPTS, draws=N),
        progress=False,
    )
    return evaluation, kept


@torch.no_grad()
def gap_in_divergences(trained: Any, base: Any, found: Sequence[tuple[Completion, Divergence]]) -> float:
    """Returns the largest difference of either estimate from that of transformers, in nats per token.

    Each completion is computed alone, under both models as transformers loads them.
    """
    worst = 0.0
    for one, value in found:
        ids = torch.tensor([[*one.prompt, *one.tokens]])
        ours, theirs = (
            (model(ids).logits[0, len(one.prompt) - 1 : -1].double() / one.temperature).log_softmax(-1)
            for model in (trained, base)
        )
        drawn = torch.tensor(one.tokens)[:, None]
        k1 = float((ours - theirs).gather(-1, drawn).sum())
        exact = float((ours.exp() * (ours - theirs)).sum())
        worst = max(worst, *(abs(a - b) / len(one.tokens) for a, b in ((k1, value.k1), (exact, value.rao_blackwell))))
    return worst


@asynccontextmanager
async def service_on(base: Path, work: Path) -> AsyncIterator[Running]:
    """Runs a service that answers with best-of-n of the base."""
    settings = Settings(
        model=str(base),
        data_dir=work,
        n=N,
        service=ServiceSettings(registry_poll=60.0, audit_fraction=0.0),
    )
    async with running(settings, engine=engine_on(base), reward=FakeReward()) as service:
        assert (await _asked(service)).version == "base"
        yield service


async def promote_and_ask(service: Running, version: VersionFiles, evaluation: Evaluation) -> Group:
    """Makes the service swap the version in, requests an answer under its alias, and returns the logged group."""
    registry, swapper = service.state.registry, service.state.swapper
    registered = await registry.register(
        base="base",
        parent="base",
        kind=version.kind,
        directory=version.directory,
        training={},
        evaluation=evaluation.to_dict(),
    )
    await registry.approve(registered.name, {"passed": True, "reasons": [], "k": N, "saved": 0.0})
    await registry.promote(registered.name, actor="test")
    await swapper.converge()
    assert not swapper.refused
    group = await _asked(service)
    assert (group.version, group.n) == (registered.name, N)
    return group


async def _asked(service: Running) -> Group:
    """Requests an answer under the service's alias and returns the logged group."""
    body = {"model": "bonbon", "prompt": "Where is my order?", "max_tokens": 10, "seed": 1}
    response = await service.client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    async with asyncio.timeout(30):
        while (group := await service.state.pair_log.group(response.json()["bonbon"]["group_id"])) is None:
            await asyncio.sleep(0.005)
    return group
