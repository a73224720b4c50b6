"""Tests the embedded engine against an independent forward pass of the same tiny model, with real adapters."""

import asyncio
import gc
import json
import math
import shutil
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import chisquare
from tokenizers import Tokenizer
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from bonbon.engines import build_engine
from bonbon.engines.candidates import Draws, collect
from bonbon.engines.embedded.embedded_engine import EmbeddedEngine
from bonbon.engines.embedded.embedded_options import EmbeddedOptions
from bonbon.engines.engine import Delta, DrawRequest, Engine, Sampling, Started, VersionFiles, VersionKind
from bonbon.errors import EngineError, PromptTooLong, UnknownVersion, UserError
from bonbon.prompt import Message, Prompt
from bonbon.settings import load_settings
from tests.support.models.engine_models import (
    CONTEXT,
    EOS,
    PROMPT,
    REFUSALS,
    WORDS,
    assert_logprobs,
    edit_weights,
    load_all,
    logprobs,
    reference,
    save_adapter,
    save_model,
)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {name: save_adapter(root / name, base, seed) for seed, name in enumerate(["tiny-1.0-one", "two"], start=1)}


@pytest.fixture
async def engine(base: Path) -> AsyncIterator[EmbeddedEngine]:
    engine = EmbeddedEngine("tiny", base, EmbeddedOptions(threads=1, max_rows=16))
    await engine.start()
    yield engine
    await engine.stop()


async def test_logprobs_are_those_of_a_plain_forward_pass(engine: EmbeddedEngine, base: Path) -> None:
    model = reference(base)
    prompts = [(7,), (8, 9), tuple(range(7, 40)), (7, 9) * 20]
    for temperature in (1.0, 0.7, 1.6):
        sampling = Sampling(max_tokens=24, temperature=temperature, seed=5)
        requests = [DrawRequest(Prompt(token_ids=p), "tiny", n, sampling) for n, p in enumerate(prompts, start=1)]
        for draws in await asyncio.gather(*(collect(engine, request) for request in requests)):
            assert_logprobs(model, draws, temperature)
            for draw in draws.draws:
                assert len(draw.token_ids) == len(draw.logprobs) == len(draw.tokens)
                ended = draw.token_ids[-1] == EOS
                assert draw.finish_reason == ("stop" if ended else "length")
                assert EOS not in draw.token_ids[:-1]
                assert ended or len(draw.token_ids) == 24


async def test_rows_that_join_while_others_run_are_drawn_as_if_alone(engine: EmbeddedEngine, base: Path) -> None:
    """More requests arrive than fit into a batch, so candidates join and leave running batches."""
    requests = [
        DrawRequest(
            Prompt(token_ids=tuple(range(7, 8 + i % 9))), "tiny", 3, Sampling(max_tokens=5 + 9 * (i % 4), seed=i)
        )
        for i in range(16)
    ]
    alone = [await collect(engine, request) for request in requests]

    async def later(request: DrawRequest, delay: float) -> Draws:
        await asyncio.sleep(delay)
        return await collect(engine, request)

    together = await asyncio.gather(*(later(request, 0.01 * i) for i, request in enumerate(requests)))
    model = reference(base)
    for one, other in zip(alone, together, strict=True):
        assert [draw.token_ids for draw in one.draws] == [draw.token_ids for draw in other.draws]
        assert_logprobs(model, other)


async def test_first_tokens_follow_the_policys_distribution(engine: EmbeddedEngine, base: Path) -> None:
    """Runs a chi-square test at error rate 1e-4 on fixed seeds, for seeded samples at two temperatures."""
    model = reference(base)
    for temperature in (1.0, 0.5):
        sampling = Sampling(max_tokens=1, temperature=temperature, seed=11)
        draws = await collect(engine, DrawRequest(PROMPT, "tiny", 3000, sampling))
        counts = Counter(draw.token_ids[0] for draw in draws.draws)
        distribution = logprobs(model, PROMPT.token_ids or (), [0], temperature)[0].double().exp()
        order = distribution.argsort(descending=True).tolist()
        likely = [token for token in order if distribution[token] * 3000 >= 5]
        expected = [float(distribution[token]) * 3000 for token in likely]
        observed = [float(counts[token]) for token in likely]
        rest = 3000 - sum(expected)
        assert chisquare([*observed, 3000 - sum(observed)], [*expected, rest]).pvalue > 1e-4


async def test_greedy_takes_the_likeliest_and_reports_its_distribution_at_temperature_one(
    engine: EmbeddedEngine, base: Path
) -> None:
    model = reference(base)
    greedy, sampled = await asyncio.gather(
        collect(engine, DrawRequest(PROMPT, "tiny", 1, Sampling(max_tokens=16, temperature=0))),
        collect(engine, DrawRequest(PROMPT, "tiny", 1, Sampling(max_tokens=16, temperature=2, seed=1))),
    )
    distribution = logprobs(model, PROMPT.token_ids or (), greedy.draws[0].token_ids)
    assert greedy.draws[0].token_ids == distribution.argmax(-1).tolist()
    assert_logprobs(model, greedy)
    assert_logprobs(model, sampled, 2)


async def test_top_k_and_top_p_limit_the_support_but_not_the_reported_distribution(
    engine: EmbeddedEngine, base: Path
) -> None:
    distribution = logprobs(reference(base), PROMPT.token_ids or (), [0])[0].exp()
    ordered, order = distribution.sort(descending=True)
    nucleus = int((ordered.cumsum(0) < 0.6).sum()) + 1
    of_five = ordered[:5] / ordered[:5].sum()
    both = int((of_five.cumsum(0) < 0.7).sum()) + 1
    cases = [
        (Sampling(max_tokens=1, top_k=3, seed=1), 3),
        (Sampling(max_tokens=1, top_p=0.6, seed=2), nucleus),
        (Sampling(max_tokens=1, top_k=5, top_p=0.7, seed=3), both),
        (Sampling(max_tokens=1, top_p=1e-9, seed=4), 1),
        (Sampling(max_tokens=1, top_k=10**6, seed=5), len(WORDS)),
        (Sampling(max_tokens=1, top_k=-1, top_p=0.999999, seed=6), len(WORDS)),
    ]
    results = await asyncio.gather(*(collect(engine, DrawRequest(PROMPT, "tiny", 400, case)) for case, _ in cases))
    for draws, (_, size) in zip(results, cases, strict=True):
        seen = {draw.token_ids[0] for draw in draws.draws}
        assert seen <= set(order[:size].tolist())
        assert len(seen) > 0.6 * min(size, 10)
        for draw in draws.draws:
            assert math.exp(draw.logprobs[0]) == pytest.approx(float(distribution[draw.token_ids[0]]), rel=1e-3)


async def test_alternatives_are_the_likeliest_tokens(engine: EmbeddedEngine, base: Path) -> None:
    wanted, plain = await asyncio.gather(
        collect(engine, DrawRequest(PROMPT, "tiny", 2, Sampling(max_tokens=6, seed=1, top_logprobs=3))),
        collect(engine, DrawRequest(PROMPT, "tiny", 1, Sampling(max_tokens=6, seed=1))),
    )
    assert plain.draws[0].alternatives == []
    model = reference(base)
    for draw in wanted.draws:
        top = logprobs(model, wanted.prompt.token_ids, draw.token_ids).topk(3)
        assert [[a.token_id for a in position] for position in draw.alternatives] == top.indices.tolist()
        flat = [a.logprob for position in draw.alternatives for a in position]
        assert flat == pytest.approx(top.values.flatten().tolist(), abs=1e-4)
        assert all(a.token.text.strip() == WORDS[a.token_id or 0] for position in draw.alternatives for a in position)


async def test_adapters_mixed_in_one_batch_are_drawn_as_each_alone(
    engine: EmbeddedEngine, base: Path, adapters: dict[str, Path]
) -> None:
    await load_all(engine, adapters)
    assert await engine.loaded() == {"tiny", *adapters}
    requests = [DrawRequest(PROMPT, name, 3, Sampling(max_tokens=16, seed=9)) for name in ("tiny", *adapters)]
    mixed = await asyncio.gather(*(collect(engine, request) for request in requests))
    for request, draws, directory in zip(requests, mixed, [None, *adapters.values()], strict=True):
        alone = await collect(engine, request)
        assert [draw.token_ids for draw in alone.draws] == [draw.token_ids for draw in draws.draws]
        assert_logprobs(reference(base, directory), draws)
    assert len({tuple(draws.draws[0].token_ids) for draws in mixed}) == 3


async def test_each_candidate_arrives_when_it_is_finished(engine: EmbeddedEngine) -> None:
    """The first candidate to end arrives long before the last one could end."""
    short, long = Sampling(max_tokens=2, seed=1), endless(engine)
    running = asyncio.create_task(collect(engine, DrawRequest(PROMPT, "tiny", 1, long)))
    await asyncio.sleep(0.05)
    await collect(engine, DrawRequest(PROMPT, "tiny", 2, short))
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def endless(engine: Engine) -> Sampling:
    """Returns greedy parameters, with which a model that repeats itself runs to the end of the context."""
    return Sampling(max_tokens=engine.context_length - 4, temperature=0)


async def test_cancelling_a_draw_lets_the_next_one_start(base: Path) -> None:
    engine = EmbeddedEngine("tiny", base, EmbeddedOptions(threads=1, max_rows=1))
    await engine.start()
    first = asyncio.create_task(collect(engine, DrawRequest(PROMPT, "tiny", 300, endless(engine))))
    await asyncio.sleep(0.1)
    second = asyncio.create_task(collect(engine, DrawRequest(PROMPT, "tiny", 1, Sampling(max_tokens=2, seed=1))))
    await asyncio.sleep(0.1)
    assert not first.done()
    assert not second.done()  # one row at a time, and the first request has minutes of them
    first.cancel()
    await asyncio.wait_for(second, 30)
    await engine.stop()


async def test_closing_the_generator_aborts_the_draw(base: Path) -> None:
    engine = EmbeddedEngine("tiny", base, EmbeddedOptions(threads=1, max_rows=1))
    await engine.start()
    stream = engine.draw(DrawRequest(PROMPT, "tiny", 300, endless(engine), deltas=True))
    assert isinstance(await anext(stream), Started)
    assert isinstance(await anext(stream), Delta)
    await stream.aclose()
    request = DrawRequest(PROMPT, "tiny", 1, Sampling(max_tokens=2, seed=1))
    await asyncio.wait_for(collect(engine, request), 30)
    await engine.stop()


async def test_many_requests_at_once_are_all_answered(engine: EmbeddedEngine, adapters: dict[str, Path]) -> None:
    await load_all(engine, adapters)
    names = ["tiny", *adapters]

    async def one(i: int) -> int:
        sampling = Sampling(max_tokens=1 + i % 17, temperature=(i % 3) * 0.6, top_p=0.9 if i % 5 == 0 else 1, seed=i)
        prompt = Prompt(token_ids=tuple(7 + (i + k) % 30 for k in range(1 + i % 11)))
        request = DrawRequest(prompt, names[i % 3], 1 + i % 4, sampling, deltas=i % 2 == 0)
        if i % 10 == 9:
            task = asyncio.create_task(collect(engine, request))
            await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return 0
        draws = await collect(engine, request)
        assert all(draw.finish_reason and draw.token_ids for draw in draws.draws)
        return 1

    assert sum(await asyncio.gather(*(one(i) for i in range(150)))) == 135


async def test_versions_come_and_go_under_running_draws(engine: EmbeddedEngine, adapters: dict[str, Path]) -> None:
    request = DrawRequest(PROMPT, "tiny", 4, Sampling(max_tokens=200, seed=6))
    alone = await collect(engine, request)
    running = asyncio.create_task(collect(engine, request))
    for name, directory in adapters.items():
        version = VersionFiles(name, VersionKind.ADAPTER, directory)
        await engine.load(version)
        await engine.load(version)  # idempotent
        await collect(engine, DrawRequest(PROMPT, name, 1, Sampling(max_tokens=3, seed=1)))
    for name in adapters:
        await engine.unload(name)
        await engine.unload(name)
        with pytest.raises(UnknownVersion, match=name):
            await collect(engine, DrawRequest(PROMPT, name))
    await engine.unload("tiny")  # the base stays
    assert await engine.loaded() == {"tiny"}
    assert [draw.token_ids for draw in (await running).draws] == [draw.token_ids for draw in alone.draws]
    again = await collect(engine, request)
    assert [draw.logprobs for draw in again.draws] == [draw.logprobs for draw in alone.draws]


async def test_unloading_a_version_that_draws_fails_its_draws_only(
    engine: EmbeddedEngine, adapters: dict[str, Path]
) -> None:
    await load_all(engine, adapters)
    going, staying = (
        asyncio.create_task(collect(engine, DrawRequest(PROMPT, name, n, Sampling(max_tokens=400, seed=4))))
        for name, n in (("two", 500), ("tiny-1.0-one", 20))
    )
    await asyncio.sleep(0.1)
    await engine.unload("two")
    with pytest.raises(EngineError, match="two was unloaded"):
        await going
    assert all(draw.finish_reason for draw in (await staying).draws)


async def test_full_weights_are_served_beside_the_base(engine: EmbeddedEngine, tmp_path: Path) -> None:
    full = save_model(tmp_path / "full", seed=5)
    await engine.load(VersionFiles("tiny-full", VersionKind.FULL, full))
    long = Sampling(max_tokens=60, seed=3)
    ours, theirs = await asyncio.gather(
        *(collect(engine, DrawRequest(PROMPT, name, 3, long)) for name in ("tiny", "tiny-full"))
    )
    assert_logprobs(reference(full), theirs)
    assert [draw.token_ids for draw in ours.draws] != [draw.token_ids for draw in theirs.draws]
    await engine.unload("tiny-full")
    assert await engine.loaded() == {"tiny"}
    assert (await collect(engine, DrawRequest(PROMPT, "tiny", 3, long))).draws == ours.draws


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another"])
async def test_unsound_adapters_are_refused_and_leave_nothing_behind(
    engine: EmbeddedEngine, adapters: dict[str, Path], tmp_path: Path, beside: bool
) -> None:
    if beside:
        await engine.load(VersionFiles("two", VersionKind.ADAPTER, adapters["two"]))
    request = DrawRequest(PROMPT, "two" if beside else "tiny", 2, Sampling(max_tokens=8, seed=1))
    before = await collect(engine, request)
    for case, (spoil, message) in REFUSALS.items():
        spoilt = tmp_path / case
        shutil.copytree(adapters["tiny-1.0-one"], spoilt)
        spoil(spoilt)
        with pytest.raises(UserError, match=message):
            await engine.load(VersionFiles(case, VersionKind.ADAPTER, spoilt))
        assert await engine.loaded() == ({"tiny", "two"} if beside else {"tiny"})
        assert await collect(engine, request) == before
    await engine.load(VersionFiles("sound", VersionKind.ADAPTER, adapters["tiny-1.0-one"]))
    await collect(engine, DrawRequest(PROMPT, "sound", 1, Sampling(max_tokens=2)))


async def test_an_adapter_of_another_base_is_refused_by_name_and_shape(engine: EmbeddedEngine, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", hidden=48)
    adapter = save_adapter(tmp_path / "adapter", other, 1)
    with pytest.raises(UserError, match=r"lora_A.*\(4, 96\).*\(4, 64\).*serve the base it was trained on"):
        await engine.load(VersionFiles("foreign", VersionKind.ADAPTER, adapter))


async def test_unsound_full_versions_are_refused(
    engine: EmbeddedEngine, adapters: dict[str, Path], tmp_path: Path
) -> None:
    def spoilt(name: str, edit: Callable[[dict[str, torch.Tensor]], object]) -> Path:
        directory = save_model(tmp_path / name)
        weights = load_file(directory / "model.safetensors")
        edit(weights)
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        return directory

    cut = save_model(tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-50])
    cases = {
        "lacks the weights": spoilt("lacking", lambda weights: weights.pop("model.norm.weight")),
        "NaN or infinite": spoilt("nan", lambda weights: weights["model.norm.weight"].fill_(math.nan)),
        "cannot be loaded": cut,
        "vocab_size 50": save_model(tmp_path / "words", words=[*WORDS, "more", "words"]),
        "contains an adapter": adapters["two"],
        "no file named|cannot be loaded": tmp_path / "nowhere",
    }
    for message, directory in cases.items():
        with pytest.raises(UserError, match=message):
            await engine.load(VersionFiles("full", VersionKind.FULL, directory))
    with pytest.raises(UserError, match="but this engine serves the base"):
        await engine.load(VersionFiles("other", VersionKind.BASE, tmp_path / "words"))
    assert await engine.loaded() == {"tiny"}
    await collect(engine, DrawRequest(PROMPT, "tiny", 1, Sampling(max_tokens=2)))


async def test_prompts_are_read_in_their_three_forms(engine: EmbeddedEngine) -> None:
    async def started(prompt: Prompt) -> Started:
        return (await collect(engine, DrawRequest(prompt, "tiny", 1, Sampling(max_tokens=1)))).prompt

    assert await started(Prompt.user("w1 w2")) == Started((3, 8, 9, 4), "<user> w1 w2 <bot>")
    assert await started(Prompt(text="w1 w2")) == Started((8, 9), "w1 w2")
    assert await started(Prompt(token_ids=(3, 8))) == Started((3, 8), "<user> w1")
    assert await started(Prompt(text="")) == Started((1,), "")


async def test_prompts_that_cannot_be_read_are_refused(engine: EmbeddedEngine) -> None:
    for ids in ((7, len(WORDS)), (-1,)):
        with pytest.raises(UserError, match=f"token id {ids[-1]} ") as caught:
            await collect(engine, DrawRequest(Prompt(token_ids=ids), "tiny"))
        assert caught.value.param == "prompt"
    critic: Message = {"role": "critic", "content": "x"}
    with pytest.raises(UserError, match="no critics here") as caught:
        await collect(engine, DrawRequest(Prompt.chat(critic), "tiny"))
    assert caught.value.param == "messages"
    tool: Message = {"role": "tool", "content": "x", "tool_call_id": "1"}
    with pytest.raises(UserError, match="chat template does not support tools") as caught:
        await collect(engine, DrawRequest(Prompt.chat(tool), "tiny"))
    assert caught.value.param == "messages"


async def test_without_chat_template_or_first_token_the_refusal_names_the_remedy(base: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(base, bare)
    (bare / "chat_template.jinja").unlink()
    config = json.loads((bare / "tokenizer_config.json").read_text())
    config.pop("bos_token")
    (bare / "tokenizer_config.json").write_text(json.dumps(config))
    engine = EmbeddedEngine("bare", bare, EmbeddedOptions(threads=1))
    await engine.start()
    with pytest.raises(UserError, match="/v1/completions") as caught:
        await collect(engine, DrawRequest(Prompt.user("w1"), "bare"))
    assert caught.value.param == "messages"
    with pytest.raises(UserError, match="send some text"):
        await collect(engine, DrawRequest(Prompt(text=""), "bare"))
    await engine.stop()


async def test_what_exceeds_the_context_is_refused_and_what_just_fits_is_drawn(engine: EmbeddedEngine) -> None:
    assert engine.context_length == CONTEXT
    prompt = Prompt(token_ids=(8,) * (CONTEXT - 3))
    with pytest.raises(PromptTooLong, match=f"{CONTEXT - 3} in the prompt, 4 in the completion") as caught:
        await collect(engine, DrawRequest(prompt, "tiny", 1, Sampling(max_tokens=4)))
    assert caught.value.param == "max_tokens"
    fits, beside = await asyncio.gather(
        collect(engine, DrawRequest(prompt, "tiny", 1, Sampling(max_tokens=3, seed=1))),
        collect(engine, DrawRequest(PROMPT, "tiny", 1, Sampling(max_tokens=30, seed=1))),
    )
    assert fits.draws[0].finish_reason
    assert beside.draws[0].finish_reason


async def test_saved_padding_and_truncation_do_not_change_prompts(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    engine = EmbeddedEngine("tiny", tmp_path, EmbeddedOptions(threads=1))
    await engine.start()
    draws = await collect(engine, DrawRequest(Prompt(text="w1 w2 w3"), "tiny", 1, Sampling(max_tokens=2)))
    assert draws.prompt.token_ids == (8, 9, 10)
    await engine.stop()


async def test_a_version_that_gives_no_number_fails_its_own_draws_only(
    engine: EmbeddedEngine, adapters: dict[str, Path], tmp_path: Path
) -> None:
    """Writes weights that are finite, but so large that the activations overflow."""
    huge = tmp_path / "huge"
    shutil.copytree(adapters["two"], huge)
    edit_weights(lambda weights: [weight.fill_(1e30) for weight in weights.values()])(huge)
    await engine.load(VersionFiles("huge", VersionKind.ADAPTER, huge))
    broken, sound = await asyncio.gather(
        *(collect(engine, DrawRequest(PROMPT, name, 2, Sampling(max_tokens=20))) for name in ("huge", "tiny")),
        return_exceptions=True,
    )
    assert isinstance(broken, EngineError)
    assert "huge gave a token the log-probability nan" in str(broken)
    assert isinstance(sound, Draws)
    await engine.check()


def raise_when(engine: EmbeddedEngine, condition: Callable[[int], bool]) -> Any:
    """Makes the base model run out of memory in forward passes whose width (tokens per row) meets `condition`."""

    def hook(module: Any, args: Any, arguments: dict[str, Any]) -> None:
        if condition(arguments["input_ids"].shape[1]):
            raise torch.OutOfMemoryError("no memory left")

    assert engine._runtime
    return engine._runtime.versions.base.model.register_forward_pre_hook(hook, with_kwargs=True)


async def test_a_failure_while_a_prompt_is_processed_fails_that_request_only(engine: EmbeddedEngine) -> None:
    request = DrawRequest(PROMPT, "tiny", 16, Sampling(max_tokens=300, seed=6))
    alone = await collect(engine, request)
    running = asyncio.create_task(collect(engine, request))
    await asyncio.sleep(0.05)
    failing = raise_when(engine, lambda width: width > 20)
    with pytest.raises(EngineError, match="OutOfMemoryError: no memory left"):
        await collect(engine, DrawRequest(Prompt(token_ids=(7,) * 30), "tiny", 3))
    failing.remove()
    assert [draw.token_ids for draw in (await running).draws] == [draw.token_ids for draw in alone.draws]


async def test_a_long_prompt_does_not_lengthen_the_forward_pass_of_short_ones(engine: EmbeddedEngine) -> None:
    """Holds the engine's thread until requests of several lengths wait together."""
    submitted, shapes = threading.Event(), []

    def record(module: Any, args: Any, arguments: dict[str, Any]) -> None:
        rows, width = arguments["input_ids"].shape
        if width > 1:
            shapes.append((rows, width))
            assert submitted.wait(60)

    assert engine._runtime
    worker = engine._runtime.worker
    hook = engine._runtime.versions.base.model.register_forward_pre_hook(record, with_kwargs=True)
    drawing = [asyncio.create_task(collect(engine, DrawRequest(PROMPT, "tiny", 1, Sampling(max_tokens=40))))]
    while not shapes:
        await asyncio.sleep(0.01)
    drawing += [
        asyncio.create_task(
            collect(engine, DrawRequest(Prompt(token_ids=(7,) * length), "tiny", 2, Sampling(max_tokens=2)))
        )
        for length in (4, 30, 5, 6)
    ]
    while len(worker._waiting) == 0 or sum(map(len, worker._waiting.values())) < 8:
        await asyncio.sleep(0.01)
    submitted.set()
    await asyncio.gather(*drawing)
    hook.remove()
    assert shapes[1:] == [(3, 6), (1, 30)]


async def test_a_failure_while_drawing_fails_that_batch_and_the_engine_goes_on(engine: EmbeddedEngine) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def once(width: int) -> bool:
        if width > 1 or reached.is_set():
            return False
        reached.set()
        return go_on.wait(60)

    failing = raise_when(engine, once)
    drawing = asyncio.create_task(collect(engine, DrawRequest(PROMPT, "tiny", 2, endless(engine))))
    assert await asyncio.to_thread(reached.wait, 60)
    waiting = asyncio.create_task(collect(engine, DrawRequest(PROMPT, "tiny", 2, Sampling(max_tokens=3, seed=1))))
    go_on.set()
    with pytest.raises(EngineError, match="OutOfMemoryError: no memory left"):
        await drawing
    assert all(draw.finish_reason for draw in (await waiting).draws)
    failing.remove()
    await engine.check()


async def test_when_the_thread_dies_everybody_is_told(engine: EmbeddedEngine) -> None:
    running = asyncio.create_task(collect(engine, DrawRequest(PROMPT, "tiny", 2, endless(engine))))
    await asyncio.sleep(0.05)
    assert engine._runtime
    engine._runtime.worker.call(sys.exit)
    with pytest.raises(EngineError, match="thread crashed: SystemExit"):
        await running
    for call in (engine.check(), collect(engine, DrawRequest(PROMPT, "tiny")), engine.unload("two")):
        with pytest.raises(EngineError, match="thread crashed: SystemExit"):
            await call


async def test_when_the_thread_dies_calls_behind_a_cancelled_one_are_told_too(engine: EmbeddedEngine) -> None:
    assert engine._runtime
    worker, go_on = engine._runtime.worker, threading.Event()
    worker.call(go_on.wait)
    worker.call(sys.exit)
    cancelled, behind = worker.call(lambda: None), worker.call(lambda: None)
    assert cancelled.cancel()
    go_on.set()
    async with asyncio.timeout(30):
        with pytest.raises(EngineError, match="thread crashed: SystemExit"):
            await asyncio.wrap_future(behind)


SIZES = {"vocab_size": len(WORDS), "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": EOS}
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
OTHERS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=256, **SIZES)),
    "sliding window": lambda: MistralForCausalLM(
        MistralConfig(sliding_window=7, num_key_value_heads=2, **SHAPE, **SIZES)
    ),
    "half the layers sliding": lambda: Qwen2ForCausalLM(
        Qwen2Config(
            num_key_value_heads=2, use_sliding_window=True, sliding_window=7, max_window_layers=1, **SHAPE, **SIZES
        )
    ),
}


@pytest.mark.parametrize("architecture", OTHERS)
async def test_other_architectures_agree_with_a_plain_forward_pass(
    architecture: str, base: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    OTHERS[architecture]().save_pretrained(tmp_path)
    engine = EmbeddedEngine("other", tmp_path, EmbeddedOptions(threads=1, max_rows=6))
    await engine.start()
    model = reference(tmp_path)
    results = await asyncio.gather(
        *(
            collect(engine, DrawRequest(Prompt(token_ids=tuple(range(7, 8 + k))), "other", 2, Sampling(30, seed=k)))
            for k in (0, 3, 20, 12)
        )
    )
    for draws in results:
        assert_logprobs(model, draws)
    await engine.stop()


async def test_the_generation_config_ends_sequences_but_does_not_change_the_distribution(
    base: Path, tmp_path: Path
) -> None:
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    config = {"eos_token_id": [EOS, 5], "do_sample": True, "temperature": 0.1, "top_k": 2, "repetition_penalty": 3.0}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    engine = EmbeddedEngine("tiny", tmp_path, EmbeddedOptions(threads=1))
    await engine.start()
    draws = await collect(engine, DrawRequest(PROMPT, "tiny", 40, Sampling(max_tokens=60, seed=1)))
    assert_logprobs(reference(base), draws)
    ends = Counter(draw.token_ids[-1] for draw in draws.draws if draw.finish_reason == "stop")
    assert set(ends) == {EOS, 5}
    assert not any(5 in draw.token_ids[:-1] for draw in draws.draws)
    assert not any("." in draw.text for draw in draws.draws)  # token 5 ended them, so it is not text
    await engine.stop()


async def test_stopping_ends_running_draws_and_the_engine_says_so(base: Path) -> None:
    engine = EmbeddedEngine("tiny", base, EmbeddedOptions(threads=1))
    for call in (engine.check(), engine.loaded(), engine.unload("x"), collect(engine, DrawRequest(PROMPT, "tiny"))):
        with pytest.raises(EngineError, match="not started"):
            await call
    await engine.start()
    await engine.start()
    await engine.check()
    running = engine.draw(DrawRequest(PROMPT, "tiny", 2, endless(engine)))
    await anext(running)
    await engine.stop()
    await engine.stop()
    with pytest.raises(EngineError, match="stopped"):
        await anext(running)
    await engine.start()
    await collect(engine, DrawRequest(PROMPT, "tiny", 1, Sampling(max_tokens=2)))
    await engine.stop()


async def test_the_loop_stays_responsive_while_a_model_loads_and_draws(base: Path) -> None:
    engine = EmbeddedEngine("tiny", base, EmbeddedOptions(threads=1))
    gc.collect()
    longest = 0.0
    loop = asyncio.get_running_loop()

    async def watch() -> None:
        nonlocal longest
        while True:
            before = loop.time()
            await asyncio.sleep(0.001)
            longest = max(longest, loop.time() - before)

    watching = asyncio.create_task(watch())
    await engine.start()
    before = loop.time()
    await engine.tokenize(Prompt(text="w1 " * 1_000_000))
    reading = loop.time() - before
    await collect(engine, DrawRequest(PROMPT, "tiny", 8, Sampling(max_tokens=100, seed=1)))
    watching.cancel()
    await engine.stop()
    assert longest < reading / 2


async def test_a_base_that_cannot_be_loaded_is_refused_at_the_start(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tokenizer"):
        await EmbeddedEngine("none", tmp_path).start()
    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be loaded"):
        await EmbeddedEngine("broken", broken).start()
    for device in ("cuda:99", "abacus"):
        with pytest.raises(UserError, match=device):
            await EmbeddedEngine("tiny", base, EmbeddedOptions(device=device)).start()


async def test_settings_build_engines(base: Path) -> None:
    settings = load_settings(model=str(base), engine_options={"threads": 1, "max_rows": 4, "dtype": "float32"})
    engine = build_engine(settings, base="tiny")
    assert engine.base == "tiny"
    await engine.start()
    draws = await collect(engine, DrawRequest(PROMPT, "tiny", 9, Sampling(max_tokens=3)))
    assert all(draw.finish_reason for draw in draws.draws)
    await engine.stop()
    for changes, message in (
        ({"engine_options": {"max_row": 4}}, "max_row: there is no such option"),
        ({"engine_options": {"max_rows": 0}}, "max_rows = 0"),
        ({"engine": "steam"}, "'steam' is unknown; choose one of embedded, fake"),
        ({"engine": "fake", "engine_options": {"speed": 1}}, "speed"),
        ({"model": ""}, "no model is configured"),
    ):
        with pytest.raises(UserError, match=message):
            build_engine(load_settings(**{"model": str(base)} | changes), base="tiny")
