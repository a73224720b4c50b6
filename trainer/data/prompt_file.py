"""Prompts from a file: text, JSON lines or Parquet."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bonbon.errors import UserError
from bonbon.prompt import Message, Prompt


def read_prompts(path: Path, *, plain: bool = False) -> list[Prompt]:
    """The prompts in a file, in its order, repeats included.

    `.jsonl` and `.parquet` have a `messages` of chat turns or a `prompt`, which is a text or chat turns; in any other
    file each line that is not blank is a text.

    Args:
        plain: texts are continued as they are; otherwise each is one user turn of a chat.

    Raises:
        UserError: the file cannot be read, is empty, or a line of it is no prompt; the message says which.
    """
    reader = {".jsonl": _json_lines, ".parquet": _parquet}.get(path.suffix.lower(), _text)
    try:
        prompts = [_prompt(value, f"{path}, {where}", plain) for where, value in reader(path)]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts {path} cannot be read: {error}", param="prompts") from error
    if not prompts:
        raise UserError(f"prompts {path} has no prompt in it; write one a line", param="prompts")
    return prompts


def _text(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            yield f"line {number}", line.strip()


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    # Not splitlines(): JSON may hold other line separators than \n.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"prompts {path}, line {number} is no JSON: {error}", param="prompts") from error
        yield f"line {number}", _field(row)


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = [name for name in ("messages", "prompt") if name in file.schema_arrow.names]
            number = 0
            for batch in file.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", _field(row)
    except pa.ArrowException as error:
        raise UserError(f"prompts {path} is no readable Parquet file: {error}", param="prompts") from error


def _field(row: Any) -> Any:
    if not isinstance(row, dict):
        return None
    return row.get("messages") or row.get("prompt")


def _prompt(value: Any, where: str, plain: bool) -> Prompt:
    if isinstance(value, str) and value.strip():
        return Prompt(text=value) if plain else Prompt.user(value)
    if isinstance(value, list) and value and all(map(_is_message, value)):
        return Prompt.chat(*(Message(role=turn["role"], content=turn["content"]) for turn in value))
    raise UserError(
        f'prompts {where}: expected a text, {{"prompt": text}} or {{"messages": [{{"role": ..., "content": ...}}]}}',
        param="prompts",
    )


def _is_message(turn: Any) -> bool:
    return isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("role", "content"))
