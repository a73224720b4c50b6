"""What was measured of a trained version, as it is stored with it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite, nan
from pathlib import Path
from typing import Any, Self

from bonbon.errors import UserError
from bonbon.theory import Estimate
from trainer.result_files import write_json

FILE = "evaluation.json"


@dataclass(frozen=True, slots=True)
class BestOfK:
    """Answering with the best of k draws of a version.

    `win_rate` is against one draw of the base and `win_rate_served` against what answers requests now; the held-out
    reward compares in `held_out_win_rate_served`, while the reward still chooses. `tokens` are drawn for an answer.
    """

    k: int
    win_rate: Estimate
    win_rate_served: Estimate
    held_out_win_rate_served: Estimate | None
    tokens: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`version` on test prompts, against the base and what answers requests now.

    Every `Estimate` has its 95 % interval, how many comparisons or answers it rests on (`count`) and how many prompts
    (`clusters`). Ties count half. Lengths are in tokens, divergences in nats. The `held_out_...` fields are by a reward
    that was never trained on; they are None when none is configured.

    Attributes:
        n: of best-of-n of the base.
        draws: of the version for each prompt.
        skipped: prompts that left no room for their max_tokens in the context.
        temperature, max_tokens: of most of the prompts.
        served: the version that answers requests, with the best of `served_k` draws and `served_tokens` tokens.
        win_rate: of one draw, against one draw of the base; `win_rate_shares` has every prompt's.
        best_of_n_win_rate: of best-of-n of the base, against one draw of the base.
        best_of_k: best-of-k of the version, for every k from 1 to `draws`.
        recovered: (E r(version) - E r(base)) / (E r(best-of-n) - E r(base)), for one draw.
        gain: c (W - 1/2) - KL(version || base), how much higher than the base's the objective J is that training
            maximises (`bonbon.theory.objective`).
        kl: from the base, by `kl_estimator`; `kl_k1` is the mean log ratio.
        held_out_share: what one draw gains by the held-out reward over what it gains by the reward, in win rate. Where
            it is much lower than `best_of_n_held_out_share`, the version has learnt the reward's errors.
        truncated: the share of answers that were cut off at max_tokens; `sufficient_max_tokens` is about how many
            tokens would let nine of ten of the base's answers end, None where they do.
        seconds: that the evaluation took.
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
        """Distinct-1 over the base's."""
        return _over(self.distinct_1, self.base_distinct_1)

    @property
    def distinct_2_ratio(self) -> float:
        """Distinct-2 over the base's."""
        return _over(self.distinct_2, self.base_distinct_2)

    @property
    def effective_n(self) -> float:
        """The n of the best-of-n that wins as often as one draw of the version does, W / (1 - W)."""
        return _over(self.win_rate.value, 1 - self.win_rate.value)

    def to_dict(self) -> dict[str, Any]:
        """JSON's types only: a number that is not finite is None."""
        values = asdict(self)
        values |= {name: getattr(self, name) for name in ("distinct_1_ratio", "distinct_2_ratio", "effective_n")}
        return {key: _finite(value) for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` gave. Raises UserError when a field is missing."""
        try:
            found = {one.name: _read(one.name, values[one.name]) for one in fields(cls)}
            found["best_of_k"] = [
                BestOfK(**{one.name: _read(one.name, each[one.name]) for one in fields(BestOfK)})
                for each in values["best_of_k"]
            ]
        except KeyError as error:
            raise UserError(
                f"the evaluation has no field {error}: another version of bonbon has made it; run `bonbon evaluate`"
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
