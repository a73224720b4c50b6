"""The demo's text world, distilled by the whole program (`bonbon distill`) and measured by sampling."""

import asyncio
import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bonbon.demo.models import tiny_models
from bonbon.demo.world import requests
from bonbon.engines.base import Sampling
from bonbon.prompt import Prompt
from bonbon.settings import GateSettings, Settings, load_settings
from bonbon.theory import best_gain, best_of_n_kl
from experiments.cells import Cell, Row, slug
from experiments.tables import table
from trainer.context import open_workshop
from trainer.distill import distill, draw_groups
from trainer.evaluation.evaluation import FILE
from trainer.files import read_json
from trainer.training.offline import PROBE

NAME = "text"
COMPARED: dict[str, dict[str, Any]] = {
    "gvpo": {"loss": "gvpo", "sft_weight": 0.0, "refine": "off"},
    "gvpo + SFT": {"loss": "gvpo", "sft_weight": 1.0, "refine": "off"},
    "gvpo + SFT, then its own draws": {"loss": "gvpo", "sft_weight": 1.0, "refine": "on"},
}
"""Settings of `train` by the name that the page gives them."""
DEFAULT = "gvpo + SFT, then its own draws"
GOALS = ("gvpo + SFT", DEFAULT)
"""What has goals to reach: the program's default loss, on logged groups alone and with its own draws."""
PROMPTS, PROMPTS_SEED = 1000, 7
MEASURED = 100
"""Test prompts at most."""
EPOCHS = 2
REFINE_TOKENS = 400_000
SHOWN = (
    ("win_rate", "win rate"),
    ("held_out_win_rate", "by the other reward"),
    ("kl", "KL"),
    ("gain", "gain in J"),
    ("recovered", "gain recovered"),
    ("length_ratio", "length, x base"),
)


def cells(quick: bool) -> list[Cell]:
    if quick:
        small = {"n": 4, "prompts": 120, "measured": 8, "max_tokens": 24, "epochs": 2, "refine_tokens": 2000}
        return [_cell(DEFAULT, **small)]
    budget = {"n": 8, "prompts": PROMPTS, "measured": MEASURED, "max_tokens": 96, "epochs": EPOCHS}
    return [_cell(name, **budget, refine_tokens=REFINE_TOKENS) for name in COMPARED]


def _cell(name: str, **budget: int) -> Cell:
    return Cell(f"{NAME}/{slug(name)}", run, {"name": name, **budget})


def run(
    name: str, n: int, prompts: int, measured: int, max_tokens: int, epochs: int, refine_tokens: int
) -> dict[str, Any]:
    """The program's own evaluation."""
    train = {**COMPARED[name], "epochs": epochs, "refine_tokens": refine_tokens}
    with TemporaryDirectory() as directory:
        out = Path(directory)
        shutil.copytree(_drawn(n, prompts, max_tokens).name, out, dirs_exist_ok=True)
        asyncio.run(_distill(_settings(out, n, train, {"prompts": measured}), prompts, max_tokens))
        return {"evaluation": read_json(out / FILE), "learning_rate": (read_json(out / PROBE) or {})["learning_rate"]}


@lru_cache(maxsize=1)
def _drawn(n: int, prompts: int, max_tokens: int) -> TemporaryDirectory[str]:
    """A directory whose database has a group for each prompt: every loss is trained on the same ones."""
    directory: TemporaryDirectory[str] = TemporaryDirectory()
    asyncio.run(_draw(_settings(Path(directory.name), n), prompts, max_tokens))
    return directory


def _settings(
    out: Path, n: int, train: dict[str, Any] | None = None, evaluate: dict[str, Any] | None = None
) -> Settings:
    models = tiny_models()
    return load_settings(
        model=str(models.policy),
        reward=str(models.reward),
        held_out_reward=str(models.held_out_reward),
        data_dir=out,
        database_url=f"sqlite+aiosqlite:///{out / 'bonbon.db'}",
        n=n,
        engine_options={"threads": 1},
        train={"min_pairs": 32, "threads": 1, **(train or {})},
        evaluate=evaluate or {},
    )


def _asked(prompts: int) -> list[Prompt]:
    return [Prompt.user(text) for text in requests(PROMPTS_SEED, prompts)]


async def _draw(settings: Settings, prompts: int, max_tokens: int) -> None:
    async with open_workshop(settings, progress=False) as workshop:
        await draw_groups(workshop, _asked(prompts), Sampling(max_tokens=max_tokens))


async def _distill(settings: Settings, prompts: int, max_tokens: int) -> None:
    async with open_workshop(settings, progress=False) as workshop:
        await distill(workshop, settings.data_dir, _asked(prompts), Sampling(max_tokens=max_tokens))


def section(rows: Sequence[Row]) -> str:
    first, row = rows[0]["evaluation"], rows[0]
    lines = [
        (
            row["name"],
            f"{row['learning_rate']:.2g}",
            *(_estimate(row["evaluation"][name]) for name, _ in SHOWN),
            _smallest_k(row["evaluation"]),
        )
        for row in rows
    ]
    yardstick = (
        f"best of {first['n']}",
        "",
        _estimate(first["best_of_n_win_rate"]),
        _estimate(first["held_out_best_of_n_win_rate"]),
        f"at most {best_of_n_kl(first['n']):.2f}",
        "",
        "1",
        "",
        str(first["n"]),
    )
    n = first["n"]
    refined = f"""`{DEFAULT}` goes on from there with at most {row["refine_tokens"]:,} tokens of the policy's own draws.
"""
    return f"""The models that ship with the package: a small Llama that writes support replies, the reward that it is
trained with, and another one that it is never trained with. `bonbon distill` trains an adapter on {row["prompts"]:,}
prompts with the same group of {n} each for every loss, for {row["epochs"]} epochs with one seed. Its probe chooses each
loss's learning rate by what validation groups promise after 20 steps, and after training it brings the policy to where
it is best on the way from the base.
{refined * any(row["name"] == DEFAULT for row in rows)}Everything is measured on the same {first["prompts"]} other
prompts with {first["draws"]} draws each; intervals of 95 % take the prompt as the cluster. No policy gains more than
{best_gain(n):.2f} in J. The last column has the smallest k whose best-of-k wins at least
{0.5 - GateSettings().margin:.2f} of its comparisons with best-of-{n} of the base, by the lower bound, as the gate asks.

{table(("", "learning rate", *(title for _, title in SHOWN), "draws that are as good"), [yardstick, *lines])}"""


def _smallest_k(evaluation: dict[str, Any]) -> str:
    least = 0.5 - GateSettings().margin
    good = [one["k"] for one in evaluation["best_of_k"] if one["win_rate_served"]["low"] >= least]
    return str(min(good)) if good else f"more than {evaluation['draws']}"


def _estimate(found: dict[str, float]) -> str:
    return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
