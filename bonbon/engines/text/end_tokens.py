"""Which tokens end an answer: decided here, for every engine that reads the model's files."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import structlog
from transformers import GenerationConfig

from bonbon.engines.text.model_config import read_config
from bonbon.errors import UserError

ANSWER = "answer"
"""What stands for an answer in the conversation that shows how the chat template ends one."""

log = structlog.get_logger(__name__)


def end_ids(
    directory: Path, tokenizer: Any, vocabulary: int, named: Sequence[str | int] | None = None
) -> frozenset[int]:
    """The ids of the tokens that end an answer of the model in `directory`.

    They are the ids in generation_config.json (or else in config.json), the tokenizer's end-of-sequence token and,
    where the chat template ends a turn with none of these, the token that it does end a turn with. `named`, the setting
    `end_tokens`, replaces them all. A warning says when the files disagree.

    Args:
        tokenizer: of the model.
        vocabulary: how many token ids the model knows.
        named: tokens, or their ids.

    Raises:
        UserError: the configuration cannot be read, or `named` has a token that the model does not know.
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
            "the model's files name end tokens that the model does not know; they are ignored",
            model=str(directory),
            ignored=sorted(ends - known),
            vocabulary=vocabulary,
        )
    if not known:
        log.warning(
            "no file of the model names a token that ends an answer, so answers run to max_tokens; set end_tokens",
            model=str(directory),
        )
    elif configured and (own | turn) - configured:
        log.warning(
            "the model's files disagree about the token that ends an answer, so each of these does; set end_tokens to "
            "choose",
            model=str(directory),
            generation_config=_texts(tokenizer, configured),
            tokenizer=_texts(tokenizer, own),
            chat_template=_texts(tokenizer, turn) if turn else "one of these",
        )
    return known


def _configured(directory: Path) -> frozenset[int]:
    """What generation_config.json says or, where it says nothing, config.json."""
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
    """The token that the chat template writes after an answer; empty where `known` has one that it writes there.

    Templates that cannot write a question and its answer say nothing, nor do those that write no special token then.
    """
    if not tokenizer.chat_template:
        return frozenset()
    question = {"role": "user", "content": "question"}
    turns = [question, {"role": "assistant", "content": ANSWER}]
    try:
        asked: str = tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
        answered: str = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception as error:  # noqa: BLE001 - a template may raise anything; that it does matters when it is used
        log.debug("the chat template does not show how a turn ends", error=f"{type(error).__name__}: {error}")
        return frozenset()
    _, found, tail = answered.rpartition(ANSWER)
    written = list(_special(tokenizer, tail)) if found else []
    # A template that ignores add_generation_prompt opens the next answer here.
    opening = list(_special(tokenizer, asked))[-1:]
    if not written or written[:1] == opening or known.intersection(written):
        return frozenset()
    return frozenset(written[:1])


def _special(tokenizer: Any, text: str) -> Iterable[int]:
    """The special and added tokens in `text`, in order, but for those that are white space."""
    added = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
    marks = added.union(tokenizer.all_special_ids)
    return (token for token in tokenizer.encode(text, add_special_tokens=False, verbose=False) if token in marks)


def _id_of(token: str | int, tokenizer: Any, vocabulary: int) -> int:
    token_id = tokenizer.get_vocab().get(token) if isinstance(token, str) else token
    if token_id is None or not 0 <= token_id < vocabulary:
        raise UserError(
            f"end_tokens has {token!r}, which is no token of the model; name tokens of its tokenizer, such as "
            f"{tokenizer.eos_token!r}, or ids from 0 to {vocabulary - 1}",
            param="end_tokens",
        )
    return int(token_id)


def _ids(value: int | Sequence[int] | None) -> frozenset[int]:
    return frozenset([] if value is None else [value] if isinstance(value, int) else value)


def _texts(tokenizer: Any, token_ids: Iterable[int]) -> list[str]:
    return [str(token) for token in tokenizer.convert_ids_to_tokens(sorted(token_ids))]
