"""One server of a fleet: its health, its versions, and its load."""

import asyncio
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

from bonbon.engines.engine import Delta, DrawRequest, Sampling, Tokens, VersionFiles
from bonbon.engines.remote.protocol import COMPLETIONS, count_request, events, server_request
from bonbon.engines.remote.protocol_errors import ServerFailed, read_error, refusal
from bonbon.engines.remote.vllm_server import Server
from bonbon.errors import BonbonError, EngineError, UserError
from bonbon.prompt import Prompt

GOLDEN = Prompt(text="Hello!")
PLAIN = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""The sampling parameters that a server would otherwise take from the model's generation_config.json."""
IMPOSSIBLE = -9999.0  # A server's value for minus infinity.


class Replica:
    """Gets requests while `reason` is None. `versions` are the adapters that were loaded and checked on it.

    Args:
        model: The name that the base must have on the server; empty for the name of its only model that is not an
            adapter.
        timeout: The seconds that a health check may take.
        load_timeout: The seconds that loading or checking a version may take.
        unhealthy_after: The number of consecutive health checks that must time out before the server counts as down.
    """

    def __init__(
        self, server: Server, *, model: str, timeout: float, load_timeout: float, unhealthy_after: int
    ) -> None:
        self.server, self.url = server, server.url
        self.model, self._wanted_model = model, model
        self.context_length = 0
        self.outstanding = 0
        self.reason: str | None = "its health has not been checked yet"
        self.versions: set[str] = set()
        self._timeout, self._load_timeout, self._unhealthy_after = timeout, load_timeout, unhealthy_after
        self._timeouts = 0
        self._lock = asyncio.Lock()

    @contextmanager
    def busy(self, candidates: int) -> Iterator[None]:
        """Counts candidates as running on this server until the block ends."""
        self.outstanding += candidates
        try:
            yield
        finally:
            self.outstanding -= candidates

    def down(self, reason: str) -> None:
        """Stops requests until the next successful health check; the server may have lost its versions."""
        self.reason = reason
        self.versions.clear()

    async def check_health(self) -> None:
        """Checks the server's health and its versions, and updates `reason` and `versions`."""
        try:
            loaded = await self._loaded()
            if self.reason is not None:
                await self._probe()
        except ServerFailed as error:
            self._timeouts += 1
            if error.down or self.reason is not None or self._timeouts >= self._unhealthy_after:
                self.down(str(error))
        except BonbonError as error:
            self.down(str(error))
        else:
            self._timeouts, self.reason = 0, None
            self.versions &= loaded.keys()

    async def ensure(self, version: VersionFiles) -> None:
        """Loads and checks a version, unless that is done.

        Raises UserError or EngineError, naming the server and the cause.
        """
        async with self._lock:
            if version.name in self.versions:
                return
            try:
                await self._load(version)
                await self._check(version.name)
            except UserError as error:
                raise UserError(f"{self.url}: {error}") from error
            except EngineError as error:
                raise EngineError(f"{self.url}: {error}") from error
            self.versions.add(version.name)

    async def forget(self, name: str) -> None:
        """Unloads a version; a version that is not loaded is not an error."""
        self.versions.discard(name)
        body = {"lora_name": name}
        async with self._lock:
            status, content = await self.server.request(
                "POST", "/v1/unload_lora_adapter", body, seconds=self._load_timeout
            )
        if status not in (200, 404):
            raise EngineError(f"{self.url} did not unload {name}: {read_error(content)[0] or status}")

    async def text(self, token_ids: Sequence[int]) -> str:
        """Returns the text of a prompt of token ids."""
        return str((await self._json("POST", "/detokenize", {"tokens": token_ids}))["prompt"])

    async def tokenize(self, prompt: Prompt, add_special_tokens: bool | None) -> Tokens:
        """Tokenizes a prompt; see `Engine.tokenize`."""
        body = {"model": self.model, "return_token_strs": True} | count_request(prompt)
        if add_special_tokens is not None:
            body["add_special_tokens"] = add_special_tokens
        answer = await self._json("POST", "/tokenize", body)
        try:
            return Tokens(tuple(map(int, answer["tokens"])), tuple(map(str, answer["token_strs"] or ())))
        except (KeyError, TypeError, ValueError) as error:
            raise EngineError("its /tokenize returned no tokens") from error

    async def count(self, prompt: Prompt) -> int:
        """Returns how many tokens a text or a chat has."""
        return int((await self._json("POST", "/tokenize", {"model": self.model} | count_request(prompt)))["count"])

    async def _loaded(self) -> dict[str, str]:
        """Returns the path of every adapter on the server by name, and updates the base's name and context length."""
        status, _ = await self.server.request("GET", "/health", seconds=self._timeout)
        if status != 200:
            raise EngineError(f"its /health returned status {status}")
        cards = (await self._json("GET", "/v1/models"))["data"]
        bases = [card for card in cards if not card.get("parent")]
        bases = [card for card in bases if self._wanted_model in ("", card["id"])]
        if len(bases) != 1 or not isinstance(bases[0].get("max_model_len"), int):
            names = ", ".join(str(card.get("id")) for card in cards)[:200]
            raise EngineError(f"it serves {names}, of which no single one is the base; set engine_options.model")
        self.model, self.context_length = bases[0]["id"], bases[0]["max_model_len"]
        return {card["id"]: card.get("root", "") for card in cards if card.get("parent")}

    async def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        status, content = await self.server.request(method, path, body, seconds=self._timeout)
        if status != 200:
            raise refusal(status, content)
        try:
            answer = json.loads(content)
        except ValueError as error:
            raise EngineError(f"its {path} did not return JSON") from error
        if not isinstance(answer, dict):
            raise EngineError(f"its {path} did not return a JSON object")
        return answer

    async def _probe(self) -> None:
        """Samples, and checks that log-probabilities are those at the sampling temperature.

        Raising the temperature from 1 to 2 halves every difference between them, unless they ignore it.
        """
        gaps = [await self._gap(temperature) for temperature in (1.0, 2.0)]
        if gaps[1] > 0.75 * gaps[0] > 0:
            raise EngineError(
                "it reports log-probabilities that ignore the temperature; start it with "
                "--logprobs-mode processed_logprobs"
            )

    async def _gap(self, temperature: float) -> float:
        """Returns the difference between the two highest distinct log-probabilities after the golden prompt."""
        body = PLAIN | {"model": self.model, "prompt": GOLDEN.text, "max_tokens": 1, "n": 1, "logprobs": 5}
        body |= {"temperature": temperature, "top_p": 1.0, "top_k": 0, "seed": 0, "stream": False}
        until = asyncio.get_running_loop().time() + self._load_timeout
        async with aclosing(self.server.answers(COMPLETIONS, body, until)) as answers:
            async for answer in answers:
                try:
                    found = sorted(answer["choices"][0]["logprobs"]["top_logprobs"][0].values(), reverse=True)
                except (KeyError, IndexError, TypeError, AttributeError) as error:
                    raise EngineError("it reports no log-probabilities") from error
                if not all(isinstance(number, float | int) and number <= 0 for number in found):
                    raise EngineError("it reports logits; start it with --logprobs-mode processed_logprobs")
                return float(found[0] - next((other for other in found if other < found[0]), found[0]))
        raise EngineError("it ended a request without an answer")

    async def _load(self, version: VersionFiles) -> None:
        body = {"lora_name": version.name, "lora_path": str(version.directory)}
        status, content = await self.server.request("POST", "/v1/load_lora_adapter", body, seconds=self._load_timeout)
        message, _ = read_error(content)
        if status == 200:
            return
        if "already been loaded" in message:
            path = (await self._loaded()).get(version.name)
            if path not in (None, str(version.directory)):
                raise UserError(
                    f"it has another adapter called {version.name!r}, from {path}: names must not be reused, so "
                    "give each registry a fleet of its own"
                )
        elif status in (401, 403):
            raise refusal(status, content)
        elif "No adapter found" in message:
            raise UserError(f"it cannot read {version.directory}; mount data_dir on the server under the same path")
        elif status == 404:
            raise UserError(
                "it does not load adapters; start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
            )
        elif "max_lora_rank" in message:
            raise UserError(f"{message} Start it with a higher --max-lora-rank, or train a lower train.lora_rank")
        else:
            raise UserError(f"it refuses {version.name}: {message or f'status {status}'}")

    async def _check(self, name: str) -> None:
        """Samples for the golden prompt, and checks that there is a token with a finite log-probability."""
        request = DrawRequest(GOLDEN, name, 1, Sampling(max_tokens=4, seed=0))
        golden_request = server_request(request)
        until = asyncio.get_running_loop().time() + self._load_timeout
        async with aclosing(
            self.server.answers(golden_request.path, {"model": name, **golden_request.body}, until)
        ) as answers:
            sampled = [event async for answer in answers for event in events(request, answer, GOLDEN.text)]
        logprobs = [number for event in sampled if isinstance(event, Delta) for number in event.logprobs]
        if not logprobs or not all(math.isfinite(number) and number > IMPOSSIBLE for number in logprobs):
            raise EngineError(f"{name} answered the golden prompt without finite log-probabilities")
