"""Measures a real language model with the caller's prompts and rewards: `python -m experiments.real --help`.

The caller provides models and prompts. The repository contains only the figures, which the page shows.
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import torch
import typer

from bonbon.engines.engine import Sampling
from bonbon.errors import UserError
from bonbon.prompt import Prompt
from bonbon.settings import Settings, load_settings
from bonbon.theory import best_gain
from experiments.cells import Cell, Row, read_rows, slug
from experiments.distilled import COMPARED, DEFAULT, comparison, distilled, draw
from trainer.data.prompt_file import read_prompts

NAME = "real"
ROOT = Path(__file__).parents[1]


class Form(StrEnum):
    """The size of a run."""

    GPU = "gpu"
    CPU = "cpu"
    QUICK = "quick"


@dataclass(frozen=True, slots=True)
class Budget:
    """Sizes of what a run draws, trains on and measures.

    Attributes:
        n: The n of best-of-n; `max_tokens` limits each answer.
        prompts: The most prompts that are read, from the beginning of the file.
        max_characters: Longer prompts are left out.
        settings: Settings that differ from the program's defaults.
    """

    n: int
    prompts: int
    max_characters: int
    max_tokens: int
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)


BUDGETS = {
    Form.GPU: Budget(8, 2700, 2000, 160, {"evaluate": {"prompts": 300}}),
    # A fixed learning rate, short answers and 16-bit arithmetic, because every token takes long on two cores.
    Form.CPU: Budget(
        8,
        160,
        240,
        24,
        {
            "train": {
                "min_pairs": 32,
                "learning_rate": 3e-4,
                "precision": "bf16",
                "held_out_fraction": 0.2,
                "validation_draws": 64,
                "refine_tokens": 50_000,
                "refine_learning_rate": 3e-4,
                "refine_replay": 1,
                "batch_size": 8,
            },
            "evaluate": {"prompts": 32},
        },
    ),
    Form.QUICK: Budget(
        4,
        120,
        240,
        16,
        {
            "train": {
                "min_pairs": 32,
                "learning_rate": 2e-3,
                "refine_tokens": 10_000,
                "threads": 1,
                "validation_draws": 32,
            }
        },
    ),
}


def main(
    model: Annotated[str, typer.Option(help="Directory or hub name of the base.")],
    reward: Annotated[
        str, typer.Option(help="The reward that the base is distilled with, in the form of BONBON_REWARD.")
    ],
    prompts: Annotated[Path, typer.Option(help="A file of prompts, as `bonbon distill` reads it.")],
    held_out_reward: Annotated[str | None, typer.Option(help="A reward that is never trained on.")] = None,
    name: Annotated[
        str | None, typer.Option(help="The model's name on the page; by default the last part of its path.")
    ] = None,
    form: Annotated[Form, typer.Option(help="How much is drawn, trained and measured.")] = Form.GPU,
    method: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(COMPARED)}; may be repeated.")] = None,
    engine: Annotated[str, typer.Option(help="What draws: embedded or vllm.")] = "embedded",
    data: Annotated[Path, typer.Option(help="Directory of the figures.")] = ROOT / "experiments" / "data",
    work: Annotated[
        Path, typer.Option(help="Directory of draws and versions, with which an interrupted run continues.")
    ] = ROOT / "build" / "real",
) -> None:
    """Distil a model with each of the methods from the same groups, and write the figures of each to a file."""
    methods = method or [DEFAULT]
    if unknown := [one for one in methods if one not in COMPARED]:
        raise UserError(
            f"--method {unknown[0]}: there is no such method; there are {', '.join(COMPARED)}", param="method"
        )
    called, budget = name or Path(model).name, BUDGETS[form]
    asked = [one for one in read_prompts(prompts) if _characters(one) <= budget.max_characters][: budget.prompts]
    work = work / slug(f"{called} {form}")
    settings = partial(_settings, budget, model=model, reward=reward, held_out_reward=held_out_reward, engine=engine)
    sampling = Sampling(max_tokens=budget.max_tokens)
    draw(settings(work / "groups"), asked, sampling, progress=True)
    for one in methods:
        out = work / slug(one)
        if not out.exists():
            partial_copy = out.with_suffix(".partial")
            shutil.rmtree(partial_copy, ignore_errors=True)
            shutil.copytree(work / "groups", partial_copy).rename(out)
        run = partial(_run, settings(out, COMPARED[one]), asked, sampling)
        arguments = {"model": called, "form": str(form), "name": one, "budget": asdict(budget)}
        Cell(f"{NAME}/{slug(f'{called} {form} {one}')}", run, arguments).compute(data)


def _characters(prompt: Prompt) -> int:
    return len(prompt.text or "") + sum(len(str(message["content"])) for message in prompt.messages or ())


def _run(settings: Settings, asked: Sequence[Prompt], sampling: Sampling, **_: Any) -> dict[str, Any]:
    start = perf_counter()
    found = distilled(settings, asked, sampling, progress=True)
    return found | {"prompts": len(asked), "minutes": (perf_counter() - start) / 60, "threads": torch.get_num_threads()}


def _settings(budget: Budget, out: Path, train: dict[str, Any] | None = None, **given: Any) -> Settings:
    out.mkdir(parents=True, exist_ok=True)
    sections = {name: dict(values) for name, values in budget.settings.items()}
    sections["train"] = {**sections.get("train", {}), **(train or {})}
    return load_settings(
        data_dir=out,
        database_url=f"sqlite+aiosqlite:///{out.absolute() / 'bonbon.db'}",
        n=budget.n,
        **sections,
        **given,
    )


def rows(directory: Path) -> list[Row]:
    """Returns the computed rows, in the order of `COMPARED` for each model and form."""
    order = list(COMPARED)
    found = read_rows(directory / NAME)
    return sorted(found, key=lambda row: (row["model"], row["form"], order.index(row["name"])))


def section(rows: Sequence[Row]) -> str:
    parts = []
    for model, form in dict.fromkeys((row["model"], row["form"]) for row in rows):
        some = [row for row in rows if (row["model"], row["form"]) == (model, form)]
        first, budget = some[0], some[0]["budget"]
        measured = first["evaluation"]
        parts.append(f"""### {model}, {form.upper()} form

`python -m experiments.real --form {form}`: {first["prompts"]:,} prompts with a group of {budget["n"]} each, answers of
at most {budget["max_tokens"]} tokens, of which {100 * measured["base_truncated"]:.0f} % are cut off there. Measured on
{measured["prompts"]} other prompts with {measured["draws"]} draws each. No policy gains more than
{best_gain(budget["n"]):.2f} in J. {_times(some)}

{comparison(some)}""")
    return "\n\n".join(parts)


def _times(rows: Sequence[Row]) -> str:
    """Returns how long training and measuring took."""
    return " ".join(
        f'The policy of "{row["name"]}" was trained and measured in {row["minutes"]:.0f} minutes with {row["threads"]} '
        f"{'thread' if row['threads'] == 1 else 'threads'}."
        for row in rows
    )


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        sys.exit(f"error: {error}")
