"""Whole training runs on pairs drawn from a tiny model."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from sampled_groups import draw, make_base, make_group, make_snapshot, reward, snapshot_of
from transformers import AutoModelForCausalLM

from bonbon.engines.base import Sampling, VersionFiles, VersionKind
from bonbon.errors import BonbonError, UserError
from bonbon.pairs.snapshot import Snapshot
from bonbon.registry.manifest import make_manifest
from bonbon.registry.records import Version, VersionState
from bonbon.settings import Settings, load_settings
from bonbon.theory import win_fraction
from trainer.data.batches import epoch_batches, length_batches, places
from trainer.data.groups import Groups
from trainer.evaluation.divergence import Completion
from trainer.evaluation.kl import KL
from trainer.training.metrics import read_metrics
from trainer.training.schedule import default_learning_rate, learning_rate_factor
from trainer.training.train import train


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def snapshot(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Some 96 pairs, a sixth of them held out, with two temperatures and two n."""
    return make_snapshot(tmp_path_factory.mktemp("snapshots") / "first", base, temperatures=(1.0, 0.8), ns=(4, 3))


def settings(base: Path, **changes: Any) -> Settings:
    """Twenty steps of 16 pairs."""
    config: dict[str, Any] = {
        "lora_rank": 4,
        "learning_rate": 3e-3,
        "batch_size": 16,
        "micro_batch_size": 16,
        "epochs": 5,
        "checkpoint_every": 4,
        "precision": "no",
        "threads": 1,
    }
    return load_settings(model=str(base), train=config | changes)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(next((run_dir / "output").glob("*.safetensors")))


def assert_same(
    first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], *, rtol: float = 0, atol: float = 0
) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=rtol, atol=atol)


def version(name: str, kind: VersionKind, directory: Path) -> Version:
    """As the registry would return it."""
    digest, now = make_manifest(directory).digest, datetime.now(UTC)
    return Version(name, "tiny", "tiny", kind, digest, directory, VersionState.PROMOTED, now, {}, {}, None)


def test_a_run_reports_what_it_did(base: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    result = train(settings(base), snapshot, tmp_path / "run", base=base, progress=False)
    assert (result.steps, result.pairs, result.kind) == (20, 77, VersionKind.ADAPTER)
    lines = read_metrics(result.run_dir)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 21))
    assert {
        "epoch", "sft", "contrast", "margin", "target", "chosen_logprob", "rejected_logprob", "gradient_norm",
        "learning_rate", "tokens_per_second",
    } < steps[0].keys()  # fmt: skip
    assert steps[0]["margin"] == pytest.approx(0, abs=1e-4)
    # The mean of (n - 1) (H_(n-1) - H_(k-1)) over all k < n is n - 1.
    assert steps[0]["target"] == pytest.approx((3 + 2) / 2, rel=0.3)
    assert steps[-1]["sft"] < steps[0]["sft"]
    assert steps[-1]["margin"] > 1
    held_out = [line for line in lines if "held_out_loss" in line]
    assert [line["step"] for line in held_out] == [0, 4, 8, 12, 16, 20]
    assert [line["epoch"] for line in held_out] == [0, 1, 2, 3, 4, 5]
    assert held_out[0]["held_out_margin"] == 0
    assert held_out[0]["sampler_gap"] < 1e-4
    assert result.metrics["margin"] == steps[-1]["margin"]

    run = json.loads((result.run_dir / "run.json").read_text())
    assert run["snapshot"]["hash"] == snapshot.hash
    assert run["train"]["learning_rate"] == 3e-3
    assert run["base"] == {"name": "tiny", "digest": snapshot.base_digest}
    assert run["libraries"]["torch"] == torch.__version__
    assert list((result.run_dir / "tensorboard").iterdir())
    assert sorted(path.name for path in (result.run_dir / "checkpoints").iterdir()) == [
        "step-00000016",
        "step-00000020",
    ]


def test_one_draw_of_the_trained_policy_beats_the_base(base: Path, tmp_path: Path) -> None:
    snapshot = make_snapshot(tmp_path / "snapshot", base, groups=240, ns=(8,))
    config = settings(base, lora_rank=16, learning_rate=1e-2, epochs=5)
    result = train(config, snapshot, tmp_path / "run", base=base, progress=False)
    policy: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), result.output).eval()
    rng = np.random.default_rng(5)
    prompts = [[2, *rng.integers(3, 40, 3).tolist()] for _ in range(12)]

    def rewards(prompt: list[int]) -> list[float]:
        return [reward(tokens) for tokens, _ in draw(policy, prompt, 24, temperature=1.0, max_tokens=8)]

    torch.manual_seed(9)
    after = [rewards(prompt) for prompt in prompts]
    with policy.disable_adapter():
        before, again = ([rewards(prompt) for prompt in prompts] for _ in range(2))
    assert np.mean([*map(win_fraction, again, before)]) == pytest.approx(0.5, abs=0.06)
    # Brought back to best-of-n's KL on the held-out prompts of a world without much to learn from another's prompts.
    assert np.mean([*map(win_fraction, after, before)]) > 0.6


@pytest.mark.parametrize("method", ["lora", "full"])
def test_killed_and_resumed_is_the_same_run(base: Path, snapshot: Snapshot, tmp_path: Path, method: str) -> None:
    """SIGKILL just after step 10 is reported: the run goes on from the checkpoint of step 8."""
    config = settings(base, method=method, lora_dropout=0.1, weight_decay=0.01)
    straight = train(config, snapshot, tmp_path / "straight", base=base, progress=False)
    killed = tmp_path / "killed"
    arguments = as_arguments(base, snapshot, killed, config)
    process = subprocess.run([sys.executable, "-c", KILLED, arguments], env=environment(), check=False)
    assert process.returncode == -signal.SIGKILL
    assert sorted(path.name for path in (killed / "checkpoints").iterdir()) == ["step-00000004", "step-00000008"]
    assert read_metrics(killed)[-1]["step"] == 10

    resumed = train(config, snapshot, killed, base=base, progress=False)
    assert_same(weights(killed), weights(straight.run_dir))
    names = ("step", "loss", "margin", "gradient_norm", "learning_rate", "held_out_loss")
    reported = [[{k: line.get(k) for k in names} for line in read_metrics(r.run_dir)] for r in (straight, resumed)]
    assert reported[0] == reported[1]


def environment(**more: str) -> dict[str, str]:
    here = Path(__file__).parent
    return {**os.environ, "PYTHONPATH": str(here.parent), "OMP_NUM_THREADS": "1", **more}


def as_arguments(base: Path, snapshot: Snapshot, run_dir: Path, config: Settings) -> str:
    paths = {"base": str(base), "snapshot": str(snapshot.path), "run": str(run_dir)}
    return json.dumps(paths | {"train": config.train.model_dump()})


START = """
import json, os, signal, sys
from pathlib import Path
from bonbon.pairs.snapshot import read_snapshot
from bonbon.settings import load_settings
from trainer.training.metrics import MetricsLog
from trainer.training.train import train

arguments = json.loads(sys.argv[1])

def run():
    settings = load_settings(model=arguments["base"], train=arguments["train"])
    snapshot = read_snapshot(Path(arguments["snapshot"]))
    train(settings, snapshot, Path(arguments["run"]), base=Path(arguments["base"]), progress=False)
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
    """Each of two processes takes half of every batch; the result is that of one process, up to rounding."""
    alone = train(settings(base), snapshot, tmp_path / "alone", base=base, progress=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = as_arguments(base, snapshot, tmp_path / "two", settings(base, micro_batch_size=8))
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
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert_same(weights(tmp_path / "two"), weights(alone.run_dir), rtol=1e-3, atol=1e-5)


def test_accumulated_micro_batches_are_one_batch(base: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    runs = [
        train(settings(base, micro_batch_size=size), snapshot, tmp_path / str(size), base=base, progress=False)
        for size in (4, 16)
    ]
    assert_same(weights(runs[0].run_dir), weights(runs[1].run_dir), rtol=1e-3, atol=1e-5)


def test_a_partial_checkpoint_is_never_picked_up(base: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    partial = run_dir / "checkpoints" / "step-00000012.partial"
    partial.mkdir(parents=True)
    (partial / "weights.safetensors").write_bytes(b"cut short")
    result = train(settings(base), snapshot, run_dir, base=base, progress=False)
    assert [line["step"] for line in read_metrics(run_dir) if "loss" in line] == list(range(1, 21))
    assert not partial.exists()
    assert result.output.is_dir()


def test_a_finished_run_is_kept_and_another_is_refused(base: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    config = settings(base, epochs=1)
    first = train(config, snapshot, tmp_path / "run", base=base, progress=False)
    time = (first.output / "adapter_model.safetensors").stat().st_mtime_ns
    again = train(settings(base, epochs=1, micro_batch_size=8), snapshot, tmp_path / "run", base=base, progress=False)
    assert again == first
    assert (first.output / "adapter_model.safetensors").stat().st_mtime_ns == time
    with pytest.raises(UserError, match=r"train\.learning_rate 0\.003 -> 0\.1"):
        train(settings(base, epochs=1, learning_rate=0.1), snapshot, tmp_path / "run", base=base, progress=False)


def test_reference_logprobs_are_computed_once(base: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    """What is cached is used: shifting it in the file shifts every margin of the run that reads it."""
    config = settings(base, epochs=1)
    train(config, snapshot, tmp_path / "run", base=base, progress=False)
    cached = load_file(tmp_path / "run" / "reference.safetensors")["logprobs"]
    logged = Groups(snapshot.path / "groups.parquet").logprobs
    np.testing.assert_allclose(cached.numpy(), logged, atol=1e-4)

    groups = Groups(snapshot.groups_file)
    shifted = cached.clone()
    shifted[groups.starts + groups.n - 1] -= 0.01
    for run_dir, key, margin in (
        ("same", f"{snapshot.hash} {snapshot.base_digest}", 0.01),
        ("other", "another snapshot", 0.0),
    ):
        (tmp_path / run_dir).mkdir()
        save_file({"logprobs": shifted}, tmp_path / run_dir / "reference.safetensors", metadata={"key": key})
        train(config, snapshot, tmp_path / run_dir, base=base, progress=False)
        assert read_metrics(tmp_path / run_dir)[1]["margin"] == pytest.approx(margin, abs=1e-4)


def test_a_policy_that_went_too_far_is_taken_back_to_the_kl_it_is_to_have(
    base: Path, snapshot: Snapshot, tmp_path: Path
) -> None:
    config = settings(base, learning_rate=2e-2, kl=0.3)
    result = train(config, snapshot, tmp_path / "run", base=base, progress=False)
    assert 0 < result.metrics["landing_share"] < 1
    assert result.metrics["landing_kl"] == pytest.approx(0.3, rel=0.05)
    policy: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), result.output).eval()
    rng = np.random.default_rng(5)
    prompts = [(2, *rng.integers(3, 40, 3).tolist()) for _ in range(100)]
    torch.manual_seed(3)
    completions = [
        Completion(prompt, tuple(tokens))
        for prompt in prompts
        for tokens, _ in draw(policy, list(prompt), 4, temperature=1.0, max_tokens=8)
    ]
    files = [
        VersionFiles("base", VersionKind.BASE, base),
        VersionFiles("new", VersionKind.ADAPTER, result.output),
    ]
    found = KL(files, temperature=1.0, precision="no")("new", ["base"], completions, lambda _: None)["base"]
    # Other prompts and other draws: the KL by prompt varies by about as much as its mean.
    assert np.mean([one.rao_blackwell for one in found]) == pytest.approx(0.3, rel=0.3)


@pytest.mark.parametrize("changes", [{}, {"loss": "sft"}, {"alpha": 0.8}], ids=["near enough", "sft", "by hand"])
def test_what_did_not_go_too_far_or_was_asked_for_is_left_alone(
    base: Path, snapshot: Snapshot, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = settings(base, epochs=1, kl=1000.0, **changes)
    metrics = train(config, snapshot, tmp_path / "run", base=base, progress=False).metrics
    assert metrics.get("landing_share", 1.0) == 1.0
    assert ("landing_kl" in metrics) is not bool(changes)


def test_a_second_round_starts_from_the_first_and_measures_against_it(
    base: Path, snapshot: Snapshot, tmp_path: Path
) -> None:
    first = train(settings(base), snapshot, tmp_path / "first", base=base, progress=False)
    champion = version("tiny-bonbon-0001", VersionKind.ADAPTER, first.output)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), first.output)
    again = make_snapshot(tmp_path / "again", base, model=model, version=champion.name, seed=1)
    second = train(settings(base), again, tmp_path / "second", base=base, reference=champion, progress=False)
    lines = read_metrics(second.run_dir)
    assert lines[0]["sampler_gap"] < 1e-4
    assert lines[1]["margin"] == pytest.approx(0, abs=1e-4)
    assert any(
        not torch.equal(weights(first.run_dir)[name], tensor) for name, tensor in weights(second.run_dir).items()
    )
    assert json.loads((second.run_dir / "run.json").read_text())["reference"]["name"] == champion.name

    with pytest.raises(UserError, match="not those that were registered"):
        train(settings(base), again, tmp_path / "wrong", base=base, reference=replace(champion, digest="0" * 64))
    with pytest.raises(UserError, match="the reference is tiny-bonbon-0001"):
        train(settings(base), snapshot, tmp_path / "wrong", base=base, reference=champion, progress=False)
    with pytest.raises(UserError, match=r"max_sampler_gap"):
        train(settings(base), again, tmp_path / "wrong", base=base, progress=False)


def test_full_training_gives_a_whole_model(base: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    result = train(settings(base, method="full", epochs=1), snapshot, tmp_path / "run", base=base, progress=False)
    assert result.kind is VersionKind.FULL
    files = {file.name for file in result.output.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= files
    AutoModelForCausalLM.from_pretrained(result.output)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"n": 1}, "group 0+ has fewer than two candidates"),
        ({"n": 3}, "group 0+ has not the candidates that its n says"),
        ({"rewards": [0.0] * 4}, "group 0+ is tied"),
        ({"rewards": [0.0, 2.0, 1.0, 3.0]}, "not in the order of their rewards"),
        ({"rewards": [0.0, 1.0, 2.0, float("nan")]}, "reward that is not finite"),
        ({"logprobs": [-1.0, -1.0, -1.0, float("-inf")]}, "log-probability that is not finite"),
        ({"temperature": 0.0}, "drawn greedily"),
        ({"prompt_token_ids": []}, "empty prompt"),
    ],
)
def test_unclean_pairs_are_refused(snapshot: Snapshot, tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    table = pq.read_table(snapshot.groups_file)
    rows = table.to_pylist()
    rows[0] |= changes
    pq.write_table(pa.Table.from_pylist(rows, table.schema), tmp_path / "groups.parquet")
    with pytest.raises(UserError, match=rf"1 of the snapshot's 96 groups .* {match}"):
        Groups(tmp_path / "groups.parquet")


def test_ranks_are_pooled_where_a_prompt_was_asked_often(base: Path, tmp_path: Path) -> None:
    often, once = (2, 5, 6), (2, 7)
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    torch.manual_seed(0)
    sampling = Sampling(max_tokens=8)
    drawn = [make_group(model, "tiny", i, often if i % 3 else once, 4, sampling) for i in range(12)]
    snapshot = asyncio.run(snapshot_of(drawn, tmp_path / "snapshot", base, "tiny"))
    pooled, alone = Groups(snapshot.groups_file, pool=True), Groups(snapshot.groups_file)
    rewards = np.concatenate([sorted(c.reward or 0 for c in group.candidates) for group in drawn])
    asked = np.repeat([group.prompt_token_ids == often for group in drawn], 4)
    assert set(pooled.ranked[asked]) == {32}
    np.testing.assert_array_equal(pooled.ranks[asked], scipy.stats.rankdata(rewards[asked]))
    assert set(pooled.ranked[~asked]) == {4}
    np.testing.assert_array_equal(pooled.ranks[~asked], alone.ranks[~asked])
    assert set(alone.ranked) == {4}


def test_the_rejected_is_drawn_from_all_below_the_best(snapshot: Snapshot) -> None:
    groups = Groups(snapshot.groups_file)
    rows = groups.train
    drawn = np.stack([places(groups, rows, "random", seed=1, step=step) for step in range(300)])
    assert (drawn[:, :, 0] == groups.n[rows] - 1).all()
    counts = np.bincount(drawn[:, groups.below[rows] == 3, 1].ravel(), minlength=4)
    assert counts[3] == 0
    assert scipy.stats.chisquare(counts[:3]).pvalue > 1e-4
    np.testing.assert_array_equal(drawn[7], places(groups, rows, "random", seed=1, step=7))
    assert not places(groups, rows, "worst", seed=1, step=7)[:, 1].any()


def test_a_changed_snapshot_is_refused(base: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    shutil.copytree(snapshot.path, tmp_path / "changed")
    table = pq.read_table(snapshot.groups_file)
    pq.write_table(table.slice(1), tmp_path / "changed" / "groups.parquet")
    with pytest.raises(UserError, match="is not what"):
        train(settings(base), replace(snapshot, path=tmp_path / "changed"), tmp_path / "run", base=base)
    with pytest.raises(UserError, match="another snapshot"):
        train(settings(base), replace(snapshot, hash="0" * 64), tmp_path / "run", base=base)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"min_pairs": 78}, r"77 clean pairs .* fewer than train\.min_pairs = 78"),
        ({"micro_batch_size": 5}, r"batch_size = 16 is no multiple of train\.micro_batch_size = 5"),
        ({"batch_size": 96, "micro_batch_size": 96}, r"batch_size = 96 is more than the snapshot's 77 pairs"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    base: Path, snapshot: Snapshot, tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(UserError, match=match):
        train(settings(base, **changes), snapshot, tmp_path / "run", base=base, progress=False)


def test_another_base_is_refused(snapshot: Snapshot, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="train on the model that answered"):
        train(settings(other), snapshot, tmp_path / "run", base=other, progress=False)


def test_pairs_of_another_sampler_are_refused(base: Path, tmp_path: Path) -> None:
    """Whatever the groups say of themselves: the log-probabilities they were logged with tell."""
    stranger = AutoModelForCausalLM.from_pretrained(make_base(tmp_path / "other", seed=1))
    snapshot = make_snapshot(tmp_path / "snapshot", base, model=stranger)
    with pytest.raises(UserError, match=r"of 384 candidates were logged with log-probabilities more than"):
        train(settings(base), snapshot, tmp_path / "run", base=base, progress=False)
    assert not (tmp_path / "run" / "output").exists()


def test_divergence_stops_the_run_and_keeps_the_last_good_checkpoint(
    base: Path, snapshot: Snapshot, tmp_path: Path
) -> None:
    config = settings(base, learning_rate=1e18, max_grad_norm=1e9, checkpoint_every=1, warmup_fraction=0)
    with pytest.raises(BonbonError, match=r"not finite|is nan|is inf"):
        train(config, snapshot, tmp_path / "run", base=base, progress=False)
    assert not (tmp_path / "run" / "output").exists()
    for checkpoint in (tmp_path / "run" / "checkpoints").glob("*/*.safetensors"):
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(checkpoint).values())


def test_an_epoch_is_a_function_of_seed_and_number() -> None:
    rows, lengths = np.arange(103), np.random.default_rng(0).integers(1, 50, 103)
    first = epoch_batches(rows, lengths, 8, seed=0, epoch=0)
    again = epoch_batches(rows, lengths, 8, seed=0, epoch=0)
    later = epoch_batches(rows, lengths, 8, seed=0, epoch=1)
    assert [batch.tolist() for batch in first] == [batch.tolist() for batch in again]
    assert [batch.tolist() for batch in first] != [batch.tolist() for batch in later]
    for batches in (first, later):
        taken = np.concatenate(batches)
        assert len(batches) == 12
        assert len(set(taken.tolist())) == 96
    # Bucketing: lengths vary less inside batches than over all.
    assert np.mean([lengths[batch].std() for batch in first]) < lengths.std() / 3


def test_passes_that_do_not_train_take_every_row_once() -> None:
    rows, lengths = np.arange(20), np.arange(20)[::-1]
    batches = length_batches(rows, lengths, 8)
    assert sorted(np.concatenate(batches).tolist()) == list(range(20))
    assert [len(batch) for batch in batches] == [8, 8, 4]
    assert batches[0].tolist() == list(range(8))


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    factors = [learning_rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[:11] == pytest.approx([i / 11 for i in range(1, 11)] + [1.0])
    assert np.diff(factors[10:]) == pytest.approx(-1 / 90)
    assert factors[-1] == pytest.approx(1 / 90)
    assert learning_rate_factor(0, 1, 0) == 1


def test_the_default_learning_rate_falls_with_width() -> None:
    assert default_learning_rate("lora", 2000) == pytest.approx(5e-4)
    assert default_learning_rate("lora", 4096) == pytest.approx(2.86e-4, rel=1e-2)
    assert default_learning_rate("full", 2000) == pytest.approx(5e-5)


def test_metrics_cut_short_by_a_crash_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]
