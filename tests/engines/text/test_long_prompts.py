"""A prompt that is clearly too long is refused before all of it is tokenised, and no prompt that fits is."""

import random
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from bonbon.demo.tiny_models import tiny_models
from bonbon.engines.text.prompt_reader import PromptReader
from bonbon.engines.text.tokenizer import load_tokenizer
from bonbon.errors import PromptTooLong
from bonbon.prompt import Prompt
from tests.support.zoo.tokenizers import SENTENCES, VOCABULARY, byte_level, sentencepiece, wordpiece

LIMIT = 64


def unigram() -> PreTrainedTokenizerFast:
    """Pieces with probabilities over the whole text, as in T5 and ALBERT; unknown runs are one token."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


TOKENIZERS: dict[str, Any] = {
    "byte-level BPE": byte_level,
    "BPE of SentencePiece": sentencepiece,
    "WordPiece": wordpiece,
    "Unigram": unigram,
}


def texts() -> list[str]:
    """Of one word, of blanks, of what a normaliser strips or joins, and of sentences, up to far beyond the limit."""
    chosen = random.Random(1)
    parts = ["a", " ", "\n", "the", "12", "é", "é", "\u200b", "\x00", "中", "🙂", "order", "ab " * 3, "x" * 90 + " "]
    lengths = [8 * LIMIT + extra for extra in (1, 7, 100, 1000, 20_000)]
    runs = [part * (length // len(part) + 1) for part in parts for length in lengths]
    mixed = ["".join(chosen.choices([*parts, *SENTENCES], k=k)) for k in (300, 600, 3000)]
    words = " ".join(SENTENCES) * 30
    # WordPiece makes one token of the last word, and nearly as many as it has letters of what the beginning has of it.
    cut = " ".join(["the"] * (LIMIT - 4)).ljust(8 * LIMIT - 99) + "e" * 10_000
    return [*runs, *mixed, cut, words, "a" * 400 + " " * 10_000, " " * 10_000 + "a" * 400, words[:300] + "x" * 9000]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_only_what_is_too_long_is_refused_by_its_beginning(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    reader = PromptReader(tokenizer, VOCABULARY)
    refused = 0
    for text in texts():
        count = len(tokenizer.encode(text))
        try:
            started = reader.read(Prompt(text=text), LIMIT)
        except PromptTooLong:
            refused += 1
            assert count > LIMIT, text[:40]
        else:
            assert len(started.token_ids) == count
    assert refused > 3


def test_little_of_a_long_text_is_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(tiny_models().policy)
    reader = PromptReader(tokenizer, 1024)
    tokenised: list[int] = []
    encode = tokenizer.encode

    def counted(text: str, **options: Any) -> list[int]:
        tokenised.append(len(text))
        found: list[int] = encode(text, **options)
        return found

    monkeypatch.setattr(tokenizer, "encode", counted)
    words = "where is my order? " * 50_000
    for prompt, param in ((Prompt(text=words), "prompt"), (Prompt.user(words), "messages")):
        with pytest.raises(PromptTooLong) as caught:
            reader.read(prompt, 1024)
        assert str(caught.value) == (
            f"This model's maximum context length is 1024 tokens. However, your {param} resulted in more than 1024 "
            f"tokens. Please reduce the length of the {param}."
        )
        assert caught.value.param == param
    assert sum(tokenised) < 20_000
    assert len(reader.tokenize(Prompt(text=words)).ids) > 100_000  # which is what was asked for
