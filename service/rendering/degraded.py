"""Explains to clients why an answer was not ranked by a reward."""

from bonbon.errors import RewardError
from bonbon.pairs.group_records import Group

MEANINGS = {
    "failed": "the reward could not score the candidates, so the first one is the answer",
    "invalid": "the reward gave no usable scores for the candidates, so the first one is the answer",
    "late": "the reward did not score the candidates in time, so the first one is the answer",
}
"""Explanations by `RewardError.reason`."""


def degraded_reason(group: Group, failure: RewardError | None = None) -> str | None:
    """Returns why `group` is degraded, or None if it is not.

    The details in the group and in the service's log are for operators, because they may contain the reward's address.

    Args:
        failure: The error that kept the reward from ranking the group, if it is known.
    """
    if group.degraded is None:
        return None
    return MEANINGS["failed" if failure is None else failure.reason]
