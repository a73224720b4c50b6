"""Tests that a response format is stored as text, marks its groups, and is refused where it is not supported."""

from dataclasses import replace

import pytest

from bonbon.engines.candidates import collect
from bonbon.engines.engine import DrawRequest, Sampling
from bonbon.engines.fake_engine import FakeEngine
from bonbon.engines.structured import response_format
from bonbon.errors import UserError
from bonbon.prompt import Prompt
from service.schemas.chat_body import ChatBody

SCHEMA = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"const": "\u00e9"}}}


def body(**fields: object) -> ChatBody:
    return ChatBody.model_validate({"model": "bonbon", "messages": [{"role": "user", "content": "x"}], **fields})


def sampling_of(body: ChatBody) -> Sampling:
    return body.completion_request(tenant="", default_max_tokens=8, request_id="", headers={}).sampling


def test_a_body_carries_its_format_as_canonical_text() -> None:
    asked = {"type": "json_schema", "json_schema": {"name": "reply", "schema": SCHEMA, "strict": True}}
    sampling = sampling_of(body(response_format=asked))
    assert sampling.response_format == response_format.canonical(asked)
    assert sampling.response_format is not None
    assert sampling.response_format.index('"z"') < sampling.response_format.index('"a"')
    assert '"const":"\u00e9"' in sampling.response_format
    assert sampling_of(body(response_format={"type": "json_object"})).response_format == '{"type":"json_object"}'
    for nothing in (None, {"type": "text"}):
        assert sampling_of(body(response_format=nothing)).response_format is None


def test_a_format_is_not_the_policys_own_distribution() -> None:
    assert Sampling().unmodified
    assert not replace(Sampling(), response_format='{"type":"json_object"}').unmodified


async def test_an_engine_that_cannot_says_so() -> None:
    engine = FakeEngine()
    await engine.start()
    with pytest.raises(UserError, match="not supported by the fake engine") as caught:
        await collect(
            engine, DrawRequest(Prompt.user("x"), "fake", 1, Sampling(response_format='{"type":"json_object"}'))
        )
    assert caught.value.param == "response_format"
