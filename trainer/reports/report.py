"""Writes `report.html` and `report.png` of a run directory from the files in it."""

import base64
import io
import json
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bonbon.settings import GateSettings
from bonbon.theory import Estimate, best_gain, best_of_n_kl, best_of_n_win_rate
from trainer.evaluation.evaluation import FILE, Evaluation
from trainer.reports.signatures import signatures
from trainer.result_files import read_json
from trainer.run_directory import RUN

if TYPE_CHECKING:
    from trainer.evaluation.gate import Verdict

TEMPLATES = Path(__file__).parent / "templates"


def write_report(
    run_dir: Path, gate: GateSettings, *, version: str | None = None, verdict: "Verdict | None" = None
) -> Path:
    """Writes both files and returns the path of `report.html`, which needs no other file and no network.

    Args:
        run_dir: Holds `metrics.jsonl`, `evaluation.json`, or both, and `run.json` if it is a training run's.
        gate: The charts mark its thresholds.
        version: The name of the registered version, if there is one.
        verdict: The gate's verdict, if there is one.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from trainer.reports.figures import save
    from trainer.training.metrics import read_metrics

    metrics = read_metrics(run_dir)
    evaluation = Evaluation.load(run_dir) if (run_dir / FILE).exists() else None
    title = version or (evaluation.version if evaluation else run_dir.name)
    image = io.BytesIO()
    save(metrics, evaluation, gate, title=title, svg=image, png=run_dir / "report.png")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["interval"] = _interval
    page = environment.get_template("report.html.j2").render(
        title=title,
        evaluation=evaluation,
        rows=evaluation_rows(evaluation) if evaluation else [],
        verdict=verdict,
        signatures=signatures(metrics, evaluation),
        run=read_json(run_dir / RUN),
        last=_last(metrics),
        steps=metrics[-1]["step"] if metrics else 0,
        image=base64.b64encode(image.getvalue()).decode(),
        to_json=lambda value: json.dumps(value, indent=2),
    )
    path = run_dir / "report.html"
    path.write_text(page)
    return path


def evaluation_rows(e: Evaluation) -> list[tuple[str, Estimate | float | None, str]]:
    """Returns rows for a table of an evaluation: a title, an estimate or a number (None if missing), and a remark."""
    ideal, bound = best_of_n_win_rate(e.n), best_of_n_kl(e.n)
    base, one, best = f"the base {e.base}", e.best_of_k[0], f"best-of-{e.n}"
    cut_off = f"at {e.max_tokens} tokens; base {_number(e.base_truncated)}"
    if e.sufficient_max_tokens is not None:
        cut_off += f"; about {e.sufficient_max_tokens} tokens would let nine of ten end"
    return [
        (f"gain in the objective over {base}, nats", e.gain, f"the highest possible is {best_gain(e.n):.2f}"),
        (f"win rate against {base}", e.win_rate, f"{best} without ties: {ideal:.3f}"),
        *(
            row
            for name, opponent in e.opponents
            for row in (
                (f"win rate against {opponent}", getattr(one, name), "0.5 is as good"),
                ("the same by the held-out reward", getattr(one, f"held_out_{name}"), ""),
            )
        ),
        ("effective n", e.effective_n, f"one draw wins as often as the best of this many draws of {base}"),
        (f"win rate of {best} against {base}", e.best_of_n_win_rate, ""),
        (f"share of {best}'s reward gain recovered", e.recovered, ""),
        (f"win rate against {base} by {e.held_out_reward}", e.held_out_win_rate, "held-out reward, never trained on"),
        (f"win rate of {best} by {e.held_out_reward}", e.held_out_best_of_n_win_rate, "the reward still selects"),
        ("gain by the held-out reward over that by the reward", e.held_out_share, "in win rate"),
        (f"the same for {best}", e.best_of_n_held_out_share, "a much lower share above is reward hacking"),
        ("mean reward", e.reward_mean, f"{e.reward}, version {e.reward_version}"),
        ("mean reward of the base", e.base_reward_mean, ""),
        (f"mean reward of {best}", e.best_of_n_reward_mean, ""),
        (f"KL from {base}, nats", e.kl, f"{e.kl_estimator}; {best} has at most {bound:.3f}"),
        ("the same by the estimator k1", e.kl_k1, "the mean log ratio, for comparison"),
        ("mean length, tokens", e.length_mean, ""),
        ("mean length of the base, tokens", e.base_length_mean, ""),
        ("length over the base's", e.length_ratio, ""),
        ("answers cut off", e.truncated, cut_off),
        ("distinct-1", e.distinct_1, f"base {_number(e.base_distinct_1)}, ratio {_number(e.distinct_1_ratio)}"),
        ("distinct-2", e.distinct_2, f"base {_number(e.base_distinct_2)}, ratio {_number(e.distinct_2_ratio)}"),
    ]


def _last(metrics: list[dict[str, Any]]) -> dict[str, float]:
    last: dict[str, float] = {}
    for entry in metrics:
        last |= entry
    return last


def _interval(estimate: Estimate) -> str:
    return f"{_number(estimate.value)} ({_number(estimate.low)} to {_number(estimate.high)})"


def _number(value: float) -> str:
    return f"{value:.3f}" if isfinite(value) else "no number"
