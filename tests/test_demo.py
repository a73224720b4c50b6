"""`bonbon demo`, smaller than by default: the whole loop on real parts, from the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bonbon.theory import best_of_n_kl, best_of_n_win_rate

POLICY = {
    "win_rate",
    "win_rate_low",
    "win_rate_high",
    "comparisons",
    "kl",
    "reward_mean",
    "length_mean",
    "tokens_per_answer",
    "latency_p50_s",
    "ttft_p50_s",
}


def demo(
    directory: Path, *arguments: str, timeout: float = 800.0, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bonbon", "demo", "--exit", "--data-dir", str(directory / "data"), *arguments],
        env={**os.environ, **environment},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    directory = tmp_path_factory.mktemp("demo")
    done = demo(directory, "--traffic", "400", "--json", "figures.json")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done, json.loads((directory / "figures.json").read_text())


def test_every_figure_is_in_the_file(finished: tuple[Any, dict[str, Any]]) -> None:
    _, figures = finished
    for policy in ("base", "before", "after"):
        assert figures[policy].keys() >= POLICY
    assert figures["seconds"].keys() >= {"models", "traffic", "train", "evaluate", "total"}
    assert figures["gate"]["passed"] is True
    assert all(isinstance(reason, str) for reason in figures["gate"]["reasons"])
    assert figures["swap"]["requests"] > 0
    assert figures["n"] == 8


def test_one_draw_of_the_promoted_version_replaces_best_of_n(finished: tuple[Any, dict[str, Any]]) -> None:
    """Four standard errors of 150 prompts: below .01 each for best-of-8, below .016 for one draw."""
    _, figures = finished
    base, before, after = figures["base"], figures["before"], figures["after"]
    assert base["win_rate"] == pytest.approx(0.5, abs=0.06)
    assert before["win_rate"] == pytest.approx(best_of_n_win_rate(8), abs=0.04)
    assert before["kl"] == best_of_n_kl(8)
    assert after["win_rate_low"] > 0.5
    assert after["kl"] > 0
    assert after["reward_mean"] > base["reward_mean"]
    assert before["version"] == "tiny-support"
    assert after["version"].startswith("tiny-support-bonbon-0001-")
    # Eight draws against one; answers may have become up to half as long again.
    assert after["tokens_per_answer"] < 0.25 * before["tokens_per_answer"]
    assert figures["swap"]["failed"] == 0
    assert set(figures["rounds"][0]["swap"]["versions"]) == {"tiny-support", after["version"]}


def test_the_table_and_the_samples_are_printed(finished: tuple[subprocess.CompletedProcess[str], Any]) -> None:
    done, _ = finished
    for text in ("One draw against best-of-8", "gate passed", "win rate against base", "Rao-Blackwellised", "0 failed"):
        assert text in done.stdout


def test_what_the_gate_refuses_is_said_and_exits_with_1(tmp_path: Path) -> None:
    done = demo(tmp_path, "--traffic", "100", "--json", "figures.json", BONBON_GATE__MIN_WIN_RATE="0.999")
    assert done.returncode == 1
    assert "gate refused it" in done.stdout
    assert "best-of-n keeps answering" in done.stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["gate"]["passed"] is False
    assert figures["after"] is None
    assert any("0.999" in reason for reason in figures["gate"]["reasons"])
