"""Reads prompts from a text, JSON Lines or Parquet file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bonbon.errors import UserError
from bonbon.prompt import Message, Prompt


def read_prompts(path: Path, *, plain: bool = False) -> list[Prompt]:
    """Returns the prompts in a file, in order and with repeats.

    Rows of `.jsonl` and `.parquet` have either `messages` with chat turns or a `prompt`, which is a text or chat turns.
    In any other file, each non-blank line is a prompt.

    Args:
        plain: Continue texts as they are. Otherwise each text is one user turn of a chat.

    Raises:
        UserError: The file cannot be read, is empty, or contains a line that is not a prompt; the message names it.
    """
    reader = {".jsonl": _json_lines, ".parquet": _parquet}.get(path.suffix.lower(), _text)
    try:
        prompts = [_prompt(value, f"{path}, {where}", plain) for where, value in reader(path)]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts {path} cannot be read: {error}", param="prompts") from error
    if not prompts:
        raise UserError(f"prompts {path} contains no prompt; write one per line", param="prompts")
    return prompts


def _text(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            yield f"line {number}", line.strip()


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    # Not splitlines(), because JSON may contain line separators other than \n.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"prompts {path}, line {number} is not valid JSON: {error}", param="prompts") from error
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
        raise UserError(f"prompts {path} is not a readable Parquet file: {error}", param="prompts") from error


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
