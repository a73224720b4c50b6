"""Tests that tool calls are read the same however a text is cut into pieces, and that other text is kept."""

import json
from collections.abc import Callable
from time import process_time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bonbon.engines.candidates import Draw
from bonbon.engines.engine import Delta
from bonbon.engines.structured.call_reader import CallReader
from bonbon.engines.structured.json_scanner import JsonScanner
from bonbon.engines.structured.tool_format import (
    HERMES,
    LLAMA3_JSON,
    MISTRAL,
    MISTRAL_NAMED,
    ToolFormat,
    ToolParser,
    tool_format,
)

ONE, TWO = '{"name": "get_order", "arguments": {"id": 7}}', '{"name":"cancel","arguments":{}}'
CALLED = [("get_order", '{"id": 7}'), ("cancel", "{}")]
BRACES = '{"name": "say", "arguments": {"text": "a } \\" <tool_call> ] {", "deep": [[{}], {"b": null}]}}'
SAID = [("say", '{"text": "a } \\" <tool_call> ] {", "deep": [[{}], {"b": null}]}')]
CASES: list[tuple[ToolFormat, str, str, list[tuple[str, str]]]] = [
    (HERMES, f"<tool_call>\n{ONE}\n</tool_call>", "", CALLED[:1]),
    (HERMES, f"<tool_call>{ONE}</tool_call>\n<tool_call>\n{TWO}\n</tool_call>\n", "", CALLED),
    (HERMES, f"One moment.\n<tool_call>{ONE}</tool_call>", "One moment.\n", CALLED[:1]),
    (HERMES, f"<tool_call>{BRACES}</tool_call>", "", SAID),
    (HERMES, f"<tool_call>{ONE}</tool_call> Done.", " Done.", CALLED[:1]),
    (HERMES, f"<tool_call>{ONE}", "", CALLED[:1]),
    (HERMES, '<tool_call>{"arguments": {"id": 7}, "name": "get_order"}</tool_call>', "", CALLED[:1]),
    (HERMES, '<tool_call>{"name": "get_order", "arguments": "{\\"id\\": 7}"}</tool_call>', "", CALLED[:1]),
    (
        HERMES,
        '<tool_call>{"name": "get_order", "arguments": {"id": 7}, "id": "x}", "n": 1}</tool_call>',
        "",
        CALLED[:1],
    ),
    (HERMES, '<tool_call>\n{"name": "get_order", "arguments": {"id": ', "", [("get_order", '{"id": ')]),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": x}}</tool_call>', "", [("f", '{"a": x}')]),
    (
        HERMES,
        f'<tool_call>{{"name": "f", "arguments": {{"a": </tool_call><tool_call>{TWO}',
        "",
        [("f", '{"a": '), CALLED[1]],
    ),
    (HERMES, '<tool_call>{"na', '<tool_call>{"na', []),
    (HERMES, "<tool_call>{broken}</tool_call>!", "<tool_call>{broken}</tool_call>!", []),
    (HERMES, '<tool_call>{"no": "name"}</tool_call>', '<tool_call>{"no": "name"}</tool_call>', []),
    (HERMES, "no <tool_cal", "no <tool_cal", []),
    (HERMES, f"<tool_call>{ONE}</tool_c", "", CALLED[:1]),
    (HERMES, ONE, ONE, []),
    (HERMES, "", "", []),
    (LLAMA3_JSON, '{"name": "get_order", "parameters": {"id": 7}}', "", CALLED[:1]),
    (LLAMA3_JSON, f"<|python_tag|>{ONE}; {TWO}", "", CALLED),
    (LLAMA3_JSON, ' {"type": "function", "name": "cancel", "parameters": {}}', "", CALLED[1:]),
    (LLAMA3_JSON, '{"answer": 42}', '{"answer": 42}', []),
    (LLAMA3_JSON, "Use {} please", "Use {} please", []),
    (MISTRAL, f"[TOOL_CALLS] [{ONE}, {TWO}]", "", CALLED),
    (MISTRAL, f"[TOOL_CALLS]{ONE}", "", CALLED[:1]),
    (MISTRAL, "[TOOL_CALLS] none", "[TOOL_CALLS] none", []),
    (MISTRAL_NAMED, '[TOOL_CALLS]get_order[ARGS]{"id": 7}[TOOL_CALLS]cancel[ARGS]{}', "", CALLED),
    (MISTRAL_NAMED, '[TOOL_CALLS]get_order{"id": 7}', "", CALLED[:1]),
]


def read(format_: ToolFormat, pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    reader, draw = CallReader(format_), Draw(0)
    for piece in pieces:
        text, calls = reader.read(piece)
        draw.add(Delta(0, text, tool_calls=calls))
    text, calls = reader.read("", final=True)
    draw.add(Delta(0, text, tool_calls=calls))
    assert len({call.id for call in draw.tool_calls} | {""}) == len(draw.tool_calls) + 1
    return draw.text, [(call.name, call.arguments) for call in draw.tool_calls]


@pytest.mark.parametrize(("format_", "text", "content", "calls"), CASES)
def test_a_text_has_content_and_calls(
    format_: ToolFormat, text: str, content: str, calls: list[tuple[str, str]]
) -> None:
    assert read(format_, [text]) == (content, calls)
    assert read(format_, list(text)) == (content, calls)


PARTS = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "[", "]", "{", "}", '"', "\\", ",", ";", " "]
PARTS += ["\n", "x", ":", '{"name": "f", "arguments": ', '"name"', "7", "[ARGS]", ONE, TWO, "null"]


@settings(deadline=None)
@given(st.sampled_from([HERMES, LLAMA3_JSON, MISTRAL, MISTRAL_NAMED]), st.lists(st.sampled_from(PARTS)), st.data())
def test_it_does_not_matter_where_a_text_is_cut(format_: ToolFormat, parts: list[str], data: Any) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(format_, [text]) == read(format_, pieces) == read(format_, list(text))


def test_a_long_text_that_is_no_call_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long object is scanned once, not again from its beginning for each piece."""
    scanned, scan = 0, JsonScanner.scan

    def counted(self: JsonScanner, text: str, start: int = 0) -> int:
        nonlocal scanned
        scanned += len(text) - start
        return scan(self, text, start)

    monkeypatch.setattr(JsonScanner, "scan", counted)
    text = json.dumps({"answer": "a word " * 200})
    reader = CallReader(LLAMA3_JSON)
    content = "".join(reader.read(piece)[0] for piece in text) + reader.read("", final=True)[0]
    assert content == text
    assert scanned <= len(text)


LONG: dict[str, tuple[ToolFormat, Callable[[int], str]]] = {
    "content": (HERMES, lambda size: "a" * size),
    "blanks before": (LLAMA3_JSON, lambda size: " " * size),
    "blanks in a call": (HERMES, lambda size: "<tool_call>" + " " * size),
    "blanks in an object": (HERMES, lambda size: "<tool_call>{" + " " * size),
    "blanks after a name": (MISTRAL_NAMED, lambda size: "[TOOL_CALLS]f" + " " * size),
    "blanks after a call": (HERMES, lambda size: f"<tool_call>{ONE}</tool_call>" + " " * size),
    "no call": (LLAMA3_JSON, lambda size: '{"answer": "' + "a" * size),
    "a name": (HERMES, lambda size: '<tool_call>{"name": "' + "a" * size),
    "arguments": (HERMES, lambda size: '<tool_call>{"name": "f", "arguments": {"a": "' + "a" * size),
    "a string after them": (HERMES, lambda size: f'<tool_call>{ONE[:-1]}, "id": "' + "a" * size),
    "a number after them": (HERMES, lambda size: f'<tool_call>{ONE[:-1]}, "id": ' + "1" * size),
    "separators after them": (HERMES, lambda size: f"<tool_call>{ONE[:-1]}" + ", " * (size // 2)),
    "many calls": (HERMES, lambda size: f"<tool_call>{ONE}</tool_call>" * (size // 64)),
    "many objects": (HERMES, lambda size: '<tool_call>{"a": {}}</tool_call>' * (size // 32)),
}


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("whole", [False, True])
def test_the_time_of_a_text_grows_with_its_length(name: str, whole: bool) -> None:
    format_, text = LONG[name]
    short, long = (text(size) for size in ((16_384, 262_144) if whole else (4_096, 65_536)))

    def seconds(text: str) -> float:
        """Returns the shortest of some attempts, because other processes only add to it."""
        attempts = []
        for _ in range(3):
            reader, begin = CallReader(format_), process_time()
            for piece in [text] if whole else text:
                reader.read(piece)
            reader.read("", final=True)
            attempts.append(process_time() - begin)
        return min(attempts)

    # Sixteen times as long; with the square of the length it would take 256 times as long.
    assert seconds(long) < 64 * max(seconds(short), 1e-4)


def test_arguments_come_as_they_are_written() -> None:
    reader = CallReader(HERMES)
    assert not any(reader.read('<tool_call>{"name": "f", "arguments":'))
    [head] = reader.read(' {"a"')[1]
    assert (head.index, head.name, head.arguments) == (0, "f", '{"a"')
    assert [piece.arguments for piece in reader.read(": 1}}")[1]] == [": 1}"]


@pytest.mark.parametrize(
    ("parser", "template", "found"),
    [
        ("auto", "{{ tools }}<tool_call>", HERMES),
        ("auto", "{{ tools }}<tool_call><function=", None),
        ("auto", "{{ tools }}[TOOL_CALLS]", MISTRAL),
        ("auto", "{{ tools }}[TOOL_CALLS][ARGS]", MISTRAL_NAMED),
        ("auto", '<|start_header_id|>{"name": "x", "parameters": {}} {{ tools }}', LLAMA3_JSON),
        ("auto", "{{ tools }}", None),
        ("hermes", "{{ tools }}", HERMES),
        ("llama3_json", "<tool_call>", LLAMA3_JSON),
    ],
)
def test_a_template_shows_how_calls_are_written(parser: ToolParser, template: str, found: ToolFormat | None) -> None:
    assert tool_format(parser, template) == found


def test_ids_of_calls_are_new_and_mistral_takes_them() -> None:
    assert MISTRAL.new_id() != MISTRAL.new_id()
    assert len(MISTRAL.new_id()) == 9
    assert MISTRAL.new_id().isalnum()
    assert json.loads(ONE)["name"] == "get_order"
