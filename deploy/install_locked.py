"""Installs bonbon with every package by its hash: `python install_locked.py '.[train,postgres]' [PIP OPTION ...]`.

pip says which packages that takes; those that requirements.lock has are installed from it, and then what is left:
bonbon itself, and torch with what its build brings, by the versions of constraints.txt.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
BY_VERSION = re.compile(r"(bonbon-serve|torch|triton|setuptools|(nvidia|cuda)-.*)$")
"""What the lock does not have: docs/decisions/0008-locked-with-hashes.md."""


def locked(names: set[str], lock: str) -> str:
    """The part of `lock` that has packages of these names. Raises SystemExit for one that it lacks and should have."""
    blocks = {block.partition("==")[0]: block for block in re.split(r"\n(?=\S)", lock.strip())}
    wanted = {re.sub(r"[-_.]+", "-", name).lower() for name in names}
    if missing := sorted(name for name in wanted - blocks.keys() if not BY_VERSION.match(name)):
        raise SystemExit(f"requirements.lock lacks {', '.join(missing)}: make lock")
    return "\n".join(blocks[name] for name in sorted(wanted & blocks.keys())) + "\n"


def main(project: str, *options: str) -> None:
    install = [*PIP, *options, "--constraint", "constraints.txt", project]
    with TemporaryDirectory() as directory:
        report, part = Path(directory) / "report.json", Path(directory) / "requirements.lock"
        subprocess.run([*install, "--dry-run", "--quiet", "--report", report], check=True)
        names = {item["metadata"]["name"] for item in json.loads(report.read_text())["install"]}
        part.write_text(locked(names, Path("requirements.lock").read_text()))
        subprocess.run([*PIP, "--no-deps", "--require-hashes", "--requirement", part], check=True)
    subprocess.run(install, check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
