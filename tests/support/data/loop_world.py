"""Builds a data directory as a service leaves it: a registered base as champion, and its scored groups in the log."""

import asyncio
import random
from pathlib import Path
from typing import Any

from bonbon.best_of_n import BestOfN
from bonbon.engines import build_engine
from bonbon.engines.engine import Sampling, VersionFiles
from bonbon.pairs.pair_log import PairLog
from bonbon.prompt import Prompt
from bonbon.registry.registry import Registry
from bonbon.rewards import build_reward
from bonbon.settings import Settings
from bonbon.store.database import open_database
from tests.support.data.sampled_groups import VOCABULARY

MAX_TOKENS = 10

EASY_GATE: dict[str, Any] = {
    "margin": 0.3,
    "max_p_value": 1,
    "min_gain": -10,
    "max_kl_factor": 20,
    "max_truncated": 1,
    "min_distinct_ratio": 0.2,
}
"""A lenient gate, because the effect of so few groups is close to the noise of the measurement."""


def make_settings(base: Path, data_dir: Path, **changes: Any) -> Settings:
    sections: dict[str, Any] = {
        "train": {
            "epochs": 3,
            "learning_rate": 3e-3,
            "batch_size": 16,
            "micro_batch_size": 16,
            "min_pairs": 32,
            "held_out_fraction": 0.2,
            "refine": "off",
            "validation_draws": 64,
            "threads": 1,
        },
        "evaluate": {"prompts": 40},
        "gate": EASY_GATE,
        "loop": {"min_groups": 150, "poll": 0.05, "lease_seconds": 20},
    }
    for name in sections:
        sections[name] |= changes.pop(name, {})
    arguments = {
        "model": str(base),
        "data_dir": data_dir,
        "n": 8,
        "reward": "python:tests.support.data.sampled_groups:score",
    }
    return Settings(**(arguments | {"engine_options": {"threads": 1}} | sections | changes))  # type: ignore[arg-type]


async def answer(settings: Settings, count: int, *, version: VersionFiles | None = None, seed: int = 0) -> None:
    """Logs best-of-n groups of `version` (default: the base), drawn by the real engine."""
    rng = random.Random(seed)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    engine = build_engine(settings, base="base")
    reward = build_reward(settings.reward)  # type: ignore[arg-type]
    await engine.start()
    await reward.start()
    async with open_database(settings.database) as database:
        registry = Registry(database, settings.versions_dir)
        await registry.register_base("base", Path(settings.model))
        if await registry.champion() is None:
            await registry.promote("base")
        log = PairLog(database)
        await log.start()
        if version is not None:
            await engine.load(version)

        async def one(number: int) -> None:
            prompt = Prompt(token_ids=(2, *(rng.randrange(3, VOCABULARY) for _ in range(rng.randrange(2, 6)))))
            sampling = Sampling(max_tokens=MAX_TOKENS, seed=seed + number)
            name = version.name if version else "base"
            result = await BestOfN(engine, reward)(prompt, settings.n, version=name, sampling=sampling)
            await log.append(result.group)

        await asyncio.gather(*(one(number) for number in range(count)))
        await log.stop()
    await reward.stop()
    await engine.stop()
