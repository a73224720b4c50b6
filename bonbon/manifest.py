"""A manifest: every file of a version with its size and SHA-256."""

import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path

from bonbon.errors import UserError
from bonbon.model_files import PATTERNS

MANIFEST = "manifest.json"
# Formats that run code when they are loaded, or that carry code.
REFUSED = (
    ".bin",
    ".pt",
    ".pth",
    ".pkl",
    ".pickle",
    ".ckpt",
    ".dill",
    ".joblib",
    ".npy",
    ".npz",
    ".h5",
    ".msgpack",
    ".py",
    ".pyc",
    ".so",
)

GENERATION = "generation_config.json"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file: its path below the directory, size in bytes, SHA-256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files in order of their paths."""

    files: tuple[FileEntry, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest itself: it names the content."""
        return sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps([[entry.path, entry.size, entry.sha256] for entry in self.files])

    @classmethod
    def from_json(cls, text: str | bytes) -> "Manifest":
        """The inverse of `to_json`."""
        return cls(tuple(FileEntry(*entry) for entry in json.loads(text)))


def make_manifest(directory: Path, leaving_out: Collection[str] = ()) -> Manifest:
    """The manifest of what `directory` holds now, without the files directly in it that have the names `leaving_out`.

    Raises:
        UserError: it is no directory, has no safetensors file, or holds a symbolic link out of it or a file whose
            format can carry code; the message names the file.
    """
    return _manifest(directory, version_files(directory, leaving_out=leaving_out))


def base_digest(directory: Path) -> str:
    """The digest that names what a base model draws, and how its answers end.

    It is that of a manifest of the files that decide this: weights, configuration, tokenizer and chat template. Of
    generation_config.json it has the end tokens alone, for every request says how it is sampled; and it has nothing of
    files that are never loaded, such as a model card.

    Raises:
        UserError: it is no directory, or has no safetensors file, or its generation_config.json is no JSON object.
    """
    files = version_files(directory, passing_over=True)
    deciding = [path for path in files if path.name != GENERATION and any(map(path.match, PATTERNS))]
    manifest = _manifest(directory, deciding)
    ends = _end_tokens(directory / GENERATION)
    return Manifest((*manifest.files, FileEntry(GENERATION, len(ends), sha256(ends).hexdigest()))).digest


def base_digest_of_every_file(directory: Path) -> str:
    """What earlier releases stored as a base's digest; a model card changes it, too. Raises as `base_digest` does."""
    return _manifest(directory, version_files(directory, passing_over=True)).digest


def names_base(recorded: str, directory: Path, digest: str) -> bool:
    """Whether `recorded` names the base in `directory`, whose digest is `digest`: as this release names it, or as
    earlier ones did. Reads every file again where it is not this release's. Raises as `base_digest` does."""
    return recorded == digest or recorded == base_digest_of_every_file(directory)


def version_files(directory: Path, *, passing_over: bool = False, leaving_out: Collection[str] = ()) -> list[Path]:
    """The files that make up a version, in order of their paths; raises as `make_manifest` does.

    With `passing_over`, files of the refused formats are left out instead: a base model may come with them, and only
    its safetensors are ever loaded.
    """
    files = _without(_files(directory, passing_over=passing_over), directory, leaving_out)
    if not any(path.suffix == ".safetensors" for path in files):
        raise UserError(f"{directory} has no .safetensors file; save the model with safe serialization")
    return files


def verify(directory: Path, digest: str, leaving_out: Collection[str] = ()) -> None:
    """Check a version's files against the manifest beside them, and that manifest against `digest`.

    Files directly in the directory that have the names `leaving_out` may be there.

    Raises:
        UserError: naming the file that is missing, extra, truncated or changed, or the manifest itself.
    """
    try:
        recorded = (directory / MANIFEST).read_bytes()
    except OSError as error:
        raise UserError(f"{directory / MANIFEST} cannot be read: {error}; register the version again") from error
    if sha256(recorded).hexdigest() != digest:  # before it is parsed: it may be anything
        raise UserError(f"{directory / MANIFEST} was changed: its digest is not {digest}; register the version again")
    try:
        expected = {entry.path: entry for entry in Manifest.from_json(recorded).files}
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{directory / MANIFEST} is no manifest ({error}); register the version again") from error
    for path in _without(_files(directory), directory, leaving_out):
        entry = expected.pop(path.relative_to(directory).as_posix(), None)
        if entry is None:
            raise UserError(f"{path} is not in the manifest; remove it or register the version again")
        _check(path, entry)
    if expected:
        raise UserError(f"{directory / min(expected)} is missing; register the version again")


def _files(directory: Path, *, passing_over: bool = False) -> list[Path]:
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory; a version is a directory in Hugging Face format")
    root = _real(directory)
    files = []
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory)
        if any(part.startswith(".") for part in relative.parts) or relative == Path(MANIFEST):
            continue
        if not _real(path).is_relative_to(root) and not _in_hub_cache(path):
            raise UserError(f"{path} links out of {directory}; copy the file it points to")
        if path.is_dir() and not path.is_symlink():
            continue
        if not path.is_file():
            raise UserError(f"{path} is not a file; a version is made of files and directories only")
        if path.suffix.lower() not in REFUSED:
            files.append(path)
        elif not passing_over:
            raise UserError(f"{path}: {path.suffix} files can carry code and are refused; save as safetensors")
    return files


def _without(files: list[Path], directory: Path, names: Collection[str]) -> list[Path]:
    return [path for path in files if path.parent != directory or path.name not in names]


def _check(path: Path, entry: FileEntry) -> None:
    try:
        size = path.stat().st_size
        if size != entry.size:
            raise UserError(f"{path} has {size} bytes, the manifest says {entry.size}: truncated or changed")
        if _sha256(path) != entry.sha256:
            raise UserError(f"{path} is corrupt: its SHA-256 is not the manifest's")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _manifest(directory: Path, files: list[Path]) -> Manifest:
    return Manifest(tuple(FileEntry(p.relative_to(directory).as_posix(), p.stat().st_size, _sha256(p)) for p in files))


def _end_tokens(generation: Path) -> bytes:
    """The end tokens that a generation_config.json names, as JSON."""
    if not generation.exists():
        return b""
    try:
        ends = json.loads(generation.read_bytes()).get("eos_token_id")
    except (ValueError, AttributeError, OSError) as error:
        raise UserError(f"{generation} is not a JSON object ({error}); correct it, or delete it") from error
    return b"" if ends is None else json.dumps(ends).encode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _in_hub_cache(path: Path) -> bool:
    # A hub snapshot is made of links to its own cache's blobs, two folders up.
    return path.is_symlink() and _real(path).parent.name == "blobs" and "snapshots" in path.parts


def _real(path: Path) -> Path:
    # Path.resolve raises RuntimeError for a link that leads to itself.
    return Path(os.path.realpath(path))
