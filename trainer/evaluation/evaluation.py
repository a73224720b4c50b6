"""The measurements of a trained version, as stored with it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite, nan
from pathlib import Path
from typing import Any, Self

from bonbon.errors import UserError
from bonbon.registry.evaluation_figures import best_of
from bonbon.theory import Estimate
from trainer.result_files import write_json

FILE = "evaluation.json"


@dataclass(frozen=True, slots=True)
class BestOfK:
    """The figures of answering with the best of k draws of a version.

    `win_rate` is against one draw of the base, `win_rate_best_of_n` against best-of-n of the base, and
    `win_rate_served` against the version that answers requests now. In the `held_out_...` fields the held-out reward
    compares, while the reward still selects. `tokens` is the mean number of tokens drawn per answer.
    """

    k: int
    win_rate: Estimate
    win_rate_best_of_n: Estimate
    held_out_win_rate_best_of_n: Estimate | None
    win_rate_served: Estimate
    held_out_win_rate_served: Estimate | None
    tokens: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The measurements of `version` on test prompts, against the base and the version that answers requests.

    Every `Estimate` has a 95 % interval, the number of comparisons or answers behind it (`count`) and the number of
    prompts (`clusters`). Ties count half. Lengths are in tokens, divergences in nats. The `held_out_...` fields come
    from a reward that was never trained on, and are None when none is configured.

    Attributes:
        n: The n of best-of-n of the base.
        draws: Draws of the version per prompt.
        skipped: Prompts left out because prompt and max_tokens exceed the context.
        temperature, max_tokens: The settings of most of the prompts.
        served: The version that answers requests, with the best of `served_k` draws and `served_tokens` tokens.
        win_rate: Of one draw, against one draw of the base; `win_rate_shares` has the value of every prompt.
        best_of_n_win_rate: Of best-of-n of the base, against one draw of the base.
        best_of_k: Figures of best-of-k of the version, for every k from 1 to `draws`.
        recovered: (E r(version) - E r(base)) / (E r(best-of-n) - E r(base)), for one draw.
        gain: c (W - 1/2) - KL(version || base): how far the training objective J is above the base's
            (`bonbon.theory.objective`).
        kl: From the base, by `kl_estimator`; `kl_k1` is the mean log ratio.
        held_out_share: The gain in win rate of one draw by the held-out reward, divided by its gain by the reward. A
            value much lower than `best_of_n_held_out_share` means that the version has learnt the reward's errors.
        truncated: The share of answers cut off at max_tokens. `sufficient_max_tokens` estimates how many tokens let
            nine of ten of the base's answers end, and is None when they already do.
        seconds: Duration of the evaluation.
    """

    version: str
    base: str
    served: str
    served_k: int
    n: int
    prompts: int
    draws: int
    skipped: int
    seed: int
    temperature: float
    max_tokens: int
    reward: str
    reward_version: str
    held_out_reward: str | None

    win_rate: Estimate
    win_rate_shares: list[float]
    best_of_n_win_rate: Estimate
    best_of_k: list[BestOfK]
    recovered: Estimate
    gain: Estimate
    held_out_win_rate: Estimate | None
    held_out_best_of_n_win_rate: Estimate | None
    held_out_share: Estimate | None
    best_of_n_held_out_share: Estimate | None

    reward_mean: Estimate
    base_reward_mean: Estimate
    best_of_n_reward_mean: Estimate

    kl_estimator: str
    kl: Estimate
    kl_k1: Estimate

    length_mean: Estimate
    base_length_mean: Estimate
    length_ratio: Estimate
    served_tokens: float
    truncated: float
    base_truncated: float
    sufficient_max_tokens: int | None
    distinct_1: float
    distinct_2: float
    base_distinct_1: float
    base_distinct_2: float

    seconds: float

    @property
    def distinct_1_ratio(self) -> float:
        """Distinct-1 of the version divided by that of the base."""
        return _over(self.distinct_1, self.base_distinct_1)

    @property
    def distinct_2_ratio(self) -> float:
        """Distinct-2 of the version divided by that of the base."""
        return _over(self.distinct_2, self.base_distinct_2)

    @property
    def opponents(self) -> tuple[tuple[str, str], ...]:
        """The names of the win rates of best-of-k against best-of-n of the base and, unless that answers requests,
        against what is served, each with its opponent in words."""
        best_of_n = f"{best_of(self.n)} of {self.base}"
        if (self.served, self.served_k) == (self.base, self.n):
            return (("win_rate_best_of_n", best_of_n),)
        return ("win_rate_best_of_n", best_of_n), ("win_rate_served", f"{best_of(self.served_k)} of {self.served}")

    @property
    def effective_n(self) -> float:
        """The n at which best-of-n wins as often as one draw of the version, W / (1 - W)."""
        return _over(self.win_rate.value, 1 - self.win_rate.value)

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON types only; a number that is not finite becomes None."""
        values = asdict(self)
        values |= {name: getattr(self, name) for name in ("distinct_1_ratio", "distinct_2_ratio", "effective_n")}
        return {key: _finite(value) for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Returns the evaluation that `to_dict` wrote. Raises UserError when a field is missing."""
        try:
            found = {one.name: _read(one.name, values[one.name]) for one in fields(cls)}
            found["best_of_k"] = [
                BestOfK(**{one.name: _read(one.name, each[one.name]) for one in fields(BestOfK)})
                for each in values["best_of_k"]
            ]
        except KeyError as error:
            raise UserError(
                f"the evaluation has no field {error}, because another version of bonbon made it: run `bonbon evaluate`"
            ) from error
        return cls(**found)

    def save(self, directory: Path) -> None:
        write_json(directory / FILE, self.to_dict())

    @classmethod
    def load(cls, directory: Path) -> Self:
        return cls.from_dict(json.loads((directory / FILE).read_text()))


OPTIONAL = frozenset(one.name for kind in (Evaluation, BestOfK) for one in fields(kind) if "None" in str(one.type))


def _read(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        numbers: dict[str, Any] = {key: nan if number is None else number for key, number in value.items()}
        return Estimate(**numbers)
    return nan if value is None and name not in OPTIONAL else value


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _over(value: float, base: float) -> float:
    return value / base if base else nan
