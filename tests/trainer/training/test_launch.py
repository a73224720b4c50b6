"""Tests of training in several processes, started by torchrun, on gloo."""

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from bonbon.errors import BonbonError, UserError
from bonbon.pairs.reading.snapshot import Fractions, Snapshot
from bonbon.registry.leases import acquire
from tests.support.data.loop_world import answer, make_settings
from tests.support.data.sampled_groups import make_base, make_snapshot
from tests.support.zoo.policies import POLICIES
from tests.support.zoo.training import weights_in
from tests.trainer.training.test_train import as_arguments, assert_same, environment, settings, train, weights
from trainer.context import open_context
from trainer.loop import LEASE, Loop
from trainer.training.launch import run_training
from trainer.training.metrics import read_metrics
from trainer.training.train import TrainingResult


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with tied weights, because sharding must keep embedding and output layer one tensor."""
    return make_base(tmp_path_factory.mktemp("models") / "tiny", tied=True)


@pytest.fixture(scope="module")
def snapshot(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """77 groups to train on and none for validation, so that every run has the same number of steps."""
    directory, fractions = tmp_path_factory.mktemp("snapshots") / "first", Fractions(test=1 / 6, validation=0)
    return make_snapshot(directory, base, temperatures=(1.0, 0.8), ns=(4, 3), fractions=fractions)


@pytest.fixture(scope="module")
def alone(base: Path, snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The runs of a single process, by method."""
    torch.set_num_threads(1)
    runs = tmp_path_factory.mktemp("alone")
    for method in ("lora", "full"):
        train(settings(base, **RATES[method]), snapshot, runs / method, base)
    return {method: runs / method for method in ("lora", "full")}


RATES: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "learning_rate": 1e-3},
    "full": {"method": "full", "learning_rate": 1e-4},
}


def launch(base: Path, snapshot: Snapshot, run_dir: Path, **config: Any) -> TrainingResult:
    run_dir.mkdir(exist_ok=True)
    work = run_training(
        settings(base, **{"micro_batch_size": 4, "processes": 2} | config).model_copy(update={"n": 4}),
        snapshot,
        run_dir,
        base=base,
        start=None,
        draws=False,
        progress=False,
    )
    return asyncio.run(work)


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run_dir) if "loss" in line]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_sharded_over_two_processes_is_one_run(
    base: Path, snapshot: Snapshot, alone: dict[str, Path], tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With FSDP2, every step's loss and the weights equal those of one process within 1e-4.

    The working directory has modules of the names that the workers' own packages have.
    """
    for name in ("bonbon", "service", "trainer"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('this is the user's own module')\n")
    monkeypatch.chdir(tmp_path)
    result = launch(base, snapshot, tmp_path / "two", sharding="full", **RATES[method])
    assert (result.steps, result.groups) == (18, 77)
    np.testing.assert_allclose(losses(result.run_dir), losses(alone[method]), rtol=1e-4)
    assert_same(weights(result.run_dir), weights(alone[method]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("method", "sharding"), [("lora", "none"), ("full", "full")])
def test_a_model_that_reads_more_than_text_is_trained_in_two_processes(
    tmp_path: Path, method: str, sharding: str
) -> None:
    """Its vision tower gets no gradient, and it names layer classes that it does not contain."""
    base = POLICIES["Gemma 3, multimodal"].save(tmp_path / "base")
    snapshot = make_snapshot(tmp_path / "snapshot", base, groups=8, fractions=Fractions(test=0, validation=0))
    config = RATES[method] | {"epochs": 1, "batch_size": 8, "min_pairs": 1}
    result = launch(base, snapshot, tmp_path / "two", sharding=sharding, **config)
    assert result.steps == 1
    train(settings(base, micro_batch_size=4, **config), snapshot, tmp_path / "one", base)
    assert_same(weights(tmp_path / "two"), weights(tmp_path / "one"), rtol=1e-3, atol=1e-5)
    if method == "full":
        assert weights_in(result.output) == weights_in(base)


SHARES = """
import os, torch
from bonbon.settings import TrainSettings
from trainer.training.accelerator import make_accelerator
accelerator = make_accelerator(TrainSettings(sharding="full", precision="no"))
from transformers import LlamaConfig, LlamaForCausalLM
model = LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                                     num_key_value_heads=2, vocab_size=40))
whole = sum(parameter.numel() for parameter in model.parameters())
model, _ = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
share = sum(parameter.to_local().numel() for parameter in model.parameters()) / whole
os.write(1, f"{share}\\n".encode())  # in one piece: the two processes write to one pipe
torch.distributed.destroy_process_group()
"""


def test_sharded_means_that_each_process_holds_its_share(tmp_path: Path) -> None:
    """accelerate silently ignores FSDP on CPUs, and then every process would hold the whole model."""
    script = tmp_path / "shares.py"
    script.write_text(SHARES)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(run, env=environment(), check=True, capture_output=True, text=True)
    assert [float(line) for line in done.stdout.split()] == pytest.approx([0.5, 0.5], abs=0.01)


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_resumed_by_another_number_of_processes_is_the_same_run(
    base: Path, snapshot: Snapshot, alone: dict[str, Path], tmp_path: Path, first: int, then: int
) -> None:
    """Interrupted before step 12, the run continues from the checkpoint of step 8 with `then` processes."""
    run_dir = tmp_path / "run"
    launch(base, snapshot, run_dir, processes=first, sharding="full", keep_checkpoints=9)
    for step in (12, 16, 18):
        shutil.rmtree(run_dir / "checkpoints" / "offline" / f"step-{step:08d}")
    (run_dir / "output").rename(tmp_path / "before")
    launch(base, snapshot, run_dir, processes=then, sharding="full")
    assert [line["step"] for line in read_metrics(run_dir) if "loss" in line] == list(range(1, 19))
    np.testing.assert_allclose(losses(run_dir), losses(alone["lora"]), rtol=1e-4)
    assert_same(weights(run_dir), weights(alone["lora"]), rtol=1e-3, atol=1e-5)


def test_a_number_of_processes_that_does_not_fit_is_refused(base: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    """The caller gets the error that the processes raised."""
    with pytest.raises(UserError, match=r"batch_size = 8 is not a multiple of train.micro_batch_size = 4 times 3 proc"):
        launch(base, snapshot, tmp_path / "run", processes=3)


def test_a_launcher_of_ones_own(base: Path, snapshot: Snapshot, alone: dict[str, Path], tmp_path: Path) -> None:
    """The launchers are accelerate launch, a missing command, and a command that does not train."""
    accelerate = Path(sys.executable).parent / "accelerate"
    command = f"{accelerate} launch" if accelerate.exists() else f"{sys.executable} -m accelerate.commands.launch"
    options = "--cpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    launch(base, snapshot, tmp_path / "run", launcher=f"{command} {options} --num_cpu_threads_per_process 1")
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(alone["lora"]), rtol=1e-4)
    with pytest.raises(UserError, match=r"train\.launcher = 'no-such-launcher -x' cannot be started"):
        launch(base, snapshot, tmp_path / "other", launcher="no-such-launcher -x")
    with pytest.raises(BonbonError, match="ended with status 1 and left no result"):
        launch(base, snapshot, tmp_path / "other", launcher="false")


OWNER = """
import asyncio, sys
import json
from pathlib import Path
from bonbon.pairs.reading.snapshot import read_snapshot
from bonbon.settings import load_settings
from trainer.training.launch import run_training

arguments = json.loads(sys.argv[1])
settings = load_settings(model=arguments["base"], train=arguments["train"])
run_dir = Path(arguments["run"])
run_dir.mkdir()
asyncio.run(run_training(settings, read_snapshot(Path(arguments["snapshot"])), run_dir, base=Path(arguments["base"]),
                         start=None, draws=False, progress=False))
"""


async def test_the_processes_end_with_the_one_that_started_them(base: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    """SIGKILL gives the starter no time to stop them, but they must not continue under the next holder of the lease."""
    config = settings(base, micro_batch_size=4, processes=2, epochs=500)
    arguments = as_arguments(base, snapshot, tmp_path / "run", config)
    owner = subprocess.Popen([sys.executable, "-c", OWNER, arguments], env=environment())
    async with asyncio.timeout(120):
        while not list((tmp_path / "run" / "checkpoints").glob("offline/step-????????")):
            assert owner.poll() is None
            await asyncio.sleep(0.05)
        workers = psutil.Process(owner.pid).children(recursive=True)
        assert len([worker for worker in workers if "trainer.training.worker" in worker.cmdline()]) == 3  # and torchrun
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        while any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers):
            await asyncio.sleep(0.05)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["snapshot"]["hash"] == snapshot.hash


async def test_the_loop_trains_in_two_processes_and_registers_once(tmp_path: Path) -> None:
    """Lease, database and registry belong to the process that launched the others."""
    config = {"processes": 2, "sharding": "full", "micro_batch_size": 8, "epochs": 1}
    settings = make_settings(make_base(tmp_path / "base"), tmp_path / "data", train=config)
    await answer(settings, 200)
    async with open_context(settings, progress=False) as context:
        version = await Loop(context).once()
        assert version is not None
        assert [v.name for v in await context.registry.list() if v.parent] == [version.name]
        assert (await context.registry.get(version.name)).training["settings"]["processes"] == 2
        await acquire(context.database, LEASE, "another", 1)  # it was given back


def test_one_of_several_started_processes_is_refused() -> None:
    """`torchrun -m bonbon train` would start several processes that each want the lease."""
    command = [sys.executable, "-m", "bonbon", "train"]
    done = subprocess.run(
        command, env=environment(RANK="0", WORLD_SIZE="2"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "this process is one of 2 that a launcher started: start bonbon once" in done.stderr
