"""What the project is built from: every package by version and hash, from no particular place."""

import re

import pytest

from deploy.install_locked import locked
from tests.support.paths import ROOT

PIN = re.compile(r"([a-z0-9][a-z0-9._-]*)==(\S+)")
BY_VERSION_ONLY = {"torch"}
"""docs/decisions/0008-locked-with-hashes.md says why."""


def pins(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text().splitlines()
    return {match[1]: match[2] for line in lines if (match := PIN.match(line))}


def test_the_lock_and_the_constraints_are_of_the_same_versions() -> None:
    locked, constrained = pins("requirements.lock"), pins("constraints.txt")
    assert constrained.keys() - locked.keys() == BY_VERSION_ONLY
    assert locked == {name: version for name, version in constrained.items() if name not in BY_VERSION_ONLY}


def test_an_image_installs_its_part_of_the_lock_by_hash() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    part = locked({"NumPy", "typing_extensions", "torch", "nvidia-cublas-cu12", "bonbon-serve"}, lock)
    assert re.findall(r"^(\S+)==", part, re.MULTILINE) == ["numpy", "typing-extensions"]
    assert part.count("--hash=sha256:") > 2
    assert not part.rstrip().endswith("\\")
    with pytest.raises(SystemExit, match=r"requirements\.lock lacks left-pad: make lock"):
        locked({"numpy", "left-pad"}, lock)


def test_every_locked_package_has_hashes_and_no_file_names_a_place() -> None:
    text = (ROOT / "requirements.lock").read_text()
    blocks = re.split(r"\n(?=\S)", text.strip())
    assert len(blocks) == len(pins("requirements.lock")) > 100
    for block in blocks:
        head, *hashes = block.splitlines()
        assert PIN.fullmatch(head.removesuffix(" \\")), head
        assert hashes, head
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in hashes), head
    for file in ("requirements.lock", "constraints.txt"):
        assert "://" not in (ROOT / file).read_text()
