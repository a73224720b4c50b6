"""Tests of the report's contents, from the files of a run directory."""

import base64
import json
import math
import re
import struct
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from bonbon.settings import GateSettings
from bonbon.theory import pair_target
from tests.support.models.evaluations import best_of_k, estimate, evaluation
from trainer.evaluation.gate import judge
from trainer.reports.report import write_report
from trainer.reports.tables import show

GATE = GateSettings()


def write_run(run_dir: Path, steps: int = 120) -> None:
    """Writes what a training of both stages leaves: logged groups first, then the policy's own draws."""
    target = pair_target(8)
    lines: list[dict[str, float]] = [{"step": 0, "epoch": 0.0, "stage": 0, "validation_gain": 0.0}]
    for step in range(1, steps + 1):
        left = math.exp(-step / 30)
        wobble = math.sin(step * 1.7)
        lines.append(
            {
                "step": step,
                "epoch": step / 40,
                "stage": 0,
                "loss": 16 + 6 * left + 0.5 * wobble,
                "margin": target * (1 - left) + wobble,
                "target": target,
            }
        )
        if step % 40 == 0:
            lines.append(
                {
                    "step": step,
                    "epoch": step / 40,
                    "stage": 0,
                    "validation_margin": target * (1 - left) - 1,
                    "validation_gain": 1.1 * (1 - left),
                }
            )
    lines += [
        {"step": steps, "epoch": steps / 40, "stage": 0, "interpolation_gain": 0.9, "interpolation_share": 0.8},
        *(
            {
                "step": steps + 10 * look,
                "epoch": (steps + 10 * look) / 40,
                "stage": 1,
                "validation_drawn_gain": 0.9 + 0.1 * look,
                "validation_win_rate": 0.75 + 0.02 * look,
                "validation_kl": 0.8 + 0.05 * look,
            }
            for look in range(4)
        ),
        {"step": steps + 30, "epoch": (steps + 30) / 40, "stage": 1, "kept_step": steps + 30, "kept_gain": 1.2},
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = {
        "train": {"loss": "gvpo", "method": "lora"},
        "start": {"name": "tiny", "digest": "e" * 64},
        "snapshot": {"hash": "f" * 64, "groups": 1000, "train_groups": 800},
    }
    (run_dir / "run.json").write_text(json.dumps(run))


def test_a_whole_run_is_shown_in_one_self_contained_page(tmp_path: Path) -> None:
    write_run(tmp_path)
    measured = evaluation(
        held_out_reward="classifier-2",
        held_out_win_rate=estimate(0.71),
        best_of_k=best_of_k(0.42, 0.53, 0.6, held_out=0.55),
    )
    measured.save(tmp_path)
    verdict = judge(measured, GATE)
    page = write_report(tmp_path, GATE, verdict=verdict).read_text()
    assert "gate passed" in page
    assert "Trained from tiny in 150 steps on 800 logged groups; loss gvpo, lora." in page
    assert all(reason.text.replace("'", "&#39;") in page for reason in verdict.reasons)
    assert "Rao-Blackwellised per-token; best-of-8 has at most 1.204" in page
    assert "best-of-8 without ties: 0.889" in page
    assert "win rate against the base tiny by classifier-2" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    picture = re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert picture
    assert b"<svg" in base64.b64decode(picture.group(1))
    width, height = struct.unpack(">II", (tmp_path / "report.png").read_bytes()[16:24])
    assert width > height > 800


def test_the_page_says_what_k_draws_win_and_cost(tmp_path: Path) -> None:
    measured = evaluation(
        held_out_reward="classifier-2",
        best_of_k=best_of_k(0.42, 0.53, served=(0.3, 0.4), held_out=0.55),
        served="tiny-bonbon-0000",
        served_k=3,
    )
    measured.save(tmp_path)
    verdict = judge(measured, GATE)
    page = write_report(tmp_path, GATE, verdict=verdict).read_text()
    assert "It answers with the best of 2 draws, which saves 72% of the tokens." in page
    assert "best-of-3 of tiny-bonbon-0000 takes 160 tokens an answer" in page
    curve = page[page.index("Best of k draws</h2>") : page.index("Evaluation</h2>")]
    rows = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in re.findall(r"<tr><td.*?</tr>", curve)]
    held_out = "0.550 (0.530 to 0.570)"
    assert rows == [
        ["1", "0.840 (0.820 to 0.860)", "0.420 (0.400 to 0.440)", held_out, "0.300 (0.280 to 0.320)", held_out, "22"],
        ["2", "0.920 (0.900 to 0.940)", "0.530 (0.510 to 0.550)", held_out, "0.400 (0.380 to 0.420)", held_out, "44"],
    ]


def test_what_is_served_is_not_named_twice(tmp_path: Path) -> None:
    evaluation(best_of_k=best_of_k(0.42, 0.53)).save(tmp_path)
    page = write_report(tmp_path, GATE).read_text()
    assert page.count("<td>win rate against best-of-8 of tiny</td>") == 1
    assert page.count('<th class="n">against best-of-8 of tiny</th>') == 1


def test_an_unregistered_run_without_evaluation_shows_its_training(tmp_path: Path) -> None:
    write_run(tmp_path, steps=3)
    page = write_report(tmp_path, GATE).read_text()
    assert "not judged" in page
    assert "Evaluation</h2>" not in page
    training = page[page.index("Training</h2>") :]
    rows = dict(re.findall(r'<tr><td>(.*?)</td><td class="n">.*?</td><td class="n">(.*?)</td></tr>', training))
    assert rows == {"loss": "", "margin": "", "target": ""}


def test_the_last_values_of_validation_groups_stand_beside_those_of_training_groups(tmp_path: Path) -> None:
    write_run(tmp_path)
    page = write_report(tmp_path, GATE).read_text()
    training = page[page.index("Training</h2>") :]
    assert "validation groups</th>" in training
    last = pair_target(8) * (1 - math.exp(-120 / 30)) - 1
    assert re.search(rf'<tr><td>margin</td><td class="n">[0-9.]+</td><td class="n">{last:.3f}</td></tr>', training)


def test_a_policy_that_drew_nothing_for_itself_has_a_report(tmp_path: Path) -> None:
    write_run(tmp_path, steps=40)
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    offline = [line for line in metrics if line["stage"] == 0 and "interpolation_gain" not in line]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in offline))
    assert "not judged" in write_report(tmp_path, GATE).read_text()


def test_an_evaluation_alone_names_the_version_and_why_it_was_refused(tmp_path: Path) -> None:
    measured = evaluation(
        version="<tiny>",
        served="tiny-bonbon-0001",
        best_of_k=best_of_k(math.nan),
        recovered=estimate(math.nan),
        skipped=3,
    )
    measured.save(tmp_path)
    page = write_report(tmp_path, GATE, version="<tiny>", verdict=judge(measured, GATE)).read_text()
    assert "gate refused it" in page
    assert "is not a number; it must be at least 0.470" in page
    assert "It answers with" not in page
    assert "&lt;tiny&gt;" in page
    assert "<tiny>" not in page
    assert "3 prompts were left out" in page


def test_the_terminal_shows_the_evaluation_and_what_the_gate_has_chosen() -> None:
    out = StringIO()
    console = Console(file=out, width=160)
    show(console, evaluation(), judge(evaluation(), GATE))
    assert "win rate against best-of-8 of tiny" in out.getvalue()
    assert out.getvalue().count("KL from the base tiny, nats") == 1  # the other is named by its estimator
    assert "The gate passed it to answer with the best of 2 draws, which saves 72% of the tokens." in out.getvalue()
    one = evaluation(best_of_k=best_of_k(0.6, 0.7))
    show(console, one, judge(one, GATE))
    assert "The gate passed it to answer with one draw, which saves 86% of the tokens." in out.getvalue()
    refused = judge(evaluation(kl=estimate(9.0)), GATE)
    show(console, evaluation(kl=estimate(9.0)), refused)
    assert "The gate refused it." in out.getvalue()
    assert "✗ KL from tiny, nats: upper bound 9.020 is above 2.409" in out.getvalue()


def test_an_empty_directory_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="training metrics or an evaluation"):
        write_report(tmp_path, GATE)
