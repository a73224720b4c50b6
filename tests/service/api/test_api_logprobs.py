"""Log-probabilities of tokens that are parts of characters: their bytes form the text, and their offsets point into
it."""

from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from typing import Any

from bonbon.engines.embedded.embedded_engine import EmbeddedEngine
from bonbon.engines.embedded.embedded_options import EmbeddedOptions
from bonbon.engines.engine import Delta, DrawRequest, Started, Token, TokenAlternative
from bonbon.engines.fake_engine import FakeEngine
from bonbon.rewards.fake_reward import FakeReward
from bonbon.settings import Settings
from service.app import create_app
from tests.support.service.api import CHAT, COMPLETIONS, MESSAGES, events, open_api
from tests.support.service.hosting import in_process
from tests.support.zoo.policies import POLICIES

PIECES = (b"a", b" \xe8", b"\xaa", b"\x9e!", "é".encode(), b"\xf0\x9f\x98", b"\x80")
TEXT = "a 語!é😀"
OFFSETS = [0, 1, 2, 2, 4, 5, 5, 6]


class SplittingEngine(FakeEngine):
    """An engine whose candidates are one text with characters split over several tokens, and an end token."""

    async def draw(self, request: DrawRequest) -> AsyncGenerator[Started | Delta]:
        yield Started((1,), "before")
        for index in range(request.n):
            sent, read = "", b""
            for at, piece in enumerate(PIECES):
                read += piece
                text = read.decode(errors="ignore")
                tops = (TokenAlternative(0, Token.of(b"\xe9"), -2.0), TokenAlternative(1, Token.of(b"\xea"), -3.0))
                yield Delta(index, text[len(sent) :], (at,), (-1.0,), (Token.of(piece),), (tops,))
                sent = text
            yield Delta(index, "", (99,), (-1.0,), (Token("<end>", None),), ((),), finish_reason="stop")


def joined(tokens: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(bytes(token["bytes"] or ()) for token in tokens)


async def test_the_bytes_of_a_chat_s_tokens_are_its_text(tmp_path: Path) -> None:
    async with open_api(tmp_path, engine=SplittingEngine()) as api:
        for model in ("bonbon", "base"):
            body = await api.chat(model=model, logprobs=True, top_logprobs=2)
            content = body["choices"][0]["logprobs"]["content"]
            response = await api.post(CHAT, model=model, messages=MESSAGES, logprobs=True, stream=True)
            chunks, _ = events(response.text)
            streamed = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"]]
            assert body["choices"][0]["message"]["content"] == TEXT
            for tokens in (content, [token for part in streamed if part for token in part["content"]]):
                assert joined(tokens).decode() == TEXT
                assert [token["token"] for token in tokens] == [
                    "a", " \\xe8", "\\xaa", "\\x9e!", "é", "\\xf0\\x9f\\x98", "\\x80", "<end>",
                ]  # fmt: skip
                assert tokens[-1]["bytes"] is None
            assert [top["bytes"] for top in content[0]["top_logprobs"]] == [[0xE9], [0xEA]]


async def test_the_offsets_of_a_completion_s_tokens_point_at_their_characters(tmp_path: Path) -> None:
    async with open_api(tmp_path, engine=SplittingEngine()) as api:
        for model in ("bonbon", "base"):
            choice = (await api.complete(model=model, logprobs=2))["choices"][0]
            response = await api.post(COMPLETIONS, model=model, prompt="x", logprobs=2, stream=True)
            chunks, _ = events(response.text)
            parts = [c["logprobs"] for chunk in chunks for c in chunk["choices"] if c["logprobs"]]
            assert choice["text"] == TEXT
            assert choice["logprobs"]["text_offset"] == OFFSETS
            assert [offset for part in parts for offset in part["text_offset"]] == OFFSETS
            assert choice["logprobs"]["tokens"][:3] == ["a", "bytes: \\xe8", "bytes:\\xaa"]
            # Alternatives that are parts of characters stay apart.
            assert choice["logprobs"]["top_logprobs"][0] == {"bytes:\\xe9": -2.0, "bytes:\\xea": -3.0, "a": -1.0}


async def test_the_embedded_engine_knows_the_bytes_of_its_tokens(tmp_path: Path) -> None:
    """A policy with random weights usually generates bytes that form no character."""
    engine = EmbeddedEngine("base", POLICIES["Qwen2"].save(tmp_path / "model"), EmbeddedOptions(threads=1))
    app = create_app(Settings(engine="fake", data_dir=tmp_path), engine=engine, reward=FakeReward())
    async with in_process(app) as client:
        asked = {"model": "base", "n": 20, "seed": 1, "max_tokens": 12}
        chat = (await client.post(CHAT, json=asked | {"messages": MESSAGES, "logprobs": True})).json()
        text = (await client.post(COMPLETIONS, json=asked | {"prompt": "The cat", "logprobs": 0})).json()
    split = 0
    for choice in chat["choices"]:
        tokens = choice["logprobs"]["content"]
        split += any(token["token"].startswith("\\x") for token in tokens)
        assert joined(tokens).decode(errors="replace") == choice["message"]["content"]
    assert split
    for choice in text["choices"]:
        logprobs = choice["logprobs"]
        for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
            named = token.startswith(("bytes:", "<|"))
            assert offset <= len(choice["text"])
            assert named or choice["text"].startswith(token, offset)
