"""Print what CHANGELOG.md says about the version that a tag names: `python deploy/release_notes.py v0.2.0`."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def release_notes(tag: str, version: str, changelog: str) -> str:
    """The section of `tag` in the text of a changelog.

    Args:
        tag: `v` and the version.
        version: what `bonbon.__version__` says.

    Raises:
        SystemExit: the tag does not name the version, or the changelog says nothing about it.
    """
    if tag != f"v{version}":
        raise SystemExit(f"the tag is {tag}, and bonbon/__init__.py says {version}: change one of them")
    section = re.search(
        rf"^## {re.escape(version)}(?![\w.])[^\n]*\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL
    )
    if section is None or not section[1].strip():
        raise SystemExit(f"CHANGELOG.md has no section '## {version}': rename 'Unreleased' and begin a new one")
    return section[1].strip() + "\n"


if __name__ == "__main__":
    (said,) = re.findall(r'^__version__ = "(.+)"$', (ROOT / "bonbon/__init__.py").read_text(), re.MULTILINE)
    print(release_notes(sys.argv[1], said, (ROOT / "CHANGELOG.md").read_text()), end="")
