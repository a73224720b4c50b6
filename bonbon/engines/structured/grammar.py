"""The grammar of the answers that a request allows: its response format, and the calls of its tools."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from bonbon.engines.structured.closed_schema import closed
from bonbon.engines.structured.tool_format import ToolFormat
from bonbon.prompt import Prompt

SPACES = {"whitespace_flexible": True, "whitespace_pattern": r" |\n[ \t]{0,40}"}
"""The white space between the parts of a JSON text: a space, or a newline and an indentation. If any amount were
allowed, weak models would write nothing else until they are truncated."""

MAX_CALLS = 8
"""The maximum number of calls in an answer that requires calls; weak models would go on calling until they are
truncated."""


class Grammar:
    """A grammar in llguidance's variant of Lark's language, which can include JSON schemas.

    Args:
        token_of: Returns the id of a text that is a single token, such as the mark that begins a call; None for other
            texts.
    """

    def __init__(self, token_of: Callable[[str], int | None]) -> None:
        self._token_of = token_of
        self.rules: list[str] = []

    def schema(self, schema: Mapping[str, Any]) -> str:
        """Adds a rule for JSON text that is valid under `schema`, and returns its name."""
        name = f"schema{len(self.rules)}"
        self.rules.append(f"{name}: %json {json.dumps({**closed(schema), 'x-guidance': SPACES}, ensure_ascii=False)}")
        return name

    def text(self, text: str) -> str:
        """Returns the symbol for `text`."""
        token = self._token_of(text)
        return json.dumps(text) if token is None else f"<[{token}]>"

    def free(self, mark: str) -> tuple[str, str]:
        """Adds rules for any text up to and including `mark`, and for any text without it; returns their names."""
        token = self._token_of(mark)
        self.rules.append("ANY: /(.|\\n)*/")
        self.rules.append("rest: ANY")
        if token is None:
            self.rules.append(f"until[lazy]: ANY {json.dumps(mark)}")
        else:
            self.rules.append(f"until: ANY <[{token}]>")
        return "until", "rest"

    def written(self, start: str) -> str:
        """Returns the text of the grammar that begins with `start`."""
        return "\n".join([f"start: {start}", *self.rules])


def grammar_of(
    response_format: str | None,
    prompt: Prompt,
    tool_format: ToolFormat | None,
    token_of: Callable[[str], int | None],
) -> str | None:
    """Returns the grammar that constrains candidates, or None for unconstrained text.

    Calls are required where `tool_choice` is `required` (one or more calls) or names a function (one call of it). Where
    it is `auto`, a candidate may consist of calls or match the response format; where a function is strict, the
    arguments of every call match their schema.

    Args:
        response_format: The response format, as in `Sampling`.
        tool_format: The format in which the model writes calls; required with tools.
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
    """Adds rules for one call of the functions, or one or more, and returns the symbol for them."""
    start = grammar.text(tool_format.start)
    if tool_format.bare:
        start = ""
    grammar.rules.append(f"call: {_call(grammar, functions, tool_format)}")
    one, more = "call", f'(", " call){{0,{MAX_CALLS - 1}}}' if several else ""
    if tool_format.name == "mistral" and not tool_format.named:
        return f'{start} "[" {one} {more} "]"'
    if tool_format.named:
        return f"({start} {one}){{1,{MAX_CALLS if several else 1}}}"
    if tool_format.bare:
        return one
    grammar.rules.append(f'marked: {start} "\\n" call "\\n" {grammar.text(tool_format.end)}')
    return f'marked ("\\n" marked){{0,{MAX_CALLS - 1}}}' if several else "marked"


def _objects(wanted: Mapping[str, Any], functions: list[Any], tool_format: ToolFormat) -> Mapping[str, Any]:
    """Returns one schema for an answer that is either `wanted` or a call, because text and JSON may begin alike."""
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
    """Returns the schema as a document of its own, so that its references point into itself."""
    return {"$id": f"https://bonbon.invalid/{name}", **schema}


def _arguments(function: Any) -> Mapping[str, Any]:
    """Returns the schema of a function's arguments; a function without parameters takes none."""
    return {"type": "object", **(function.get("parameters") or {"additionalProperties": False})}


def _strict(grammar: Grammar, functions: list[Any], tool_format: ToolFormat) -> str:
    """Returns the symbol for any text with calls, in which the calls of strict functions match their schemas."""
    free = [one if one.get("strict") else {**one, "parameters": {"type": "object"}} for one in functions]
    call = _call(grammar, free, tool_format)
    grammar.rules.append(f"call: {call}")
    if tool_format.bare:  # The whole answer is a call, or has none.
        grammar.rules.append("OTHER: /([^{ \\t\\r\\n](.|\\n)*)?/")
        return "call | OTHER"
    until, rest = grammar.free(tool_format.start)
    if tool_format.named:
        return f"({until} call)* {rest}"
    if tool_format.name == "mistral":
        return f'({until} "[" call (", " call)* "]")* {rest}'
    return f'({until} "\\n" call "\\n" {grammar.text(tool_format.end)})* {rest}'


def _call(grammar: Grammar, functions: list[Any], tool_format: ToolFormat) -> str:
    """Returns the symbol for a call of one of the functions, without the marks around it."""
    return " | ".join(_one(grammar, one, tool_format) for one in functions)


def _one(grammar: Grammar, function: Any, tool_format: ToolFormat) -> str:
    arguments = grammar.schema(_arguments(function))
    if tool_format.named:
        return f"{json.dumps(function['name'])} {grammar.text('[ARGS]')} {arguments}"
    head = f'{{"name": {json.dumps(function["name"])}, "{tool_format.arguments}": '
    return f'{json.dumps(head)} {arguments} "}}"'
