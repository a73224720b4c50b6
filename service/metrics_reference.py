"""Writes docs/metrics.md: `python -m service.metrics_reference > docs/metrics.md`."""

from pathlib import Path

from bonbon.engines.fake_engine import FakeEngine
from bonbon.rewards.fake_reward import FakeReward
from bonbon.settings import Settings
from service.app import build_state

HEAD = """# Metrics

`GET /metrics` exposes these metrics for Prometheus. `make docs` generates this page; do not edit it by hand.

Times are in seconds, KL divergences in nats, rewards in the reward's own unit. Labels are bounded: they never contain
a key, a user, a request id or a prompt. The series of a version end when it is unloaded. Histograms have `_bucket`,
`_sum` and `_count`. Every gateway exposes the same values from the database (live win rates, rounds, evaluations,
verdicts): aggregate them by maximum, not by sum. The standard `process_...` metrics are exposed, too.

| metric | type | labels | meaning |
|-|-|-|-|
"""


def reference() -> str:
    """Returns the page as Markdown, from the collectors of a service."""
    state = build_state(Settings(engine="fake", data_dir=Path("unused")), FakeEngine(), FakeReward())
    rows = (
        f"| `{family.name}` | {family.kind} | {', '.join(f'`{label}`' for label in family.labels)} | {family.help} |\n"
        for family in sorted(state.metrics.families.list, key=lambda family: family.name)
    )
    return HEAD + "".join(rows)


if __name__ == "__main__":
    print(reference(), end="")
