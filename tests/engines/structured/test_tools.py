"""Tests tool calls as text, and prompts with tools."""

import json
from dataclasses import replace
from typing import Any

import pytest

from bonbon.engines.candidates import Draw
from bonbon.engines.engine import Delta
from bonbon.pairs.group_rows import prompt_document, prompt_of
from bonbon.prompt import Prompt
from bonbon.tools import ToolCall, ToolCallDelta, canonical, written

CALL = ToolCall("c1", "get_order", '{"id": 7}')
MESSAGES: Any = (
    {"role": "user", "content": "Where is order 7?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL.to_dict()]},
    {"role": "tool", "content": "shipped", "tool_call_id": "c1"},
)
TOOLS = canonical([{"type": "function", "function": {"name": "get_order"}}])


def test_calls_are_written_a_line_each_after_the_content() -> None:
    line = '<tool_call>{"name": "get_order", "arguments": {"id": 7}}</tool_call>'
    assert written("", [CALL]) == line
    assert written("One moment.", [CALL, CALL]) == f"One moment.\n{line}\n{line}"
    assert written("No call.", []) == "No call."
    assert written("", [ToolCall("c", "f", '{"id": ')]) == (
        '<tool_call>{"name": "f", "arguments": "{\\"id\\": "}</tool_call>'
    )


def test_a_draw_puts_the_pieces_of_its_calls_together() -> None:
    draw = Draw(0)
    pieces = [(0, "c1", "f", ""), (0, "", "", '{"a"'), (1, "c2", "g", "{}"), (0, "", "", ": 1}")]
    for piece in pieces:
        draw.add(Delta(0, "", tool_calls=(ToolCallDelta(*piece),)))
    assert draw.tool_calls == [ToolCall("c1", "f", '{"a": 1}'), ToolCall("c2", "g", "{}")]


def test_tools_are_part_of_what_a_prompt_is() -> None:
    plain = Prompt.user("Where is order 7?")
    offered = replace(plain, tools=TOOLS, tool_choice='"auto"')
    assert len({plain.digest, offered.digest, replace(offered, tool_choice='"required"').digest}) == 3
    assert not plain.has_tools
    assert offered.has_tools
    assert Prompt(MESSAGES).has_tools
    with pytest.raises(ValueError, match="tools and tool_choice need a prompt of messages"):
        Prompt(text="x", tools=TOOLS)


@pytest.mark.parametrize("prompt", [Prompt(MESSAGES), Prompt(MESSAGES, tools=TOOLS, tool_choice='"auto"')])
def test_a_prompt_comes_back_from_the_log_as_it_was(prompt: Prompt) -> None:
    back = prompt_of(json.loads(json.dumps(prompt_document(prompt))))
    assert back == prompt
    assert back.digest == prompt.digest


def test_what_forces_the_sampler_is_known() -> None:
    strict = canonical([{"type": "function", "function": {"name": "f", "strict": True}}])
    named = canonical({"type": "function", "function": {"name": "get_order"}})
    for tools, choice, constrains in (
        (TOOLS, None, False),
        (TOOLS, '"auto"', False),
        (TOOLS, '"none"', False),
        (TOOLS, '"required"', True),
        (TOOLS, named, True),
        (strict, '"auto"', True),
    ):
        assert Prompt(MESSAGES, tools=tools, tool_choice=choice).constrains is constrains


def test_readers_of_text_get_calls_as_text() -> None:
    plain = Prompt(MESSAGES, tools=TOOLS).plain
    assert plain.tools is None
    assert plain.messages == (
        MESSAGES[0],
        {"role": "assistant", "content": written("", [CALL])},
        {"role": "tool", "content": "shipped"},
    )
    assert Prompt.user("x").plain == Prompt.user("x")
