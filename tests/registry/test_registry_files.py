"""Tests of version files: refused directories, detected changes and complete copies."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from bonbon.errors import UserError
from bonbon.files.manifest import (
    MANIFEST,
    REFUSED,
    FileEntry,
    Manifest,
    base_digest,
    make_manifest,
    verify,
    version_files,
)
from bonbon.registry.version_files import store
from tests.support.service.running_service import write_adapter

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A directory as a training run leaves it."""
    directory = tmp_path / "trained"
    (directory / "tokenizer").mkdir(parents=True)
    write_adapter(directory, 1)
    (directory / "tokenizer" / "vocab.json").write_text("{}")
    return directory


@pytest.fixture
def stored(trained: Path, tmp_path: Path) -> tuple[Path, str]:
    """The same files in the registry's root, with their digest."""
    manifest, target = store(trained, tmp_path / "versions")
    return target, manifest.digest


def test_a_manifest_names_every_file(trained: Path) -> None:
    manifest = make_manifest(trained)
    assert [entry.path for entry in manifest.files] == ["adapter_config.json", WEIGHTS, "tokenizer/vocab.json"]
    weights = manifest.files[1]
    content = (trained / WEIGHTS).read_bytes()
    assert (weights.size, weights.sha256) == (len(content), sha256(content).hexdigest())
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.digest == sha256(manifest.to_json().encode()).hexdigest()


def test_the_same_files_elsewhere_have_the_same_digest(trained: Path, tmp_path: Path) -> None:
    before = make_manifest(trained).digest
    assert make_manifest(trained.rename(tmp_path / "moved")).digest == before
    (tmp_path / "moved" / WEIGHTS).touch()
    assert make_manifest(tmp_path / "moved").digest == before
    write_adapter(tmp_path / "moved", 2)
    assert make_manifest(tmp_path / "moved").digest != before


def test_a_bases_digest_is_of_what_decides_its_draws(tmp_path: Path) -> None:
    write_adapter(tmp_path, 1)
    for name in ("config.json", "tokenizer.json", "merges.txt", "chat_template.jinja"):
        (tmp_path / name).write_text("{}")
    generation = tmp_path / "generation_config.json"
    generation.write_text('{"eos_token_id": [1, 2], "temperature": 0.7}')
    before = base_digest(tmp_path)
    for name in ("README.md", "LICENSE.txt", "pytorch_model.bin"):
        (tmp_path / name).write_text("which is never loaded")
    generation.write_text('{"eos_token_id": [1, 2], "do_sample": true, "temperature": 0.7}')
    assert base_digest(tmp_path) == before

    digests = {before}
    generation.write_text('{"eos_token_id": 1}')
    digests.add(base_digest(tmp_path))
    generation.unlink()
    digests.add(base_digest(tmp_path))
    for name in ("config.json", "tokenizer.json", "merges.txt", "chat_template.jinja"):
        (tmp_path / name).write_text("[]")
        digests.add(base_digest(tmp_path))
    write_adapter(tmp_path, 2)
    digests.add(base_digest(tmp_path))
    assert len(digests) == 8
    generation.write_text("[")
    with pytest.raises(UserError, match=r"generation_config\.json is not a JSON object .*; correct it, or delete it"):
        base_digest(tmp_path)


@pytest.mark.parametrize("suffix", [*REFUSED, ".BIN", ".Pt"])
def test_formats_that_can_carry_code_are_refused(trained: Path, suffix: str) -> None:
    (trained / "tokenizer" / f"more{suffix}").write_bytes(b"x")
    with pytest.raises(UserError, match=rf"more\{suffix}: \{suffix} files can contain code and are refused"):
        make_manifest(trained)
    assert len(version_files(trained, passing_over=True)) == 3
    assert base_digest(trained)


def test_what_is_no_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone is not a directory"):
        make_manifest(tmp_path / "gone")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"has no \.safetensors file; save the model with safe serialization"):
        make_manifest(tmp_path)
    with pytest.raises(UserError, match="is not a directory"):
        base_digest(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("../secret.json", "links to a file outside .*; replace the link by a copy"),
        ("/etc/passwd", "links to a file outside"),
        ("../trained-too/config.json", "links to a file outside"),
        ("tokenizer", "is not a regular file; a version may contain only files and directories"),
        ("gone.json", "is not a regular file"),
        ("link.json", "is not a regular file"),
    ],
    ids=["relative", "absolute", "prefix of the name", "a directory", "dangling", "itself"],
)
def test_links_that_lead_out_or_nowhere_are_refused(trained: Path, target: str, message: str) -> None:
    (trained.parent / "secret.json").write_text("secret")
    (trained.parent / "trained-too").mkdir()
    (trained.parent / "trained-too" / "config.json").write_text("{}")
    (trained / "link.json").symlink_to(target)
    with pytest.raises(UserError, match=rf"link\.json {message}"):
        make_manifest(trained)


def test_what_is_neither_file_nor_directory_is_refused(trained: Path) -> None:
    os.mkfifo(trained / "pipe.json")
    with pytest.raises(UserError, match=r"pipe\.json is not a regular file"):
        make_manifest(trained)


def test_a_hub_snapshot_may_link_to_its_own_blobs(trained: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--org--name" / "blobs", tmp_path / "models--org--name" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in (WEIGHTS, "adapter_config.json"):
        (trained / name).rename(blobs / name)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    manifest, target = store(snapshot, tmp_path / "versions")
    assert [entry.path for entry in manifest.files] == ["adapter_config.json", WEIGHTS]
    assert not (target / WEIGHTS).is_symlink()
    assert (target / WEIGHTS).read_bytes() == (blobs / WEIGHTS).read_bytes()


def test_a_stored_version_is_a_whole_copy_under_its_digest(trained: Path, stored: tuple[Path, str]) -> None:
    target, digest = stored
    assert target.name == digest
    verify(target, digest)
    assert (target / WEIGHTS).read_bytes() == (trained / WEIGHTS).read_bytes()
    assert (target / "tokenizer" / "vocab.json").read_text() == "{}"
    assert [path.name for path in target.parent.iterdir()] == [digest]  # nothing half done beside it


def test_hidden_files_are_no_part_of_a_version(trained: Path, tmp_path: Path) -> None:
    before = make_manifest(trained)
    (trained / ".cache").mkdir()
    (trained / ".cache" / "x.pkl").write_bytes(b"x")
    (trained / MANIFEST).write_text("of another version")
    manifest, target = store(trained, tmp_path / "versions")
    assert manifest == before
    assert not (target / ".cache").exists()
    verify(target, manifest.digest)


def test_storing_again_keeps_what_is_whole(trained: Path, stored: tuple[Path, str]) -> None:
    target, digest = stored
    inode = (target / WEIGHTS).stat().st_ino
    manifest, again = store(trained, target.parent)
    assert (manifest.digest, again, (target / WEIGHTS).stat().st_ino) == (digest, target, inode)


def test_storing_again_replaces_what_is_not(trained: Path, stored: tuple[Path, str]) -> None:
    target, digest = stored
    (target / WEIGHTS).write_bytes(b"")
    store(trained, target.parent)
    verify(target, digest)
    assert [path.name for path in target.parent.iterdir()] == [digest]


def test_what_a_killed_process_has_left_is_deleted(trained: Path, stored: tuple[Path, str]) -> None:
    root = stored[0].parent
    leftover = root / ".incoming-killed"
    (leftover / "work").mkdir(parents=True)
    (leftover / "work" / WEIGHTS).write_bytes(b"half")
    store(trained, root)
    assert not leftover.exists()


def test_many_who_store_the_same_at_once_all_get_it(trained: Path, tmp_path: Path) -> None:
    root = tmp_path / "versions"
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: store(trained, root), range(16)))
    ((manifest, target),) = set(results)
    verify(target, manifest.digest)
    assert [path.name for path in root.iterdir()] == [manifest.digest]


def damage_truncate(target: Path) -> None:
    content = (target / WEIGHTS).read_bytes()
    (target / WEIGHTS).write_bytes(content[:-1])


def damage_flip(target: Path) -> None:
    content = bytearray((target / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (target / WEIGHTS).write_bytes(content)


def damage_remove(target: Path) -> None:
    (target / "tokenizer" / "vocab.json").unlink()


def damage_add(target: Path) -> None:
    (target / "extra.json").write_text("{}")


def damage_pickle(target: Path) -> None:
    (target / "pytorch_model.bin").write_bytes(b"x")


def damage_link(target: Path) -> None:
    (target / WEIGHTS).rename(target.parent / "moved.safetensors")
    (target / WEIGHTS).symlink_to(target.parent / "moved.safetensors")


def damage_manifest_of_the_change(target: Path) -> None:
    damage_flip(target)
    (target / MANIFEST).write_text(make_manifest(target).to_json())


def damage_manifest_gone(target: Path) -> None:
    (target / MANIFEST).unlink()


def damage_all_gone(target: Path) -> None:
    target.rename(target.with_name("elsewhere"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncate, rf"{WEIGHTS} has \d+ bytes, but its manifest lists \d+: it was truncated or changed"),
        (damage_flip, rf"{WEIGHTS} is corrupt: its SHA-256 differs from the manifest; register the version again"),
        (damage_remove, r"tokenizer/vocab\.json is missing; register the version again"),
        (damage_add, r"extra\.json is not in the manifest"),
        (damage_pickle, r"pytorch_model\.bin: \.bin files can contain code"),
        (damage_link, rf"{WEIGHTS} links to a file outside"),
        (damage_manifest_of_the_change, rf"{MANIFEST} was changed: its digest is not"),
        (damage_manifest_gone, rf"{MANIFEST} cannot be read"),
        (damage_all_gone, rf"{MANIFEST} cannot be read"),
    ],
)
def test_damage_is_found_and_named(stored: tuple[Path, str], damage: object, message: str) -> None:
    target, digest = stored
    assert callable(damage)
    damage(target)
    with pytest.raises(UserError, match=message):
        verify(target, digest)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"null", b"{}", b'[["a", Infinity, "x"]]', b'[["a"]]', b"[" * 100_000],
    ids=["empty", "no text", "null", "object", "infinite", "short", "deep"],
)
def test_a_manifest_that_is_anything_else_is_refused(stored: tuple[Path, str], content: bytes) -> None:
    target, digest = stored
    (target / MANIFEST).write_bytes(content)
    with pytest.raises(UserError, match="was changed"):
        verify(target, digest)


@pytest.mark.parametrize("path", ["../secret.json", "/etc/passwd", "tokenizer/../../secret.json"])
def test_a_manifest_cannot_name_files_outside(stored: tuple[Path, str], path: str) -> None:
    """Even if the digest matches, only files in the directory are read."""
    target, digest = stored
    (target.parent / "secret.json").write_text("{}")
    recorded = Manifest.from_json((target / MANIFEST).read_text())
    forged = Manifest((*recorded.files, FileEntry(path, 2, sha256(b"{}").hexdigest())))
    (target / MANIFEST).write_text(forged.to_json())
    assert json.loads((target / MANIFEST).read_text())[-1][0] == path
    assert forged.digest != digest
    with pytest.raises(UserError, match="is missing"):
        verify(target, forged.digest)
