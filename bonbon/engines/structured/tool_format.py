"""How a model writes calls of functions: the formats that chat templates teach, named as vLLM names them."""

import secrets
import string
from dataclasses import dataclass
from typing import Any, Literal
from uuid import uuid4

ToolParser = Literal["auto", "hermes", "llama3_json", "mistral"]
"""The names of the formats; auto: the one that the model's chat template shows."""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """One format.

    Args:
        name: what vLLM calls its parser.
        start: the text, often a token of its own, that begins one call (or, in a list, all of them).
        end: what ends a call; empty where its JSON does.
        arguments: the key of the arguments in a call's object.
        bare: whether an answer that begins with an object is a call without `start`.
        named: whether a call is the function's name, `[ARGS]` and the arguments, instead of an object.
    """

    name: str
    start: str
    end: str = ""
    arguments: str = "arguments"
    bare: bool = False
    named: bool = False

    def new_id(self) -> str:
        """An id for a call. Mistral's chat templates take ids of nine letters and digits only."""
        if self.name == "mistral":
            return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
        return f"call_{uuid4().hex[:24]}"


HERMES = ToolFormat("hermes", "<tool_call>", "</tool_call>")
LLAMA3_JSON = ToolFormat("llama3_json", "<|python_tag|>", arguments="parameters", bare=True)
MISTRAL = ToolFormat("mistral", "[TOOL_CALLS]")
MISTRAL_NAMED = ToolFormat("mistral", "[TOOL_CALLS]", named=True)


def tool_format(parser: ToolParser, template: str) -> ToolFormat | None:
    """The format that `parser` names for a model with this chat template; None where auto finds none that is known."""
    if parser == "auto":
        found = [one for one in (HERMES, MISTRAL, LLAMA3_JSON) if _shows(template, one)]
        if not found:
            return None
        parser = found[0].name  # type: ignore[assignment]
    if parser == "mistral":
        return MISTRAL_NAMED if "[ARGS]" in template else MISTRAL
    return HERMES if parser == "hermes" else LLAMA3_JSON


def _shows(template: str, one: ToolFormat) -> bool:
    """Whether a chat template writes calls so. Templates of Llama 3.2 have no `<|python_tag|>`."""
    if one is HERMES:  # other models have XML between the same marks
        return HERMES.start in template and "<function=" not in template and "<arg_key>" not in template
    if one is LLAMA3_JSON:
        return '"parameters": ' in template and "<|start_header_id|>" in template
    return one.start in template


def template_text(tokenizer: Any) -> str:
    """The text of the chat template that renders tools; empty where the tokenizer has none."""
    templates = tokenizer.chat_template or ""
    if isinstance(templates, dict):
        templates = templates.get("tool_use") or templates.get("default") or ""
    return str(templates)
