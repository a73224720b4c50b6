"""What a client is told of an answer that no reward has ranked."""

from bonbon.errors import RewardError
from bonbon.pairs.group_records import Group

MEANINGS = {
    "failed": "the reward could not score the candidates, so the first one is the answer",
    "invalid": "the reward gave no usable scores for the candidates, so the first one is the answer",
    "late": "the reward did not score the candidates in time, so the first one is the answer",
}
"""By `RewardError.reason`."""


def degraded_reason(group: Group, failure: RewardError | None = None) -> str | None:
    """What it means that `group` is degraded; None when it is not.

    What the group and the service's log say of the failure is for operators: it may name the reward's address.

    Args:
        failure: what kept the reward from ranking the group, where that is known.
    """
    if group.degraded is None:
        return None
    return MEANINGS["failed" if failure is None else failure.reason]
