"""The demo's text world, distilled by the whole program (`bonbon distill`) and measured by sampling."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bonbon.demo.models import tiny_models
from bonbon.demo.world import requests
from bonbon.engines.base import Sampling
from bonbon.prompt import Prompt
from bonbon.settings import Settings, load_settings
from bonbon.theory import best_of_n_kl
from experiments.cells import Cell, Row
from experiments.tables import table
from trainer.distill import distill
from trainer.evaluation import FILE
from trainer.workshop import open_workshop

NAME = "text"
LOSSES = ("bonbon", "sft", "paper", "dpo")
PROMPTS_SEED = 7
SHOWN = (
    ("win_rate", "win rate"),
    ("held_out_win_rate", "by the other reward"),
    ("kl", "KL"),
    ("recovered", "gain recovered"),
    ("length_ratio", "length, x base"),
)


def cells(quick: bool) -> list[Cell]:
    if quick:
        return [_cell("bonbon", n=4, prompts=72, measured=8, max_tokens=24, epochs=2)]
    return [_cell(loss, n=8, prompts=1200, measured=150, max_tokens=96, epochs=4) for loss in LOSSES]


def _cell(loss: str, **budget: int) -> Cell:
    return Cell(f"{NAME}/{loss}", run, {"loss": loss, **budget})


def run(loss: str, n: int, prompts: int, measured: int, max_tokens: int, epochs: int) -> dict[str, Any]:
    """The program's own evaluation."""
    train = {"loss": loss, "epochs": epochs, "batch_size": 16 if prompts < 500 else 32, "min_pairs": 32, "threads": 1}
    models = tiny_models()
    with TemporaryDirectory() as directory:
        out = Path(directory)
        settings = load_settings(
            model=str(models.policy),
            reward=str(models.reward),
            held_out_reward=str(models.held_out_reward),
            data_dir=out,
            database_url=f"sqlite+aiosqlite:///{out / 'bonbon.db'}",
            n=n,
            engine_options={"threads": 1},
            train=train,
            evaluate={"prompts": measured, "answers": 3},
        )
        asked = [Prompt.user(text) for text in requests(PROMPTS_SEED, prompts)]
        asyncio.run(_distill(settings, out, asked, Sampling(max_tokens=max_tokens)))
        found: dict[str, Any] = json.loads((out / FILE).read_text())
    return {"evaluation": found}


async def _distill(settings: Settings, out: Path, prompts: Sequence[Prompt], sampling: Sampling) -> None:
    async with open_workshop(settings, progress=False) as workshop:
        await distill(workshop, out, prompts, sampling)


def section(rows: Sequence[Row]) -> str:
    if not rows:
        return "Not measured yet."
    first = rows[0]["evaluation"]
    lines = [
        (
            row["loss"],
            *(_estimate(row["evaluation"][name]) for name, _ in SHOWN),
            f"{row['evaluation']['distinct_1_ratio']:.2f}, {row['evaluation']['distinct_2_ratio']:.2f}",
        )
        for row in rows
    ]
    yardstick = (
        f"best of {first['n']}",
        _estimate(first["best_of_n_win_rate"]),
        _estimate(first["held_out_best_of_n_win_rate"]),
        f"at most {best_of_n_kl(first['n']):.2f}",
        "1",
        "",
        "",
    )
    return f"""The models that ship with the package: a small Llama that writes support replies, the reward that it is
trained with, and another one that it is never trained with. `bonbon distill` with its defaults for LoRA,
{rows[0]["prompts"]:,} prompts, one group of {first["n"]} each, {rows[0]["epochs"]} epochs. Measured on
{first["prompts"]} other prompts with {first["answers"]} answers each; 95 % intervals, by prompt.

{table(("", *(title for _, title in SHOWN), "distinct-1 and -2, x base"), [yardstick, *lines])}"""


def _estimate(found: dict[str, float]) -> str:
    return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
