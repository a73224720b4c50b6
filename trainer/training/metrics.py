"""Writes a training run's metrics as JSON Lines and for TensorBoard."""

import json
import math
import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class MetricsLog:
    """Appends to `metrics.jsonl` and `tensorboard/` in a run directory. Each line is in the file when `write` returns.

    Args:
        resume: The step at which the run continues. Later lines are dropped, because the run writes them again.
        enabled: False in all processes but the main one.
    """

    def __init__(self, run_dir: Path, *, resume: int = 0, enabled: bool = True) -> None:
        self.enabled = enabled
        if not enabled:
            return
        from torch.utils.tensorboard import SummaryWriter

        path = run_dir / "metrics.jsonl"
        kept = [entry for entry in read_metrics(run_dir) if entry["step"] <= resume] if resume else []
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
        partial.replace(path)
        with ExitStack() as stack:
            self._file = stack.enter_context(path.open("a"))
            self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resume + 1 if resume else 0)
            stack.callback(self._board.close)
            self._files = stack.pop_all()

    def write(self, step: int, epoch: float, **values: float) -> None:
        """Writes one line with `step`, `epoch` and the named values."""
        if not self.enabled:
            return
        self._file.write(json.dumps({"step": step, "epoch": round(epoch, 4), **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self.enabled:
            return
        with self._files:
            os.fsync(self._file.fileno())


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Returns the lines of `metrics.jsonl`, oldest first, without a last line that a crash cut short."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def latest_metrics(run_dir: Path) -> dict[str, float]:
    """Returns the last finite value reported under each name."""
    latest: dict[str, float] = {}
    for entry in read_metrics(run_dir):
        latest |= {name: value for name, value in entry.items() if math.isfinite(value)}
    return latest
