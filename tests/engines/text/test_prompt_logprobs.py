"""Tests log-probabilities of prompts: `echo` with `logprobs`, by which evaluation harnesses score answers."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bonbon.engines.embedded.embedded_engine import EmbeddedEngine
from bonbon.engines.embedded.embedded_options import EmbeddedOptions
from bonbon.engines.engine import DrawRequest, Sampling, VersionFiles, VersionKind
from bonbon.engines.fake_engine import FakeEngine
from bonbon.engines.remote.remote_engine import RemoteEngine
from bonbon.engines.remote.remote_options import RemoteOptions
from bonbon.errors import PromptTooLong, UnknownVersion, UserError
from bonbon.prompt import Prompt
from tests.support.models.engine_models import CONTEXT, load_all, reference, save_adapter, save_model
from tests.support.servers.vllm_double import doubles
from tests.support.service.api import COMPLETIONS, Api, events, open_api
from tests.support.service.embedded_api import EmbeddedApi, embedded_api


def of_prompt(model: Any, token_ids: list[int]) -> list[list[float]]:
    """Returns the log-probabilities of all tokens at each position but the first, by one plain forward pass."""
    with torch.inference_mode():
        distribution: list[list[float]] = model(torch.tensor([token_ids])).logits[0, :-1].log_softmax(-1).tolist()
    return distribution


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
async def engine(base: Path) -> AsyncIterator[EmbeddedEngine]:
    engine = EmbeddedEngine("tiny", base, EmbeddedOptions(threads=1))
    await engine.start()
    yield engine
    await engine.stop()


async def test_the_embedded_engine_gives_what_a_plain_forward_pass_gives(
    engine: EmbeddedEngine, base: Path, tmp_path: Path
) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, 1)
    await load_all(engine, {"tiny-one": adapter})
    token_ids = list(range(7, 40)) * 9
    for version, model in (("tiny", reference(base)), ("tiny-one", reference(base, adapter))):
        request = DrawRequest(Prompt(token_ids=tuple(token_ids[:CONTEXT])), version, 1, Sampling(top_logprobs=3))
        found = await engine.prompt_logprobs(request)
        distribution = of_prompt(model, token_ids[:CONTEXT])
        assert found.logprobs[0] is None
        assert found.alternatives[0] == ()
        expected = [place[token] for place, token in zip(distribution, found.started.token_ids[1:], strict=True)]
        assert found.logprobs[1:] == pytest.approx(expected, abs=2e-4)
        for place, alternatives in zip(distribution, found.alternatives[1:], strict=True):
            likeliest = sorted(place, reverse=True)[:3]
            assert [other.logprob for other in alternatives] == pytest.approx(likeliest, abs=2e-4)


async def test_what_cannot_be_read_is_refused(engine: EmbeddedEngine) -> None:
    with pytest.raises(PromptTooLong, match=f"maximum context length is {CONTEXT} tokens"):
        await engine.prompt_logprobs(DrawRequest(Prompt(token_ids=(7,) * (CONTEXT + 1)), "tiny"))
    with pytest.raises(UnknownVersion):
        await engine.prompt_logprobs(DrawRequest(Prompt(token_ids=(7,)), "nobody"))


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[EmbeddedApi]:
    async with embedded_api(tmp_path) as api:
        yield api


@pytest.mark.parametrize("max_tokens", [0, 1, 5])
async def test_the_tokens_of_prompt_and_answer_are_the_echoed_text(real: EmbeddedApi, max_tokens: int) -> None:
    prompts = ["Where is my order?", "Ünïcode – 漢字, too."]
    answer = await real.complete(prompt=prompts, echo=True, logprobs=2, max_tokens=max_tokens, temperature=0)
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        assert choice["text"].startswith(prompt)
        assert (choice["text"] == prompt) == (max_tokens == 0)
        logprobs = choice["logprobs"]
        lengths = {len(logprobs[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}
        assert len(lengths) == 1
        assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
        for token, logprob, top in list(
            zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
        )[1:]:
            assert logprob <= 0
            assert top[token] == logprob
        offsets = logprobs["text_offset"]
        assert offsets == sorted(offsets)
        for token, at in zip(logprobs["tokens"], offsets, strict=True):
            assert token.startswith("bytes:") or choice["text"][at:].startswith(token) or at == len(choice["text"])


async def test_an_answer_is_scored_as_it_was_drawn(real: EmbeddedApi) -> None:
    """Computes the log-probability of a continuation given its beginning, as an evaluation harness does."""
    drawn = await real.complete(logprobs=0, max_tokens=6, temperature=0)
    prompt = (await real.post("/tokenize", prompt="Where is my order?"))["tokens"]
    whole = prompt + (await real.group(drawn))["candidates"][0]["token_ids"]
    scored = await real.complete(prompt=whole, echo=True, logprobs=0, max_tokens=0)
    found = scored["choices"][0]["logprobs"]["token_logprobs"]
    assert len(found) == len(whole)
    assert found[len(prompt) :] == pytest.approx(drawn["choices"][0]["logprobs"]["token_logprobs"], abs=1e-4)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with open_api(tmp_path, engine=FakeEngine()) as opened:
        yield opened


@pytest.mark.parametrize("model", ["base", "bonbon"])
async def test_nothing_is_drawn_or_logged_for_max_tokens_0(api: Api, model: str) -> None:
    answer = await api.complete(model=model, echo=True, max_tokens=0)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"], choice["logprobs"]) == ("Dear customer", "length", None)
    assert answer["usage"]["completion_tokens"] == answer["bonbon"]["tokens_drawn"] == 0
    assert answer["bonbon"]["group_id"] is None
    assert await api.groups() == 0


@pytest.mark.parametrize(("model", "max_tokens"), [("base", 0), ("base", 5), ("bonbon", 5)])
async def test_a_stream_gives_the_same_tokens(api: Api, model: str, max_tokens: int) -> None:
    body = {"model": model, "echo": True, "logprobs": 1, "max_tokens": max_tokens}
    whole = await api.complete(seed=1, **body)
    response = await api.post(COMPLETIONS, prompt="Dear customer", seed=1, stream=True, **body)
    chunks, _ = events(response.text)
    for choice in whole["choices"]:
        parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        for name, values in choice["logprobs"].items():
            assert [value for part in parts if part["logprobs"] for value in part["logprobs"][name]] == values


async def test_what_does_not_go_with_max_tokens_0_is_named(api: Api) -> None:
    for fields, param in (({}, "max_tokens"), ({"echo": True, "n": 2}, "n"), ({"echo": True, "best_of": 2}, "best_of")):
        assert (await api.refusal(COMPLETIONS, max_tokens=0, **fields))["param"] == param
    assert (await api.refusal(COMPLETIONS, echo=True, logprobs=1, n=2))["param"] == "n"


async def test_a_fleet_is_asked_only_where_a_setting_says_so() -> None:
    request = DrawRequest(Prompt(text="Where is my order?"), "base", 1, Sampling(top_logprobs=2))
    with doubles(1) as (server,):
        for allowed in (False, True):
            engine = RemoteEngine("base", RemoteOptions(urls=(server.url,), prompt_logprobs=allowed))
            await engine.start()
            try:
                if not allowed:
                    with pytest.raises(UserError, match=r"engine_options\.prompt_logprobs"):
                        await engine.prompt_logprobs(request)
                    assert not server.draws
                    continue
                found = await engine.prompt_logprobs(request)
            finally:
                await engine.stop()
        assert json.loads(json.dumps(server.draws[-1]))["max_tokens"] == 1
    assert found.started.text == "Where is my order?"
    assert found.logprobs == (None, -1.0, -1.0, -1.0)
    assert [[other.logprob for other in place] for place in found.alternatives[1:]] == [[-0.5, -1.0]] * 3


async def test_a_version_of_the_embedded_engine_has_log_probabilities_of_its_own(
    engine: EmbeddedEngine, base: Path, tmp_path: Path
) -> None:
    await engine.load(VersionFiles("tiny-two", VersionKind.ADAPTER, save_adapter(tmp_path / "two", base, 2)))
    prompt = Prompt(token_ids=tuple(range(7, 20)))
    of_base, of_version = [await engine.prompt_logprobs(DrawRequest(prompt, name)) for name in ("tiny", "tiny-two")]
    assert of_base.logprobs != of_version.logprobs
