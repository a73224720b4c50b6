"""Stores version files in a content-addressed directory."""

import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bonbon.errors import UserError
from bonbon.files.fsync import fsync
from bonbon.files.manifest import MANIFEST, Manifest, make_manifest, verify

INCOMING = ".incoming-"
"""Prefix of directories whose copy is not complete."""


def store(directory: Path, root: Path, leaving_out: Collection[str] = ()) -> tuple[Manifest, Path]:
    """Copies a version's files to `root/<digest>`, which gets that name once everything is on disk.

    Files directly in the directory that are named in `leaving_out` do not belong to the version.

    An existing copy is kept if it is complete, and replaced otherwise.

    Raises:
        UserError: The directory cannot be a version (see `make_manifest`), or changed while it was copied.
    """
    manifest = make_manifest(directory, leaving_out)
    target = root / manifest.digest
    root.mkdir(parents=True, exist_ok=True)
    with _storing(root):
        if not _whole(target, manifest):
            _put(directory, root, manifest)
    return manifest, target


def _put(directory: Path, root: Path, manifest: Manifest) -> None:
    target = root / manifest.digest
    with TemporaryDirectory(dir=root, prefix=INCOMING) as temporary:
        work = Path(temporary) / "work"
        _copy(directory, work, manifest)
        if target.exists() and not _whole(target, manifest):
            target.rename(Path(temporary) / "corrupt")
        try:
            work.rename(target)
        except OSError:
            if not _whole(target, manifest):  # otherwise another process has stored the same content first
                raise
        fsync(root)


@contextmanager
def _storing(root: Path) -> Iterator[None]:
    """Deletes what killed processes left behind in `root`, and keeps other processes from doing so meanwhile."""
    descriptor = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # another process is storing, so its directory is not a leftover
        else:
            for leftover in root.glob(f"{INCOMING}*"):
                shutil.rmtree(leftover, ignore_errors=True)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def _whole(target: Path, manifest: Manifest) -> bool:
    try:
        verify(target, manifest.digest)
    except UserError:
        return False
    return True


def _copy(directory: Path, work: Path, manifest: Manifest) -> None:
    work.mkdir()
    for entry in manifest.files:
        path, copy = directory / entry.path, work / entry.path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        fsync(copy)
    (work / MANIFEST).write_text(manifest.to_json())
    fsync(work / MANIFEST)
    for folder in (*(path for path in work.rglob("*") if path.is_dir()), work):
        fsync(folder)
    if make_manifest(work).digest != manifest.digest:
        raise UserError(f"{directory} changed while it was being copied; register it again")
