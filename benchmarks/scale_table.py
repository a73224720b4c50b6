"""Computes the tables of docs/scaling.md from what was measured: `python benchmarks/scale_table.py` writes them anew.

What can be measured on two cores comes from docs/benchmarks.md, and what a user may set from the settings' defaults.
What depends on GPUs and traffic is assumed, and named as such on the page.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import NamedTuple

from bonbon.settings import EvaluateSettings, LoopSettings, ServiceSettings, TrainSettings

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- scale: begin -->", "<!-- scale: end -->"
DAY, WEEK_HOURS = 86_400, 168


class Measured(NamedTuple):
    """A constant, and the row of docs/benchmarks.md that has it."""

    value: float
    row: str


# Two answers of different length before the same gateway: its processor time is linear in the tokens.
SHORT_ANSWER = Measured(3.8, "| | bonbon, reward excluded | 29.1 | 0.67 | 7,094 | **0.66** | 3.8 |")
LONG_ANSWER = Measured(6.6, "| | bonbon, reward excluded | 1.9 | 0.97 | 1,340 | **0.95** | 6.6 |")
SHORT_TOKENS, LONG_TOKENS = 7094 / 29.1, 1340 / 1.9
APPENDS = Measured(1815, "| appended by 64 clients, groups/s | | 1,815 |")
GROUP = Measured(638, "| bytes of a group without its candidates, indexes included | 1,256 | 638 |")
CANDIDATE = Measured(222, "| bytes of a candidate, index included | 764 | 222 |")
LONGER_GROUP = Measured(1256, GROUP.row)
LONGER_CANDIDATE = Measured(764, CANDIDATE.row)
TOKENS, LONGER_TOKENS = 2, 64
DELETED = Measured(16_486, "| deleted, groups/s | 16,486 | 21,892 |")
SNAPSHOT = Measured(2415, "| read for a snapshot, newest groups/s | 2,415 | 3,753 |")
EXPORTED = Measured(13_374, "| read for an export, newest groups/s | 13,374 | 22,891 |")
MEASURED = (
    SHORT_ANSWER, LONG_ANSWER, APPENDS, GROUP, CANDIDATE, LONGER_GROUP, LONGER_CANDIDATE, DELETED, SNAPSHOT, EXPORTED
)  # fmt: skip

N, ANSWER, PROMPT = 8, 256, 256
"""Assumed: candidates of best-of-n, tokens of an answer and of a prompt."""
PEAK = 3
"""Assumed: requests at the busiest time of the day, as a multiple of the mean."""
KEPT_DAYS = 30
"""Assumed: `service.retention_days`."""
DRAWN, TRAINED = 5000, 5000
"""Assumed: tokens that one GPU draws and trains on in a second, for a model of 8 billion parameters."""
PROBED_RATES, PROBE_STEPS, INTERPOLATED = 3, 20, 3
"""Of a round, as docs/training.md describes it."""


@dataclass(frozen=True)
class Traffic:
    """`requests` a day that are answered with the best of `k` draws; `k` under `N` is a distilled champion."""

    requests: float
    k: int

    @property
    def title(self) -> str:
        """The heading of its column."""
        power = f"10^{len(f'{self.requests:.0f}') - 1}"
        return f"{power}, best of {N}" if self.k == N else f"{power}, one draw"

    @property
    def peak(self) -> float:
        """Requests per second at the busiest time."""
        return PEAK * self.requests / DAY

    @property
    def audits(self) -> float:
        """Audits a day: each draws n of the base, and where one draw answers, n of the champion too."""
        if self.k == N:
            return 0.0
        drawn = N * (2 if self.k == 1 else 1) * ANSWER
        return ServiceSettings().audit_budget * (N - self.k) * ANSWER * self.requests / drawn

    @property
    def audit_tokens(self) -> float:
        """Tokens that audits draw in a day."""
        return self.audits * N * (2 if self.k == 1 else 1) * ANSWER

    @property
    def tokens(self) -> float:
        """Tokens that answers and audits draw in a day."""
        return self.requests * self.k * ANSWER + self.audit_tokens

    @property
    def gateway_ms(self) -> float:
        """Processor time of an answer in the gateway."""
        slope = (LONG_ANSWER.value - SHORT_ANSWER.value) / (LONG_TOKENS - SHORT_TOKENS)
        return SHORT_ANSWER.value + slope * (self.k * ANSWER - SHORT_TOKENS)

    @property
    def groups(self) -> float:
        """Groups logged in a day: every answer, and n draws of the champion for each audit of one draw."""
        return self.requests + (self.audits if self.k == 1 else 0)

    @property
    def log_bytes(self) -> float:
        """What the groups of a day take in PostgreSQL with their indexes."""
        group, candidate = (
            short.value + (long.value - short.value) / (LONGER_TOKENS - TOKENS) * (length - TOKENS)
            for short, long, length in ((GROUP, LONGER_GROUP, PROMPT), (CANDIDATE, LONGER_CANDIDATE, ANSWER))
        )
        audited = self.groups - self.requests
        return self.groups * group + (self.requests * self.k + audited * N) * candidate


TRAFFIC = [Traffic(requests, k) for requests in (1e6, 1e8) for k in (N, 1)]


def _round_tokens() -> dict[str, float]:
    """Tokens of one round, by what they are for. Training passes over a token count once each."""
    train, groups = TrainSettings(), LoopSettings().min_groups
    group = N * ANSWER
    measured = train.validation_draws * ANSWER
    prompts = EvaluateSettings().prompts
    return {
        "drawn, the policy's own draws": train.refine_tokens,
        "drawn, comparing policies": INTERPOLATED * measured,
        "drawn, evaluation: the version, the base and what answers": prompts * 6 * group,
        "trained, the probe of learning rates": PROBED_RATES * PROBE_STEPS * train.batch_size * group,
        "trained, logged groups": train.epochs * groups * group,
        "trained, the policy's own draws": train.refine_tokens * (1 + train.refine_replay),
    }


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["-", *["-:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def _number(value: float) -> str:
    """Two significant digits, without an exponent."""
    if value >= 10:
        return f"{float(f'{value:.2g}'):,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _size(value: float) -> str:
    return f"{_number(value / 1e12)} TB" if value >= 1e12 else f"{_number(value / 1e9)} GB"


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{_number(seconds)} s"
    return f"{_number(seconds / 60)} min" if seconds < 3600 else f"{_number(seconds / 3600)} h"


def _traffic_table() -> str:
    rows: dict[str, Callable[[Traffic], str]] = {
        "requests a second at the peak": lambda t: _number(t.peak),
        "tokens drawn a day, audits included": lambda t: f"{_number(t.tokens / 1e9)} billion",
        "share of them that audits draw": lambda t: f"{t.audit_tokens / t.tokens:.0%}",
        "GPUs that draw, at the peak": lambda t: _number(PEAK * t.tokens / DAY / DRAWN),
        "gateway, processor time of an answer": lambda t: f"{t.gateway_ms:.1f} ms",
        "gateways at the peak, at half load": lambda t: f"{ceil(2 * t.peak * t.gateway_ms / 1000):,}",
        "groups written a second at the peak": lambda t: _number(PEAK * t.groups / DAY),
        "in units of the measured PostgreSQL": lambda t: _number(PEAK * t.groups / DAY / APPENDS.value),
        "growth of the log a day": lambda t: _size(t.log_bytes),
        f"log of {KEPT_DAYS} days": lambda t: _size(KEPT_DAYS * t.log_bytes),
        "groups in it": lambda t: f"{_number(KEPT_DAYS * t.groups / 1e6)} million",
        "retention's work a day": lambda t: _time(t.groups / DELETED.value),
        "exporting a day's groups first": lambda t: _time(t.groups / EXPORTED.value),
        "until the next round has its groups": _wait,
    }
    return _table(["requests a day", *(t.title for t in TRAFFIC)], [[n, *map(f, TRAFFIC)] for n, f in rows.items()])


def _wait(traffic: Traffic) -> str:
    return "no round" if traffic.k == 1 else _time(LoopSettings().min_groups * DAY / traffic.requests)


def _round_table() -> str:
    parts = _round_tokens()
    hours = {name: tokens / (DRAWN if name.startswith("drawn") else TRAINED) / 3600 for name, tokens in parts.items()}
    rows = [[name, f"{_number(tokens / 1e6)} million", f"{hours[name]:.2f}"] for name, tokens in parts.items()]
    reading = LoopSettings().min_groups / SNAPSHOT.value
    whole = sum(hours.values())
    rows.append(["a promotion", f"{_number(sum(parts.values()) / 1e6)} million", f"{whole:.2f}"])
    rounds = f"One after the other on one GPU, that is {WEEK_HOURS / whole:.0f} rounds a week at most; the snapshot of"
    rounds += f" {LoopSettings().min_groups:,} groups takes {_time(reading)}."
    return _table(["of one round", "tokens", "GPU hours"], rows) + "\n\n" + rounds


def tables() -> str:
    """Returns the generated part of the page."""
    return f"{_traffic_table()}\n\n{_round_table()}"


def page() -> str:
    """Returns the whole page with the tables anew."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page())
