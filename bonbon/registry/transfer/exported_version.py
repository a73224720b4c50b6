"""The additional files in an exported version's directory, and how to read them."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bonbon.engines.engine import VersionKind
from bonbon.errors import UserError
from bonbon.shown_values import first_problem

RECORD, EVALUATION, CARD = "bonbon.json", "evaluation.json", "README.md"
BESIDE = frozenset((RECORD, EVALUATION, CARD))
"""Files of an export that do not belong to the model and are not in its manifest."""
FORMAT = 1
IMPORTED = "imported"
"""The key that marks the training record, the evaluation and the verdict of an imported version."""


@dataclass(frozen=True, slots=True)
class Record:
    """The record of an exported version, apart from its files and its evaluation.

    Attributes:
        version: Its name in the registry that it was exported from.
        kind: Whether the exported files are an adapter or whole weights.
        merged: Whether they are an adapter merged into the base model.
        digest: Digest of the manifest of the exported files.
        base: The base model's name in the registry and, if it came from the hub, its name there.
        base_digest: Digest of the base model's files; empty if the registry never saw them.
        training, verdict: As stored in that registry.
        bonbon: The release that exported it.
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
        """Returns a JSON object with the format's number and every field."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def read(cls, directory: Path) -> "Record":
        """Reverses `to_json`. Raises UserError when the file cannot be read or has another format."""
        path = directory / RECORD
        values = read_object(path)
        if values.pop("format", None) != FORMAT:
            raise UserError(f"{path} has a format that this release does not know: upgrade bonbon, and import again")
        for name in ("version", "base"):
            if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", str(values.get(name))) is None:
                raise UserError(
                    f"{path}: {name} is {str(values.get(name))[:64]!r}, which is not a valid version name: export the "
                    "version again"
                )
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            raise UserError(f"{path}: {first_problem(error)}; export the version again") from error


def read_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file. Raises UserError when there is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): export or copy the version again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object: export or copy the version again")
    return found
