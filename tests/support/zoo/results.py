"""What came of the zoo: kept in files, compared with every run, and shown in docs/models.md.

`ZOO_RECORD=1` in the environment writes the files anew: `make zoo` sets it.
"""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path

Result = Mapping[str, float | str]
"""By stage, the largest difference found; or `refused`, with what the refusal said."""

FILES = Path(__file__).parent / "results"
REFUSED = "refused"


def recorded(table: str) -> dict[str, Result]:
    """The results of a table: `embedded`, `vllm` or `rewards`, by name."""
    path = FILES / f"{table}.json"
    found: dict[str, Result] = json.loads(path.read_text()) if path.exists() else {}
    return found


def recording() -> bool:
    """Whether the files are written anew."""
    return bool(os.environ.get("ZOO_RECORD"))


def check(table: str, name: str, result: Result, *, left_out: Collection[str] = ()) -> None:
    """Fail where the result is another one than is recorded; how large a difference was may change.

    Args:
        left_out: stages that were not run, and whose results stay as they are recorded.
    """
    if recording():
        _write(table, name, result)
    known = recorded(table).get(name)
    assert known is not None, f"{table}.json has no result for {name}: make zoo"
    known = {stage: value for stage, value in known.items() if stage not in left_out}
    assert _outline(result) == _outline(known), f"{table}.json has another result for {name}: make zoo"


def refusal(message: object, directory: Path) -> Result:
    """The result where something is refused; `directory` is left out of what it said."""
    return {REFUSED: str(message).replace(str(directory), "DIRECTORY")}


def _write(table: str, name: str, result: Result) -> None:
    results = recorded(table) | {name: {stage: _rounded(value) for stage, value in result.items()}}
    FILES.mkdir(exist_ok=True)
    (FILES / f"{table}.json").write_text(json.dumps(dict(sorted(results.items())), indent=1, ensure_ascii=False) + "\n")


def _rounded(value: float | str) -> float | str:
    return value if isinstance(value, str) else float(f"{value:.0e}")


def _outline(result: Result) -> Mapping[str, object]:
    return {stage: value if isinstance(value, str) else "agrees" for stage, value in result.items()}
