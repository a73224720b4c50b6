"""What an exported version's directory holds beside the files of the model, and how it is read back."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bonbon.engines.engine import VersionKind
from bonbon.errors import UserError

RECORD, EVALUATION, CARD = "bonbon.json", "evaluation.json", "README.md"
BESIDE = frozenset((RECORD, EVALUATION, CARD))
"""Files of an export that are none of the model's, and not in its manifest."""
FORMAT = 1
IMPORTED = "imported"
"""The key under which the training record, the evaluation and the verdict of an imported version say so."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of an exported version besides its files and its evaluation.

    Attributes:
        version: its name in the registry that it was exported from.
        kind: what the exported files are: an adapter, or whole weights.
        merged: whether they are an adapter merged into the base model.
        digest: of the manifest of the exported files.
        base: the base model's name, in the registry and, where it came from there, on the hub.
        base_digest: of the base model's files; empty where that registry never saw them.
        training, verdict: as that registry has them.
        bonbon: the release that exported it.
    """

    version: str
    kind: VersionKind
    merged: bool
    digest: str
    base: str
    base_hub_name: str | None
    base_digest: str
    parent: str | None
    created: str
    k: int
    training: dict[str, Any]
    verdict: dict[str, Any] | None
    bonbon: str

    def to_json(self) -> str:
        """An object with the format's number and every field."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def read(cls, directory: Path) -> "Record":
        """The inverse of `to_json`. Raises UserError when the file cannot be read, or has another format."""
        path = directory / RECORD
        values = read_object(path)
        if values.pop("format", None) != FORMAT:
            raise UserError(f"{path} has a format that this release does not know: upgrade bonbon, and import again")
        for name in ("version", "base"):
            if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", str(values.get(name))) is None:
                raise UserError(
                    f"{path}: {name} is {str(values.get(name))[:64]!r}, which is no name of a version: export the "
                    "version again"
                )
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(f"{path}: {where}: {first['msg']}; export the version again") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError when there is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): export or copy the version again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object: export or copy the version again")
    return found
