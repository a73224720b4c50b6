"""Finds the tokens that end an answer, for every engine that reads the model's files."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import structlog
from transformers import GenerationConfig

from bonbon.engines.text.model_config import read_config
from bonbon.errors import UserError

ANSWER = "answer"
"""A placeholder answer, in the conversation that shows how the chat template ends one."""

log = structlog.get_logger(__name__)


def end_ids(
    directory: Path, tokenizer: Any, vocabulary: int, named: Sequence[str | int] | None = None
) -> frozenset[int]:
    """Returns the ids of the tokens that end an answer of the model in `directory`.

    They are the ids in generation_config.json (or else in config.json), the tokenizer's end-of-sequence token and,
    where the chat template ends a turn with none of these, the token that it does end a turn with. `named`, the setting
    `end_tokens`, replaces all of them. A warning is logged when the files disagree.

    Args:
        tokenizer: The model's tokenizer.
        vocabulary: The number of token ids that the model knows.
        named: Tokens, or their ids.

    Raises:
        UserError: The configuration cannot be read, or `named` has a token that the model does not know.
    """
    if named is not None:
        return frozenset(_id_of(token, tokenizer, vocabulary) for token in named)
    configured = _configured(directory)
    own = _ids(tokenizer.eos_token_id)
    turn = _turn_end(tokenizer, configured | own)
    ends = configured | own | turn
    known = frozenset(token_id for token_id in ends if 0 <= token_id < vocabulary)
    if known != ends:
        log.warning(
            "ignoring end tokens that the model's files name and the model does not know",
            model=str(directory),
            ignored=sorted(ends - known),
            vocabulary=vocabulary,
        )
    if not known:
        log.warning(
            "the model's files name no end token, so answers run until max_tokens; set end_tokens",
            model=str(directory),
        )
    elif configured and (own | turn) - configured:
        log.warning(
            "the model's files disagree about the end token, so each of these tokens ends an answer; set end_tokens to "
            "choose",
            model=str(directory),
            generation_config=_texts(tokenizer, configured),
            tokenizer=_texts(tokenizer, own),
            chat_template=_texts(tokenizer, turn) if turn else "one of these",
        )
    return known


def _configured(directory: Path) -> frozenset[int]:
    """Returns the end tokens of generation_config.json or, if it has none, of config.json."""
    if (directory / "generation_config.json").exists():
        try:
            generation = GenerationConfig.from_pretrained(directory, local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{directory / 'generation_config.json'} cannot be read ({type(error).__name__}: {error}); correct it"
            ) from error
        if generation.eos_token_id is not None:
            return _ids(generation.eos_token_id)
    return _ids(read_config(directory).eos_token_id)


def _turn_end(tokenizer: Any, known: frozenset[int]) -> frozenset[int]:
    """Returns the token that the chat template writes after an answer, or nothing where it writes one of `known` there.

    Templates that cannot write a question and its answer, or that write no special token after the answer, give
    nothing.
    """
    if not tokenizer.chat_template:
        return frozenset()
    question = {"role": "user", "content": "question"}
    turns = [question, {"role": "assistant", "content": ANSWER}]
    try:
        question_text: str = tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
        answer_text: str = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception as error:  # noqa: BLE001 - a template may raise anything; requests that use it report the error
        log.debug("the chat template does not show how a turn ends", error=f"{type(error).__name__}: {error}")
        return frozenset()
    _, found, tail = answer_text.rpartition(ANSWER)
    written = list(_special(tokenizer, tail)) if found else []
    # A template that ignores add_generation_prompt starts the next answer here.
    opening = list(_special(tokenizer, question_text))[-1:]
    if not written or written[:1] == opening or known.intersection(written):
        return frozenset()
    return frozenset(written[:1])


def _special(tokenizer: Any, text: str) -> Iterable[int]:
    """Returns the special and added tokens in `text`, in order, except for white space."""
    added = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
    marks = added.union(tokenizer.all_special_ids)
    return (token for token in tokenizer.encode(text, add_special_tokens=False, verbose=False) if token in marks)


def _id_of(token: str | int, tokenizer: Any, vocabulary: int) -> int:
    token_id = tokenizer.get_vocab().get(token) if isinstance(token, str) else token
    if token_id is None or not 0 <= token_id < vocabulary:
        raise UserError(
            f"end_tokens has {token!r}, which is not a token of the model; use tokens of its tokenizer, such as "
            f"{tokenizer.eos_token!r}, or ids from 0 to {vocabulary - 1}",
            param="end_tokens",
        )
    return int(token_id)


def _ids(value: int | Sequence[int] | None) -> frozenset[int]:
    return frozenset([] if value is None else [value] if isinstance(value, int) else value)


def _texts(tokenizer: Any, token_ids: Iterable[int]) -> list[str]:
    return [str(token) for token in tokenizer.convert_ids_to_tokens(sorted(token_ids))]
