"""Tests of draws for a training: by the real engine, from the training's policy, into the log."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sqlalchemy import select
from transformers import AutoModelForCausalLM

from bonbon.engines.embedded.embedded_engine import EmbeddedEngine
from bonbon.engines.embedded.embedded_options import EmbeddedOptions
from bonbon.engines.engine import Sampling, VersionKind
from bonbon.erase import erase
from bonbon.errors import RewardError
from bonbon.pairs.deletion.conditions import Conditions
from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.reading.snapshot import Snapshot, take_snapshot
from bonbon.prompt import Prompt
from bonbon.rewards.python_reward import PythonReward
from bonbon.settings import Settings, TrainSettings
from bonbon.store.database import Database, open_database
from bonbon.store.tables import groups as logged
from tests.support.data.sampled_groups import FRACTIONS, make_base, make_group, score, snapshot_of
from tests.support.models.learners import learner_of, nudge
from trainer.data.groups import Groups
from trainer.data.logged_prompts import logged_prompts
from trainer.drawing import MIN_VALIDATION_GROUPS, Drawing, why_not_drawn
from trainer.training.learning.learner import Learner
from trainer.training.stages.draws import DrawBox, DrawOrder

COUNT = 24
STOP = 9


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_base(tmp_path_factory.mktemp("models") / "tiny")


@dataclass
class World:
    """A snapshot of groups of one tenant's two users, their database, and the directory of orders."""

    base: Path
    snapshot: Snapshot
    database: Database
    log: PairLog
    box: DrawBox

    def drawing(self, reward: Callable[[Prompt, list[str]], Sequence[float]] = score) -> Drawing:
        return Drawing(
            lambda: EmbeddedEngine("tiny", self.base, EmbeddedOptions(threads=1)),
            PythonReward(reward, version="1"),
            self.snapshot,
            self.box,
            name="round-x",
            pair_log=self.log,
            concurrency=4,
        )

    async def fulfilled(self, order: DrawOrder, drawing: Drawing | None = None) -> Groups:
        """Returns the groups that the training reads."""
        async with (drawing or self.drawing()).in_background():
            path = await asyncio.wait_for(asyncio.to_thread(self.box.wait, order), 120)
        return Groups.read(path, base="tiny", opponents=self.groups.opponents)

    @property
    def groups(self) -> Groups:
        return Groups.read(self.snapshot.groups_file, base="tiny")

    async def rows(self) -> list[dict[str, Any]]:
        """Returns the draws of trainings in the log."""
        query = select(logged).where(logged.c.origin == "training").order_by(logged.c.id)
        async with self.database.read() as connection:
            return [dict(row) for row in (await connection.execute(query)).mappings()]


def sampling(place: int) -> Sampling:
    """Returns the sampling settings of the prompt at this position: every other one has a stop string of one token."""
    odd = place % 2
    return Sampling(max_tokens=6 + odd, temperature=1.0 - odd / 5, stop=(f"w{STOP}",) * odd)


@pytest.fixture
async def world(base: Path, tmp_path: Path) -> AsyncIterator[World]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    prompts = [(2, 3 + i, *range(4, 4 + i % 3)) for i in range(COUNT)]
    some = [
        replace(
            make_group(model, "tiny", i, prompt, 4, sampling(i)),
            tenant="shop",
            user=("ada", "bob")[i % 2],
            request_id=f"request {i}",
        )
        for i, prompt in enumerate(prompts)
    ]
    snapshot = await snapshot_of(some, tmp_path / "snapshot", base)
    async with open_database(f"sqlite+aiosqlite:///{tmp_path / 'snapshot.db'}") as database:
        log = PairLog(database)
        await log.start()
        yield World(base, snapshot, database, log, DrawBox(tmp_path / "run"))
        await log.stop()


def far_from_the_base(base: Path) -> Learner:
    learner = learner_of(base, TrainSettings(lora_rank=4, lora_alpha=8))
    nudge(learner, 0.2)
    return learner


async def test_candidates_are_drawn_from_the_policy_that_was_put_there(world: World) -> None:
    learner = far_from_the_base(world.base)
    learner.save(learner.weights(), world.box.policy(5), base_name="tiny")
    rows = (7, 2, 11)
    order = DrawOrder(5, str(world.box.policy(5)), VersionKind.ADAPTER, rows, count=16, seed=3)
    drawn, asked = await world.fulfilled(order), world.groups
    assert drawn.n.tolist() == [16, 16, 16]
    assert drawn.distributions == [asked.distributions[row] for row in rows]
    assert drawn.split.tolist() == [asked.split[row] for row in rows]
    assert not drawn.by_base.any()
    assert drawn.comparable.all(), "with what the base has drawn for these prompts"
    every = np.arange(3)
    np.testing.assert_allclose(learner.of_policy(drawn, every, "").numpy(), drawn.logprobs, atol=1e-3)
    assert np.abs(learner.of_base(drawn, every, "").numpy() - drawn.logprobs).mean() > 0.1
    assert len({tuple(tokens) for tokens in map(drawn.completions.__getitem__, range(16))}) > 8
    of_odd = [drawn.completions[place].tolist() for row in (0, 2) for place in drawn.candidates_of(row)]
    assert any(tokens[-1] == STOP for tokens in of_odd)
    assert not any(STOP in tokens[:-1] for tokens in of_odd), "draws end at the prompt's stop string"
    assert [one.sampling for one in logged_prompts(world.snapshot)] == [sampling(place) for place in range(COUNT)]

    kept = await world.rows()
    assert [row["version"] for row in kept] == ["round-x-5"] * 3
    names = [(row["tenant"], row["end_user"], row["request_id"]) for row in kept]
    assert sorted(names) == sorted(("shop", ("ada", "bob")[row % 2], f"request {row}") for row in rows)
    later = await take_snapshot(
        world.database, world.snapshot.path.with_name("later"), version="tiny", fractions=FRACTIONS
    )
    assert later.groups == COUNT, "no other training learns from them"


async def test_the_base_draws_for_prompts_of_which_it_is_not_known_what_it_says(world: World) -> None:
    drawn = await world.fulfilled(DrawOrder(99, "", VersionKind.BASE, (1, 2), count=4, seed=3))
    assert drawn.by_base.all()
    learner = learner_of(world.base, TrainSettings(lora_rank=4))
    np.testing.assert_allclose(learner.of_base(drawn, np.arange(2), "").numpy(), drawn.logprobs, atol=1e-3)
    assert [row["version"] for row in await world.rows()] == ["tiny", "tiny"]


async def test_the_same_order_draws_the_same_and_another_seed_does_not(world: World) -> None:
    first = DrawOrder(99, "", VersionKind.BASE, (1, 2), count=4, seed=3)
    found = [await world.fulfilled(replace(first, number=n, seed=s)) for n, s in ((1, 3), (2, 3), (3, 4))]
    tokens = [one.completions.values.tolist() for one in found]
    assert tokens[0] == tokens[1] != tokens[2]


async def test_what_deletes_a_users_groups_deletes_what_was_drawn_for_them(world: World) -> None:
    order = DrawOrder(99, "", VersionKind.BASE, (0, 1, 2, 3), count=4, seed=3)
    await world.fulfilled(order)
    assert len(await world.rows()) == 4
    root = world.snapshot.path.parent
    await erase(world.database, root / "no runs", Conditions(user="ada"), spool_dir=root / "spool")
    assert {row["end_user"] for row in await world.rows()} == {"bob"}
    again = await world.fulfilled(replace(order, number=100))
    assert len(again) == 4, "this training goes on"
    assert {row["end_user"] for row in await world.rows()} == {"bob"}, "but nothing new is kept of who has left"
    assert len(await world.rows()) == 4


async def test_the_training_is_told_what_keeps_it_from_its_draws(world: World) -> None:
    """Once the cause is removed, the order is fulfilled, by the same process or another one."""
    away = True

    def reward(prompt: Prompt, completions: list[str]) -> Sequence[float]:
        if away:
            raise ConnectionError("the reward is away")
        return score(prompt, completions)

    order = DrawOrder(99, "", VersionKind.BASE, (1,), count=4, seed=3)
    drawing = world.drawing(reward)
    async with drawing.in_background():
        with pytest.raises(RewardError, match=r"draws could not be scored: .*the reward is away"):
            await asyncio.wait_for(asyncio.to_thread(world.box.wait, order), 120)
        assert await world.rows() == []
        away = False
        path = await asyncio.wait_for(asyncio.to_thread(world.box.wait, order), 120)
    assert pq.read_table(path).num_rows == 1


async def test_a_policy_that_cannot_be_loaded_does_not_stop_the_others(world: World) -> None:
    world.box.policy(5).mkdir(parents=True)
    bad = DrawOrder(5, str(world.box.policy(5)), VersionKind.ADAPTER, (1,), count=4, seed=3)
    async with world.drawing().in_background():
        with pytest.raises(Exception, match=r"adapter_model\.safetensors"):
            await asyncio.wait_for(asyncio.to_thread(world.box.wait, bad), 120)
        order = DrawOrder(6, "", VersionKind.BASE, (1,), count=4, seed=3)
        await asyncio.wait_for(asyncio.to_thread(world.box.wait, order), 120)


WHOLE_WEIGHTS = {"train": TrainSettings(method="full")}


@pytest.mark.parametrize(
    ("changes", "validation", "match"),
    [
        ({"reward": None}, 50, "no reward is configured"),
        ({"engine": "fake"}, 50, "the engine 'fake' cannot load"),
        (WHOLE_WEIGHTS | {"engine": "remote"}, 50, "a fleet of servers loads only adapters"),
        (WHOLE_WEIGHTS | {"engine": "vllm", "engine_options": {"full_weights": "instead"}}, 50, "to 'beside'"),
        ({}, MIN_VALIDATION_GROUPS - 1, "7 validation groups are fewer than 8"),
        ({}, MIN_VALIDATION_GROUPS, None),
    ],
    ids=["reward", "engine", "fleet", "instead", "groups", "nothing"],
)
def test_what_keeps_a_training_from_drawing_is_known_before(
    changes: dict[str, Any], validation: int, match: str | None
) -> None:
    settings = Settings(model="m", reward="python:tests.support.data.sampled_groups:score").model_copy(update=changes)
    snapshot = Snapshot(Path(), "", "tiny", "tiny", "", 100, 50, validation, 10, (4,), (1.0,), "", "", "", "")
    found = why_not_drawn(settings, snapshot)
    assert (found is None) if match is None else (found is not None and match in found)
