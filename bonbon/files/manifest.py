"""A manifest lists every file of a version with its size and SHA-256."""

import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path

from bonbon.errors import UserError
from bonbon.files.model_files import PATTERNS

MANIFEST = "manifest.json"
# Formats that contain code, or that can run code when they are loaded.
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
    """One file: its path relative to the directory, its size in bytes, and its SHA-256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of a version, sorted by path."""

    files: tuple[FileEntry, ...]

    @property
    def digest(self) -> str:
        """Returns the SHA-256 of the manifest itself, which identifies the content of the version."""
        return sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps([[entry.path, entry.size, entry.sha256] for entry in self.files])

    @classmethod
    def from_json(cls, text: str | bytes) -> "Manifest":
        """Parses what `to_json` returns."""
        return cls(tuple(FileEntry(*entry) for entry in json.loads(text)))


def make_manifest(directory: Path, leaving_out: Collection[str] = ()) -> Manifest:
    """Returns the manifest of the files in `directory`, without the top-level files whose names are in `leaving_out`.

    Raises:
        UserError: The path is not a directory, has no safetensors file, or contains a symbolic link that leads outside
            or a file whose format can contain code; the message names the file.
    """
    return _manifest(directory, version_files(directory, leaving_out=leaving_out))


def base_digest(directory: Path) -> str:
    """Returns the digest that identifies the distribution of a base model, and how its answers end.

    It is the digest of a manifest of the files that decide this: weights, configuration, tokenizer and chat template.
    Of generation_config.json it covers only the end tokens, because every request carries its own sampling parameters.
    Files that are never loaded, such as a model card, do not count.

    Raises:
        UserError: The path is not a directory, has no safetensors file, or its generation_config.json is not a JSON
            object.
    """
    files = version_files(directory, passing_over=True)
    deciding = [path for path in files if path.name != GENERATION and any(map(path.match, PATTERNS))]
    manifest = _manifest(directory, deciding)
    ends = _end_tokens(directory / GENERATION)
    return Manifest((*manifest.files, FileEntry(GENERATION, len(ends), sha256(ends).hexdigest()))).digest


def base_digest_of_every_file(directory: Path) -> str:
    """Returns the digest that earlier releases stored for a base, which also changes with a model card.

    Raises the same errors as `base_digest`.
    """
    return _manifest(directory, version_files(directory, passing_over=True)).digest


def names_base(recorded: str, directory: Path, digest: str) -> bool:
    """Returns whether `recorded` identifies the base in `directory`, whose digest is `digest`.

    A digest in the form of an earlier release matches, too; checking for it reads every file again. Raises the same
    errors as `base_digest`.
    """
    return recorded == digest or recorded == base_digest_of_every_file(directory)


def version_files(directory: Path, *, passing_over: bool = False, leaving_out: Collection[str] = ()) -> list[Path]:
    """Returns the files that make up a version, sorted by path; raises the same errors as `make_manifest`.

    With `passing_over`, files in refused formats are skipped instead of raising an error: base models often ship with
    some, and only their safetensors are ever loaded.
    """
    files = _without(_files(directory, passing_over=passing_over), directory, leaving_out)
    if not any(path.suffix == ".safetensors" for path in files):
        raise UserError(f"{directory} has no .safetensors file; save the model with safe serialization")
    return files


def verify(directory: Path, digest: str, leaving_out: Collection[str] = ()) -> None:
    """Checks a version's files against the manifest beside them, and that manifest against `digest`.

    Top-level files whose names are in `leaving_out` are ignored.

    Raises:
        UserError: A file is missing, extra, truncated or changed, or the manifest itself is; the message names it.
    """
    try:
        recorded = (directory / MANIFEST).read_bytes()
    except OSError as error:
        raise UserError(f"{directory / MANIFEST} cannot be read: {error}; register the version again") from error
    if sha256(recorded).hexdigest() != digest:  # Checked before parsing, because the file may contain anything.
        raise UserError(f"{directory / MANIFEST} was changed: its digest is not {digest}; register the version again")
    try:
        expected = {entry.path: entry for entry in Manifest.from_json(recorded).files}
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{directory / MANIFEST} is not a manifest ({error}); register the version again") from error
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
            raise UserError(f"{path} links to a file outside {directory}; replace the link by a copy of the file")
        if path.is_dir() and not path.is_symlink():
            continue
        if not path.is_file():
            raise UserError(f"{path} is not a regular file; a version may contain only files and directories")
        if path.suffix.lower() not in REFUSED:
            files.append(path)
        elif not passing_over:
            raise UserError(
                f"{path}: {path.suffix} files can contain code and are refused; save the model as safetensors"
            )
    return files


def _without(files: list[Path], directory: Path, names: Collection[str]) -> list[Path]:
    return [path for path in files if path.parent != directory or path.name not in names]


def _check(path: Path, entry: FileEntry) -> None:
    try:
        size = path.stat().st_size
        if size != entry.size:
            raise UserError(
                f"{path} has {size} bytes, but its manifest lists {entry.size}: it was truncated or changed; "
                "register the version again"
            )
        if _sha256(path) != entry.sha256:
            raise UserError(f"{path} is corrupt: its SHA-256 differs from the manifest; register the version again")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _manifest(directory: Path, files: list[Path]) -> Manifest:
    return Manifest(tuple(FileEntry(p.relative_to(directory).as_posix(), p.stat().st_size, _sha256(p)) for p in files))


def _end_tokens(generation: Path) -> bytes:
    """Returns the end tokens that a generation_config.json names, as JSON."""
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
    # A snapshot of the hub consists of links to the blobs of its own cache, two directories up.
    return path.is_symlink() and _real(path).parent.name == "blobs" and "snapshots" in path.parts


def _real(path: Path) -> Path:
    # Path.resolve raises RuntimeError for a link that leads to itself.
    return Path(os.path.realpath(path))
