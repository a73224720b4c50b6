"""Tests what `Engine` promises, on every engine. What an engine adds to that is tested in its own folder."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from bonbon.demo.tiny_models import TinyModels
from bonbon.engines.candidates import Draws, collect
from bonbon.engines.embedded.embedded_engine import EmbeddedEngine
from bonbon.engines.embedded.embedded_options import EmbeddedOptions
from bonbon.engines.engine import Delta, DrawRequest, Engine, Sampling, Started, VersionFiles, VersionKind
from bonbon.engines.fake_engine import FakeEngine
from bonbon.engines.remote.remote_engine import RemoteEngine
from bonbon.engines.remote.remote_options import RemoteOptions
from bonbon.errors import PromptTooLong, UnknownVersion, UserError
from bonbon.prompt import Prompt
from tests.support.models.engine_models import save_adapter
from tests.support.servers.vllm_double import doubles

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = Prompt.user("Where is my order?")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fake_engine() -> AsyncIterator[Engine]:
    engine = FakeEngine("tiny")
    await engine.start()
    yield engine
    await engine.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def embedded_engine(tiny_models: TinyModels) -> AsyncIterator[Engine]:
    engine = EmbeddedEngine("tiny", tiny_models.policy, EmbeddedOptions(threads=1, max_rows=16))
    await engine.start()
    yield engine
    await engine.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def remote_engine() -> AsyncIterator[Engine]:
    """A fleet of two servers that speak vLLM's HTTP without a model."""
    with doubles(2) as servers:
        engine = RemoteEngine("tiny", RemoteOptions(urls=tuple(server.url for server in servers)))
        await engine.start()
        yield engine
        await engine.stop()


@pytest.fixture(
    params=["fake_engine", "embedded_engine", "remote_engine", pytest.param("vllm_engine", marks=pytest.mark.vllm)]
)
def engine(request: pytest.FixtureRequest) -> Engine:
    found: Engine = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def adapter(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> VersionFiles:
    directory = save_adapter(tmp_path_factory.mktemp("adapters") / "one", tiny_models.policy, seed=1)
    return VersionFiles("tiny-bonbon-0001", VersionKind.ADAPTER, directory)


def request(
    engine: Engine, n: int = 1, *, prompt: Prompt = PROMPT, deltas: bool = False, **sampling: Any
) -> DrawRequest:
    return DrawRequest(prompt, engine.base, n, Sampling(**{"max_tokens": 12, **sampling}), deltas)


async def draw(engine: Engine, n: int = 1, **fields: Any) -> Draws:
    return await collect(engine, request(engine, n, **fields))


def token_ids(draws: Draws) -> list[list[int]]:
    return [candidate.token_ids for candidate in draws.draws]


@pytest.mark.parametrize("deltas", [False, True])
async def test_the_prompt_comes_first_and_every_candidate_ends_once(engine: Engine, deltas: bool) -> None:
    started, *events = [event async for event in engine.draw(request(engine, 5, seed=1, deltas=deltas))]
    assert isinstance(started, Started)
    assert started.token_ids
    assert "Where is my order?" in started.text
    for index in range(5):
        own = [event for event in events if isinstance(event, Delta) and event.index == index]
        assert [event.finish_reason in ("stop", "length") for event in own] == [False] * (len(own) - 1) + [True]
        assert deltas or len(own) == 1
    assert {type(event) for event in events} == {Delta}
    assert {event.index for event in events if isinstance(event, Delta)} == set(range(5))


async def test_every_sampled_token_has_a_text_a_logprob_and_alternatives(engine: Engine) -> None:
    draws = await draw(engine, 5, seed=1, top_logprobs=2)
    for candidate in draws.draws:
        size = len(candidate.token_ids)
        assert size == len(candidate.tokens) == len(candidate.logprobs) == len(candidate.alternatives)
        assert b"".join(token.utf8 or b"" for token in candidate.tokens).decode() == candidate.text
        assert all(logprob <= 0 for logprob in candidate.logprobs)
        assert all(len(position) >= 2 for position in candidate.alternatives)


async def test_a_seed_gives_the_same_candidates_and_another_seed_gives_others(engine: Engine) -> None:
    first = await draw(engine, 4, seed=-17)
    beside = asyncio.gather(*(draw(engine, 2, prompt=Prompt.user("Thanks" * size)) for size in (1, 5, 12)))
    assert token_ids(await draw(engine, 4, seed=-17)) == token_ids(first)
    await beside
    assert token_ids(await draw(engine, 2, seed=-17)) == token_ids(first)[:2]
    assert len({tuple(tokens) for tokens in token_ids(first)}) > 1
    assert token_ids(await draw(engine, 4, seed=-16)) != token_ids(first)


async def test_without_a_seed_draws_differ(engine: Engine) -> None:
    assert len({tuple(tokens) for _ in range(3) for tokens in token_ids(await draw(engine, 4))}) > 4


async def test_greedy_candidates_are_equal(engine: Engine) -> None:
    first, *others = token_ids(await draw(engine, 3, temperature=0))
    assert others == [first] * 2


@pytest.mark.parametrize("stop", [(), ("e",)])
async def test_streamed_deltas_add_up_to_the_answer_in_one_piece(engine: Engine, stop: tuple[str, ...]) -> None:
    whole, streamed = [
        await draw(engine, 6, seed=2, stop=stop, top_logprobs=1, max_tokens=20, deltas=deltas)
        for deltas in (False, True)
    ]
    assert token_ids(streamed) == token_ids(whole)
    assert streamed.prompt == whole.prompt
    for one, other in zip(streamed.draws, whole.draws, strict=True):
        assert (one.text, one.finish_reason, one.tokens) == (other.text, other.finish_reason, other.tokens)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert len(one.alternatives) == len(other.alternatives)


async def test_max_tokens_end_a_candidate(engine: Engine) -> None:
    (candidate,) = (await draw(engine, temperature=0, max_tokens=2)).draws
    assert (candidate.finish_reason, len(candidate.token_ids)) == ("length", 2)


@pytest.mark.parametrize("deltas", [False, True])
async def test_a_stop_string_ends_the_text_before_it(engine: Engine, deltas: bool) -> None:
    for seed in range(100):
        (free,) = (await draw(engine, seed=seed, max_tokens=24)).draws
        if len(free.token_ids) > 6:
            break
    stop = free.text[6:10]
    (stopped,) = (await draw(engine, seed=seed, max_tokens=24, stop=("never", stop), deltas=deltas)).draws
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == free.token_ids[: len(stopped.token_ids)]
    assert len(stopped.token_ids) < len(free.token_ids)


async def test_what_exceeds_the_context_is_refused_and_what_just_fits_is_drawn(engine: Engine) -> None:
    free = engine.context_length - len((await draw(engine, max_tokens=1)).prompt.token_ids)
    with pytest.raises(PromptTooLong, match=f"{free + 1} in the completion"):
        await anext(engine.draw(request(engine, max_tokens=free + 1)))
    (candidate,) = (await draw(engine, max_tokens=free, temperature=0)).draws
    assert candidate.finish_reason in ("stop", "length")


@pytest.mark.parametrize(("field", "value"), [("n", 0), ("max_tokens", 0), ("temperature", 3), ("top_p", 2)])
async def test_a_value_that_no_engine_can_use_is_refused_by_name(engine: Engine, field: str, value: int) -> None:
    fields: dict[str, Any] = {field: value}
    with pytest.raises(UserError, match=field) as caught:
        await anext(engine.draw(request(engine, **fields)))
    assert caught.value.param == field


async def test_versions_are_loaded_beside_the_base_and_unloaded(engine: Engine, adapter: VersionFiles) -> None:
    asked = DrawRequest(PROMPT, adapter.name, 2, Sampling(max_tokens=4))
    assert await engine.loaded() == {engine.base}
    assert not engine.displaces(adapter)
    with pytest.raises(UnknownVersion, match=f"'{adapter.name}' is not loaded") as caught:
        await anext(engine.draw(asked))
    assert caught.value.param == "model"
    for _ in range(2):
        await engine.load(adapter)
        assert await engine.loaded() == {engine.base, adapter.name}
    assert len((await collect(engine, asked)).draws) == 2
    await draw(engine)
    for _ in range(2):
        await engine.unload(adapter.name)
        assert await engine.loaded() == {engine.base}
    with pytest.raises(UnknownVersion):
        await anext(engine.draw(asked))


async def test_closing_the_generator_lets_the_next_draw_start(engine: Engine) -> None:
    events = engine.draw(request(engine, 64, ignore_eos=True, max_tokens=40, deltas=True))
    assert isinstance(await anext(events), Started)
    await events.aclose()
    assert len((await draw(engine, 3)).draws) == 3


async def test_requests_at_once_are_all_answered(engine: Engine) -> None:
    sizes = [1 + number % 4 for number in range(24)]
    answers = await asyncio.gather(*(draw(engine, size) for size in sizes))
    assert [len(draws.draws) for draws in answers] == sizes
    assert all(candidate.finish_reason for draws in answers for candidate in draws.draws)


async def test_a_prompt_is_tokenized_as_it_is_drawn_from(engine: Engine) -> None:
    tokens = await engine.tokenize(PROMPT)
    assert tokens.ids == (await draw(engine)).prompt.token_ids
    assert len(tokens.names) == len(tokens.ids)
    assert isinstance(await engine.detokenize(tokens.ids), str)


async def test_a_started_engine_is_well(engine: Engine) -> None:
    await engine.check()
    assert engine.context_length > 0
