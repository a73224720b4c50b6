"""Reads how far a round is from the files in its run directory."""

from pathlib import Path

PLAN, TRAINING, REGISTERED, FINISHED, FAILED = (
    f"{stage}.json" for stage in ("round", "training", "registered", "finished", "failed")
)
RUN = "run.json"
"""The file that identifies a training, which exists as soon as it has begun."""


def is_unfinished(run: Path) -> bool:
    """Returns whether stages are left to do for the round in `run`."""
    return not (run / FINISHED).exists() and not (run / FAILED).exists()


def unfinished_rounds(runs: Path) -> list[Path]:
    """The directories in `runs` whose round was begun and neither finished nor closed, the oldest first."""
    return [run for run in sorted(path.parent for path in runs.glob(f"round-*/{PLAN}")) if is_unfinished(run)]
