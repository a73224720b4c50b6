"""Writes docs/metrics.md: `python -m service.metrics_reference > docs/metrics.md`."""

from pathlib import Path

from bonbon.engines.fake_engine import FakeEngine
from bonbon.rewards.fake_reward import FakeReward
from bonbon.settings import Settings
from service.app import build_state

HEAD = """# Metrics

What `GET /metrics` exposes, for Prometheus. Made by `make docs`; do not edit it by hand.

Time is in seconds, KL in nats, rewards in the reward's own unit. Labels are bounded: no key, user, request id or
prompt is ever one. The series of a version end when it is drained and unloaded. Histograms have `_bucket`, `_sum` and
`_count`. What the database knows (live win rates, rounds, evaluations, verdicts) is exposed alike by every gateway:
take the maximum, not the sum. The process's own `process_...` metrics come with it.

| metric | type | labels | |
|-|-|-|-|
"""


def reference() -> str:
    """The page, from the collectors of a service."""
    state = build_state(Settings(engine="fake", data_dir=Path("unused")), FakeEngine(), FakeReward())
    rows = (
        f"| `{family.name}` | {family.kind} | {', '.join(f'`{label}`' for label in family.labels)} | {family.help} |\n"
        for family in sorted(state.metrics.families.list, key=lambda family: family.name)
    )
    return HEAD + "".join(rows)


if __name__ == "__main__":
    print(reference(), end="")
