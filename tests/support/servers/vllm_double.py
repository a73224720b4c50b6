"""A server that speaks vLLM's HTTP: no model behind it, but a real socket, adapters by name, and faults on demand."""

import asyncio
import json
import math
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

# One has a character that ends lines elsewhere, though not in a stream of events.
WORDS = ("please", "check", "your", "or\u2028der", "today", "thanks")
END = len(WORDS)
CONTEXT = 64


@dataclass
class Double:
    """What the server is to do, and what was asked of it. `fault` answers draws in place of words."""

    name: str = "tiny"
    key: str = ""
    delay: float = 0.0
    healthy: bool = True
    max_rank: int = 8
    ranks: dict[str, int] = field(default_factory=dict)
    raw_logprobs: bool = False
    nan: set[str] = field(default_factory=set)
    fault: Response | None = None
    breaks_after: int | None = None
    tool_call: dict[str, str] | None = None
    parallel_calls: int = 1
    adapters: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    tokenized: list[dict[str, Any]] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    aborted: int = 0
    drawing: int = 0
    port: int = 0
    _server: uvicorn.Server | None = None
    _thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def draws(self) -> list[dict[str, Any]]:
        """The bodies of what was drawn, but for probes and golden draws."""
        return [body for path, body in self.requests if "completions" in path and body.get("prompt") != "Hello!"]

    def start(self) -> None:
        """Also after `stop`: on the same port, as an empty server."""
        self.adapters.clear()
        routes = [
            Route("/health", self._health),
            Route("/v1/models", self._models),
            Route("/v1/load_lora_adapter", self._load, methods=["POST"]),
            Route("/v1/unload_lora_adapter", self._unload, methods=["POST"]),
            Route("/tokenize", self._tokenize, methods=["POST"]),
            Route("/detokenize", self._detokenize, methods=["POST"]),
            Route("/v1/chat/completions", self._draw, methods=["POST"]),
            Route("/v1/completions", self._draw, methods=["POST"]),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes), port=self.port, log_config=None, lifespan="off", timeout_graceful_shutdown=0
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the server did not start"
            threading.Event().wait(0.005)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Close every connection, whatever is under way."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = self._server.force_exit = True
            self._thread.join()
            self._server = None

    async def _health(self, request: Request) -> Response:
        return Response(status_code=200 if self.healthy else 503)

    async def _models(self, request: Request) -> Response:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": "Unauthorized"}, 401)
        base = {"id": self.name, "root": "/models/tiny", "parent": None, "max_model_len": CONTEXT}
        loaded = [{"id": name, "root": path, "parent": self.name} for name, path in self.adapters.items()]
        return JSONResponse({"object": "list", "data": [base, *loaded]})

    async def _load(self, request: Request) -> Response:
        body = await request.json()
        name, path = body["lora_name"], body["lora_path"]
        if name in self.adapters:
            return _error(400, f"The lora adapter '{name}' has already been loaded. Set 'load_inplace' to True.")
        if "nowhere" in path:
            return _error(404, f"Loading lora {name} failed: No adapter found for {path}")
        if self.ranks.get(name, 1) > self.max_rank:
            return _error(500, f"LoRA rank {self.ranks[name]} is greater than max_lora_rank {self.max_rank}.")
        self.adapters[name] = path
        self.loads.append(name)
        return Response("Success")

    async def _unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        return Response() if self.adapters.pop(name, None) else _error(404, f"'{name}' cannot be found.")

    async def _detokenize(self, request: Request) -> Response:
        return JSONResponse({"prompt": " ".join(WORDS[i % END] for i in (await request.json())["tokens"])})

    async def _tokenize(self, request: Request) -> Response:
        body = await request.json()
        self.tokenized.append(body)
        words = _text(body).split()
        tokens = {"tokens": [len(word) for word in words], "token_strs": words if "return_token_strs" in body else None}
        return JSONResponse({"count": len(words), "max_model_len": CONTEXT, **tokens})

    async def _draw(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append((request.url.path, body))
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": "Unauthorized"}, 401)
        if body["model"] not in (self.name, *self.adapters):
            return _error(404, f"The model `{body['model']}` does not exist.", "model")
        golden = body.get("prompt") == "Hello!"
        if self.fault is not None and not golden:
            return self.fault
        text = _text(body)
        ids = body["prompt"] if isinstance(body.get("prompt"), list) else [len(word) for word in text.split()]
        if len(ids) > CONTEXT:
            return _error(400, f"This model's maximum context length is {CONTEXT} tokens. Shorten it.", "input_text")
        if "prompt_logprobs" in body:
            return JSONResponse({"choices": [{"prompt_logprobs": _prompt_logprobs(ids)}]})
        answer = _Answer(self, request, body, ids, text)
        if body["stream"]:
            return StreamingResponse(answer.chunks(), media_type="text/event-stream")
        return JSONResponse(await answer.whole())


class _Answer:
    """One draw, whole or in chunks, in the form of the endpoint it came by."""

    def __init__(self, double: Double, request: Request, body: dict[str, Any], ids: list[int], text: str) -> None:
        self.double, self.request, self.body, self.ids, self.text = double, request, body, ids, text
        self.chat = "messages" in body
        self.most = body["max_completion_tokens" if self.chat else "max_tokens"]
        self.texts: dict[int, int] = {}
        """The length of the text of each candidate that a stop string ends."""
        self.written: Counter[int] = Counter()

    def candidate(self, index: int) -> list[int]:
        """Words until one says stop or the text contains a stop string; the same for the same seed."""
        rng = random.Random(self.body["seed"] + index) if "seed" in self.body else random.Random()
        drawn: list[int] = []
        while len(drawn) < self.most and END not in drawn:
            greedy = (0, 1, END)[len(drawn)] if self.body["temperature"] == 0 else None
            drawn.append(rng.randrange(END + 1) if greedy is None else greedy)
            text = "".join(_words(drawn, first=True))
            if found := [text.index(stop) for stop in self.body.get("stop") or () if stop in text]:
                self.texts[index] = min(found)
                break
        return drawn

    def piece(self, index: int, tokens: list[int], first: bool) -> dict[str, Any]:
        texts = _words(tokens, first=first)
        logprob = math.nan if self.body["model"] in self.double.nan else -math.log(END + 1)
        likeliest = self.likeliest()
        choice: dict[str, Any] = {"index": index, "token_ids": tokens, "finish_reason": None}
        text = "".join(texts)
        before = self.written[index]
        self.written[index] += len(text)
        text = text[: max(0, self.texts.get(index, self.written[index]) - before)]
        if self.chat:
            content = [{"token": t, "logprob": logprob, "bytes": None, "top_logprobs":
                        [{"token": w, "logprob": p} for w, p in likeliest.items()]} for t in texts]  # fmt: skip
            said: dict[str, Any] = {"role": "assistant", "content": text}
            if self.double.tool_call and self.body.get("tools"):
                called = self.double.tool_call
                calls = [
                    {"index": at, "id": f"call-{index}" if at == 0 else f"call-{index}-{at}", "function": called}
                    for at in range(self.double.parallel_calls if first else 0)
                ]
                said = {"role": "assistant", "content": None, "tool_calls": calls}
            choice |= {"delta" if self.body["stream"] else "message": said, "logprobs": {"content": content}}
        else:
            many = [likeliest] * len(tokens)
            logprobs = {"tokens": texts, "token_logprobs": [logprob] * len(tokens), "top_logprobs": many}
            choice |= {"text": text, "logprobs": logprobs, "prompt_token_ids": self.ids}
        return choice

    def likeliest(self) -> dict[str, float]:
        """Log-probabilities of three tokens, their gaps shrunk by the temperature unless they are raw."""
        heat = 1.0 if self.double.raw_logprobs else self.body["temperature"] or 1.0
        return {word: -0.1 - gap / heat for word, gap in zip(WORDS, (0.0, 1.0, 2.0), strict=False)}

    def head(self) -> dict[str, Any]:
        return {"prompt_token_ids": self.ids, "prompt_text": self.text} if self.chat else {}

    async def whole(self) -> dict[str, Any]:
        choices = []
        for index in range(self.body["n"]):
            tokens = self.candidate(index)
            if not await self.wait(len(tokens)):
                return {}
            choice = self.piece(index, tokens, first=True)
            choices.append(choice | {"finish_reason": self.finish(index, tokens)})
        return {"choices": choices} | self.head()

    async def chunks(self) -> AsyncIterator[str]:
        candidates = [self.candidate(index) for index in range(self.body["n"])]
        sent = 0
        self.double.drawing += 1
        finished = False
        try:
            if self.chat:
                for index in range(len(candidates)):
                    opening = {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                    yield _event({"choices": [opening]} | self.head())
            for position in range(max(map(len, candidates))):
                for index, tokens in enumerate(candidates):
                    if position >= len(tokens):
                        continue
                    if sent == self.double.breaks_after:
                        self.double.breaks_after = None
                        return
                    await asyncio.sleep(self.double.delay)
                    choice = self.piece(index, [tokens[position]], first=position == 0)
                    last = position + 1 == len(tokens)
                    yield _event(
                        {"choices": [choice | ({"finish_reason": self.finish(index, tokens)} if last else {})]}
                    )
                    sent += 1
            finished = True
            yield "data: [DONE]\n\n"
        finally:
            self.double.drawing -= 1
            self.double.aborted += not finished

    async def wait(self, tokens: int) -> bool:
        """The time the tokens take; False when the client has hung up by then."""
        self.double.drawing += 1
        try:
            for _ in range(tokens if self.double.delay else 0):
                await asyncio.sleep(self.double.delay)
                if await self.request.is_disconnected():
                    self.double.aborted += 1
                    return False
            return True
        finally:
            self.double.drawing -= 1

    def finish(self, index: int, tokens: list[int]) -> str:
        if self.double.tool_call and self.body.get("tools"):
            return "tool_calls"
        return "stop" if END in tokens or index in self.texts else "length"


def _words(tokens: list[int], *, first: bool) -> list[str]:
    return [
        "" if token == END else WORDS[token] if first and position == 0 else f" {WORDS[token]}"
        for position, token in enumerate(tokens)
    ]


def _text(body: dict[str, Any]) -> str:
    return " ".join(m["content"] or "" for m in body["messages"]) if "messages" in body else str(body["prompt"])


def _prompt_logprobs(ids: list[int]) -> list[dict[str, Any] | None]:
    """As a server writes them: the token itself, and two likelier ones."""
    tokens = [{token: -1.0, token + 1: -0.5, token + 2: -2.0} for token in ids[1:]]
    entries = [
        {str(i): {"logprob": p, "rank": 1, "decoded_token": f" {WORDS[i % END]}"} for i, p in place.items()}
        for place in tokens
    ]
    return [None, *entries]


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _error(status: int, message: str, param: str | None = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "x", "param": param, "code": status}}, status)


@contextmanager
def doubles(count: int, **options: Any) -> Iterator[list[Double]]:
    """Running servers."""
    made = [Double(**options) for _ in range(count)]
    try:
        for double in made:
            double.start()
        yield made
    finally:
        for double in made:
            double.stop()
