"""Tests what grammars accept: calls in the model's format with valid arguments, and free text where it is allowed."""

import json
from typing import Any

import pytest
from llguidance import LLMatcher
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from bonbon.engines.structured.closed_schema import closed
from bonbon.engines.structured.grammar import grammar_of
from bonbon.engines.structured.grammar_check import error_of, read_tokenizer
from bonbon.engines.structured.response_format import canonical
from bonbon.engines.structured.tool_format import HERMES, LLAMA3_JSON, MISTRAL, MISTRAL_NAMED, ToolFormat
from bonbon.prompt import Prompt
from bonbon.tools import canonical as canonical_tools
from tests.support.zoo.tokenizers import byte_level

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"at": {"$ref": "#/$defs/place"}},
    "required": ["at"],
    "additionalProperties": False,
    "$defs": {"place": {"enum": ["here", "there"]}},
}
AT = '{"at": "here"}'
MARKS = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]"]


def marked() -> PreTrainedTokenizerFast:
    """Returns a tokenizer with the marks as single tokens, two of them special."""
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken(mark, special=mark.startswith("[")) for mark in MARKS])
    return tokenizer


TOKENIZERS = {"marks are text": byte_level(), "marks are tokens": marked()}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]


def accepts(tokenizer: PreTrainedTokenizerFast, grammar: str | None, text: str) -> bool:
    """Returns whether the grammar accepts this text."""
    assert grammar is not None
    vocabulary, ends = len(tokenizer), [tokenizer.eos_token_id]
    known = read_tokenizer({"tokenizer": tokenizer.backend_tokenizer.to_str(), "vocabulary": vocabulary, "ends": ends})
    assert error_of(known, grammar) == ""
    matcher = LLMatcher(known, grammar)
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    return matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting()


def grammar(
    tokenizer: PreTrainedTokenizerFast, choice: Any, format_: ToolFormat, wanted: Any = None, *, strict: bool = False
) -> str | None:
    functions = [
        {"name": "go", "parameters": PARAMETERS, **({"strict": True} if strict else {})},
        {"name": "stay"},
    ]
    tools = canonical_tools([{"type": "function", "function": function} for function in functions])
    prompt = Prompt.user("x")
    prompt = Prompt(prompt.messages, tools=tools, tool_choice=canonical_tools(choice))
    token_of = tokenizer.get_vocab().get
    return grammar_of(None if wanted is None else canonical(wanted), prompt, format_, token_of)


def call(format_: ToolFormat, name: str = "go", arguments: str = AT) -> str:
    if format_.named:
        return f"[TOOL_CALLS]{name}[ARGS]{arguments}"
    written = f'{{"name": "{name}", "{format_.arguments}": {arguments}}}'
    return {
        HERMES: f"<tool_call>\n{written}\n</tool_call>",
        LLAMA3_JSON: written,
        MISTRAL: f"[TOOL_CALLS][{written}]",
    }[format_]


FORMATS = [HERMES, LLAMA3_JSON, MISTRAL, MISTRAL_NAMED]


@pytest.mark.parametrize("format_", FORMATS)
def test_a_required_call_is_one_of_the_functions(tokenizer: PreTrainedTokenizerFast, format_: ToolFormat) -> None:
    required = grammar(tokenizer, "required", format_)
    assert accepts(tokenizer, required, call(format_))
    assert accepts(tokenizer, required, call(format_, "stay", "{}"))
    for wrong in ("Hello", "", call(format_, "run"), call(format_, "go", '{"at": "away"}'), call(format_, "stay", AT)):
        assert not accepts(tokenizer, required, wrong)
    one = grammar(tokenizer, {"type": "function", "function": {"name": "stay"}}, format_)
    assert accepts(tokenizer, one, call(format_, "stay", "{}"))
    assert not accepts(tokenizer, one, call(format_))


def test_several_calls_may_be_required_and_one_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    for format_, both in (
        (HERMES, f"{call(HERMES)}\n{call(HERMES, 'stay', '{}')}"),
        (MISTRAL, f'[TOOL_CALLS][{{"name": "go", "arguments": {AT}}}, {{"name": "stay", "arguments": {{}}}}]'),
        (MISTRAL_NAMED, call(MISTRAL_NAMED) + call(MISTRAL_NAMED, "stay", "{}")),
    ):
        assert accepts(tokenizer, grammar(tokenizer, "required", format_), both)
        named = {"type": "function", "function": {"name": "go"}}
        assert not accepts(tokenizer, grammar(tokenizer, named, format_), both)


@pytest.mark.parametrize("format_", FORMATS)
def test_a_strict_function_binds_its_own_arguments_only(
    tokenizer: PreTrainedTokenizerFast, format_: ToolFormat
) -> None:
    assert grammar(tokenizer, "auto", format_) is None
    assert grammar(tokenizer, "none", format_, strict=True) is None
    free = grammar(tokenizer, "auto", format_, strict=True)
    for right in ("Hello <b> there [x]", "", call(format_), call(format_, "stay", '{"any": 1}')):
        assert accepts(tokenizer, free, right)
    assert not accepts(tokenizer, free, call(format_, "go", '{"at": "away"}'))
    if format_ is not LLAMA3_JSON:
        assert accepts(tokenizer, free, f"One moment. {call(format_)}")
        assert not accepts(tokenizer, free, f"One moment. {call(format_, 'go', '{}')}")


@pytest.mark.parametrize("format_", FORMATS)
def test_with_a_response_format_a_candidate_is_calls_or_fits_it(
    tokenizer: PreTrainedTokenizerFast, format_: ToolFormat
) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": PARAMETERS}}
    either = grammar(tokenizer, "auto", format_, wanted)
    assert accepts(tokenizer, either, call(format_))
    assert accepts(tokenizer, either, AT)
    assert not accepts(tokenizer, either, "Hello")
    only = grammar(tokenizer, "none", format_, wanted)
    assert accepts(tokenizer, only, AT)
    assert not accepts(tokenizer, only, call(format_))


def test_json_may_be_indented_and_has_no_more_white_space_than_that(tokenizer: PreTrainedTokenizerFast) -> None:
    wanted = grammar_of('{"type":"json_object"}', Prompt.user("x"), None, tokenizer.get_vocab().get)
    value = {"a": [1, {"b": None}], "c": "d"}
    for text in (json.dumps(value), json.dumps(value, indent=4), json.dumps(value, separators=(",", ":"))):
        assert accepts(tokenizer, wanted, text)
    for text in ("[1]", '"a"', '{"a":  1}', '{"a":\n\n1}', " {}", "{} "):
        assert not accepts(tokenizer, wanted, text)


def test_objects_have_the_properties_that_they_name_unless_the_schema_says_otherwise() -> None:
    inner = {"type": "object", "properties": {"b": {"type": "null"}}}
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/inner"}}, "$defs": {"inner": inner}}
    shut = {"additionalProperties": False}
    assert closed(schema) == {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/inner"}},
        "$defs": {"inner": inner | shut},
        **shut,
    }
    unchanged: list[dict[str, Any]] = [
        {"type": "object"},
        {"type": "object", "properties": {}, "additionalProperties": True},
        {"allOf": [inner, {"type": "object", "properties": {"c": {"type": "null"}}}]},
        {"type": "object", "properties": {"a": {"type": "null"}}, "anyOf": [inner]},
        {"type": "object", "properties": {"properties": {"type": "null"}}, **shut},
        {"enum": [{"properties": {}}]},
        {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["b"]},
    ]
    for same in unchanged:
        assert closed(same) == same
    assert closed({"anyOf": [inner, {"type": "array", "items": inner}]}) == {
        "anyOf": [inner | shut, {"type": "array", "items": inner | shut}]
    }
