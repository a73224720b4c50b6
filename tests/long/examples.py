"""The examples that need packages of their own, run for real: TRL trains, Jupyter executes. `make examples`."""

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from bonbon import BestOfN, Prompt, Sampling
from bonbon.demo.tiny_models import tiny_models
from bonbon.demo.world import requests
from bonbon.engines.embedded.embedded_engine import EmbeddedEngine
from bonbon.pairs.pair_log import PairLog
from bonbon.rewards import build_reward
from bonbon.settings import RewardSpec
from bonbon.store.database import open_database

EXAMPLES = Path(__file__).parents[2] / "examples"
GROUPS = 16


async def log_groups(directory: Path) -> None:
    """A pair log of the tiny models in a data directory."""
    models = tiny_models()
    best_of_n = BestOfN(
        EmbeddedEngine("tiny", models.policy), build_reward(RewardSpec(kind="classifier", target=str(models.reward)))
    )
    async with open_database(f"sqlite+aiosqlite:///{directory / 'bonbon.db'}") as database, best_of_n:
        log = PairLog(database)
        await log.start()
        for seed, text in enumerate(requests(seed=1, count=GROUPS)):
            sampling = Sampling(max_tokens=32, seed=seed)
            await log.append((await best_of_n(Prompt.user(text), 4, sampling=sampling)).group)
        await log.stop()


def train_with_trl(directory: Path) -> None:
    pairs, out = directory / "pairs.parquet", directory / "dpo"
    export = ["-m", "bonbon", "pairs", "export", "--format", "parquet", str(pairs), "--data-dir", str(directory)]
    subprocess.run([sys.executable, *export], check=True)
    base = tiny_models().policy
    subprocess.run([sys.executable, str(EXAMPLES / "trl_dpo.py"), str(pairs), str(base), str(out)], check=True)
    serve = [str(EXAMPLES / "serve_elsewhere.py"), str(base), str(out), "My lamp arrived broken."]
    subprocess.run([sys.executable, *serve], check=True)


def execute_notebook() -> None:
    notebook = nbformat.read(EXAMPLES / "curve.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    if pictures != 2:
        raise SystemExit(f"curve.ipynb has drawn {pictures} plots instead of 2")
    print("curve.ipynb: 2 plots drawn")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(log_groups(Path(temporary)))
        train_with_trl(Path(temporary))
    execute_notebook()
