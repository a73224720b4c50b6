"""Tests that candidates of the embedded engine match their schema in every setting, without slowing others down."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from bonbon.engines.candidates import Draw, collect
from bonbon.engines.embedded.embedded_engine import EmbeddedEngine
from bonbon.engines.embedded.embedded_options import EmbeddedOptions
from bonbon.engines.engine import DrawRequest, Sampling
from bonbon.engines.structured.grammar_trial import GrammarTrial
from bonbon.engines.structured.response_format import canonical
from bonbon.errors import UserError
from bonbon.prompt import Prompt
from tests.support.zoo.policies import Policy, sizes
from tests.support.zoo.tokenizers import CHATML, HEADERS, byte_level, sentencepiece

PROMPT = Prompt.user("Where is my order?")
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["refund", "délai"]},
        "urgent": {"type": "boolean"},
        "note": {"type": "string", "maxLength": 5},
        "of": {"$ref": "#/$defs/of"},
    },
    "required": ["kind", "urgent", "note", "of"],
    "additionalProperties": False,
    "$defs": {"of": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 2}},
}


def constrained(schema: Any, **fields: Any) -> Sampling:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return Sampling(**{"max_tokens": 400, "response_format": canonical(wanted), **fields})


def check(draws: list[Draw]) -> None:
    for draw in draws:
        assert draw.finish_reason == "stop"
        value = json.loads(draw.text)
        assert list(value) == ["kind", "urgent", "note", "of"]
        assert value["kind"] in ("refund", "délai")
        assert isinstance(value["urgent"], bool)
        assert len(value["note"]) <= 5
        assert len(value["of"]) <= 2
        assert set(value["of"]) <= set(range(10))


def endless() -> PreTrainedTokenizerFast:
    """Writes a model without an end token."""
    tokenizer = byte_level(CHATML)
    tokenizer.eos_token = None
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    return tokenizer


TOKENIZERS = {
    "byte-level": lambda: byte_level(CHATML),
    "two ends": lambda: byte_level(HEADERS, bos=True),
    "sentencepiece": lambda: sentencepiece(CHATML),
    "without prefix": lambda: sentencepiece(CHATML, prefix=False),
    "endless": endless,
}


@asynccontextmanager
async def started(directory: Path, tokenizer: str = "byte-level", **options: Any) -> AsyncIterator[EmbeddedEngine]:
    """Starts an engine with a model of random weights."""
    policy = Policy("llama", TOKENIZERS[tokenizer], sizes(max_position_embeddings=1024))
    engine = EmbeddedEngine("tiny", policy.save(directory / "model"), EmbeddedOptions(threads=1, **options))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EmbeddedEngine]:
    async with started(tmp_path) as engine:
        yield engine


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
async def test_candidates_fit_whatever_the_tokenizer(tmp_path: Path, tokenizer: str) -> None:
    async with started(tmp_path, tokenizer) as engine:
        request = DrawRequest(PROMPT, "tiny", 3, constrained(SCHEMA, seed=1))
        whole = await collect(engine, request)
        check(whole.draws)
        streamed = await collect(engine, replace(request, n=1, deltas=True))
        assert streamed.draws[0].text == whole.draws[0].text


async def test_candidates_fit_whatever_else_the_request_says(engine: EmbeddedEngine) -> None:
    every: list[dict[str, Any]] = [
        {"seed": 1, "top_logprobs": 2},
        {"temperature": 0.0},
        {"temperature": 2.0, "top_k": 5},
        {"top_p": 0.9, "min_p": 0.01},
        {"repetition_penalty": 1.2, "frequency_penalty": 1.0, "presence_penalty": 1.0},
        {"logit_bias": ((40, 100.0), (41, -100.0))},
    ]
    requests = [DrawRequest(PROMPT, "tiny", 2, constrained(SCHEMA, **fields)) for fields in every]
    for fields, found in zip(every, await asyncio.gather(*(collect(engine, one) for one in requests)), strict=True):
        draws = found.draws
        check(draws)
        assert all(len(draw.alternatives) == (len(draw.token_ids) if "top_logprobs" in fields else 0) for draw in draws)


async def test_a_seed_gives_the_same_candidates_alone_and_in_a_batch_streamed_and_whole(engine: EmbeddedEngine) -> None:
    request = DrawRequest(PROMPT, "tiny", 3, constrained(SCHEMA, seed=7))
    free = DrawRequest(PROMPT, "tiny", 2, Sampling(max_tokens=60, seed=7))
    held, loose = await collect(engine, request), await collect(engine, free)
    mixed = await asyncio.gather(
        collect(engine, request), collect(engine, free), collect(engine, replace(request, deltas=True))
    )
    for draws, again in ((held, mixed[0]), (loose, mixed[1]), (held, mixed[2])):
        assert [draw.token_ids for draw in draws.draws] == [draw.token_ids for draw in again.draws]
        assert [draw.text for draw in draws.draws] == [draw.text for draw in again.draws]


async def test_log_probabilities_are_of_the_whole_distribution(engine: EmbeddedEngine) -> None:
    held = await collect(engine, DrawRequest(PROMPT, "tiny", 1, constrained(SCHEMA, seed=3)))
    first = held.draws[0]
    free = await collect(engine, DrawRequest(PROMPT, "tiny", 1, Sampling(max_tokens=1, top_logprobs=420)))
    distribution = {one.token_id: one.logprob for one in free.draws[0].alternatives[0]}
    assert first.logprobs[0] == pytest.approx(distribution[first.token_ids[0]], abs=1e-4)


async def test_a_candidate_that_is_cut_off_or_stopped_says_so(engine: EmbeddedEngine) -> None:
    cut = (await collect(engine, DrawRequest(PROMPT, "tiny", 1, constrained(SCHEMA, max_tokens=4)))).draws[0]
    assert (cut.finish_reason, cut.text[:1], len(cut.token_ids)) == ("length", "{", 4)
    stopped = (await collect(engine, DrawRequest(PROMPT, "tiny", 1, constrained(SCHEMA, stop=('"kind"',))))).draws[0]
    assert (stopped.finish_reason, stopped.text.strip()) == ("stop", "{")


async def test_schemas_that_cannot_be_held_to_are_refused_by_name_and_the_engine_draws_on(tmp_path: Path) -> None:
    deep: Any = {"type": "string"}
    for _ in range(500):
        deep = {"type": "array", "items": deep}
    chain = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(3000)} | {"d3000": {"type": "string"}}
    refused: list[tuple[Any, str]] = [
        ({"type": "array", "uniqueItems": True}, 'not supported, "uniqueItems": leave them out'),
        ({"not": {"type": "string"}}, 'not supported, "not"'),
        ({"if": {"type": "string"}, "then": {"type": "string"}}, '"if", "then"'),
        ({"type": "string", "format": "credit-card"}, "credit-card"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "text"}, "Invalid type: text"),
        ({"type": "string", "enum": [1]}, "nothing can match it, because"),
        (
            {"type": "string", "pattern": "(["},
            "the pattern .* is not supported: unclosed character class$",
        ),
        ({"$ref": "#/$defs/x"}, "it refers to '#/.defs/x', which it does not have$"),
        ({"$ref": "#"}, "cannot be used"),
        ({"$ref": "https://example.com/schema"}, "nothing outside the schema is fetched$"),
        (deep, "nested too deeply"),
        ({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(20000)}}, "too large"),
        ({"$ref": "#/$defs/d0", "$defs": chain}, "take more than 2 s, or too much memory"),
        ({"type": "integer", "multipleOf": 99999989}, "take more than 2 s, or too much memory"),
    ]
    async with started(tmp_path, schema_timeout=2) as engine:
        free = DrawRequest(PROMPT, "tiny", 2, Sampling(max_tokens=900, ignore_eos=True))
        endless = asyncio.create_task(collect(engine, free))
        for schema, words in refused:
            with pytest.raises(UserError, match=words) as caught:
                await collect(engine, DrawRequest(PROMPT, "tiny", 1, constrained(schema)))
            assert caught.value.param == "response_format"
            assert "x-guidance" not in str(caught.value)
        check((await collect(engine, DrawRequest(PROMPT, "tiny", 2, constrained(SCHEMA)))).draws)
        assert [len(draw.token_ids) for draw in (await endless).draws] == [900, 900]


async def test_a_schema_that_takes_too_long_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    error_of = GrammarTrial.error_of

    async def counted(self: GrammarTrial, grammar: str) -> str:
        tried.append(grammar)
        return await error_of(self, grammar)

    monkeypatch.setattr(GrammarTrial, "error_of", counted)
    async with started(tmp_path, schema_timeout=1) as engine:
        asked = DrawRequest(PROMPT, "tiny", 1, constrained({"type": "integer", "multipleOf": 99999989}))
        outcomes = await asyncio.gather(*(collect(engine, asked) for _ in range(3)), return_exceptions=True)
        outcomes.append(*await asyncio.gather(collect(engine, asked), return_exceptions=True))
        assert all(isinstance(outcome, UserError) for outcome in outcomes)
        assert ["take more than 1 s" in str(outcome) for outcome in outcomes] == [True] * 4
    assert len(tried) == 1


async def test_others_draw_while_a_schema_is_compiled(tmp_path: Path) -> None:
    async with started(tmp_path, schema_timeout=600) as engine:
        await collect(engine, DrawRequest(PROMPT, "tiny", 1, constrained({"type": "boolean"})))
        endless = constrained({"type": "integer", "multipleOf": 99999989})
        slow = asyncio.create_task(collect(engine, DrawRequest(PROMPT, "tiny", 1, endless)))
        for _ in range(5):
            await collect(engine, DrawRequest(PROMPT, "tiny", 2, Sampling(max_tokens=5)))
            await collect(engine, DrawRequest(PROMPT, "tiny", 2, constrained({"type": "boolean"})))  # compiled before
        assert not slow.done()
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        await collect(engine, DrawRequest(PROMPT, "tiny", 1, constrained({"type": "null"})))


async def test_fields_that_keep_a_text_from_ending_are_refused(engine: EmbeddedEngine) -> None:
    for field in ({"ignore_eos": True}, {"min_tokens": 1}):
        with pytest.raises(UserError, match="contradicts response_format"):
            await collect(engine, DrawRequest(PROMPT, "tiny", 1, constrained(SCHEMA, **field)))
