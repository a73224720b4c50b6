"""The grammar of what a request lets a candidate be: its response format, and the calls that its tools allow."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from bonbon.engines.structured.closed_schema import closed
from bonbon.engines.structured.tool_format import ToolFormat
from bonbon.prompt import Prompt

SPACES = {"whitespace_flexible": True, "whitespace_pattern": r" |\n[ \t]{0,40}"}
"""White space between the parts of a JSON text: a space, or a line end and an indentation. If there could be any, weak
models would write nothing else until they are cut off."""

MOST_CALLS = 8
"""Calls that a required answer may have: weak models would go on calling until they are cut off."""


class Grammar:
    """A grammar in the variant of Lark's language that llguidance reads, which has JSON schemas in it.

    Args:
        token_of: the id of a text that is one token of its own, such as the mark that begins a call; None for others.
    """

    def __init__(self, token_of: Callable[[str], int | None]) -> None:
        self._token_of = token_of
        self.rules: list[str] = []

    def schema(self, schema: Mapping[str, Any]) -> str:
        """What stands for a JSON text that fits `schema`."""
        name = f"schema{len(self.rules)}"
        self.rules.append(f"{name}: %json {json.dumps({**closed(schema), 'x-guidance': SPACES}, ensure_ascii=False)}")
        return name

    def text(self, text: str) -> str:
        """What stands for `text`."""
        token = self._token_of(text)
        return json.dumps(text) if token is None else f"<[{token}]>"

    def free(self, mark: str) -> tuple[str, str]:
        """What stands for any text up to `mark` and with it, and for any text without it."""
        token = self._token_of(mark)
        self.rules.append("ANY: /(.|\\n)*/")
        self.rules.append("rest: ANY")
        if token is None:
            self.rules.append(f"until[lazy]: ANY {json.dumps(mark)}")
        else:
            self.rules.append(f"until: ANY <[{token}]>")
        return "until", "rest"

    def written(self, start: str) -> str:
        """The grammar that begins with `start`."""
        return "\n".join([f"start: {start}", *self.rules])


def grammar_of(
    response_format: str | None,
    prompt: Prompt,
    tool_format: ToolFormat | None,
    token_of: Callable[[str], int | None],
) -> str | None:
    """The grammar that candidates are held to; None where any text will do.

    A call is forced where `tool_choice` is `required` (one or more) or names a function (one call of it). Where it is
    `auto`, a candidate may be calls or fit the response format and, where a function is strict, the arguments of every
    call fit their schema.

    Args:
        response_format: as `Sampling` carries it.
        tool_format: how the model writes calls; needed with tools.
    """
    wanted = None if response_format is None else _schema_of(json.loads(response_format))
    choice = json.loads(prompt.tool_choice or '"auto"')
    calls = prompt.tools is not None and choice != "none" and (wanted is not None or prompt.constrains)
    grammar = Grammar(token_of)
    if not calls:
        return None if wanted is None else grammar.written(grammar.schema(wanted))
    assert tool_format is not None
    functions = [tool["function"] for tool in json.loads(prompt.tools or "[]")]
    if isinstance(choice, dict):
        functions = [one for one in functions if one["name"] == choice["function"]["name"]]
        return grammar.written(_calls(grammar, functions, tool_format, several=False))
    if choice == "required":
        return grammar.written(_calls(grammar, functions, tool_format, several=True))
    if wanted is not None and tool_format.bare:
        return grammar.written(grammar.schema(_objects(wanted, functions, tool_format)))
    if wanted is not None:
        answer = grammar.schema(wanted)
        return grammar.written(f"{_calls(grammar, functions, tool_format, several=True)} | {answer}")
    return grammar.written(_strict(grammar, functions, tool_format))


def _schema_of(response_format: Mapping[str, Any]) -> Mapping[str, Any]:
    if response_format["type"] == "json_object":
        return {"type": "object"}
    schema: Mapping[str, Any] = response_format["json_schema"]["schema"]
    return schema


def _calls(grammar: Grammar, functions: list[Any], tool_format: ToolFormat, *, several: bool) -> str:
    """Rules for one call of the functions, or one or more; what stands for them."""
    start = grammar.text(tool_format.start)
    if tool_format.bare:
        start = ""
    grammar.rules.append(f"call: {_call(grammar, functions, tool_format)}")
    one, more = "call", f'(", " call){{0,{MOST_CALLS - 1}}}' if several else ""
    if tool_format.name == "mistral" and not tool_format.named:
        return f'{start} "[" {one} {more} "]"'
    if tool_format.named:
        return f"({start} {one}){{1,{MOST_CALLS if several else 1}}}"
    if tool_format.bare:
        return one
    grammar.rules.append(f'marked: {start} "\\n" call "\\n" {grammar.text(tool_format.end)}')
    return f'marked ("\\n" marked){{0,{MOST_CALLS - 1}}}' if several else "marked"


def _objects(wanted: Mapping[str, Any], functions: list[Any], tool_format: ToolFormat) -> Mapping[str, Any]:
    """One schema for an answer that is `wanted` or a call: text and JSON that begin alike cannot be told apart."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": one["name"]}, tool_format.arguments: _own(_arguments(one), f"call{at}")},
            "required": ["name", tool_format.arguments],
            "additionalProperties": False,
        }
        for at, one in enumerate(functions)
    ]
    return {"anyOf": [_own(wanted, "answer"), *calls]}


def _own(schema: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The schema as a document of its own, so that references in it are to itself."""
    return {"$id": f"https://bonbon.invalid/{name}", **schema}


def _arguments(function: Any) -> Mapping[str, Any]:
    """The schema of a function's arguments: without parameters it takes none."""
    return {"type": "object", **(function.get("parameters") or {"additionalProperties": False})}


def _strict(grammar: Grammar, functions: list[Any], tool_format: ToolFormat) -> str:
    """Any text, and calls in it of which those of strict functions fit."""
    free = [one if one.get("strict") else {**one, "parameters": {"type": "object"}} for one in functions]
    call = _call(grammar, free, tool_format)
    grammar.rules.append(f"call: {call}")
    if tool_format.bare:  # a call is the whole answer, or there is none
        grammar.rules.append("OTHER: /([^{ \\t\\r\\n](.|\\n)*)?/")
        return "call | OTHER"
    until, rest = grammar.free(tool_format.start)
    if tool_format.named:
        return f"({until} call)* {rest}"
    if tool_format.name == "mistral":
        return f'({until} "[" call (", " call)* "]")* {rest}'
    return f'({until} "\\n" call "\\n" {grammar.text(tool_format.end)})* {rest}'


def _call(grammar: Grammar, functions: list[Any], tool_format: ToolFormat) -> str:
    """What stands for a call of one of the functions, without the marks around it."""
    return " | ".join(_one(grammar, one, tool_format) for one in functions)


def _one(grammar: Grammar, function: Any, tool_format: ToolFormat) -> str:
    arguments = grammar.schema(_arguments(function))
    if tool_format.named:
        return f"{json.dumps(function['name'])} {grammar.text('[ARGS]')} {arguments}"
    head = f'{{"name": {json.dumps(function["name"])}, "{tool_format.arguments}": '
    return f'{json.dumps(head)} {arguments} "}}"'
