"""Tests tokens that only the tokenizer knows: a group with one is skipped, and other groups are trained on."""

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from structlog.testing import capture_logs
from transformers import AutoTokenizer

from bonbon.engines.engine import Sampling
from bonbon.errors import UserError
from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.reading.snapshot import Fractions, Split, split_of
from bonbon.prompt import Prompt
from bonbon.settings import Settings
from bonbon.store.database import open_database
from bonbon.store.tables import groups as logged
from tests.support.data.loop_world import answer, make_settings
from tests.support.data.sampled_groups import EOS, VOCABULARY, make_base
from tests.support.data.written_groups import BASE, group_row, write_groups
from trainer.context import open_context
from trainer.data.groups import Groups
from trainer.distill import distill
from trainer.rounds import Round

PAD = VOCABULARY
"""The id of a token that was added to the tokenizer without resizing the model's embeddings."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_base(tmp_path_factory.mktemp("models") / "base")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.convert_tokens_to_ids("[PAD]") == PAD
    tokenizer.save_pretrained(directory)
    return directory


def prompts(split: Split, fractions: Fractions) -> Iterator[Prompt]:
    """Returns the prompts of a split that contain the token."""
    for last in range(3, VOCABULARY):
        prompt = Prompt(token_ids=(2, PAD, last))
        if split_of(prompt.root_digest, fractions) is split:
            yield prompt


async def add_strange_groups(settings: Settings) -> set[str]:
    """Logs a group whose prompt has the token and one whose worst candidate has it, per split; returns their ids."""
    fractions = Fractions(test=settings.train.held_out_fraction, validation=settings.train.validation_fraction)
    strange = []
    async with open_database(settings.database) as database:
        log = PairLog(database)
        await log.start()
        async with database.read() as connection:
            ids = list((await connection.execute(select(logged.c.id).where(logged.c.unclean.is_(None)))).scalars())
        for split in Split:
            found = [group for name in ids if (group := await log.group(name)) is not None]
            group = next(one for one in found if split_of(one.prompt.root_digest, fractions) is split)
            prompt = next(prompts(split, fractions))
            assert prompt.token_ids is not None
            strange.append(replace(group, prompt=prompt, prompt_token_ids=prompt.token_ids))
            first, *others = group.candidates
            strange.append(replace(group, candidates=(replace(first, token_ids=(PAD, EOS)), *others)))
        named = [replace(group, id=f"{place:032x}") for place, group in enumerate(strange)]
        await asyncio.gather(*(log.append(group) for group in named))
        await log.stop()
    return {group.id for group in named}


async def test_a_round_sets_such_groups_aside_and_trains_and_measures_with_the_others(
    base: Path, tmp_path: Path
) -> None:
    train = {
        "epochs": 1,
        "refine": "on",
        "refine_tokens": 6000,
        "validation_draws": 64,
        "validation_fraction": 0.2,
        "min_pairs": 16,
    }
    settings = make_settings(base, tmp_path / "data", train=train, evaluate={"prompts": 10})
    await answer(settings, 90)
    names = await add_strange_groups(settings)
    async with open_context(settings, progress=False) as context:
        # A run directory of the base's own name, which does not become the name of what is measured.
        round_ = await Round.create(context, settings.runs_dir / "base")
        snapshot = await round_.snapshot()
        with capture_logs() as said:
            trained = await round_.train()
            evaluation = await round_.evaluate()
    aside = [entry for entry in said if entry["event"].startswith("groups are set aside")]
    left_out = [entry for entry in said if entry["event"].startswith("prompts are left out")]
    assert aside
    assert all(set(entry["groups"]) == names for entry in aside)
    assert len(left_out) == 1
    assert len(left_out[0]["groups"]) == 1
    assert set(left_out[0]["groups"]) < names
    assert trained["groups"] == snapshot.train_groups - 2
    assert trained["metrics"]["drawn_tokens"] > 0
    assert evaluation.prompts + evaluation.skipped > 2
    assert evaluation.kl.value > 0


def test_rows_keep_the_numbers_that_they_have_in_the_file(tmp_path: Path) -> None:
    rows = [
        group_row([0.0, 1.0]),
        group_row([0.0, 1.0], prompt_token_ids=[2, PAD]),
        group_row([0.0, 2.0], prompt_digest="q"),
        group_row([0.0, 1.0], candidates=[[4, EOS], [5, PAD]]),
    ]
    path = write_groups(tmp_path / "groups.parquet", rows)
    groups = Groups.read(path, base=BASE, vocabulary=VOCABULARY)
    assert groups.numbers.tolist() == [0, 2]
    assert groups.rewards.tolist() == [0, 1, 0, 2]
    assert [groups.completions[place].tolist() for place in range(4)] == [[4, 1], [5, 1]] * 2
    assert Groups.read(path, base=BASE, vocabulary=VOCABULARY + 1).numbers.tolist() == [0, 1, 2, 3]
    only = write_groups(tmp_path / "only.parquet", rows[1:2])
    with pytest.raises(UserError, match=rf"every group has token ids that the model, which has {VOCABULARY}, does not"):
        Groups.read(only, base=BASE, vocabulary=VOCABULARY)


async def test_distilling_leaves_out_prompts_with_the_token(base: Path, tmp_path: Path) -> None:
    readable = [Prompt(text=f"w2 w{3 + place % 30} w{4 + place // 30}") for place in range(60)]
    strange = [Prompt(text="w2 [PAD] w5"), Prompt(text="[PAD]")]

    async def attempt(out: Path, given: list[Prompt], **changes: Any) -> Any:
        settings = make_settings(base, out, evaluate={"prompts": 6}, **changes)
        async with open_context(settings, progress=False) as context:
            return await distill(context, out, given, Sampling(max_tokens=8, seed=0))

    with capture_logs() as said:
        version = await attempt(tmp_path / "some", strange[:1] + readable + strange[1:])
    left_out = [entry for entry in said if entry["event"] == "prompt skipped"]
    assert [entry["number"] for entry in left_out] == [1, 62]
    assert all("has the token '[PAD]' (id 40)" in entry["reason"] for entry in left_out)
    assert 0 < version.training["groups"] <= 60
    shutil.rmtree(tmp_path / "some")
    alike = [Prompt(text=f"[PAD] w{3 + place}") for place in range(36)] * 2
    with pytest.raises(UserError, match=r"has the token '\[PAD\]' \(id 40\)"):
        await attempt(tmp_path / "none", alike)
