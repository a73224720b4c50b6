"""Rewards score candidates.

Every kind of reward, including the built-in ones, is an entry point of the group `bonbon.rewards`: a factory
`build(options: Mapping[str, Any]) -> Reward`. Building a reward checks its options and loads nothing; `start` loads.
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
    """Returns the reward that `spec` describes; it is not started.

    Raises:
        UserError: The kind is unknown, its package cannot be imported, or it does not accept the options.
    """
    return _factory(spec.kind)(spec.options)


def _factory(kind: str) -> Factory:
    found = entry_points(group=GROUP)
    # An editable install may list an entry point twice, which is harmless; two packages with the same name are not.
    matching = {entry.value: entry for entry in found if entry.name == kind}
    if not matching:
        known = ", ".join(sorted(found.names)) or "none, because the package bonbon-serve is not installed"
        raise UserError(f"reward kind {kind!r} is unknown; known kinds: {known}", param="reward")
    if len(matching) > 1:
        claims = ", ".join(sorted(matching))
        raise UserError(
            f"reward kind {kind!r} is provided by several packages, {claims}; uninstall all but one", param="reward"
        )
    [(value, entry)] = matching.items()
    try:
        return cast(Factory, entry.load())
    except (ImportError, AttributeError) as error:
        raise UserError(f"reward kind {kind!r} ({value}) cannot be loaded: {error}", param="reward") from error
