"""The report: everything it must show, from the files of a run directory."""

import base64
import json
import math
import re
import struct
from pathlib import Path

import pytest
from evaluations import estimate, evaluation

from bonbon.settings import GateSettings
from bonbon.theory import pair_target
from trainer.evaluation.gate import judge
from trainer.reports.report import write_report

GATE = GateSettings()


def write_run(run_dir: Path, steps: int = 120) -> None:
    target = pair_target(8)
    lines: list[dict[str, float]] = [{"step": 0, "epoch": 0.0, "held_out_loss": 19.0, "held_out_sft": 23.0}]
    for step in range(1, steps + 1):
        left = math.exp(-step / 30)
        wobble = math.sin(step * 1.7)
        lines.append(
            {
                "step": step,
                "epoch": step / 40,
                "loss": 16 + 6 * left + 0.5 * wobble,
                "sft": 20 + 3 * left + wobble,
                "contrast": 1 + 3.5 * left + 0.2 * wobble,
                "margin": target * (1 - left) + wobble,
                "target": target,
            }
        )
        if step % 40 == 0:
            lines.append(
                {
                    "step": step,
                    "epoch": step / 40,
                    "held_out_loss": 16.3 + 6 * left,
                    "held_out_sft": 20.3 + 3 * left,
                    "held_out_contrast": 1.2 + 3.5 * left,
                    "held_out_margin": target * (1 - left) - 1,
                }
            )
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = {
        "train": {"loss": "bonbon", "method": "lora"},
        "reference": {"name": "tiny", "digest": "e" * 64},
        "snapshot": {"hash": "f" * 64, "groups": 1000, "held_out_groups": 100},
    }
    (run_dir / "run.json").write_text(json.dumps(run))


def test_a_whole_run_is_shown_in_one_self_contained_page(tmp_path: Path) -> None:
    write_run(tmp_path)
    measured = evaluation(held_out_reward="classifier-2", held_out_win_rate=estimate(0.71))
    measured.save(tmp_path)
    verdict = judge(measured, GATE, n=8)
    page = write_report(tmp_path, GATE, verdict=verdict).read_text()
    assert "gate passed" in page
    assert "Trained in 120 steps on 900 groups that tiny had sampled" in page
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


def test_an_unregistered_run_without_evaluation_shows_its_training(tmp_path: Path) -> None:
    write_run(tmp_path, steps=3)
    page = write_report(tmp_path, GATE).read_text()
    assert "not judged" in page
    assert "Evaluation</h2>" not in page


def test_an_evaluation_alone_names_the_version_and_why_it_was_refused(tmp_path: Path) -> None:
    measured = evaluation(
        version="<tiny>",
        reference="tiny-bonbon-0001",
        win_rate_reference=estimate(math.nan),
        kl_reference=estimate(0.9),
        recovered=estimate(math.nan),
        skipped=3,
    )
    measured.save(tmp_path)
    page = write_report(tmp_path, GATE, version="<tiny>", verdict=judge(measured, GATE, n=8)).read_text()
    assert "gate refused it" in page
    assert "is no number; it must be at least 0.500" in page
    assert "&lt;tiny&gt;" in page
    assert "<tiny>" not in page
    assert "3 prompts left no room" in page


def test_an_empty_directory_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="training metrics or an evaluation"):
        write_report(tmp_path, GATE)
