"""The experiments in small: they run, are gone on with, and agree with theory and with the page that is committed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bonbon.demo.tiny_models import tiny_models
from bonbon.demo.world import requests
from bonbon.theory import best_gain, best_of_n_kl, best_of_n_win_rate
from experiments import best_of_n, methods, real, rounds
from experiments.cells import read_rows
from experiments.distilled import DEFAULT, comparison
from experiments.exact_world import COMPLETIONS, PROMPTS, ExactWorld, Size
from experiments.readme_table import readme_table
from experiments.results import EXPERIMENTS, page, read
from experiments.training import METHODS
from tests.support.paths import ROOT

# The first test waits for all experiments in small, most of a minute where nothing else runs.
pytestmark = pytest.mark.timeout(1200)


def command(out: Path) -> list[str]:
    return [sys.executable, "-m", "experiments", "--quick", "--out", str(out), "--processes", "1"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("experiments")
    subprocess.run(command(directory), cwd=ROOT, check=True)
    return directory


def test_every_cell_is_computed_and_shown(out: Path) -> None:
    found = read(out / "data", quick=True)
    assert set(found.missing.values()) == {0}
    text = (out / "results.md").read_text()
    assert "not been computed" not in text
    for name in [name for name, (module, _) in EXPERIMENTS.items() if module.cells(quick=True)]:
        assert f"pictures/results-{name}.png" in text
        assert (out / "pictures" / f"results-{name}.png").stat().st_size > 10_000


def test_draws_are_only_as_good_as_best_of_n_if_the_held_out_reward_agrees(out: Path) -> None:
    (row,) = read_rows(out / "data" / "text")
    table = {}
    for name, held_out in {"worse": {"high": 0.49}, "as good": {"high": 0.51}, "none": None}.items():
        for one in row["evaluation"]["best_of_k"]:
            one["win_rate_served"]["low"], one["held_out_win_rate_served"] = 0.48, held_out
        table[name] = comparison([row]).splitlines()[-1]
    assert f"more than {row['evaluation']['n']}" in table["worse"]
    assert "more than" not in table["as good"] + table["none"]


def test_a_run_computes_only_what_is_missing(out: Path) -> None:
    files = {file: file.stat().st_mtime_ns for file in (out / "data").rglob("*.json")}
    lost = out / "data" / "best-of-n" / "seed-0.json"
    before = json.loads(lost.read_text())
    lost.unlink()
    subprocess.run([*command(out), "--only", "best-of-n"], cwd=ROOT, check=True)
    again = json.loads(lost.read_text())
    assert again.pop("code")
    assert again == {name: value for name, value in before.items() if name != "code"}
    assert {file for file, time in files.items() if file.stat().st_mtime_ns != time} == {lost}


def test_other_arguments_make_figures_stale(out: Path) -> None:
    cell = best_of_n.cells(quick=True)[0]
    assert cell.read(out / "data") is not None
    other = type(cell)(cell.name, cell.run, {**cell.arguments, "ns": (2, 3)})
    assert other.read(out / "data") is None


def test_exact_best_of_n_is_what_theory_says(out: Path) -> None:
    """Ties and atoms only take away, and no policy is above the frontier."""
    (row,) = read(out / "data", quick=True).rows[best_of_n.NAME]
    measured = row["measured"]
    assert [one["n"] for one in measured] == list(best_of_n.NS)
    for one in measured:
        bound, limit = best_of_n_kl(one["n"]), best_of_n_win_rate(one["n"])
        assert limit - 0.01 < one["win_rate"] <= limit
        assert 0.97 * bound < one["kl"] <= bound
        assert 0 <= one["gap"] < 0.0105
        assert abs(one["from_best_of_n"]) < 1e-9
    assert measured[-1]["gap"] < measured[0]["gap"]


def test_a_policy_of_the_exact_world_draws_from_its_own_probabilities() -> None:
    world = ExactWorld(0, Size(width=16, layers=1))
    drawn = world.draw(4000, 8, seed=1, policy=world.base)
    for prompt in range(PROMPTS):
        counts = torch.bincount(drawn.completions[drawn.prompts == prompt], minlength=len(COMPLETIONS)).double()
        expected = world.base_logprobs[prompt].exp() * counts.sum()
        usual = expected > 20
        assert usual.sum() > 3
        deviations = (counts - expected)[usual] / expected[usual].sqrt()
        assert deviations.abs().max() < 5
        assert abs(counts[~usual].sum() - expected[~usual].sum()) < 5 * expected[~usual].sum().sqrt()


def test_no_trained_policy_is_above_the_frontier(out: Path) -> None:
    rows = read(out / "data", quick=True).rows[methods.NAME]
    assert [row["method"] for row in rows] == list(METHODS)
    for row in rows:
        assert row["gap"] >= 0
        assert row["kl"] > 0.05
        assert row["win_rate"] > 0.55
        assert row["from_best_of_n"] > 0


def test_the_committed_figures_order_the_losses_as_theory_does() -> None:
    """A full run's: what minimises J's distance gains most in it, and raw contrasts spend more KL than they gain."""
    rows = read(ROOT / "experiments" / "data", quick=False).rows[methods.NAME]
    gains = {method: [row["gain"] for row in methods.of_method(rows, method)] for method in METHODS}
    assert all(gains.values())
    assert max(max(found) for found in gains.values()) < best_gain(8)
    assert min(gains["gvpo + SFT"]) > max(gains["gvpo"]) > 1.5
    assert min(gains["gvpo + SFT"]) > max(gains["sft"])
    assert max(max(gains[method]) for method in ("paper", "ipo", "dpo")) < 0.5


def test_the_committed_page_is_made_from_the_committed_figures() -> None:
    found = read(ROOT / "experiments" / "data", quick=False)
    assert page(found) == (ROOT / "docs" / "results.md").read_text()
    for name, rows in found.rows.items():
        assert (ROOT / "docs" / "pictures" / f"results-{name}.png").is_file() == bool(rows)


def test_the_table_of_the_readme_is_made_from_the_committed_figures() -> None:
    (row,) = read(ROOT / "experiments" / "data", quick=False).rows[rounds.NAME]
    assert readme_table(row) in (ROOT / "README.md").read_text()


def test_a_model_of_ones_own_is_distilled_and_shown(tmp_path: Path) -> None:
    models, prompts = tiny_models(), tmp_path / "prompts.txt"
    prompts.write_text("\n".join([*requests(1, 119), "a request that is too long " * 20, *requests(2, 1)]))
    given = {"--model": models.policy, "--reward": models.reward, "--held-out-reward": models.held_out_reward}
    places = {"--prompts": prompts, "--data": tmp_path / "data", "--work": tmp_path / "work"}
    options = [str(part) for option in {**given, **places}.items() for part in option]
    command = [sys.executable, "-m", "experiments.real", "--form", "quick", "--name", "Ours", *options]
    subprocess.run([*command, "--method", "sft", "--method", DEFAULT], cwd=ROOT, check=True)
    rows = read(tmp_path / "data", quick=True).rows[real.NAME]
    assert [(row["name"], row["prompts"]) for row in rows] == [("sft", 120), (DEFAULT, 120)]
    assert [bool(row["own_draws"]) for row in rows] == [False, True]
    assert "### Ours, QUICK form" in page(read(tmp_path / "data", quick=True))
    refused = subprocess.run([*command, "--method", "best"], cwd=ROOT, capture_output=True, text=True)
    assert "--method best: there is no such method; there are gvpo" in refused.stderr


def test_an_experiment_that_is_not_there_is_named() -> None:
    done = subprocess.run([*command(Path("unused")), "--only", "all"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "--only all: there is no such experiment; there are best-of-n, methods" in done.stderr
