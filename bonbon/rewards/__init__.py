"""Rewards: what scores candidates.

Every kind, the built-in ones too, is an entry point of the group `bonbon.rewards`: a factory
`build(options: Mapping[str, Any]) -> Reward`. Building checks the options and loads nothing; `start` loads.
"""

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, cast

from bonbon.errors import UserError
from bonbon.rewards.reward import Reward
from bonbon.settings import RewardSpec

GROUP = "bonbon.rewards"

Factory = Callable[[Mapping[str, Any]], Reward]


def build_reward(spec: RewardSpec) -> Reward:
    """The reward that `spec` describes, not started.

    Raises:
        UserError: an unknown kind, a kind whose package cannot be imported, or options that it does not take.
    """
    return _factory(spec.kind)(spec.options)


def _factory(kind: str) -> Factory:
    found = entry_points(group=GROUP)
    # An editable install may list an entry point twice; two packages that claim one name are another matter.
    matching = {entry.value: entry for entry in found if entry.name == kind}
    if not matching:
        known = ", ".join(sorted(found.names)) or "none; is the bonbon package installed?"
        raise UserError(f"reward kind {kind!r} is unknown; known kinds: {known}", param="reward")
    if len(matching) > 1:
        claims = ", ".join(sorted(matching))
        raise UserError(f"reward kind {kind!r} is claimed by several packages, {claims}; keep one", param="reward")
    [(value, entry)] = matching.items()
    try:
        return cast(Factory, entry.load())
    except (ImportError, AttributeError) as error:
        raise UserError(f"reward kind {kind!r} ({value}) cannot be loaded: {error}", param="reward") from error
