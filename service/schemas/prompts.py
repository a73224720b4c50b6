"""Reads prompts in each form that a request may give them."""

from collections.abc import Collection
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from bonbon.prompt import Prompt
from bonbon.settings import MOST_PROMPTS

INT32 = 2**31

STRING = {"type": "string"}
TOKEN_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}}


def parse_prompts(value: Any) -> tuple[Prompt, ...]:
    """Returns one prompt per string, or per list of token ids. Raises PydanticCustomError."""
    token_ids = _token_ids(value)
    if token_ids is None and isinstance(value, list) and value:
        if len(value) > MOST_PROMPTS:
            raise PydanticCustomError(
                "too_many_prompts",
                "{count} prompts are more than a request may have, which is {most}: send several requests",
                {"count": len(value), "most": MOST_PROMPTS},
            )
        return tuple(_prompt(entry, f"prompt[{i}]") for i, entry in enumerate(value))
    return (_prompt(value, "prompt") if token_ids is None else Prompt(token_ids=token_ids),)


def _prompt(value: Any, name: str) -> Prompt:
    if isinstance(value, str) and value:
        return Prompt(text=_encodable(value))
    token_ids = _token_ids(value)
    if token_ids is not None:
        return Prompt(token_ids=token_ids)
    if value == "" or value == []:
        raise PydanticCustomError("prompt_empty", "{name} is empty: there is nothing to continue", {"name": name})
    raise PydanticCustomError(
        "prompt_type",
        "{name} must be a string or token ids, or the prompt a list of strings or of lists of token ids",
        {"name": name},
    )


def _token_ids(value: Any) -> tuple[int, ...] | None:
    """Returns the token ids of a list of nothing else, and None for any other value."""
    if not isinstance(value, list) or not value or type(value[0]) is not int:
        return None
    found = set(map(type, value)) == {int} and min(value) >= 0 and max(value) < INT32
    return tuple(value) if found else None


def join_text(value: Any, kinds: Collection[str] = ("text",)) -> str:
    """The text of a message's content, a string or a list of text parts. Raises PydanticCustomError.

    Args:
        value: the content.
        kinds: what the `type` of a text part may be.
    """
    if isinstance(value, str):
        return _encodable(value)
    if not isinstance(value, list):
        raise PydanticCustomError("content_type", "content must be a string or a list of text parts")
    for i, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") not in kinds or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else None
            raise PydanticCustomError(
                "content_part",
                "content[{i}]{kind} is not a text part: only text is supported",
                {"i": i, "kind": f" of type {kind[:40]!r}" if isinstance(kind, str) else ""},
            )
    return _encodable("\n".join(part["text"] for part in value))


def _encodable(text: str) -> str:
    """`text`, which JSON's escapes may have given half a surrogate pair; nothing downstream could encode that."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("text_encoding", "the text has half a surrogate pair") from error
    return text


# Any, because pydantic would look into Prompt for a schema of its own; the value is a tuple of prompts.
PromptList = Annotated[
    Any,
    PlainValidator(parse_prompts),
    WithJsonSchema(
        {"anyOf": [STRING, {"type": "array", "items": STRING}, TOKEN_IDS, {"type": "array", "items": TOKEN_IDS}]}
    ),
]
Text = Annotated[str, AfterValidator(_encodable)]
TextContent = Annotated[
    str,
    BeforeValidator(join_text),
    WithJsonSchema(
        {
            "anyOf": [
                STRING,
                {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"type": {"const": "text"}, "text": STRING},
                        "required": ["type", "text"],
                    },
                },
            ]
        }
    ),
]
