"""Tests unusual models on the embedded engine: it samples from them correctly, or refuses them with a reason."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from sentencepiece import SentencePieceTrainer
from structlog.testing import capture_logs
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM

from bonbon.engines.candidates import Draws, collect
from bonbon.engines.embedded.embedded_engine import EmbeddedEngine
from bonbon.engines.embedded.embedded_options import EmbeddedOptions
from bonbon.engines.engine import DrawRequest, Sampling, VersionFiles, VersionKind
from bonbon.engines.text.context_length import context_of_vllm
from bonbon.engines.text.transcript import INCOMPLETE
from bonbon.errors import EngineError, PromptTooLong, UserError
from bonbon.prompt import Message, Prompt
from tests.support.models.engine_models import assert_logprobs, reference, save_adapter, save_model
from tests.support.zoo.policies import CONTEXT, POLICIES
from tests.support.zoo.rewards import needs_code
from tests.support.zoo.tokenizers import CHATML, INST, SENTENCES, byte_level


@asynccontextmanager
async def started(directory: Path) -> AsyncIterator[EmbeddedEngine]:
    engine = EmbeddedEngine("base", directory, EmbeddedOptions(threads=1))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def drawn(
    engine: EmbeddedEngine, prompt: Prompt | int, n: int = 2, *, version: str = "base", **how: Any
) -> Draws:
    """Returns a prompt of so many tokens for a number."""
    if isinstance(prompt, int):
        prompt = Prompt(token_ids=tuple(20 + at % 100 for at in range(prompt)))
    return await collect(engine, DrawRequest(prompt, version, n, Sampling(**{"max_tokens": 12, "seed": 1} | how)))


async def test_text_goes_on_where_the_prompt_ends(tmp_path: Path) -> None:
    """A completion keeps the space before its first word; an answer in a chat does not begin with a space."""
    async with started(POLICIES["Llama 2"].save(tmp_path)) as engine:
        tokenizer = POLICIES["Llama 2"].tokenizer()
        text = await drawn(engine, Prompt(text="The cat"), 40, max_tokens=6)
        request = DrawRequest(Prompt(text="The cat"), "base", 40, Sampling(max_tokens=6, seed=1), deltas=True)
        streamed = await collect(engine, request)
        chat = await drawn(engine, Prompt.user("The cat"), 40, max_tokens=6)
    marked = [d for d in text.draws if (tokenizer.convert_ids_to_tokens(d.token_ids[0]) or "").startswith("▁")]
    assert marked
    assert all(draw.text.startswith(" ") and draw.tokens[0].text.startswith(" ") for draw in marked)
    for draws in (text, streamed):
        for draw in draws.draws:
            whole = tokenizer.decode([*draws.prompt.token_ids, *draw.token_ids], skip_special_tokens=True)
            if draws is text or INCOMPLETE not in whole:  # bytes that make no character may read otherwise later
                assert "The cat" + draw.text == whole
    assert all(draw.text == tokenizer.decode(draw.token_ids, skip_special_tokens=True) for draw in chat.draws)


async def test_a_request_that_fills_the_context_leaves_those_beside_it_alone(tmp_path: Path) -> None:
    """Ended rows keep growing with the batch; beyond the context, GPT-2 has no positions left."""
    base = POLICIES["GPT-2"].save(tmp_path)
    async with started(base) as engine:
        full, beside = await asyncio.gather(
            drawn(engine, CONTEXT - 6, 1, max_tokens=6), drawn(engine, 5, 6, max_tokens=100)
        )
    for draws in (full, beside):
        assert_logprobs(reference(base), draws)


async def test_a_token_that_the_model_does_not_know_is_refused_and_named(tmp_path: Path) -> None:
    base = POLICIES["Qwen2"].save(tmp_path)
    tokenizer = byte_level(CHATML, eos_token="<|im_end|>")
    tokenizer.add_tokens([AddedToken(f"[EXTRA{at}]", special=True) for at in range(200)])
    tokenizer.save_pretrained(base)
    async with started(base) as engine:
        innocent = [asyncio.create_task(drawn(engine, Prompt(text=f"hello {at}"))) for at in range(4)]
        for prompt, param in ((Prompt(text="a [EXTRA199] b"), "prompt"), (Prompt.user("[EXTRA199]"), "messages")):
            with pytest.raises(
                UserError, match=r"'\[EXTRA199\]' \(id \d+\), which the model's tokenizer knows"
            ) as caught:
                await drawn(engine, prompt)
            assert caught.value.param == param
        for draws in await asyncio.gather(*innocent):
            assert_logprobs(reference(base), draws)


async def test_a_prompt_that_cannot_be_processed_fails_alone(tmp_path: Path) -> None:
    async with started(save_model(tmp_path)) as engine:
        assert engine._runtime

        def choke(module: Any, args: Any, arguments: dict[str, Any]) -> None:
            ids = arguments["input_ids"]
            if ids.shape[1] > 1 and (ids == 40).any():  # while prompts are read
                raise RuntimeError("this prompt is poison")

        hook = engine._runtime.versions.base.model.register_forward_pre_hook(choke, with_kwargs=True)
        poison = Prompt(token_ids=(9, 40, 9))
        others = [Prompt(token_ids=(7, 8, at)) for at in range(5, 12)]
        blocking = asyncio.create_task(drawn(engine, Prompt(token_ids=(7,)), 1, max_tokens=40))
        results = await asyncio.gather(
            *(drawn(engine, prompt, max_tokens=2) for prompt in [*others[:3], poison, *others[3:]]),
            return_exceptions=True,
        )
        await blocking
        hook.remove()
    failed = [at for at, result in enumerate(results) if isinstance(result, EngineError)]
    assert failed == [3]
    assert all(isinstance(result, Draws) for at, result in enumerate(results) if at != 3)


@pytest.mark.parametrize("name", ["OPT", "Qwen2-MoE"])
async def test_adapters_that_the_model_cannot_mix_are_drawn_in_batches_of_their_own(name: str, tmp_path: Path) -> None:
    base = POLICIES[name].save(tmp_path / "base")
    adapters = {f"v{seed}": save_adapter(tmp_path / f"v{seed}", base, seed) for seed in (1, 2)}
    async with started(base) as engine:
        for version, directory in adapters.items():
            await engine.load(VersionFiles(version, VersionKind.ADAPTER, directory))
        asked = [(version, length) for length in (3, 9, 4) for version in ("base", *adapters)]
        results = await asyncio.gather(*(drawn(engine, length, version=version) for version, length in asked))
        for (version, _), draws in zip(asked, results, strict=True):
            assert_logprobs(reference(base, adapters.get(version)), draws)


async def test_a_mixed_batch_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    """peft leaves its hooks on the layers when a call with several adapters fails; later requests must still work."""
    base = save_model(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base, 1)
    async with started(base) as engine:
        await engine.load(VersionFiles("adapter", VersionKind.ADAPTER, adapter))
        assert engine._runtime

        def fail(module: Any, args: Any, arguments: dict[str, Any]) -> None:
            raise torch.OutOfMemoryError("no memory left")

        layer = engine._runtime.versions.base.model.model.layers[1]
        hook = layer.register_forward_pre_hook(fail, with_kwargs=True)
        failed = await asyncio.gather(
            *(drawn(engine, Prompt(token_ids=(7, 8)), version=version) for version in ("base", "adapter")),
            return_exceptions=True,
        )
        assert all(isinstance(error, EngineError) for error in failed)
        hook.remove()
        prompt = Prompt(token_ids=(7, 8, 9))
        ours, theirs = await asyncio.gather(
            *(drawn(engine, prompt, 3, version=version) for version in ("base", "adapter"))
        )
        alone = await drawn(engine, prompt, 3, version="adapter")
    assert_logprobs(reference(base), ours)
    assert_logprobs(reference(base, adapter), theirs)
    assert_logprobs(reference(base, adapter), alone)


@pytest.mark.parametrize("name", ["Llama 4", "Phi-3.5-MoE"])
async def test_an_adapter_on_a_router_is_refused_when_it_is_loaded(name: str, tmp_path: Path) -> None:
    base = POLICIES[name].save(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=r".*router", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "adapter")
    async with started(base) as engine:
        with pytest.raises(UserError, match=r"cannot be sampled from .*train\.lora_targets"):
            await engine.load(VersionFiles("router", VersionKind.ADAPTER, tmp_path / "adapter"))
        assert await engine.loaded() == {"base"}
        assert_logprobs(reference(base), await drawn(engine, 5))


async def test_longrope_keeps_to_the_length_within_which_it_is_one_function(tmp_path: Path) -> None:
    """Beyond this length, the log-probabilities of a sequence would depend on the longest one in its batch."""
    base = POLICIES["Phi-3, LongRoPE"].save(tmp_path)
    with capture_logs() as logs:
        async with started(base) as engine:
            assert engine.context_length == CONTEXT // 2
            short, long = await asyncio.gather(drawn(engine, 4), drawn(engine, CONTEXT // 2 - 12))
            with pytest.raises(PromptTooLong, match="context length is 64 tokens"):
                await drawn(engine, CONTEXT // 2)
    assert any("context shortened" in line["event"] and line["context"] == CONTEXT // 2 for line in logs)
    for draws in (short, long):
        assert_logprobs(reference(base), draws)


@pytest.mark.parametrize(("name", "limit"), [("Phi-3, LongRoPE", CONTEXT // 2), ("Llama, dynamic RoPE", CONTEXT)])
def test_vllm_is_told_to_keep_to_that_length(name: str, limit: int) -> None:
    config = POLICIES[name].config()
    assert context_of_vllm(config, None, Path("m")) == limit
    assert context_of_vllm(config, limit - 1, Path("m")) == limit - 1
    with pytest.raises(UserError, match=f"max_model_len = {limit + 1}: .* set it to {limit} or less") as caught:
        context_of_vllm(config, limit + 1, Path("m"))
    assert caught.value.param == "engine_options.max_model_len"


@pytest.mark.parametrize("name", ["Llama 2", "GPT-2", "Gemma 3, multimodal"])
def test_vllm_chooses_where_the_length_changes_nothing(name: str) -> None:
    config = POLICIES[name].config().get_text_config()
    assert [context_of_vllm(config, asked, Path("m")) for asked in (None, 10**6)] == [None, 10**6]


def without(*names: str) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        for name in names:
            (directory / name).unlink()

    return spoil


def special_tokens_only(directory: Path) -> None:
    """Writes the tokenizer that transformers makes for Qwen2 when it does not find vocab.json."""
    without("tokenizer.json", "tokenizer_config.json")(directory)
    (directory / "vocab.txt").write_text("hello\n")


def sentencepiece_only(directory: Path) -> None:
    without("tokenizer.json", "tokenizer_config.json")(directory)
    (directory / "tokenizer.model").write_bytes(b"no sentencepiece model")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("tokenizer.json", "tokenizer_config.json"), "has no tokenizer; save"),
        (special_tokens_only, "has only special tokens; save"),
        (sentencepiece_only, "to read tokenizer.model, run pip install sentencepiece protobuf; or save"),
        (needs_code, "bonbon never runs a model's code.*--url"),
    ],
)
async def test_files_that_are_missing_or_need_code_are_named_at_the_start(
    spoil: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    base = POLICIES["Qwen2"].save(tmp_path)
    spoil(base)
    with pytest.raises(UserError, match=message) as caught:
        async with started(base):
            pass
    assert "trust_remote_code" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_sentencepiece_model_alone_is_a_tokenizer(tmp_path: Path) -> None:
    base = POLICIES["Llama 2"].save(tmp_path)
    without("tokenizer.json", "chat_template.jinja")(base)
    with (base / "tokenizer.model").open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES * 20),
            model_writer=file,
            vocab_size=340,
            model_type="bpe",
            byte_fallback=True,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "LlamaTokenizer"}))
    async with started(base) as engine:
        draws = await drawn(engine, Prompt(text="The cat sat"), 4)
    assert_logprobs(reference(base), draws)
    assert 1 < len(draws.prompt.token_ids) < 12


RAISING = {
    "{{ messages[0].content + 1 }}": "TypeError",
    "{{ messages[0].content | int // 0 }}": "ZeroDivisionError",
    "{{ '%d' % messages[0].content }}": "TypeError",
    "{{ messages[9].content.strip() }}": "refuses the messages",
    "{% for m in messages %}{% endblock %}": "TemplateSyntaxError|refuses the messages",
}


@pytest.mark.parametrize(("template", "message"), RAISING.items())
async def test_a_template_that_raises_is_the_requests_error(template: str, message: str, tmp_path: Path) -> None:
    base = POLICIES["Qwen2"].save(tmp_path)
    (base / "chat_template.jinja").write_text(template)
    async with started(base) as engine:
        with pytest.raises(UserError, match=message) as caught:
            await drawn(engine, Prompt.user("hello"))
        assert caught.value.param == "messages"
        await drawn(engine, Prompt(text="hello"))


async def test_a_list_of_templates_is_read_by_its_default_or_refused(tmp_path: Path) -> None:
    base = POLICIES["Qwen2"].save(tmp_path)
    (base / "chat_template.jinja").unlink()
    path = base / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    for names, fails in ((["default", "rag"], False), (["rag", "tool_use"], True)):
        listed = [{"name": name, "template": CHATML} for name in names]
        path.write_text(json.dumps(settings | {"chat_template": listed}))
        async with started(base) as engine:
            if not fails:
                assert (await drawn(engine, Prompt.user("hello"))).prompt.text.startswith("<|im_start|>user\nhello")
                continue
            with pytest.raises(UserError, match="multiple chat templates") as caught:
                await drawn(engine, Prompt.user("hello"))
            assert caught.value.param == "messages"


async def test_roles_that_the_template_refuses_are_named(tmp_path: Path) -> None:
    base = POLICIES["Llama 2"].save(tmp_path)
    assert (base / "chat_template.jinja").read_text() == INST
    twice: list[Message] = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    async with started(base) as engine:
        with pytest.raises(UserError, match=r"refuses the messages \(Conversation roles must alternate") as caught:
            await drawn(engine, Prompt.chat(*twice))
    assert caught.value.param == "messages"
