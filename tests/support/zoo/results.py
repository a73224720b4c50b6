"""Stores the zoo's results in files, with which every run is compared and which docs/models.md shows.

`ZOO_RECORD=1` in the environment writes the files again, which `make zoo` does.
"""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path

Result = Mapping[str, float | str]
"""The largest difference by stage, or the message of a refusal under `refused`."""

FILES = Path(__file__).parent / "results"
REFUSED = "refused"


def recorded(table: str) -> dict[str, Result]:
    """Returns the results of the table `embedded`, `vllm` or `rewards`, by name."""
    path = FILES / f"{table}.json"
    found: dict[str, Result] = json.loads(path.read_text()) if path.exists() else {}
    return found


def recording() -> bool:
    """Returns whether the files are being written again."""
    return bool(os.environ.get("ZOO_RECORD"))


def check(table: str, name: str, result: Result, *, left_out: Collection[str] = ()) -> None:
    """Fails when the result differs from the recorded one, apart from the size of a difference.

    Args:
        left_out: Stages that were not run, whose recorded results are kept.
    """
    if recording():
        _write(table, name, result)
    known = recorded(table).get(name)
    assert known is not None, f"{table}.json has no result for {name}: make zoo"
    known = {stage: value for stage, value in known.items() if stage not in left_out}
    assert _outline(result) == _outline(known), f"{table}.json has another result for {name}: make zoo"


def refusal(message: object, directory: Path) -> Result:
    """Returns the result of a refusal; `directory` is removed from its message."""
    return {REFUSED: str(message).replace(str(directory), "DIRECTORY")}


def _write(table: str, name: str, result: Result) -> None:
    results = recorded(table) | {name: {stage: _rounded(value) for stage, value in result.items()}}
    FILES.mkdir(exist_ok=True)
    (FILES / f"{table}.json").write_text(json.dumps(dict(sorted(results.items())), indent=1, ensure_ascii=False) + "\n")


def _rounded(value: float | str) -> float | str:
    return value if isinstance(value, str) else float(f"{value:.0e}")


def _outline(result: Result) -> Mapping[str, object]:
    return {stage: value if isinstance(value, str) else "agrees" for stage, value in result.items()}
