"""The formats in which models write tool calls, as chat templates teach them, with vLLM's names."""

import secrets
import string
from dataclasses import dataclass
from typing import Any, Literal
from uuid import uuid4

ToolParser = Literal["auto", "hermes", "llama3_json", "mistral"]
"""The names of the formats; auto detects the format from the model's chat template."""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """A format of tool calls.

    Args:
        name: The name of vLLM's parser.
        start: The text, often a single token, that begins one call (or, in a list, all of them).
        end: The text that ends a call; empty where a call ends with its JSON.
        arguments: The key of the arguments in a call's object.
        bare: Whether an answer that begins with an object is a call without `start`.
        named: Whether a call is written as the function's name, `[ARGS]` and the arguments, instead of an object.
    """

    name: str
    start: str
    end: str = ""
    arguments: str = "arguments"
    bare: bool = False
    named: bool = False

    def new_id(self) -> str:
        """Returns a new id for a call. Mistral's chat templates accept only ids of nine letters and digits."""
        if self.name == "mistral":
            return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
        return f"call_{uuid4().hex[:24]}"


HERMES = ToolFormat("hermes", "<tool_call>", "</tool_call>")
LLAMA3_JSON = ToolFormat("llama3_json", "<|python_tag|>", arguments="parameters", bare=True)
MISTRAL = ToolFormat("mistral", "[TOOL_CALLS]")
MISTRAL_NAMED = ToolFormat("mistral", "[TOOL_CALLS]", named=True)


def tool_format(parser: ToolParser, template: str) -> ToolFormat | None:
    """Returns the format that `parser` selects for a model with this chat template; None where auto finds none."""
    if parser == "auto":
        found = [one for one in (HERMES, MISTRAL, LLAMA3_JSON) if _shows(template, one)]
        if not found:
            return None
        parser = found[0].name  # type: ignore[assignment]
    if parser == "mistral":
        return MISTRAL_NAMED if "[ARGS]" in template else MISTRAL
    return HERMES if parser == "hermes" else LLAMA3_JSON


def _shows(template: str, one: ToolFormat) -> bool:
    """Returns whether a chat template writes calls in this format. Templates of Llama 3.2 have no `<|python_tag|>`."""
    if one is HERMES:  # Other models write XML between the same marks.
        return HERMES.start in template and "<function=" not in template and "<arg_key>" not in template
    if one is LLAMA3_JSON:
        return '"parameters": ' in template and "<|start_header_id|>" in template
    return one.start in template


def template_text(tokenizer: Any) -> str:
    """Returns the text of the chat template that renders tools, or an empty text where the tokenizer has none."""
    templates = tokenizer.chat_template or ""
    if isinstance(templates, dict):
        templates = templates.get("tool_use") or templates.get("default") or ""
    return str(templates)
