"""The workflows of CI and releases, and the notes that a release gets."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from bonbon.extras import DISTRIBUTION
from deploy.release_notes import release_notes
from tests.support.paths import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
CHANGELOG = """# Changelog

## Unreleased

- Not yet.

## 0.2.0 (2 May 2027)

- New.
- Better.

## 0.1.0

- First.
"""


def test_workflows_are_valid() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    subprocess.run([*command, *map(str, WORKFLOWS)], check=True)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit(workflow: Path) -> None:
    for used in re.findall(r"uses: (.+)", workflow.read_text()):
        assert used.startswith("./") or re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used), used


def test_ci_runs_the_command_of_the_readme() -> None:
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]["steps"]
    assert "make test" in [step.get("run") for step in steps]
    assert re.search(r"^make test ", (ROOT / "README.md").read_text(), re.MULTILINE)


def test_every_image_that_compose_builds_is_released() -> None:
    matrix = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]["images"]["strategy"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"].values()
    built = {(service["image"], service["build"]["target"]) for service in compose if "build" in service}
    assert {(entry["image"], entry["target"]) for entry in matrix["matrix"]["include"]} == built


def test_the_release_is_of_the_distribution_that_hints_name() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"] == DISTRIBUTION
    assert f"a trusted publisher of `{DISTRIBUTION}` on PyPI" in (ROOT / "CONTRIBUTING.md").read_text()


def test_a_release_gets_the_notes_of_its_version() -> None:
    assert release_notes("v0.2.0", "0.2.0", CHANGELOG) == "- New.\n- Better.\n"
    assert release_notes("v0.1.0", "0.1.0", CHANGELOG) == "- First.\n"


@pytest.mark.parametrize(
    ("tag", "version", "message"),
    [
        ("v0.2.0", "0.3.0", r"the tag is v0\.2\.0, and bonbon/__init__\.py says 0\.3\.0"),
        ("v0.3.0", "0.3.0", r"CHANGELOG\.md has no section '## 0\.3\.0'"),
        ("v0.2", "0.2", r"CHANGELOG\.md has no section '## 0\.2'"),
    ],
)
def test_a_tag_that_nothing_stands_behind_is_no_release(tag: str, version: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        release_notes(tag, version, CHANGELOG)
