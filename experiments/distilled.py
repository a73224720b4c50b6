"""Runs `bonbon distill` on prompts, and tabulates the results of such runs."""

import asyncio
from collections.abc import Sequence
from typing import Any

from bonbon.engines.engine import Sampling
from bonbon.prompt import Prompt
from bonbon.registry.evaluation_figures import best_of
from bonbon.settings import GateSettings, Settings
from bonbon.theory import best_of_n_kl
from experiments.cells import Row
from experiments.tables import estimate, table
from trainer.context import open_context
from trainer.distill import distill, draw_groups
from trainer.evaluation.evaluation import FILE
from trainer.result_files import read_json
from trainer.run_directory import RUN
from trainer.training.metrics import read_metrics

COMPARED: dict[str, dict[str, Any]] = {
    "gvpo": {"loss": "gvpo", "sft_weight": 0.0, "refine": "off"},
    "gvpo + SFT": {"loss": "gvpo", "sft_weight": 1.0, "refine": "off"},
    "vbon": {"loss": "vbon", "refine": "off"},
    "bond": {"loss": "bond", "refine": "off"},
    "bonbon": {"loss": "bonbon", "refine": "off"},
    "sft": {"loss": "sft", "refine": "off"},
    "ipo": {"loss": "ipo", "refine": "off"},
    "dpo": {"loss": "dpo", "refine": "off"},
    "gvpo + SFT, then its own draws": {"loss": "gvpo", "sft_weight": 1.0, "refine": "on"},
    "vbon, then its own draws": {"loss": "vbon", "refine": "on"},
    "bond, then its own draws": {"loss": "bond", "refine": "on"},
}
"""Settings of `train`, by their name on the page."""
OFFLINE = "gvpo + SFT"
"""The program's default loss, on logged groups only."""
DEFAULT = "gvpo + SFT, then its own draws"
SHOWN = (
    ("win_rate", "win rate"),
    ("held_out_win_rate", "by the other reward"),
    ("kl", "KL"),
    ("gain", "gain in J"),
    ("recovered", "gain recovered"),
    ("length_ratio", "length, x base"),
)


def draw(settings: Settings, prompts: Sequence[Prompt], sampling: Sampling, *, progress: bool = False) -> None:
    """Logs the groups that runs in copies of the settings' data directory learn from. Existing groups are kept."""

    async def drawn() -> None:
        async with open_context(settings, progress=progress) as context:
            await draw_groups(context, prompts, sampling)

    asyncio.run(drawn())


def distilled(
    settings: Settings, prompts: Sequence[Prompt], sampling: Sampling, *, progress: bool = False
) -> dict[str, Any]:
    """Returns the figures of one run: the program's own evaluation, its learning rate, and the progress on its own
    draws.

    `own_draws` holds the number of tokens drawn and the gain in J on validation draws at each validation.
    """

    async def run() -> None:
        async with open_context(settings, progress=progress) as context:
            await distill(context, settings.data_dir, prompts, sampling)

    asyncio.run(run())
    metrics = read_metrics(settings.data_dir)
    rates = [line["learning_rate"] for line in metrics if "learning_rate" in line and not line["stage"]]
    tokens, own_draws = 0.0, []
    for line in metrics:
        tokens = line.get("drawn_tokens", tokens)
        if "validation_drawn_gain" in line and line.get("stage"):
            own_draws.append({"tokens": tokens, "gain": line["validation_drawn_gain"], "kl": line["validation_kl"]})
    return {
        "evaluation": read_json(settings.data_dir / FILE),
        "learning_rate": max(rates, default=None),
        "lora_output_layer": (read_json(settings.data_dir / RUN) or {})["train"]["lora_output_layer"],
        "own_draws": own_draws,
    }


def comparison(rows: Sequence[Row]) -> str:
    """Returns a table with one line per row, after a line for best-of-n."""
    first = rows[0]["evaluation"]
    yardstick = (
        best_of(first["n"]),
        "",
        estimate(first["best_of_n_win_rate"]),
        estimate(first["held_out_best_of_n_win_rate"]),
        f"at most {best_of_n_kl(first['n']):.2f}",
        "",
        "1",
        "",
        str(first["n"]),
        "",
        f"{first['served_tokens']:.0f}",
    )
    lines = [
        (
            row["name"],
            f"{row['learning_rate']:.2g}",
            *(estimate(row["evaluation"][name]) for name, _ in SHOWN),
            *_as_good(row["evaluation"]),
        )
        for row in rows
    ]
    titles = ("draws that are as good", f"their win rate against {best_of(first['n'])}", "tokens per answer")
    return table(("", "learning rate", *(title for _, title in SHOWN), *titles), [yardstick, *lines])


def _as_good(evaluation: dict[str, Any]) -> tuple[str, str, str]:
    """Returns the fewest draws whose best is not inferior to best-of-n by the default gate, with their figures."""
    minimum = 0.5 - GateSettings().margin
    for one in evaluation["best_of_k"]:
        held_out = one["held_out_win_rate_served"]
        if one["win_rate_served"]["low"] >= minimum and (held_out is None or held_out["high"] >= 0.5):
            return str(one["k"]), estimate(one["win_rate_served"]), f"{one['tokens']:.0f}"
    return f"more than {evaluation['n']}", "", ""
