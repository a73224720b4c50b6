"""Trains a policy of the zoo in one tiny round by the trainer's own code, from logged groups to a version."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from bonbon.best_of_n import BestOfN
from bonbon.engines.candidates import Draws
from bonbon.engines.engine import Engine, Sampling, VersionFiles, VersionKind
from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.reading.snapshot import Fractions, Snapshot, take_snapshot
from bonbon.prompt import Prompt
from bonbon.registry.registry import Registry
from bonbon.rewards.fake_reward import FakeReward
from bonbon.settings import Settings, TrainSettings
from bonbon.store.database import open_database
from tests.support.data.written_groups import group_row, groups_of
from tests.support.models.learners import learner_of
from trainer.data.groups import Groups
from trainer.evaluation.divergence import Completion
from trainer.evaluation.kl import KL
from trainer.training.train import train

N = 2
GROUPS = 4
LONGEST = 8
"""Most tokens of a candidate."""
SETTINGS = TrainSettings(
    lora_rank=4,
    lora_output_layer=True,
    learning_rate=0.03,
    epochs=2,
    batch_size=4,
    micro_batch_size=2,
    min_pairs=1,
    precision="no",
    warmup_fraction=0.0,
)
"""Two optimiser steps of two forward passes each, with an adapter as by default with the embedded engine."""
FULL = SETTINGS.model_copy(update={"method": "full", "learning_rate": 3e-3})


async def snapshot_of(engine: Engine, base: Path, work: Path) -> Snapshot:
    """Returns groups of best-of-n of the engine's base, for prompts of different lengths."""
    async with open_database(f"sqlite+aiosqlite:///{work / 'training.db'}") as database:
        await Registry(database, work / "versions").register_base(engine.base, base)
        log = PairLog(database)
        await log.start()
        best_of_n = BestOfN(engine, FakeReward())
        for number in range(GROUPS):
            prompt = Prompt(token_ids=tuple(20 + 11 * at % 300 for at in range(number, 3 * number + 2)))
            await log.append((await best_of_n(prompt, N, sampling=Sampling(max_tokens=LONGEST, seed=number))).group)
        await log.stop()
        everything = Fractions(test=0.0, validation=0.0)
        return await take_snapshot(database, work / "snapshot", version=engine.base, fractions=everything)


def train_on(snapshot: Snapshot, base: Path, run_dir: Path, settings: TrainSettings) -> tuple[VersionFiles, float]:
    """Trains a version in two steps, and returns it with the difference between logged and computed
    log-probabilities."""
    result = train(
        Settings(model=str(base), train=settings), snapshot, run_dir, base=base, n=N, draws=False, progress=False
    )
    groups = Groups.read(snapshot.groups_file, base=snapshot.base)
    computed = load_file(run_dir / "reference.safetensors")["logprobs"]
    assert result.steps == 2
    return VersionFiles(run_dir.name, result.kind, result.output), _largest(computed, groups)


def gap_in_trainer(base: Path, version: VersionFiles, settings: TrainSettings, drawn: Sequence[Draws]) -> float:
    """Returns the difference between a version's log-probabilities of its draws and those that the trainer computes."""
    groups = groups_of(
        version.directory.with_name("drawn.parquet"),
        [
            group_row(
                range(draws.request.n),
                prompt_token_ids=list(draws.prompt.token_ids),
                candidates=[list(draw.token_ids) for draw in draws.draws],
                logprobs=[sum(draw.logprobs) for draw in draws.draws],
            )
            for draws in drawn
        ],
    )
    learner = learner_of(base, settings, start=version)
    computed = learner.of_policy(groups, np.arange(len(groups)), "draws of the version")
    return _largest(computed, groups)


def train_on_any_tokens(base: Path, work: Path, settings: TrainSettings) -> float:
    """Trains on random tokens, for models that the embedded engine does not support.

    Returns the largest difference from transformers of the trainer's log-probabilities, before and after two optimiser
    steps, and of the evaluation's log ratios of the version to the base.
    """
    rng = np.random.default_rng(0)
    groups = groups_of(
        work / "random.parquet",
        [
            group_row(
                range(N),
                prompt_token_ids=rng.integers(20, 300, 5 * row + 2).tolist(),
                candidates=[rng.integers(20, 300, length).tolist() for length in (3, LONGEST)],
            )
            for row in range(GROUPS)
        ],
    )
    rows = np.arange(GROUPS)
    learner = learner_of(base, settings, n=N)
    learner.logprobs.try_sharing_prompts(groups)
    reference = learner.of_base(groups, rows, "random tokens")
    for step in range(2):
        chosen = [groups.candidates_of(row) for row in range(GROUPS)]
        learner.update(groups, chosen, reference, rate=settings.learning_rate or 0.0, seed=step)
    learner.save(learner.weights(), work / f"{settings.method}-trained", base_name="base")
    trained = learner.of_policy(groups, rows, "random tokens")
    kind = VersionKind.ADAPTER if learner.trains_adapter else VersionKind.FULL
    version = VersionFiles("version", kind, work / f"{settings.method}-trained")
    completions = [
        Completion(tuple(groups.prompts[int(row)].tolist()), tuple(groups.completions[place].tolist()), 1.0)
        for place, row in enumerate(groups.owners)
    ]
    divergences = KL(VersionFiles("base", VersionKind.BASE, base), version, batch_size=4)(
        completions, lambda done: None
    )
    in_evaluation = torch.tensor([one.k1 for one in divergences])
    assert (trained - reference).abs().max() > 0.1, "training changes nothing"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    expected = _by_transformers(model, groups)
    before = float((reference - expected).abs().max())
    if settings.method == "lora":
        model = PeftModel.from_pretrained(model, work / "lora-trained").eval()
    else:
        assert weights_in(work / "full-trained") == weights_in(base)
        model = AutoModelForCausalLM.from_pretrained(work / "full-trained", dtype=torch.float32).eval()
    after = _by_transformers(model, groups)
    return max(before, *(float(gap.abs().max()) for gap in (trained - after, in_evaluation - (after - expected))))


@torch.no_grad()
def _by_transformers(model: Any, groups: Groups) -> torch.Tensor:
    """Returns the log-probability of every candidate, each sequence computed alone, [candidates]."""
    found = []
    for candidate, row in enumerate(groups.owners):
        prompt, tokens = groups.prompts[int(row)].tolist(), groups.completions[candidate].tolist()
        logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
        found.append(logits.float().log_softmax(-1)[range(len(tokens)), tokens].sum())
    return torch.stack(found)


def _largest(computed: torch.Tensor, groups: Groups) -> float:
    return float(np.abs(computed.double().numpy() - groups.logprobs).max())


def weights_in(directory: Path) -> set[str]:
    """Returns the names of the weights in a model's files."""
    names: set[str] = set()
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    return names
