"""An experiment consists of cells. A cell is a function call whose result is one JSON file, computed once."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bonbon import __version__
from bonbon.progress import bar
from trainer.result_files import read_json, write_json

Row = dict[str, Any]
"""A cell's arguments and figures, by name, and the `code` that computed them."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A call of the module-level function `run`, with arguments and figures in JSON types. `name` is the file's
    name."""

    name: str
    run: Callable[..., dict[str, Any]]
    arguments: dict[str, Any]

    def read(self, directory: Path) -> Row | None:
        """Returns the row, or None when the figures do not exist or belong to other arguments."""
        found = read_json(self._file(directory))
        if found is None or found["arguments"] != json.loads(json.dumps(self.arguments)):
            return None
        return _row(found)

    def compute(self, directory: Path) -> None:
        file = self._file(directory)
        file.parent.mkdir(parents=True, exist_ok=True)
        code = code_version()  # before the figures, because the code may change meanwhile
        write_json(file, {"code": code, "arguments": self.arguments, "figures": self.run(**self.arguments)})

    def _file(self, directory: Path) -> Path:
        return directory / f"{self.name}.json"


def read_rows(directory: Path) -> list[Row]:
    """Returns the rows of all cells with figures in this directory, whatever their arguments."""
    found = [read_json(file) for file in sorted(directory.glob("*.json"))]
    return [_row(one) for one in found if one is not None]


def _row(file: dict[str, Any]) -> Row:
    return {**file["arguments"], **file["figures"], "code": file.get("code", "unknown")}


def code_version() -> str:
    """Returns the release and, in a clone of the repository, the commit, with `-dirty` if files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__} ({commit})"


def slug(name: str) -> str:
    """Returns the name in lower-case letters, digits and hyphens."""
    return "-".join(re.findall(r"[a-z0-9]+", name.lower()))


def compute_missing(cells: Sequence[Cell], directory: Path, *, processes: int, progress: bool = True) -> None:
    """Computes the cells that have no figures in `directory`, in order, in single-threaded processes.

    A cell that fails ends the run with its error; the figures of other cells are kept.
    """
    left = [cell for cell in cells if cell.read(directory) is None]
    with (
        bar("experiments", len(cells), done=len(cells) - len(left), show=progress, transient=False) as task,
        ProcessPoolExecutor(processes, get_context("spawn"), _one_thread) as pool,
    ):
        running = [pool.submit(cell.compute, directory) for cell in left]
        try:
            for done in as_completed(running):
                done.result()
                task.advance(1)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _one_thread() -> None:
    import torch

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
