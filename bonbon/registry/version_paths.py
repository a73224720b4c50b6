"""Maps versions to their directories. The database stores relative paths, so that the data directory can be moved."""

from pathlib import Path

from bonbon.engines.engine import VersionKind
from bonbon.errors import UserError
from bonbon.registry.version_records import Version


def stored_path(directory: Path, data_dir: Path) -> str:
    """Returns what the database stores for `directory`: the path relative to `data_dir`, or an absolute path outside
    it.

    Args:
        data_dir: An absolute path.
    """
    absolute = directory.absolute()
    return str(absolute.relative_to(data_dir) if absolute.is_relative_to(data_dir) else absolute)


def files_directory(stored: str, kind: VersionKind, digest: str, root: Path) -> Path:
    """Returns the directory of a version's files from what the database stores.

    A base model stays where it is. The files of any other version are in `root`, in the directory named by their
    digest. Earlier releases stored that directory's absolute path, which is not used, because it leads to another
    installation's files once the data directory has been copied.

    Args:
        stored: The version's column `directory`.
        root: The directory `versions` of the data directory, as an absolute path.
    """
    if kind is not VersionKind.BASE:
        return root / digest
    return root.parent / stored if digest else Path(stored)  # without a digest, the files are not on this machine


def refuse_missing(version: Version) -> None:
    """Raises UserError, with the remedy, when the directory of the version's files does not exist."""
    if version.directory.is_dir():
        return
    if version.kind is VersionKind.BASE:
        raise UserError(
            f"the base model {version.name} is not in {version.directory} any more: set model (BONBON_MODEL, or "
            "--model) to the directory that has it now",
            param="model",
        )
    raise UserError(
        f"the files of {version.name} are not in {version.directory}: copy the directory 'versions' there from the "
        "data directory or the backup that has it, or set data_dir (BONBON_DATA_DIR) to that data directory",
        param="data_dir",
    )
