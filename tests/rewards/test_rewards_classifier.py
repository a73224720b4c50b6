import asyncio
import math
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from bonbon.errors import RewardError, UserError
from bonbon.prompt import Prompt
from bonbon.rewards import build_reward
from bonbon.rewards.local.classifier import ClassifierReward
from bonbon.rewards.remote.pairwise import PairwiseModel
from bonbon.settings import RewardSpec
from tests.support.zoo.rewards import REWARDS

SENTENCES = "where is my order it on its way please wait we are sorry for the delay thanks a lot today"
WORDS = SENTENCES.split()
SPECIAL = ["<pad>", "<unk>", "<bos>", "<eos>", "<user>", "<assistant>"]
TEMPLATE = "<bos>{% for m in messages %}<{{ m.role }}> {{ m.content }} <eos>{% endfor %}"
PROMPT = Prompt.user("where is my order")
REPLIES = ["it is on its way", "sorry", "we are sorry for the delay please wait", "thanks", "a lot " * 9]
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def save_tokenizer(directory: Path, *, chat: bool = True, **options: Any) -> None:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(SPECIAL + WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        "<bos> $A", "<bos> $A <eos> $B:1", [("<bos>", 2), ("<eos>", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>",
        additional_special_tokens=["<user>", "<assistant>"], **options,
    )  # fmt: skip
    if chat:
        tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)


def llama(directory: Path, *, labels: int = 1, pad: bool = True, chat: bool = True, **config: Any) -> Path:
    """Writes a random Llama reward model with logits of order one."""
    torch.manual_seed(0)
    settings = {"vocab_size": len(SPECIAL + WORDS), "num_labels": labels, "max_position_embeddings": 64, **SHAPE}
    model = LlamaForSequenceClassification(LlamaConfig(**settings | {"pad_token_id": 0 if pad else None} | config))
    model.score.weight.data.normal_()
    model.save_pretrained(directory)
    save_tokenizer(directory, chat=chat, **({"pad_token": "<pad>"} if pad else {}))
    return directory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("reward"))


@asynccontextmanager
async def started(directory: Path, **options: Any) -> AsyncIterator[ClassifierReward]:
    reward = build_reward(RewardSpec(kind="classifier", target=str(directory), device="cpu", **options))
    assert isinstance(reward, ClassifierReward)
    await reward.start()
    try:
        yield reward
    finally:
        await reward.stop()


@torch.inference_mode()
def logits(directory: Path, rendered: str, pair: str | None = None, kind: Any = LlamaForSequenceClassification) -> Any:
    """Returns transformers' own logits for one text with written special tokens, without padding."""
    model = kind.from_pretrained(directory).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    inputs = tokenizer(rendered, pair, add_special_tokens=pair is not None, return_tensors="pt")
    if kind is LlamaForSequenceClassification:
        inputs.pop("token_type_ids", None)
    return model(**inputs).logits[0]


async def test_scores_what_the_chat_template_renders(model: Path) -> None:
    async with started(model) as reward:
        scores = await reward.score(PROMPT, REPLIES)
    for reply, score in zip(REPLIES, scores, strict=True):
        rendered = f"<bos> <user> where is my order <eos> <assistant> {reply} <eos>"
        assert score == pytest.approx(logits(model, rendered).item(), abs=1e-5)
    assert len({round(score, 4) for score in scores}) == len(scores)


async def test_batches_change_nothing(model: Path) -> None:
    async with started(model, batch_size=3) as reward:
        alone = [(await reward.score(PROMPT, [reply]))[0] for reply in REPLIES]
        assert await reward.score(PROMPT, REPLIES) == pytest.approx(alone, abs=1e-5)


async def test_concurrent_requests_share_batches_and_keep_their_scores(model: Path) -> None:
    prompts = [Prompt.user(" ".join(WORDS[: i % 11 + 1])) for i in range(24)]
    async with started(model) as reward:
        alone = [await reward.score(prompt, REPLIES[:3]) for prompt in prompts]
        together = await asyncio.gather(*(reward.score(prompt, REPLIES[:3]) for prompt in prompts))
    assert together == [pytest.approx(scores, abs=1e-5) for scores in alone]


async def test_text_prompts_are_continued_as_they_are(model: Path) -> None:
    async with started(model) as reward:
        [score] = await reward.score(Prompt(text="where is my order "), ["it is on"])
    assert score == pytest.approx(logits(model, "<bos> where is my order it is on").item(), abs=1e-5)


async def test_without_a_chat_template_it_reads_a_pair_of_segments(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(SPECIAL + WORDS), num_labels=1, max_position_embeddings=16, **SHAPE)
    bert = BertForSequenceClassification(config)
    bert.classifier.weight.data.normal_()
    bert.save_pretrained(tmp_path)
    save_tokenizer(tmp_path, chat=False, pad_token="<pad>", cls_token="<bos>", model_max_length=16)
    async with started(tmp_path) as reward:
        scores = await reward.score(PROMPT, REPLIES[:3])
        # Cut to 16 tokens: the first token, which the model pools, stays in front of what is left of the prompt.
        [cut] = await reward.score(Prompt.user("please wait " * 20), [REPLIES[0]])
        assert reward.truncated == 1
    kind = BertForSequenceClassification
    assert scores == [
        pytest.approx(logits(tmp_path, "where is my order", reply, kind).item(), abs=1e-5) for reply in REPLIES[:3]
    ]
    assert cut == pytest.approx(logits(tmp_path, "wait " + "please wait " * 4, REPLIES[0], kind).item(), abs=1e-5)


@pytest.mark.parametrize("ends", ["", "<eos>"])
async def test_without_a_padding_token_texts_keep_their_own_ends(tmp_path: Path, ends: str) -> None:
    directory = llama(tmp_path, pad=False)
    replies = [f"{reply} {ends}" for reply in REPLIES]
    async with started(directory) as reward:
        scores = await reward.score(Prompt(text="where is my order "), replies)
    for reply, score in zip(replies, scores, strict=True):
        expected = logits(directory, f"<bos> where is my order {reply}").item()
        assert score == pytest.approx(expected, abs=1e-5)


async def test_long_prompts_lose_their_start_and_it_is_reported(model: Path) -> None:
    prompt = Prompt.user("where is my order " * 30)
    async with started(model) as reward:
        with capture_logs() as logs:
            scores = await reward.score(prompt, REPLIES[:2])
            await reward.score(PROMPT, REPLIES[:2])
        assert reward.truncated == 2
        assert reward.reader.completions_truncated == 0
    rendered = f"{'where is my order ' * 30}<eos> <assistant> {REPLIES[0]} <eos>".split()[-63:]
    assert scores[0] == pytest.approx(logits(model, " ".join(["<bos>", *rendered])).item(), abs=1e-5)
    [warning] = logs
    assert (warning["log_level"], warning["texts"], warning["truncated"]) == ("warning", 2, 2)


async def test_a_completion_that_does_not_fit_is_counted(model: Path) -> None:
    async with started(model, max_length=16) as reward:
        await reward.score(PROMPT, ["please wait " * 20, "thanks"])
        assert (reward.truncated, reward.reader.completions_truncated) == (1, 1)


async def test_one_label_of_several(tmp_path: Path) -> None:
    names: dict[str, Any] = {"id2label": {0: "bad", 1: "fair", 2: "good"}, "label2id": {"bad": 0, "fair": 1, "good": 2}}
    directory = llama(tmp_path, labels=3, **names)
    expected = logits(directory, "<bos> thanks").log_softmax(-1)
    versions = set()
    for label, index in ((2, 2), ("good", 2), ("0", 0)):
        async with started(directory, label=label, output="logprob") as reward:
            assert await reward.score(Prompt(text=""), ["thanks"]) == [pytest.approx(expected[index].item(), abs=1e-5)]
            versions.add(reward.version)
    assert len(versions) == 2
    for wrong in (None, "great", 3):
        with pytest.raises(UserError, match=r"0 \(bad\), 1 \(fair\), 2 \(good\)"):
            async with started(directory, label=wrong):
                pass


async def test_a_label_of_a_multi_label_model_gives_its_logit(tmp_path: Path) -> None:
    directory = llama(tmp_path, labels=2, problem_type="multi_label_classification")
    async with started(directory, label=1) as reward:
        [score] = await reward.score(Prompt(text=""), ["thanks"])
    assert score == pytest.approx(logits(directory, "<bos> thanks")[1].item(), abs=1e-5)


async def test_version_is_what_the_files_hold_and_how_they_are_read(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(model, copy)

    async def version(directory: Path, **options: Any) -> str:
        async with started(directory, **options) as reward:
            return reward.version

    same = {await version(model), await version(copy), await version(model, batch_size=1)}
    assert len(same) == 1
    changed = {await version(model, max_length=16), await version(model, dtype="bfloat16")}
    (copy / "chat_template.jinja").write_text(TEMPLATE + " ")
    assert len(same | changed | {await version(copy)}) == 4


async def test_token_ids_and_unstarted_rewards_are_errors(model: Path) -> None:
    async with started(model) as reward:
        with pytest.raises(RewardError, match="token ids of another tokenizer"):
            await reward.score(Prompt(token_ids=(1, 2)), ["a"])
    with pytest.raises(RewardError, match="not started"):
        await reward.score(PROMPT, ["a"])


async def test_a_model_without_a_trained_head_is_refused(tmp_path: Path) -> None:
    config = LlamaConfig(vocab_size=len(SPECIAL + WORDS), **SHAPE)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"not a trained reward model: its weights lack score\.weight"):
        async with started(tmp_path, label=0):
            pass


async def test_a_broken_checkpoint_is_refused(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "broken"
    shutil.copytree(model, copy)
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="broken cannot be loaded"):
        async with started(copy):
            pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "target is required"),
        ({"target": "m", "device": "tpu"}, "device = 'tpu'"),
        ({"target": "m", "batch_size": 0}, "batch_size = 0"),
        ({"target": "m", "trust_remote_code": True}, "trust_remote_code: there is no such option"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_reward(RewardSpec(kind="classifier", **options))


async def test_a_length_beyond_the_models_is_refused(model: Path) -> None:
    with pytest.raises(UserError, match=r"max_length = 65 exceeds the maximum of .*, 64 tokens"):
        async with started(model, max_length=65):
            pass


# Pairwise, by a model


async def test_pairwise_model_averages_both_orders_over_the_siblings(model: Path) -> None:
    template = "{prompt} <user> {a} <assistant> {b}"
    reward = build_reward(RewardSpec(kind="pairwise", target=str(model), device="cpu", template=template))
    assert isinstance(reward, PairwiseModel)
    await reward.start()
    scores = await reward.score(Prompt(text="where is my {a}"), REPLIES[:3])
    assert await reward.score(PROMPT, ["thanks"]) == [0.5]
    plain = build_reward(RewardSpec(kind="pairwise", target=str(model), device="cpu"))
    await plain.start()
    assert plain.version != reward.version
    assert reward.truncated == 0
    await reward.stop()
    await plain.stop()

    def first_beats_second(a: str, b: str) -> float:
        logit = logits(model, f"<bos> where is my {{a}} <user> {a} <assistant> {b}").item()
        return 1 / (1 + math.exp(-logit))

    def beats(a: str, b: str) -> float:
        return (first_beats_second(a, b) + 1 - first_beats_second(b, a)) / 2

    for reply, score in zip(REPLIES, scores, strict=False):
        siblings = [other for other in REPLIES[:3] if other != reply]
        assert score == pytest.approx(sum(beats(reply, other) for other in siblings) / 2, abs=1e-5)
    assert sum(scores) == pytest.approx(1.5)


async def test_pairwise_model_of_two_labels(tmp_path: Path) -> None:
    directory = llama(tmp_path, labels=2)
    spec = RewardSpec(
        kind="pairwise",
        target=str(directory),
        device="cpu",
        label=1,
        output="logprob",
        template="{prompt} {a} <eos> {b}",
    )
    reward = build_reward(spec)
    await reward.start()
    scores = await reward.score(Prompt(text="order"), ["thanks", "sorry"])
    await reward.stop()
    forward, backward = (
        logits(directory, f"<bos> order {pair}").softmax(-1)[1].item()
        for pair in ("thanks <eos> sorry", "sorry <eos> thanks")
    )
    assert scores == pytest.approx([(forward + 1 - backward) / 2, (backward + 1 - forward) / 2], abs=1e-5)


def test_a_pair_template_needs_its_fields() -> None:
    with pytest.raises(UserError, match=r"template = '\{prompt\} \{a\}': .*lacks \{b\}"):
        build_reward(RewardSpec(kind="pairwise", target="m", template="{prompt} {a}"))


# What a model, its tokenizer or its template cannot read


async def test_a_token_that_the_model_does_not_know_fails_its_own_group_only(tmp_path: Path) -> None:
    directory = llama(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    tokenizer.add_tokens(["[EXTRA]"], special_tokens=True)
    tokenizer.save_pretrained(directory)
    async with started(directory) as reward:
        alone = await reward.score(PROMPT, REPLIES)
        results = await asyncio.gather(
            *(reward.score(PROMPT, replies) for replies in (REPLIES, ["sorry [EXTRA]", "sorry"], REPLIES)),
            return_exceptions=True,
        )
    assert isinstance(results[1], RewardError)
    assert "'[EXTRA]'" in str(results[1])
    assert results[0] == results[2] == pytest.approx(alone, abs=1e-5)


async def test_an_empty_text_is_an_error_of_its_own(tmp_path: Path) -> None:
    directory = llama(tmp_path)
    path = directory / "tokenizer.json"
    without_bos = Tokenizer.from_file(str(path))
    without_bos.post_processor = processors.TemplateProcessing("$A", "$A $B:1", [])
    without_bos.save(str(path))
    async with started(directory) as reward:
        with pytest.raises(RewardError, match="cannot score an empty prompt"):
            await reward.score(Prompt(text=""), [""])


STRICT = (
    "<bos>{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<{{ m.role }}> {{ m.content }} <eos>{% endfor %}"
)


async def test_a_template_of_two_roles_in_turn_gets_its_messages_so(tmp_path: Path) -> None:
    directory = llama(tmp_path)
    (directory / "chat_template.jinja").write_text(STRICT)
    prompt = Prompt.chat(
        {"role": "system", "content": "please wait"},
        {"role": "user", "content": "where is"},
        {"role": "user", "content": "my order"},
    )
    with capture_logs() as logs:
        async with started(directory) as reward:
            scores = await reward.score(prompt, REPLIES[:2])
            with pytest.raises(RewardError, match=r"cannot render these messages .*roles must alternate"):
                await reward.score(Prompt.chat({"role": "assistant", "content": "sorry"}), ["thanks"])
    assert "refuses system messages" in logs[0]["event"]
    for reply, score in zip(REPLIES, scores, strict=False):
        rendered = f"<bos> <user> please wait where is my order <eos> <assistant> {reply} <eos>"
        assert score == pytest.approx(logits(directory, rendered).item(), abs=1e-5)


async def test_a_template_that_renders_no_answer_is_refused_at_the_start(tmp_path: Path) -> None:
    directory = llama(tmp_path)
    (directory / "chat_template.jinja").write_text("{{ messages[5].content + 1 }}")
    with pytest.raises(UserError, match=r"cannot render these messages .*correct the chat_template"):
        async with started(directory):
            pass


@pytest.mark.parametrize(
    ("problem", "output", "logit"),
    [
        ("regression", None, True),
        ("multi_label_classification", None, True),
        ("single_label_classification", None, False),
        (None, "logit", True),
        (None, "logprob", False),
        ("regression", "logprob", False),
    ],
)
async def test_problem_type_or_the_option_says_what_an_output_is(
    problem: str | None, output: str | None, logit: bool, tmp_path: Path
) -> None:
    directory = llama(tmp_path, labels=3, problem_type=problem)
    async with started(directory, label=1, **({"output": output} if output else {})) as reward:
        scores = await reward.score(Prompt(text=""), REPLIES[:3])
    expected = [logits(directory, f"<bos> {reply}") for reply in REPLIES[:3]]
    assert scores == pytest.approx([float((one if logit else one.log_softmax(-1))[1]) for one in expected], abs=1e-5)


async def test_outputs_of_which_nothing_is_said_are_asked_about(tmp_path: Path) -> None:
    directory = llama(tmp_path, labels=3)
    with pytest.raises(UserError, match=r"3 outputs, and its config\.json has no problem_type.*'logit'.*'logprob'"):
        async with started(directory, label=1):
            pass
    single = llama(tmp_path / "single")
    with pytest.raises(UserError, match="always gives 0"):
        async with started(single, output="logprob"):
            pass


async def test_scores_that_are_no_numbers_are_found_at_the_start(tmp_path: Path) -> None:
    directory = llama(tmp_path)
    path = directory / "model.safetensors"
    weights = load_file(path)
    weights["score.weight"].fill_(math.inf)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="has NaN or infinite weights"):
        async with started(directory):
            pass


async def test_positions_that_begin_after_the_padding_token_bound_the_length(tmp_path: Path) -> None:
    """RoBERTa's table of 66 rows allows 64 tokens, which only the table shows."""
    directory = REWARDS["RoBERTa, 64 positions for 62 tokens"].save(tmp_path)
    async with started(directory) as reward:
        alone = [(await reward.score(PROMPT, [reply]))[0] for reply in ("It is.", "please wait " * 60)]
        assert await reward.score(PROMPT, ["It is.", "please wait " * 60]) == pytest.approx(alone, abs=1e-5)
        assert reward.truncated == 2
    with pytest.raises(UserError, match=r"max_length = 63 exceeds the maximum of .*, 62 tokens"):
        async with started(directory, max_length=63):
            pass
