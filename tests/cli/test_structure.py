"""The structure of the folders: few files in each, unique names, no import cycles, and commands that start fast.

`make lint` checks the import rules of pyproject.toml, too; this is so that whoever runs the tests alone learns of it.
"""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGES = ("bonbon", "service", "trainer")
WIDEST = 16
"""Modules in one folder, beside its `__init__.py`."""
HEAVY = {"torch", "transformers", "peft", "vllm"}
LIGHT_ROOTS = (
    "bonbon",
    "bonbon.cli.main",
    "bonbon.cli.demo_cli",
    "bonbon.cli.models_cli",
    "bonbon.cli.pairs_cli",
    "bonbon.engines.remote.remote_engine",
    "bonbon.rewards.remote.vllm_pooling",
    "service.app",
    "service.serve_cli",
    "trainer.kubernetes.cluster",
    "trainer.kubernetes.work",
    "trainer.trainer_cli",
)


def modules(package: str) -> list[Path]:
    """The modules of `package` but for the numbered migrations."""
    found = [path for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py"]
    return [path for path in found if "versions" not in path.parts]


@pytest.mark.parametrize("package", [*PACKAGES, "tests"])
def test_no_folder_is_too_wide_to_read(package: str) -> None:
    widths = Counter(path.parent for path in modules(package))
    assert {str(folder): width for folder, width in widths.items() if width > WIDEST} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_two_modules_of_a_package_have_the_same_name(package: str) -> None:
    names = Counter(path.stem for path in modules(package))
    assert [name for name, count in names.items() if count > 1] == []


def test_the_import_rules_hold() -> None:
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("root", LIGHT_ROOTS)
def test_what_must_start_without_the_heavy_libraries_does_not_load_them(root: str) -> None:
    program = f"import sys, {root}; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
