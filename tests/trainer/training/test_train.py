"""Tests of whole training runs on logged groups of a tiny model."""

import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bonbon.engines.engine import VersionKind
from bonbon.errors import BonbonError, UserError
from bonbon.files.manifest import base_digest, base_digest_of_every_file, make_manifest
from bonbon.pairs.reading.snapshot import Snapshot
from bonbon.prompt import Prompt
from bonbon.registry.version_records import Version, VersionState
from bonbon.settings import Settings, TrainSettings, load_settings
from bonbon.theory import tilt, win_fraction
from tests.support.data.sampled_groups import draw, make_base, make_snapshot, score, text_of
from tests.support.models.learners import learner_of, nudge
from tests.support.paths import ROOT
from trainer.data.groups import Groups
from trainer.training.learning.loss import LossName
from trainer.training.metrics import MetricsLog, read_metrics
from trainer.training.train import TrainingResult
from trainer.training.train import train as train_run


@pytest.fixture(scope="module")
def snapshot(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Returns 96 groups with two temperatures and two n: 52 for training and 25 for validation."""
    return make_snapshot(tmp_path_factory.mktemp("snapshots") / "first", base, temperatures=(1.0, 0.8), ns=(4, 3))


def settings(base: Path, **changes: Any) -> Settings:
    """Returns settings for twelve steps of 8 groups."""
    config: dict[str, Any] = {
        "lora_rank": 4,
        "learning_rate": 1e-3,
        "batch_size": 8,
        "micro_batch_size": 8,
        "epochs": 2,
        "checkpoint_every": 4,
        "min_pairs": 16,
        "precision": "no",
        "threads": 1,
    }
    return load_settings(model=str(base), train=config | changes)


def train(config: Settings, snapshot: Snapshot, run_dir: Path, base: Path, **options: Any) -> TrainingResult:
    """Trains for best-of-4, without draws."""
    return train_run(config, snapshot, run_dir, base=base, n=4, progress=False, **options)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(next((run_dir / "output").glob("*.safetensors")))


def assert_same(
    first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], *, rtol: float = 0, atol: float = 0
) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=rtol, atol=atol)


def version(name: str, kind: VersionKind, directory: Path) -> Version:
    """Returns the version as the registry would."""
    digest, now = make_manifest(directory).digest, datetime.now(UTC)
    return Version(name, "tiny", "tiny", kind, digest, directory, VersionState.PROMOTED, now, {}, {}, None)


def test_a_run_reports_what_it_did(base: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    result = train(settings(base), snapshot, tmp_path / "run", base)
    assert (result.steps, result.groups, result.kind) == (12, 52, VersionKind.ADAPTER)
    lines = read_metrics(result.run_dir)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert {line["stage"] for line in lines} == {0}
    assert {
        "epoch", "sft", "contrast", "margin", "target", "chosen_logprob", "rejected_logprob", "gradient_norm",
        "learning_rate", "tokens_per_second",
    } < steps[0].keys()  # fmt: skip
    assert steps[0]["margin"] == pytest.approx(0, abs=1e-4)
    # Four candidates are 3/4 of all win chances apart, three 2/3; the tilt is that of best-of-4.
    assert steps[0]["target"] == pytest.approx(tilt(4) * (3 / 4 + 2 / 3) / 2, rel=0.05)
    assert steps[-1]["contrast"] < steps[0]["contrast"]
    assert steps[-1]["margin"] > 0.05
    looks = [line for line in lines if "validation_gain" in line]
    assert [line["step"] for line in looks] == list(range(13))
    assert looks[0]["validation_margin"] == pytest.approx(0, abs=1e-4)
    assert abs(lines[0]["sampler_gap"]) < 1e-4
    assert result.metrics["margin"] == steps[-1]["margin"]
    assert result.metrics["kept_gain"] == max(line["validation_gain"] for line in looks)

    run = json.loads((result.run_dir / "run.json").read_text())
    assert run["n"] == 4
    assert run["snapshot"]["hash"] == snapshot.hash
    assert run["train"]["learning_rate"] == 1e-3
    assert run["base"] == {"name": "tiny", "digest": snapshot.base_digest}
    assert run["start"] == run["base"]
    assert run["libraries"]["torch"] == torch.__version__
    assert list((result.run_dir / "tensorboard").iterdir())
    checkpoints = (result.run_dir / "checkpoints" / "offline").iterdir()
    assert sorted(path.name for path in checkpoints) == ["step-00000008", "step-00000012"]


@pytest.mark.parametrize("loss", ["gvpo", "vbon", "bond", "bonbon", "paper", "sft", "ipo", "dpo"])
def test_every_loss_teaches_to_tell_best_from_worst(
    base: Path, snapshot: Snapshot, tmp_path: Path, loss: LossName
) -> None:
    config = settings(base, loss=loss, learning_rate=1e-3, epochs=3, validation_fraction=0)
    result = train(config, snapshot, tmp_path / "run", base)
    margins = [line["margin"] for line in read_metrics(result.run_dir) if "margin" in line]
    assert margins[0] == pytest.approx(0, abs=1e-4)
    assert np.mean(margins[-3:]) > 0.1
    policy: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), result.output)
    assert all(bool(parameter.isfinite().all()) for parameter in policy.parameters())


def test_one_draw_of_the_trained_policy_beats_the_base(base: Path, tmp_path: Path) -> None:
    snapshot = make_snapshot(tmp_path / "snapshot", base, groups=240, ns=(8,))
    config = settings(base, learning_rate=3e-3, lora_rank=16, batch_size=16, micro_batch_size=16, epochs=3)
    result = train(config, snapshot, tmp_path / "run", base)
    policy: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), result.output).eval()
    rng = np.random.default_rng(5)
    prompts = [[2, *rng.integers(3, 40, 3).tolist()] for _ in range(12)]

    def rewards(prompt: list[int]) -> list[float]:
        drawn = draw(policy, prompt, 24, temperature=1.0, max_tokens=8)
        return score(Prompt(token_ids=tuple(prompt)), [text_of(tokens) for tokens, _ in drawn])

    torch.manual_seed(9)
    after = [rewards(prompt) for prompt in prompts]
    with policy.disable_adapter():
        before, again = ([rewards(prompt) for prompt in prompts] for _ in range(2))
    assert np.mean([*map(win_fraction, again, before)]) == pytest.approx(0.5, abs=0.06)
    # In a world without much to learn from another's prompts, and with three epochs.
    assert np.mean([*map(win_fraction, after, before)]) > 0.6


@pytest.mark.parametrize("method", ["lora", "full"])
def test_killed_and_resumed_is_the_same_run(base: Path, snapshot: Snapshot, tmp_path: Path, method: str) -> None:
    """SIGKILL follows the report of step 10, and the run continues from the checkpoint of step 8."""
    config = settings(base, method=method, learning_rate=1e-3 if method == "lora" else 1e-4, lora_dropout=0.1)
    straight = train(config, snapshot, tmp_path / "straight", base)
    killed = tmp_path / "killed"
    arguments = as_arguments(base, snapshot, killed, config)
    process = subprocess.run([sys.executable, "-c", KILLED, arguments], env=environment(), check=False)
    assert process.returncode == -signal.SIGKILL
    checkpoints = (killed / "checkpoints" / "offline").iterdir()
    assert sorted(path.name for path in checkpoints) == ["step-00000004", "step-00000008"]
    assert read_metrics(killed)[-1]["step"] == 10

    resumed = train(config, snapshot, killed, base)
    assert_same(weights(killed), weights(straight.run_dir))
    names = ("step", "loss", "margin", "gradient_norm", "learning_rate", "validation_gain", "kept_step")
    reported = [[{k: line.get(k) for k in names} for line in read_metrics(r.run_dir)] for r in (straight, resumed)]
    assert reported[0] == reported[1]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def as_arguments(base: Path, snapshot: Snapshot, run_dir: Path, config: Settings) -> str:
    paths = {"base": str(base), "snapshot": str(snapshot.path), "run": str(run_dir)}
    return json.dumps(paths | {"train": config.train.model_dump()})


START = """
import json, os, signal, sys
from pathlib import Path
from bonbon.pairs.reading.snapshot import read_snapshot
from tests.support.paths import ROOT
from bonbon.settings import load_settings
from trainer.training.metrics import MetricsLog
from trainer.training.train import train

arguments = json.loads(sys.argv[1])

def run():
    settings = load_settings(model=arguments["base"], train=arguments["train"])
    snapshot = read_snapshot(Path(arguments["snapshot"]))
    train(settings, snapshot, Path(arguments["run"]), base=Path(arguments["base"]), n=4, progress=False)
"""
KILLED = (
    START
    + """
write = MetricsLog.write

def write_and_die(self, step, epoch, **values):
    write(self, step, epoch, **values)
    if step == 10 and "loss" in values:
        os.kill(os.getpid(), signal.SIGKILL)

MetricsLog.write = write_and_die
run()
"""
)


def test_two_processes_are_one_run(base: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    """Each process takes half of every batch; the result equals that of one process up to rounding."""
    alone = train(settings(base), snapshot, tmp_path / "alone", base)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = as_arguments(base, snapshot, tmp_path / "two", settings(base, micro_batch_size=4))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", START + "run()", arguments],
            env=environment(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
                ACCELERATE_USE_CPU="true",
            ),
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    assert_same(weights(tmp_path / "two"), weights(alone.run_dir), rtol=1e-3, atol=1e-5)


def test_a_partial_checkpoint_is_never_picked_up(base: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    partial = run_dir / "checkpoints" / "offline" / "step-00000008.partial"
    partial.mkdir(parents=True)
    (partial / "weights.safetensors").write_bytes(b"cut short")
    result = train(settings(base), snapshot, run_dir, base)
    assert [line["step"] for line in read_metrics(run_dir) if "loss" in line] == list(range(1, 13))
    assert not partial.exists()
    assert result.output.is_dir()


def test_a_finished_run_is_kept_and_another_is_refused(base: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    config = settings(base, epochs=1)
    first = train(config, snapshot, tmp_path / "run", base)
    time = (first.output / "adapter_model.safetensors").stat().st_mtime_ns
    again = train(settings(base, epochs=1, micro_batch_size=4), snapshot, tmp_path / "run", base)
    assert again == first
    assert (first.output / "adapter_model.safetensors").stat().st_mtime_ns == time
    with pytest.raises(UserError, match=r"train\.learning_rate 0\.001 -> 0\.1"):
        train(settings(base, epochs=1, learning_rate=0.1), snapshot, tmp_path / "run", base)
    with pytest.raises(UserError, match=r"n 4 -> 8"):
        train_run(config, snapshot, tmp_path / "run", base=base, n=8, progress=False)


def test_reference_logprobs_are_computed_once(base: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    """Shifting the cached log-probabilities shifts every margin of the run that reads them."""
    config = settings(base, epochs=1)
    train(config, snapshot, tmp_path / "run", base)
    cached = load_file(tmp_path / "run" / "reference.safetensors")["logprobs"]
    groups = Groups.read(snapshot.groups_file, base="tiny")
    np.testing.assert_allclose(cached.numpy(), groups.logprobs, atol=1e-4)

    shifted = cached.clone()
    shifted[groups.starts + groups.n - 1] -= 0.01
    for run_dir, key, margin in (
        ("same", f"{snapshot.hash} {snapshot.base_digest}", 0.01),
        ("other", "does not hold the snapshot", 0.0),
    ):
        (tmp_path / run_dir).mkdir()
        save_file({"logprobs": shifted}, tmp_path / run_dir / "reference.safetensors", metadata={"key": key})
        train(config, snapshot, tmp_path / run_dir, base)
        margins = [line["margin"] for line in read_metrics(tmp_path / run_dir) if "margin" in line]
        assert margins[0] == pytest.approx(margin, abs=1e-4)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of a version at some distance from the base."""
    directory = tmp_path_factory.mktemp("versions") / "adapter"
    learner = learner_of(base, TrainSettings(lora_rank=4, lora_alpha=8))
    nudge(learner, 0.08)
    learner.save(learner.weights(), directory, base_name="tiny")
    return directory


@pytest.fixture(scope="module")
def later(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Groups of the base and of the version, for the same prompts."""
    return make_snapshot(tmp_path_factory.mktemp("snapshots") / "later", base, adapter=adapter, groups=48, seed=1)


def test_a_second_round_starts_from_the_first_and_measures_from_the_base(
    base: Path, snapshot: Snapshot, adapter: Path, later: Snapshot, tmp_path: Path
) -> None:
    champion = version(later.version, VersionKind.ADAPTER, adapter)
    assert (later.version, later.base) == (champion.name, "tiny")
    second = train(settings(base), later, tmp_path / "run", base, start=champion)
    lines = read_metrics(second.run_dir)
    assert abs(lines[0]["sampler_gap"]) < 1e-4, "each group against the policy that drew it"
    first_look = next(line for line in lines if "validation_gain" in line)
    assert first_look["step"] == 0
    assert first_look["validation_gain"] < -0.01, "it is some way from the reference, which is the base"
    groups = Groups.read(later.groups_file, base="tiny")
    assert groups.by_base.mean() == 0.5
    assert second.groups == later.train_groups, "it learns from both policies' groups"
    run = json.loads((second.run_dir / "run.json").read_text())
    assert (run["start"]["name"], run["base"]["name"]) == (champion.name, "tiny")
    assert run["start"]["digest"] == champion.digest

    with pytest.raises(UserError, match="not those that were registered"):
        train(settings(base), later, tmp_path / "wrong", base, start=replace(champion, digest="0" * 64))
    with pytest.raises(UserError, match=f"was taken to start from tiny, not from {champion.name}"):
        train(settings(base), snapshot, tmp_path / "wrong", base, start=champion)


def test_a_base_whose_files_were_edited_is_refused(base: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    edited = shutil.copytree(base, tmp_path / "edited")
    with (edited / "config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match=r"was sampled on a base with digest .*: train on the model that answered"):
        train(settings(base), snapshot, tmp_path / "run", edited)


def test_a_base_is_the_same_whatever_lies_beside_what_it_draws_with(
    base: Path, snapshot: Snapshot, tmp_path: Path
) -> None:
    """The base is registered, and then given a model card, pickled weights and other sampling settings."""
    same = shutil.copytree(base, tmp_path / "same")
    (same / "README.md").write_text("# A card")
    (same / "pytorch_model.bin").write_bytes(b"never read")
    generation = json.loads((base / "generation_config.json").read_text())
    (same / "generation_config.json").write_text(json.dumps({**generation, "temperature": 0.7, "top_p": 0.9}))
    registered = replace(version("tiny", VersionKind.BASE, base), digest=base_digest(base), directory=same)
    config = settings(same, epochs=1, method="full")
    result = train(config, snapshot, tmp_path / "run", same, start=registered)
    saved = (result.output / "generation_config.json").read_bytes()
    assert saved == (same / "generation_config.json").read_bytes()
    assert not (result.output / "pytorch_model.bin").exists()
    with pytest.raises(UserError, match="not those that were registered"):
        train(config, snapshot, tmp_path / "other", same, start=replace(registered, digest="0" * 64))


@pytest.mark.parametrize("from_base", [False, True], ids=["without a start", "started from the base"])
def test_a_run_of_an_earlier_release_goes_on(base: Path, snapshot: Snapshot, tmp_path: Path, from_base: bool) -> None:
    """The earlier release recorded a digest of every file of the base."""
    start = replace(version("tiny", VersionKind.BASE, base), digest=base_digest(base)) if from_base else None
    train(settings(base, epochs=1), snapshot, tmp_path, base, start=start)
    path = tmp_path / "run.json"
    today = json.loads(path.read_text())
    earlier = {"digest": base_digest_of_every_file(base)}
    path.write_text(json.dumps(today | {name: today[name] | earlier for name in ("base", "start")}))
    train(settings(base, epochs=1), snapshot, tmp_path, base, start=start)
    assert json.loads(path.read_text()) == today
    path.write_text(json.dumps(today | {"base": today["base"] | {"digest": "0" * 64}}))
    with pytest.raises(UserError, match=r"holds another run \(base"):
        train(settings(base, epochs=1), snapshot, tmp_path, base, start=start)


def test_a_versions_groups_are_checked_against_the_version(
    base: Path, adapter: Path, later: Snapshot, tmp_path: Path
) -> None:
    """The version's groups were drawn from other weights here."""
    changed = shutil.copytree(adapter, tmp_path / "changed")
    file = changed / "adapter_model.safetensors"
    save_file({name: 3 * tensor for name, tensor in load_file(file).items()}, file)
    champion = version(later.version, VersionKind.ADAPTER, changed)
    with pytest.raises(UserError, match=f"{champion.name} did not draw them"):
        train(settings(base), later, tmp_path / "run", base, start=champion)


def test_full_training_gives_a_whole_model(base: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    config = settings(base, method="full", learning_rate=1e-4, epochs=1)
    result = train(config, snapshot, tmp_path / "run", base)
    assert result.kind is VersionKind.FULL
    files = {file.name for file in result.output.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= files
    AutoModelForCausalLM.from_pretrained(result.output)


def test_a_changed_snapshot_is_refused(base: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    shutil.copytree(snapshot.path, tmp_path / "changed")
    table = pq.read_table(snapshot.groups_file)
    pq.write_table(table.slice(1), tmp_path / "changed" / "groups.parquet")
    with pytest.raises(UserError, match="does not match"):
        train(settings(base), replace(snapshot, path=tmp_path / "changed"), tmp_path / "run", base)
    with pytest.raises(UserError, match="does not hold the snapshot"):
        train(settings(base), replace(snapshot, hash="0" * 64), tmp_path / "run", base)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"min_pairs": 53}, r"52 groups to train on, fewer than train\.min_pairs = 53"),
        ({"micro_batch_size": 5}, r"batch_size = 8 is not a multiple of train\.micro_batch_size = 5"),
        ({"batch_size": 96, "micro_batch_size": 96}, r"batch_size = 96 is more than the snapshot's 52 groups"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    base: Path, snapshot: Snapshot, tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(UserError, match=match):
        train(settings(base, **changes), snapshot, tmp_path / "run", base)


def test_another_base_is_refused(snapshot: Snapshot, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="train on the model that answered"):
        train(settings(other), snapshot, tmp_path / "run", other)


def test_groups_of_another_sampler_are_refused(base: Path, tmp_path: Path) -> None:
    """The logged log-probabilities reveal the sampler, whatever name the groups carry."""
    stranger = AutoModelForCausalLM.from_pretrained(make_base(tmp_path / "other", seed=1))
    snapshot = make_snapshot(tmp_path / "snapshot", base, model=stranger)
    with pytest.raises(UserError, match=r"96 groups were logged with .* nats an answer higher than tiny gives them"):
        train(settings(base), snapshot, tmp_path / "run", base)
    assert not (tmp_path / "run" / "output").exists()


def test_divergence_stops_the_run_and_keeps_the_last_good_checkpoint(
    base: Path, snapshot: Snapshot, tmp_path: Path
) -> None:
    config = settings(base, learning_rate=1e18, max_grad_norm=1e9, checkpoint_every=1, warmup_fraction=0)
    with pytest.raises(BonbonError, match=r"not finite|is nan|is inf"):
        train(config, snapshot, tmp_path / "run", base)
    assert not (tmp_path / "run" / "output").exists()
    for checkpoint in (tmp_path / "run" / "checkpoints" / "offline").glob("*/*.safetensors"):
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(checkpoint).values())


def test_metrics_cut_short_by_a_crash_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_metrics_that_cannot_be_written_leave_no_file_open(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("not a directory")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(OSError, match="tensorboard"):
            MetricsLog(tmp_path)
        gc.collect()
    assert [str(warning.message) for warning in caught if warning.category is ResourceWarning] == []


def test_metrics_after_the_step_that_a_run_goes_on_from_come_again(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        for step in range(4):
            log.write(step, step / 10, loss=float(step))
    with MetricsLog(tmp_path, resume=2) as log:
        log.write(3, 0.3, loss=30.0)
    assert [line["loss"] for line in read_metrics(tmp_path)] == [0.0, 1.0, 2.0, 30.0]
