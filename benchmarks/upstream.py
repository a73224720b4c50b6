"""A mock vLLM server whose answers are computed at the start. `python benchmarks/upstream.py PORT`

Plain asyncio takes a few microseconds per request, which does not mask the gateways' overhead.
"""

import asyncio
import json
import random
import sys
from functools import cache
from typing import Any

MODEL, TOKENS, VARIANTS = "base", 32, 16
"""Variants of an answer are used in turn, so that the candidates of one request differ as draws do."""


def choice(index: int, seed: int, *, detailed: bool) -> dict[str, Any]:
    """Returns a candidate of TOKENS tokens, with ids and log-probabilities on request."""
    rng = random.Random(seed * 128 + index)
    words = [f" w{rng.randrange(10_000)}" for _ in range(TOKENS)]
    plain = {"index": index, "message": {"role": "assistant", "content": "".join(words)}, "finish_reason": "stop"}
    if not detailed:
        return plain
    content: list[dict[str, Any]] = [
        {"token": word, "logprob": -rng.random() * 3, "bytes": None, "top_logprobs": []} for word in words
    ]
    return plain | {"logprobs": {"content": content}, "token_ids": [rng.randrange(32_000) for _ in words]}


@cache
def chat(n: int, seed: int, detailed: bool) -> bytes:
    """Returns an answer to /v1/chat/completions."""
    choices = [choice(index, seed, detailed=detailed) for index in range(n)]
    usage = {"prompt_tokens": 16, "completion_tokens": n * TOKENS, "total_tokens": 16 + n * TOKENS}
    body = {"id": "chatcmpl-0", "object": "chat.completion", "created": 0, "model": MODEL, "choices": choices}
    body |= {"usage": usage}
    if detailed:
        body |= {"prompt_token_ids": list(range(16)), "prompt_text": "user: Where is my order?"}
    return response(body)


def probe(temperature: float) -> bytes:
    """Returns an answer to the request by which a gateway tests that log-probabilities depend on the temperature."""
    tops = {" a": -0.1 / temperature, " b": -3.1 / temperature}
    logprobs = {"tokens": [" a"], "token_logprobs": [-0.1], "top_logprobs": [tops]}
    chosen = {"index": 0, "text": " a", "token_ids": [5], "finish_reason": "length", "logprobs": logprobs}
    return response({"id": "cmpl-0", "object": "text_completion", "created": 0, "model": MODEL, "choices": [chosen]})


def response(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(content) + content


class Upstream(asyncio.Protocol):
    """HTTP/1.1 with persistent connections, as far as the tested gateways need it."""

    served = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.received = transport, b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            head = self.received[:end].lower()
            start = head.find(b"content-length:")
            length = int(head[start + 15 :].split(b"\r\n", 1)[0]) if start >= 0 else 0
            if len(self.received) < end + 4 + length:
                return
            body = self.received[end + 4 : end + 4 + length]
            self.received = self.received[end + 4 + length :]
            self.transport.write(answer(head.split(b" ", 2)[1], body))


def answer(path: bytes, body: bytes) -> bytes:
    if path == b"/v1/chat/completions":
        Upstream.served += 1
        asked = json.loads(body)
        return chat(asked.get("n") or 1, Upstream.served % VARIANTS, bool(asked.get("return_token_ids")))
    if path == b"/v1/completions":
        return probe(json.loads(body)["temperature"])
    if path == b"/v1/models":
        return response({"object": "list", "data": [{"id": MODEL, "object": "model", "max_model_len": 4096}]})
    return response({})


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
