"""Tests which tokens end an answer, for models whose files disagree about it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bonbon.engines import build_engine
from bonbon.engines.candidates import collect
from bonbon.engines.embedded.embedded_engine import EmbeddedEngine
from bonbon.engines.embedded.embedded_options import EmbeddedOptions
from bonbon.engines.embedded.policy import end_ids as ids_of_model
from bonbon.engines.embedded.policy import load_model
from bonbon.engines.engine import DrawRequest, Sampling
from bonbon.engines.text.end_tokens import end_ids
from bonbon.errors import UserError
from bonbon.settings import load_settings
from tests.support.models.engine_models import PROMPT, save_model
from tests.support.zoo.policies import sizes
from tests.support.zoo.tokenizers import CHATML, HEADERS, INST, TURNS, byte_level, sentencepiece

VOCABULARY = 420
OPENS_ALWAYS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n{% endfor %}<|im_start|>"
BROKEN = "{{ 1 / 0 }}"
SPACED = "{% for m in messages %}{{ m.role }}: {{ m.content }}   {% endfor %}"


def files(directory: Path, tokenizer: PreTrainedTokenizerFast, generation: Any = None, config: Any = None) -> Path:
    """Writes a model's configuration and tokenizer with these end tokens."""
    names = tokenizer.get_vocab()
    LlamaConfig(**sizes(), eos_token_id=names.get(config)).save_pretrained(directory)
    if generation is not None:
        ids = [names.get(token, token) for token in generation]
        (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    tokenizer.save_pretrained(directory)
    return directory


def with_spaces(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Adds tokens of several spaces to the vocabulary, as GPT-NeoX has them."""
    tokenizer.add_tokens(["   ", "  "])
    return tokenizer


CHAT_ENDS: list[tuple[Callable[[], PreTrainedTokenizerFast], list[str], set[str], bool]] = [
    (lambda: byte_level(CHATML, eos_token="<|im_end|>"), ["<|im_end|>", "<|end_of_text|>"], set(), False),
    (lambda: byte_level(CHATML, eos_token="<|im_end|>"), ["<|end_of_text|>"], {"<|im_end|>"}, True),
    (lambda: byte_level(CHATML), ["<|end_of_text|>"], {"<|im_end|>"}, True),
    (lambda: byte_level(HEADERS), ["<|end_of_text|>"], {"<|eot_id|>"}, True),
    (lambda: byte_level(HEADERS), ["<|eot_id|>"], {"<|end_of_text|>"}, True),
    (lambda: sentencepiece(INST), ["</s>"], set(), False),
    (lambda: sentencepiece(TURNS), ["</s>"], {"<end_of_turn>"}, True),
    (lambda: sentencepiece(), ["</s>"], set(), False),
    (lambda: byte_level(OPENS_ALWAYS), ["<|end_of_text|>"], set(), False),
    (lambda: byte_level(BROKEN), ["<|end_of_text|>"], set(), False),
    (lambda: with_spaces(byte_level(SPACED)), ["<|end_of_text|>"], set(), False),
]


@pytest.mark.parametrize(("make", "generation", "more", "warns"), CHAT_ENDS)
def test_generation_config_tokenizer_and_template_end_an_answer(
    make: Callable[[], PreTrainedTokenizerFast], generation: list[str], more: set[str], warns: bool, tmp_path: Path
) -> None:
    tokenizer = make()
    with capture_logs() as logs:
        found = end_ids(files(tmp_path, tokenizer, generation), tokenizer, VOCABULARY)
    assert {tokenizer.convert_ids_to_tokens(token) for token in found} == {*generation, *more}
    warnings = [line["event"] for line in logs if line["log_level"] == "warning"]
    assert [("disagree" in event) for event in warnings] == [True] * warns


def test_config_json_counts_where_generation_config_says_nothing(tmp_path: Path) -> None:
    tokenizer = byte_level()
    directory = files(tmp_path, tokenizer, config="<|pad|>")
    names = tokenizer.get_vocab()
    assert end_ids(directory, tokenizer, VOCABULARY) == {names["<|pad|>"], names["<|end_of_text|>"]}


def test_ids_that_the_model_does_not_know_are_left_out_and_said(tmp_path: Path) -> None:
    tokenizer = byte_level()
    with capture_logs() as logs:
        found = end_ids(files(tmp_path, tokenizer, [2, 5000]), tokenizer, VOCABULARY)
    assert found == {2}
    assert logs[0]["ignored"] == [5000]


def test_a_model_that_names_no_end_is_warned_about(tmp_path: Path) -> None:
    tokenizer = byte_level(eos_token=None)
    with capture_logs() as logs:
        assert end_ids(files(tmp_path, tokenizer), tokenizer, VOCABULARY) == frozenset()
    assert "answers run until max_tokens" in logs[0]["event"]


def test_the_setting_replaces_what_the_files_say(tmp_path: Path) -> None:
    tokenizer = byte_level(CHATML)
    directory = files(tmp_path, tokenizer, ["<|end_of_text|>"])
    names = tokenizer.get_vocab()
    assert end_ids(directory, tokenizer, VOCABULARY, ["<|im_end|>", 7]) == {names["<|im_end|>"], 7}
    assert end_ids(directory, tokenizer, VOCABULARY, []) == frozenset()
    for wrong in ("<|eot_id|>", VOCABULARY, -1):
        with pytest.raises(UserError, match="not a token of the model") as caught:
            end_ids(directory, tokenizer, VOCABULARY, [wrong])
        assert caught.value.param == "end_tokens"


@pytest.mark.parametrize("named", [None, ["<|end_of_text|>"]])
async def test_draws_end_at_the_turns_end_unless_the_setting_says_otherwise(
    named: list[str] | None, tmp_path: Path
) -> None:
    """The tokenizer of a chat model has another end token than generation_config.json."""
    tokenizer = byte_level(CHATML, eos_token="<|im_end|>")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes(), eos_token_id=2))
    names = tokenizer.get_vocab()
    for name in ("<|im_end|>", "<|end_of_text|>"):  # likely enough to be drawn
        model.lm_head.weight.data[names[name]] = 0.0
        model.lm_head.weight.data[names[name], :] += 0.08
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    settings = load_settings(model=str(tmp_path), engine_options={"threads": 1}, end_tokens=named)
    engine = build_engine(settings, base="tiny")
    await engine.start()
    try:
        draws = (await collect(engine, DrawRequest(PROMPT, "tiny", 64, Sampling(max_tokens=100, seed=1)))).draws
    finally:
        await engine.stop()
    ends = {names["<|end_of_text|>"]} if named else {names["<|im_end|>"], names["<|end_of_text|>"]}
    ended = [draw for draw in draws if draw.finish_reason == "stop"]
    assert {draw.token_ids[-1] for draw in ended} == ends
    assert not any(ends.intersection(draw.token_ids[:-1]) for draw in draws)


def test_the_trainer_asks_the_same_place(tmp_path: Path) -> None:
    base = save_model(tmp_path)
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": 5}))
    model = load_model(base, torch.device("cpu"), torch.float32)
    assert ids_of_model(model) == {2, 5}
    assert ids_of_model(model, ["w1"]) == {8}


def test_a_fleet_has_its_own_ends() -> None:
    settings = load_settings(model="m", engine="remote", engine_options={"urls": "http://a"}, end_tokens=["</s>"])
    with pytest.raises(UserError, match="--override-generation-config") as caught:
        build_engine(settings, base="m")
    assert caught.value.param == "end_tokens"


async def test_an_unreadable_generation_config_is_named(tmp_path: Path) -> None:
    base = save_model(tmp_path)
    (base / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match=r"generation_config\.json"):
        await EmbeddedEngine("tiny", base, EmbeddedOptions(threads=1)).start()
