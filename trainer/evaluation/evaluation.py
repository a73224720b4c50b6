"""What was measured of a trained version, as it is stored with it."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields
from math import isfinite, nan
from pathlib import Path
from typing import Any, Self

from bonbon.errors import UserError
from bonbon.theory import Estimate
from trainer.files import write_json

FILE = "evaluation.json"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One draw of `version` on held-out prompts, against the base and best-of-n of the base.

    Every `Estimate` has its 95 % interval, how many comparisons or answers it rests on (`count`) and how many prompts
    (`clusters`). Ties count half. Lengths are in tokens, KL divergences in nats. `reference` is the policy that the
    version was trained from; the `..._reference` fields are None when that is the base. The `held_out_...` fields are
    by a reward that was never trained on, None when none is configured.

    `recovered` is (E r(version) - E r(base)) / (E r(best-of-n) - E r(base)). `truncated` is the share of answers cut
    off at `max_tokens`. `skipped` counts prompts that left no room for `max_tokens` in the context.
    `win_rate_shares` is what each prompt's answers won of their comparisons with the base, one prompt after the other;
    None in an evaluation of an older release.
    """

    version: str
    base: str
    reference: str
    n: int
    prompts: int
    answers: int
    skipped: int
    seed: int
    temperature: float
    max_tokens: int
    reward: str
    reward_version: str
    held_out_reward: str | None

    win_rate: Estimate
    win_rate_best_of_n: Estimate
    win_rate_reference: Estimate | None
    best_of_n_win_rate: Estimate
    recovered: Estimate
    held_out_win_rate: Estimate | None
    held_out_best_of_n_win_rate: Estimate | None

    reward_mean: Estimate
    base_reward_mean: Estimate
    best_of_n_reward_mean: Estimate

    kl_estimator: str
    kl: Estimate
    kl_k1: Estimate
    kl_reference: Estimate | None
    kl_reference_k1: Estimate | None

    length_mean: Estimate
    base_length_mean: Estimate
    length_ratio: Estimate
    truncated: float
    base_truncated: float
    distinct_1: float
    distinct_2: float
    base_distinct_1: float
    base_distinct_2: float

    seconds: float

    win_rate_shares: list[float] | None = None

    @property
    def distinct_1_ratio(self) -> float:
        """Distinct-1 over the base's."""
        return _over(self.distinct_1, self.base_distinct_1)

    @property
    def distinct_2_ratio(self) -> float:
        """Distinct-2 over the base's."""
        return _over(self.distinct_2, self.base_distinct_2)

    @property
    def kl_from_reference(self) -> Estimate:
        """KL from the policy that was trained from, the base in a first round."""
        return self.kl if self.kl_reference is None else self.kl_reference

    def to_dict(self) -> dict[str, Any]:
        """JSON's types only: a number that is not finite is None."""
        values = asdict(self)
        values |= {"distinct_1_ratio": self.distinct_1_ratio, "distinct_2_ratio": self.distinct_2_ratio}
        return {key: _finite(value) for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` gave. Raises UserError when a field is missing."""
        try:
            return cls(
                **{f.name: _read(f.name, values[f.name]) for f in fields(cls) if f.name in values or not _added(f)}
            )
        except KeyError as error:
            raise UserError(f"the evaluation has no field {error}: it is of another version of bonbon") from error

    def save(self, directory: Path) -> None:
        write_json(directory / FILE, self.to_dict())

    @classmethod
    def load(cls, directory: Path) -> Self:
        return cls.from_dict(json.loads((directory / FILE).read_text()))


OPTIONAL = frozenset(field.name for field in fields(Evaluation) if "None" in str(field.type))


def _added(field: Field[Any]) -> bool:
    """Whether evaluations of older releases do not have it."""
    return field.default is not MISSING


def _read(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        numbers: dict[str, Any] = {key: nan if number is None else number for key, number in value.items()}
        return Estimate(**numbers)
    return nan if value is None and name not in OPTIONAL else value


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not isfinite(value) else value


def _over(value: float, base: float) -> float:
    return value / base if base else nan
