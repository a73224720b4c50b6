"""Distils in the demo's text world with the whole program (`bonbon distill`) and measures by sampling."""

import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bonbon.demo.tiny_models import tiny_models
from bonbon.demo.world import requests
from bonbon.engines.engine import Sampling
from bonbon.prompt import Prompt
from bonbon.settings import GateSettings, Settings, load_settings
from bonbon.theory import best_gain
from experiments.cells import Cell, Row, slug
from experiments.distilled import COMPARED, DEFAULT, OFFLINE, comparison, distilled, draw
from experiments.tables import table

NAME = "text"
METHODS = ("gvpo", OFFLINE, "vbon", "bond", "bonbon", "sft", "ipo", "dpo", DEFAULT)
GOALS = (OFFLINE, DEFAULT)
"""The variants that have goals: the default loss, on logged groups only and with the policy's own draws."""
PROMPTS, PROMPTS_SEED = 1000, 7
CONTENDERS = ("gvpo", OFFLINE, "vbon", "bond", "bonbon")
"""The losses that were near the best with the first seed. They are also compared with other seeds and numbers of
prompts."""
CURVE = (320, 4000)
"""Other numbers of prompts."""
SEEDS = range(3)
FIRST_WITH_OUTPUT_LAYER = "0.1.0 (41f0b0b6230e)"
"""The first version that trains adapters on the output layer. Its rows do not record that yet."""
MEASURED = 100
"""The most test prompts."""


def cells(quick: bool) -> list[Cell]:
    if quick:
        small = {
            "n": 4,
            "prompts": 120,
            "measured": 8,
            "max_tokens": 24,
            "train": {"refine_tokens": 10_000, "validation_draws": 32},
        }
        return [_cell(DEFAULT, 0, **small)]
    budget = {"n": 8, "measured": MEASURED, "max_tokens": 96, "train": {}}
    first = [_cell(name, 0, prompts=PROMPTS, **budget) for name in METHODS]
    others = [_cell(name, seed, prompts=PROMPTS, **budget) for seed in SEEDS[1:] for name in (*CONTENDERS, DEFAULT)]
    curve = [
        _cell(name, 0, prompts=prompts, **budget) for prompts in CURVE for name in dict.fromkeys((*GOALS, *CONTENDERS))
    ]
    return first + curve + others


def _cell(name: str, seed: int, **budget: Any) -> Cell:
    return Cell(f"{NAME}/{slug(name)}-{budget['prompts']}-seed-{seed}", run, {"name": name, "seed": seed, **budget})


def run(
    name: str, seed: int, n: int, prompts: int, measured: int, max_tokens: int, train: dict[str, Any]
) -> dict[str, Any]:
    """Returns the program's own evaluation. The seed is used for the prompts, the draws and the training."""
    train = {**COMPARED[name], "seed": seed, **train}
    asked, sampling = _asked(prompts, seed), Sampling(max_tokens=max_tokens, seed=seed)
    with TemporaryDirectory() as directory:
        out = Path(directory)
        shutil.copytree(_drawn(n, prompts, max_tokens, seed).name, out, dirs_exist_ok=True)
        return distilled(_settings(out, n, train, {"prompts": measured}), asked, sampling)


@lru_cache(maxsize=1)
def _drawn(n: int, prompts: int, max_tokens: int, seed: int) -> TemporaryDirectory[str]:
    """Returns a directory whose database has a group for each prompt, so that every loss is trained on the same
    groups."""
    directory: TemporaryDirectory[str] = TemporaryDirectory()
    draw(_settings(Path(directory.name), n), _asked(prompts, seed), Sampling(max_tokens=max_tokens, seed=seed))
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


def _asked(prompts: int, seed: int) -> list[Prompt]:
    return [Prompt.user(text) for text in requests(PROMPTS_SEED + seed, prompts)]


def section(rows: Sequence[Row]) -> str:
    some = [row for row in rows if row["prompts"] == rows[0]["prompts"] and row["seed"] == rows[0]["seed"]]
    first, row = some[0]["evaluation"], some[0]
    n = first["n"]
    text = f"""The models that ship with the package: a small Llama that writes support replies, the reward that it is
trained with, and another one that it is never trained with. `bonbon distill` trains an adapter on {row["prompts"]:,}
prompts with the same group of {n} each for every loss, and but for the loss with the settings' defaults. Its probe
chooses each loss's learning rate by what validation groups promise after 20 steps, and after training it brings the
policy to where it is best on the way from the base. What ends in "its own draws" goes on from there with draws of the
policy itself, until `train.refine_tokens` are used up. Everything is measured on the same
{first["prompts"]} other prompts with
{_range([one["evaluation"]["draws"] for one in some])} draws each;
intervals of 95 % take the prompt as the cluster. No policy gains more than
{best_gain(n):.2f} in J. The draws that are as good are the smallest k whose best-of-k wins at least
{0.5 - GateSettings().margin:.2f} of its comparisons with best-of-{n} of the base, by the lower bound, and do not lose
by the other reward, as the gate asks.
The last two columns describe answers with so many draws.

{comparison(some)}"""
    others = [other for other in rows if other not in some]
    if others:
        text += f"""

The same with other numbers of prompts and with other seeds:

{comparison([_named(other) for other in others])}{_versions(rows)}"""
    return f"""{text}

The picture also shows how the gain in J grows with the number of prompts that are answered with best-of-{n}, and how it
grows with the tokens that the policy itself draws in training. The second is measured on validation prompts while the
run trains, with a standard error of about a tenth of a nat; the run keeps the policy of its best point. This table
shows the best measurement until so many tokens were drawn, as long as the run lasted. The best of several
measurements is too high by some of their error.

{_curves(rows)}"""


CURVE_TOKENS = (0, 250_000, 500_000, 1_000_000, 1_500_000, 2_000_000)


def _curves(rows: Sequence[Row]) -> str:
    """Returns the best gain in J on validation prompts up to several numbers of tokens; one line per run."""
    lines = []
    for row in rows:
        if not row["own_draws"]:
            continue
        # A measurement's tokens are those of the steps before it. The last one may exceed the budget by a step, and
        # the last but one may be some steps short of it.
        end = 1.1 * row["own_draws"][-1]["tokens"]
        best = [
            f"{max(one['gain'] for one in row['own_draws'] if one['tokens'] <= 1.01 * tokens):.2f}"
            for tokens in CURVE_TOKENS
            if tokens <= end
        ]
        name = f"{row['prompts']:,} prompts, seed {row['seed']}"
        lines.append((name, *best, *[""] * (len(CURVE_TOKENS) - len(best))))
    return table(("", *(f"{tokens / 1e6:g} million" for tokens in CURVE_TOKENS)), lines)


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def _versions(rows: Sequence[Row]) -> str:
    """Returns which version of the code trained which policies on their own draws, if there are several."""
    by_code: dict[str, list[str]] = {}
    for row in rows:
        if row["name"] == DEFAULT:
            by_code.setdefault(row["code"], []).append(f"{row['prompts']:,} prompts with seed {row['seed']}")
    if len(by_code) < 2:
        return ""
    parts = "; ".join(f"{code} for {', '.join(found)}" for code, found in by_code.items())
    adapted = [
        f"{row['name']}, {row['prompts']:,} prompts, seed {row['seed']}"
        for row in rows
        if row.get("lora_output_layer", row["code"] == FIRST_WITH_OUTPUT_LAYER)
    ]
    return f"""

Different versions of the code trained the policies that went on with their own draws: {parts}.

These rows have adapters on the output layer as well (`train.lora_output_layer`): {"; ".join(adapted) or "none"}. All
other rows of this section have adapters on the inner layers alone."""


def _named(row: Row) -> Row:
    return {**row, "name": f"{row['name']}, {row['prompts']:,} prompts, seed {row['seed']}"}
