"""One server of a fleet: how it is, what it serves, and how busy it is."""

import asyncio
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

from bonbon.engines.engine import Delta, DrawRequest, Sampling, Tokens, VersionFiles
from bonbon.engines.remote.protocol import COMPLETIONS, count_question, events, question
from bonbon.engines.remote.protocol_errors import Elsewhere, refusal, said
from bonbon.engines.remote.vllm_server import Server
from bonbon.errors import BonbonError, EngineError, UserError
from bonbon.prompt import Prompt

GOLDEN = Prompt(text="Hello!")
PLAIN = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""What a server would take from the model's generation_config.json, which would change the sampler."""
IMPOSSIBLE = -9999.0  # what a server writes for minus infinity


class Replica:
    """Gets requests while `reason` is None. `versions` are the adapters that were loaded and checked on it.

    Args:
        model: the name it must serve the base under; empty: whatever its one model that is no adapter is called.
        timeout: seconds that a look may take.
        load_timeout: seconds that loading or checking a version may take.
        patience: looks in a row that may be late before it counts as down.
    """

    def __init__(self, server: Server, *, model: str, timeout: float, load_timeout: float, patience: int) -> None:
        self.server, self.url = server, server.url
        self.model, self._wanted_model = model, model
        self.context_length = 0
        self.outstanding = 0
        self.reason: str | None = "it has not been asked yet"
        self.versions: set[str] = set()
        self._timeout, self._load_timeout, self._patience = timeout, load_timeout, patience
        self._late = 0
        self._lock = asyncio.Lock()

    @contextmanager
    def busy(self, candidates: int) -> Iterator[None]:
        """Count candidates as being drawn here while the block runs."""
        self.outstanding += candidates
        try:
            yield
        finally:
            self.outstanding -= candidates

    def down(self, reason: str) -> None:
        """No requests until it has been looked at again; what it had loaded may be gone."""
        self.reason = reason
        self.versions.clear()

    async def look(self) -> None:
        """Ask how it is and what it serves; afterwards `reason` and `versions` say so."""
        try:
            loaded = await self._loaded()
            if self.reason is not None:
                await self._probe()
        except Elsewhere as error:
            self._late += 1
            if error.down or self.reason is not None or self._late >= self._patience:
                self.down(str(error))
        except BonbonError as error:
            self.down(str(error))
        else:
            self._late, self.reason = 0, None
            self.versions &= loaded.keys()

    async def ensure(self, version: VersionFiles) -> None:
        """Load and check a version, unless that is done. Raises UserError and EngineError, saying where and why."""
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
        """Unload a version; one that is not there is no error."""
        self.versions.discard(name)
        body = {"lora_name": name}
        async with self._lock:
            status, content = await self.server.ask("POST", "/v1/unload_lora_adapter", body, seconds=self._load_timeout)
        if status not in (200, 404):
            raise EngineError(f"{self.url} did not unload {name}: {said(content)[0] or status}")

    async def text(self, token_ids: Sequence[int]) -> str:
        """The text of a prompt that came as token ids."""
        return str((await self._json("POST", "/detokenize", {"tokens": token_ids}))["prompt"])

    async def tokenize(self, prompt: Prompt, add_special_tokens: bool | None) -> Tokens:
        """See `Engine.tokenize`."""
        body = {"model": self.model, "return_token_strs": True} | count_question(prompt)
        if add_special_tokens is not None:
            body["add_special_tokens"] = add_special_tokens
        answer = await self._json("POST", "/tokenize", body)
        try:
            return Tokens(tuple(map(int, answer["tokens"])), tuple(map(str, answer["token_strs"] or ())))
        except (KeyError, TypeError, ValueError) as error:
            raise EngineError("its /tokenize answers no tokens") from error

    async def count(self, prompt: Prompt) -> int:
        """How many tokens a text or a chat has."""
        return int((await self._json("POST", "/tokenize", {"model": self.model} | count_question(prompt)))["count"])

    async def _loaded(self) -> dict[str, str]:
        """Name -> path of every adapter on it; sets what is served as the base."""
        status, _ = await self.server.ask("GET", "/health", seconds=self._timeout)
        if status != 200:
            raise EngineError(f"its /health answers {status}")
        cards = (await self._json("GET", "/v1/models"))["data"]
        bases = [card for card in cards if not card.get("parent")]
        bases = [card for card in bases if self._wanted_model in ("", card["id"])]
        if len(bases) != 1 or not isinstance(bases[0].get("max_model_len"), int):
            names = ", ".join(str(card.get("id")) for card in cards)[:200]
            raise EngineError(f"which of its models is the base? it serves: {names}; set engine_options.model")
        self.model, self.context_length = bases[0]["id"], bases[0]["max_model_len"]
        return {card["id"]: card.get("root", "") for card in cards if card.get("parent")}

    async def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        status, content = await self.server.ask(method, path, body, seconds=self._timeout)
        if status != 200:
            raise refusal(status, content)
        try:
            answer = json.loads(content)
        except ValueError as error:
            raise EngineError(f"its {path} answers no JSON") from error
        if not isinstance(answer, dict):
            raise EngineError(f"its {path} answers no JSON object")
        return answer

    async def _probe(self) -> None:
        """Draw, and see that log-probabilities are those at the sampling temperature.

        Raising the temperature from 1 to 2 halves every gap between them, unless they ignore it.
        """
        gaps = [await self._gap(temperature) for temperature in (1.0, 2.0)]
        if gaps[1] > 0.75 * gaps[0] > 0:
            raise EngineError(
                "it reports log-probabilities that ignore the temperature; start it with "
                "--logprobs-mode processed_logprobs"
            )

    async def _gap(self, temperature: float) -> float:
        """Between the likeliest first token of the golden prompt and the next likely one that differs in it."""
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
        raise EngineError("it ended a draw without an answer")

    async def _load(self, version: VersionFiles) -> None:
        body = {"lora_name": version.name, "lora_path": str(version.directory)}
        status, content = await self.server.ask("POST", "/v1/load_lora_adapter", body, seconds=self._load_timeout)
        message, _ = said(content)
        if status == 200:
            return
        if "already been loaded" in message:
            path = (await self._loaded()).get(version.name)
            if path not in (None, str(version.directory)):
                raise UserError(
                    f"it has another adapter called {version.name!r}, from {path}: a name must never be used again, "
                    "so give each registry a fleet of its own"
                )
        elif status in (401, 403):
            raise refusal(status, content)
        elif "No adapter found" in message:
            raise UserError(f"it cannot see {version.directory}; mount data_dir there, under the same path")
        elif status == 404:
            raise UserError("it loads no adapters; start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1")
        elif "max_lora_rank" in message:
            raise UserError(f"{message} Start it with a higher --max-lora-rank, or train a lower train.lora_rank")
        else:
            raise UserError(f"it refuses {version.name}: {message or f'status {status}'}")

    async def _check(self, name: str) -> None:
        """A golden draw: some token, with finite log-probabilities."""
        request = DrawRequest(GOLDEN, name, 1, Sampling(max_tokens=4, seed=0))
        asked = question(request)
        until = asyncio.get_running_loop().time() + self._load_timeout
        async with aclosing(self.server.answers(asked.path, {"model": name, **asked.body}, until)) as answers:
            drawn = [event async for answer in answers for event in events(request, answer, GOLDEN.text)]
        logprobs = [number for event in drawn if isinstance(event, Delta) for number in event.logprobs]
        if not logprobs or not all(math.isfinite(number) and number > IMPOSSIBLE for number in logprobs):
            raise EngineError(f"{name} answered the golden prompt without finite log-probabilities")
