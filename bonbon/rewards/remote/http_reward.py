"""A scoring service behind a small JSON contract.

Request, `POST` to the target, `content-type: application/json`:

    {"prompt": {"messages": [{"role": "user", "content": "..."}]}, "completions": ["...", "..."]}

`prompt` is `{"messages": [...]}`, `{"text": "..."}` or `{"token_ids": [...]}`. Answer, status 200:

    {"scores": [0.3, -1.2], "version": "2026-11-01"}

One finite number per completion, in order, higher is better; `version` is optional and changes whenever the same input
may score differently. 429 and 5xx mean "try again" (429 and 503 may say when, in whole seconds, by `retry-after`);
scoring must therefore be safe to repeat. Anything else is an error, redirects included.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from pydantic import BaseModel, ValidationError

from bonbon.errors import RewardError
from bonbon.prompt import Prompt
from bonbon.rewards.remote.scoring_client import HttpClient, HttpOptions
from bonbon.rewards.reward import Reward


class HttpRewardOptions(HttpOptions):
    """A scoring service."""

    version: str = "1"
    """The reward's version until the service names one."""


class _Answer(BaseModel):
    scores: list[float]
    version: str | None = None


class HttpReward(Reward):
    """Asks a scoring service; the contract is this module's docstring."""

    name = "http"

    def __init__(self, options: HttpRewardOptions) -> None:
        self.client = HttpClient(options)
        self._version = options.version

    @property
    def version(self) -> str:
        """What the service named last."""
        return self._version

    async def start(self) -> None:
        await self.client.start()

    async def stop(self) -> None:
        await self.client.stop()

    async def score(self, prompt: Prompt, completions: Sequence[str]) -> list[float]:
        body = {"prompt": _prompt(prompt), "completions": list(completions)}
        with self.client.guarded():
            found = await self.client.post(body)
        try:
            answer = _Answer.model_validate(found)
        except ValidationError as error:
            wrong = error.errors()[0]
            where = ".".join(map(str, wrong["loc"]))
            raise RewardError(f"the reward service broke the contract: {where}: {wrong['msg']}") from error
        if len(answer.scores) != len(completions):
            raise RewardError(f"the reward service gave {len(answer.scores)} scores for {len(completions)} completions")
        if not all(map(isfinite, answer.scores)):
            raise RewardError("the reward service gave a score that is not finite")
        self._version = answer.version or self._version
        return answer.scores


def _prompt(prompt: Prompt) -> dict[str, Any]:
    if prompt.messages is not None:
        return {"messages": list(prompt.messages)}
    return {"text": prompt.text} if prompt.text is not None else {"token_ids": prompt.token_ids}


def build(options: Mapping[str, Any]) -> HttpReward:
    """Options: HttpRewardOptions."""
    return HttpReward(HttpRewardOptions.read("http", options))
