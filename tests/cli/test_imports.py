"""The import rules, and that the checker of the rules sees what breaks them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.import_rules import FORBIDDEN, HEAVY, LIGHT_ROOTS, violations
from tests.support.paths import ROOT


def test_the_source_tree_keeps_the_rules() -> None:
    assert violations(ROOT) == []


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The source tree, to plant violations in."""
    for package in FORBIDDEN:
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__")
        )
    return tmp_path


def plant(root: Path, file: str, line: str) -> list[str]:
    path = root / file
    path.write_text(path.read_text() + "\n\n" + line + "\n")
    return violations(root)


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("bonbon/settings.py", "import service.app", "bonbon must not import service.app"),
        ("bonbon/prompt.py", "from trainer.training import train", "bonbon must not import trainer.training.train"),
        ("service/answering/routing.py", "import trainer", "service must not import trainer"),
        ("trainer/loop.py", "def f():\n    import service.lifecycle.swap", "trainer must not import service.lifecycle"),
        ("bonbon/ids.py", "import torch", "bonbon loads torch by way of bonbon -> "),
        ("service/lifecycle/fallback.py", "from transformers import pipeline", "service.app loads transformers"),
        ("bonbon/errors.py", "try:\n    import vllm\nexcept ImportError:\n    ...", "trainer.trainer_cli loads vllm"),
        ("service/lifecycle/audit.py", "class Eager:\n    import peft.utils", "service.app loads peft.utils"),
        ("service/routes/__init__.py", "from ...bonbon import settings\nimport torch", "service.app loads torch"),
    ],
)  # fmt: skip
def test_a_planted_violation_is_found(copy: Path, file: str, line: str, message: str) -> None:
    assert violations(copy) == []
    assert any(message in found for found in plant(copy, file, line))


@pytest.mark.parametrize(
    "line",
    [
        "def late():\n    import torch",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
    ],
)
def test_a_heavy_library_may_come_late_or_for_its_types(copy: Path, line: str) -> None:
    assert plant(copy, "bonbon/ids.py", line) == []


def test_relative_imports_are_resolved(copy: Path) -> None:
    (copy / "bonbon" / "heavy.py").write_text("import torch\n")
    found = plant(copy, "bonbon/engines/__init__.py", "from .. import heavy")
    assert any("service.app loads torch by way of" in item and item.endswith("bonbon.heavy") for item in found)


def test_nothing_heavy_is_loaded_by_what_must_start_without_it() -> None:
    program = f"import sys\nfor name in {LIGHT_ROOTS!r}:\n    __import__(name) if name != 'bonbon.__main__' else None\n"
    program += f"print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
