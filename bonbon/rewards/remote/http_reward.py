"""A reward that calls a scoring service with a small JSON contract.

The request is a `POST` to the target with `content-type: application/json`:

    {"prompt": {"messages": [{"role": "user", "content": "..."}]}, "completions": ["...", "..."]}

`prompt` is `{"messages": [...]}`, `{"text": "..."}` or `{"token_ids": [...]}`. The answer has status 200:

    {"scores": [0.3, -1.2], "version": "2026-11-01"}

There is one finite number per completion, in order; higher is better. `version` is optional, and must change whenever
the same input may score differently. The statuses 429 and 5xx mean "try again" (429 and 503 may give the delay in whole
seconds in `retry-after`), so scoring must be safe to repeat. Any other status is an error, including redirects.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from pydantic import BaseModel, ValidationError

from bonbon.errors import RewardError
from bonbon.prompt import Prompt
from bonbon.rewards.remote.scoring_client import HttpClient, HttpOptions
from bonbon.rewards.reward import Reward
from bonbon.shown_values import first_problem


class HttpRewardOptions(HttpOptions):
    """The options of a scoring service."""

    version: str = "1"
    """The reward's version until the service returns one."""


class _Answer(BaseModel):
    scores: list[float]
    version: str | None = None


class HttpReward(Reward):
    """Calls a scoring service; this module's docstring specifies the contract."""

    name = "http"

    def __init__(self, options: HttpRewardOptions) -> None:
        self.client = HttpClient(options)
        self._version = options.version

    @property
    def version(self) -> str:
        """Returns the version that the service returned last."""
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
            raise RewardError(f"the reward service returned an invalid answer: {first_problem(error)}") from error
        if len(answer.scores) != len(completions):
            raise RewardError(
                f"the reward service returned {len(answer.scores)} scores for {len(completions)} completions"
            )
        if not all(map(isfinite, answer.scores)):
            raise RewardError("the reward service returned a score that is not finite")
        self._version = answer.version or self._version
        return answer.scores


def _prompt(prompt: Prompt) -> dict[str, Any]:
    if prompt.messages is not None:
        return {"messages": list(prompt.messages)}
    return {"text": prompt.text} if prompt.text is not None else {"token_ids": prompt.token_ids}


def build(options: Mapping[str, Any]) -> HttpReward:
    """Builds the reward from HttpRewardOptions."""
    return HttpReward(HttpRewardOptions.read("http", options))
