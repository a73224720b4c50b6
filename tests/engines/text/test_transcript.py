"""Tests decoding tokens to text with tokenizers of all kinds."""

import random
from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from bonbon.engines.engine import Token
from bonbon.engines.text.transcript import Detokenizer, Transcript
from tests.support.zoo.tokenizers import INST, TURNS, sentencepiece

TEXTS = ["Grüße aus Köln, 日本語も 🎉!", "don't stop , please .", "¿qué? ... «ça» 👩‍👩‍👧 fin", "stop! stopp? st op"]


def byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, special_tokens=["<end>"])
    tokenizer.train_from_iterator(["please stop the order"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def word_level() -> PreTrainedTokenizerFast:
    """A decoder that writes spaces between words, but not before punctuation."""
    words = sorted({word for text in TEXTS for word in text.split()} | {".", ",", "'s", "n't"})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<end>", *words])}, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def metaspace() -> PreTrainedTokenizerFast:
    """The first token of a text loses its space, as in Llama 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=120, special_tokens=["<end>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


TOKENIZERS = [byte_level, word_level, metaspace]


def stream(tokenizer: PreTrainedTokenizerFast, ids: list[int], stop: Sequence[str] = ()) -> tuple[list[str], bool]:
    transcript = Transcript(Detokenizer(tokenizer), stop)
    pieces = []
    for end in range(1, len(ids) + 1):
        transcript.read(ids[:end])
        pieces.append(transcript.release(final=False))
        if transcript.stopped:
            return pieces, True
    transcript.close(ids)
    return [*pieces, transcript.release(final=True)], transcript.stopped


def whole(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


@pytest.mark.parametrize("make", TOKENIZERS)
def test_pieces_add_up_to_the_decoded_text(make: type) -> None:
    tokenizer = make()
    for text in TEXTS:
        ids = tokenizer.encode(text)
        pieces, stopped = stream(tokenizer, ids)
        assert "".join(pieces) == whole(tokenizer, ids)
        assert not stopped
        assert sum(map(bool, pieces)) > 3


@pytest.mark.parametrize("make", TOKENIZERS)
def test_random_tokens_add_up_as_well(make: type) -> None:
    """Covers any sequence a policy may sample: bytes that form no characters, special tokens between words."""
    tokenizer = make()
    rng = random.Random(5)
    for _ in range(200):
        ids = [rng.randrange(len(tokenizer)) for _ in range(rng.randrange(1, 30))]
        pieces, _ = stream(tokenizer, ids)
        assert "".join(pieces) == whole(tokenizer, ids)


def test_no_piece_has_half_a_character() -> None:
    tokenizer = byte_level()
    for text in TEXTS:
        pieces, _ = stream(tokenizer, tokenizer.encode(text))
        assert "".join(pieces) == text
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@pytest.mark.parametrize("make", TOKENIZERS)
@pytest.mark.parametrize("stop", [("stop",), ("zzz", "please ."), ("n't stop", "top"), (", ",), ("🎉",)])
def test_text_ends_before_the_first_stop_string(make: type, stop: tuple[str, ...]) -> None:
    tokenizer = make()
    for text in TEXTS:
        ids = tokenizer.encode(text)
        full = whole(tokenizer, ids)
        found = [full.index(s) for s in stop if s in full]
        pieces, stopped = stream(tokenizer, ids, stop)
        assert stopped == bool(found)
        assert "".join(pieces) == (full[: min(found)] if found else full)


def test_what_may_begin_a_stop_string_is_held_back_and_let_go_when_it_does_not() -> None:
    tokenizer = byte_level()
    ids = [tokenizer.convert_tokens_to_ids(letter) for letter in "abcabdx"]
    assert stream(tokenizer, ids, ("abd",))[0] == ["", "", "abc", "", "", ""]
    assert stream(tokenizer, ids[:5], ("abd",))[0] == ["", "", "abc", "", "", "ab"]
    assert stream(tokenizer, ids, ("",)) == ([*"abcabdx", ""], False)


def test_a_tokens_own_text_depends_on_the_one_before() -> None:
    words = Detokenizer(word_level())
    ids = word_level().encode("don't stop , please .")
    own = [words.token(token, before) for before, token in zip([None, *ids], ids, strict=False)]
    assert own[0].text == "don't"
    assert own[1].text == " stop"
    assert "".join(token.text for token in own) == words.text(ids)
    assert words.token(0, None) == Token("<end>", None)


@pytest.mark.parametrize("make", [byte_level, word_level, metaspace, sentencepiece])
def test_the_bytes_of_tokens_add_up_to_the_text(make: type) -> None:
    """Includes tokens within a character, whose bytes alone form no character."""
    tokenizer = make()
    detokenizer = Detokenizer(tokenizer)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        own = [detokenizer.token(token, before) for before, token in zip([None, *ids], ids, strict=False)]
        assert b"".join(token.utf8 or b"" for token in own).decode() == detokenizer.text(ids)
    if make in (byte_level, sentencepiece):
        half, rest = tokenizer.encode("é", add_special_tokens=False)[-2:]
        assert detokenizer.token(half, None) == Token("\\xc3", b"\xc3")
        assert detokenizer.token(rest, half) == Token("\\xa9", b"\xa9")


# In the context of the prompt

CONTINUED = [
    *TOKENIZERS,
    lambda: sentencepiece(INST),
    lambda: sentencepiece(TURNS, prefix=False),
]


def continued(tokenizer: PreTrainedTokenizerFast, prompt: list[int], ids: list[int]) -> tuple[str, str]:
    """Returns the completion's text, read token by token and all at once."""
    detokenizer = Detokenizer(tokenizer)
    context = detokenizer.context(prompt)
    streamed, whole_ = (Transcript(detokenizer, (), context) for _ in range(2))
    pieces = []
    for end in range(1, len(ids) + 1):
        streamed.read(ids[:end])
        pieces.append(streamed.release(final=False))
    for transcript in (streamed, whole_):
        transcript.close(ids)
    return "".join([*pieces, streamed.release(final=True)]), whole_.release(final=True)


@pytest.mark.parametrize("make", CONTINUED)
def test_prompt_and_completion_are_one_text(make: type) -> None:
    """Wherever a text is split, its two parts decode to the whole: the space between them is kept."""
    tokenizer = make()
    for text in ["The cat said hello to you today.", *TEXTS]:
        ids = tokenizer.encode(text)
        read = whole(tokenizer, ids)
        for cut in range(1, len(ids)):
            before = whole(tokenizer, ids[:cut])
            if read.startswith(before):  # not in the middle of a character
                assert continued(tokenizer, ids[:cut], ids[cut:]) == (read[len(before) :],) * 2


def test_the_first_word_keeps_its_space_unless_it_begins_the_text() -> None:
    tokenizer = sentencepiece()
    cat, hello = tokenizer.encode("the cat"), tokenizer.encode("hello", add_special_tokens=False)
    assert continued(tokenizer, cat, hello) == (" hello", " hello")
    assert continued(tokenizer, tokenizer.encode(""), hello) == ("hello", "hello")
    assert Detokenizer(tokenizer).token(hello[0], Detokenizer(tokenizer).context(cat)[-1]).text.startswith(" ")


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_half_a_character_at_the_end_of_the_prompt_is_completed(make: type) -> None:
    tokenizer = make()
    ids = tokenizer.encode("it is 語!", add_special_tokens=False)
    cut = next(at for at in range(1, len(ids)) if whole(tokenizer, ids[:at]).endswith("\N{REPLACEMENT CHARACTER}"))
    assert continued(tokenizer, ids[:cut], ids[cut:]) == ("語!", "語!")


def test_a_stop_string_does_not_begin_in_the_prompt() -> None:
    tokenizer = sentencepiece()
    prompt, ids = tokenizer.encode("the cat"), tokenizer.encode("the cat sat", add_special_tokens=False)[2:]
    detokenizer = Detokenizer(tokenizer)
    transcript = Transcript(detokenizer, ("cat sat", "zzz"), detokenizer.context(prompt))
    transcript.read(ids)
    transcript.close(ids)
    assert (transcript.release(final=True), transcript.stopped) == (" sat", False)
