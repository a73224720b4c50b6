"""Metrics read from the database: live win rates, training rounds, evaluations and the gate's verdicts.

Every gateway on a database exposes the same values, so the trainer, a batch job, need not be scraped.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import structlog
from prometheus_client import Gauge

from bonbon.errors import StoreError, UnknownVersion
from bonbon.pairs.live.savings import Savings, find_savings
from bonbon.pairs.live.win_rates import LiveWinRate, read_win_rates
from bonbon.registry.next_round import NextRound, next_round
from bonbon.registry.registry import Registry
from bonbon.registry.round_progress import PROMOTED, REFUSED, RoundProgress, RoundStage, read_rounds
from bonbon.registry.version_records import Version
from bonbon.settings import Settings
from bonbon.theory import frontier_win_rate
from service.metrics.metric_families import Families
from service.one_at_a_time import OneAtATime
from service.routing.fallback import Fallback
from service.routing.router import Router

log = structlog.get_logger(__name__)

DEADLINE = 2.0
NEWEST = 10
"""Number of versions whose evaluations are exposed."""
FRONTIER = tuple(round(0.1 * step, 1) for step in range(31))
"""KL divergences, in nats, at which the best possible win rate is exposed for the dashboard."""
BOUNDS = ("value", "low", "high")
OUTCOMES = ("running", "promoted", "refused", "kept", "failed")

Champion = tuple[Version, NextRound]
Stored = tuple[list[LiveWinRate], Savings | None, tuple[RoundProgress, ...], Champion | None, Sequence[Version]]


class StoredMetrics:
    """Gauges that are set from the database on each scrape. While it is unavailable, they keep their values."""

    def __init__(
        self, make: Families, registry: Registry, router: Router, fallback: Fallback, settings: Settings
    ) -> None:
        self._registry, self._router, self._settings = registry, router, settings
        self._database = registry.database
        self._stored = OneAtATime(self._read, DEADLINE)
        self._up = make.gauge("bonbon_database_up", "1 if the database was available for this scrape.")
        self._win_rate = make.gauge(
            "bonbon_win_rate",
            "Live win rate of the champion's answers over the last 500 to 1000 comparisons, with ties as half, and its "
            "95 % confidence band, which holds at all times simultaneously (bound: value, low, high).",
            "champion",
            "opponent",
            "reward",
            "bound",
        )
        self._compared = make.gauge(
            "bonbon_win_rate_comparisons",
            "Comparisons of all gateways with the current number of candidates, by outcome.",
            "champion",
            "opponent",
            "reward",
            "outcome",
        )
        make.gauge(
            "bonbon_win_rate_floor",
            "Minimum live win rate of the champion: against best-of-n of the base, or against one candidate of the "
            "base if service.k fixes the number of candidates.",
        ).set(fallback.value)
        self._tokens_per_answer = make.gauge(
            "bonbon_champion_tokens_per_answer",
            "Tokens generated per answer of the distilled champion since it first answered, including audits (served), "
            "and by best-of-n of the base for the same requests (best_of_n).",
            "model_version",
            "answers_with",
        )
        self._saved_share = make.gauge(
            "bonbon_champion_saved_ratio",
            "Share of best-of-n's tokens that the champion saves, including audits.",
            "model_version",
        )
        self._saved_tokens = make.gauge(
            "bonbon_champion_saved_tokens",
            "Tokens that the champion has saved since it first answered.",
            "model_version",
        )
        self._k_raised = make.gauge(
            "bonbon_champion_k_raised",
            "1 while the champion samples more candidates than its evaluation required, after falling below the "
            "minimum win rate.",
        )
        self._next_groups = make.gauge(
            "bonbon_next_round_groups",
            "Clean groups of the champion that no version has been trained on. The count stops at 50,000, or at the "
            "number that the next round needs if that is higher.",
        )
        self._next_needed = make.gauge(
            "bonbon_next_round_groups_needed",
            "Number of such groups that start the next round; NaN if no round starts by itself, because one candidate "
            "is enough.",
        )
        frontier = make.gauge(
            "bonbon_frontier_win_rate",
            "Best win rate that any policy can reach at a KL divergence from the base.",
            "kl_nats",
        )
        for kl in FRONTIER:
            frontier.labels(f"{kl:.1f}").set(frontier_win_rate(kl))
        self._rounds = make.gauge(
            "bonbon_rounds",
            "The newest 50 rounds by outcome (running, promoted, refused, failed; kept: passed but not promoted).",
            "outcome",
        )
        self._unsuccessful = make.gauge(
            "bonbon_rounds_unsuccessful_in_a_row", "Consecutive newest rounds that the gate refused or that failed."
        )
        self._begun = make.gauge(
            "bonbon_round_begun_timestamp_seconds", "Time at which the newest round started; 0 if there was none."
        )
        self._ended = make.gauge(
            "bonbon_round_ended_timestamp_seconds", "Time at which a round last ended; 0 if there was none."
        )
        self._progress = make.gauge(
            "bonbon_round_progress_ratio",
            "Completed share of the newest round's passes over logged groups; at 1 it learns from its own candidates.",
        )
        self._loss = make.gauge("bonbon_training_loss", "Latest training loss of the newest round.")
        self._margin = make.gauge(
            "bonbon_training_margin_nats", "Latest mean margin of the best candidate over the worst."
        )
        self._target = make.gauge("bonbon_training_target_nats", "Target of that margin.")
        self._evaluated = make.gauge(
            "bonbon_evaluation_win_rate",
            "Win rate of one candidate against one of the base (opponent) on test prompts, with its 95 % interval.",
            "model_version",
            "opponent",
            "bound",
        )
        self._best_of_k = make.gauge(
            "bonbon_evaluation_best_of_k_win_rate",
            "Win rate of best-of-k, where k is bonbon_gate_k or the higher number that the fallback set; opponent: "
            "base (one candidate), best_of_n (of the base), served (the policy that answered at the time).",
            "model_version",
            "opponent",
            "bound",
        )
        self._kl = make.gauge("bonbon_evaluation_kl_nats", "KL divergence from the base.", "model_version", "bound")
        self._recovered = make.gauge(
            "bonbon_evaluation_recovered_ratio",
            "Share of best-of-n's reward gain that one candidate reaches.",
            "model_version",
            "bound",
        )
        self._length = make.gauge(
            "bonbon_evaluation_length_ratio", "Mean answer length divided by the base's.", "model_version", "bound"
        )
        self._gain = make.gauge(
            "bonbon_evaluation_gain_nats",
            "Gain of one candidate over the base in the objective that training maximises.",
            "model_version",
            "bound",
        )
        self._k = make.gauge(
            "bonbon_gate_k",
            "Candidates that the gate requires the version to sample; 1 if it refused the version.",
            "model_version",
        )
        self._saved = make.gauge(
            "bonbon_gate_saved_ratio",
            "Share of an answer's tokens that the version saves with bonbon_gate_k candidates.",
            "model_version",
        )
        self._passed = make.gauge("bonbon_gate_passed", "1 if the gate approved the version.", "model_version")
        self._value = make.gauge("bonbon_gate_value", "Value that the gate checked.", "model_version", "check")
        self._threshold = make.gauge(
            "bonbon_gate_threshold", "Threshold of the gate's check.", "model_version", "check"
        )

    async def refresh(self) -> None:
        """Reads the database again, within `DEADLINE` seconds. A failure of the database is logged and not raised."""
        try:
            win_rates, savings, rounds, champion, versions = await self._stored()
        except (StoreError, TimeoutError) as error:
            log.warning("cannot read the database for a scrape", reason=str(error))
            self._up.set(0)
            return
        self._up.set(1)
        self._show_win_rates(win_rates)
        self._show_savings(savings)
        self._show_rounds(rounds)
        if champion is not None:
            version, upcoming = champion
            raised = version.raised_k is not None and not self._router.k_is_fixed
            self._k_raised.set(raised and not self._router.routes.best_of_n)
            self._next_groups.set(upcoming.groups)
            self._next_needed.set(math.nan if upcoming.needed is None else upcoming.needed)
        self._show_versions(versions)

    async def _read(self) -> Stored:
        return (
            await read_win_rates(self._database),
            await find_savings(self._database, self._router.champion, self._router.n),
            await read_rounds(self._database, 50),
            await self._champion(),
            await self._registry.newest(NEWEST),
        )

    async def _champion(self) -> Champion | None:
        try:
            champion = await self._registry.get(self._router.champion)
        except UnknownVersion:  # the service has not registered its base yet
            return None
        return champion, await next_round(self._registry, champion, self._settings)

    def _show_win_rates(self, win_rates: Iterable[LiveWinRate]) -> None:
        self._win_rate.clear()
        self._compared.clear()
        loaded, seen = self._router.routes.loaded, set()
        for live in win_rates:  # the most recently updated comes first, so the newest version of a reward is shown
            key = (live.version, live.opponent, live.reward_name)
            if live.version not in loaded or key in seen:
                continue
            seen.add(key)
            for bound, value in zip(BOUNDS, (live.win_rate, *live.band), strict=True):
                self._win_rate.labels(*key, bound).set(value)
            for outcome, count in (("win", live.wins), ("tie", live.ties), ("loss", live.losses)):
                self._compared.labels(*key, outcome).set(count)

    def _show_savings(self, saved: Savings | None) -> None:
        for gauge in (self._tokens_per_answer, self._saved_share, self._saved_tokens):
            gauge.clear()
        if saved is None:
            return
        for labels, gauge, value in (
            ((saved.version, "served"), self._tokens_per_answer, saved.tokens_per_answer),
            ((saved.version, "best_of_n"), self._tokens_per_answer, saved.best_of_n_tokens_per_answer),
            ((saved.version,), self._saved_share, saved.saved_share),
            ((saved.version,), self._saved_tokens, saved.saved_tokens),
        ):
            if value is not None:
                gauge.labels(*labels).set(value)

    def _show_rounds(self, rounds: Sequence[RoundProgress]) -> None:
        outcomes = [_outcome(progress) for progress in rounds]
        counts = Counter(outcomes)
        for outcome in OUTCOMES:
            self._rounds.labels(outcome).set(counts[outcome])
        ended = [outcome for outcome in outcomes if outcome != "running"]
        good = (i for i, outcome in enumerate(ended) if outcome not in ("refused", "failed"))
        self._unsuccessful.set(next(good, len(ended)))
        self._ended.set(max((progress.updated.timestamp() for progress in rounds if progress.ended), default=0))
        if not rounds:
            return
        newest = rounds[0]
        self._begun.set(newest.started.timestamp())
        self._progress.set(min(newest.epoch / newest.epochs, 1))
        if newest.curve:
            point = newest.curve[-1]
            for gauge, value in ((self._loss, point.loss), (self._margin, point.margin), (self._target, point.target)):
                gauge.set(math.nan if value is None else value)

    def _show_versions(self, versions: Iterable[Version]) -> None:
        measures = (self._evaluated, self._best_of_k, self._kl, self._recovered, self._length, self._gain)
        for gauge in (*measures, self._k, self._saved, self._passed, self._value, self._threshold):
            gauge.clear()
        for version in versions:
            name, measured = version.name, version.evaluation
            _set_bounds(self._evaluated, (name, "base"), measured.get("win_rate"))
            answers = _answers(version)
            _set_bounds(self._best_of_k, (name, "base"), answers.get("win_rate"))
            _set_bounds(self._best_of_k, (name, "best_of_n"), answers.get("win_rate_best_of_n"))
            _set_bounds(self._best_of_k, (name, "served"), answers.get("win_rate_served"))
            _set_bounds(self._kl, (name,), measured.get("kl"))
            _set_bounds(self._recovered, (name,), measured.get("recovered"))
            _set_bounds(self._length, (name,), measured.get("length_ratio"))
            _set_bounds(self._gain, (name,), measured.get("gain"))
            if version.verdict is None:
                continue
            self._k.labels(name).set(version.verdict.get("k") or 1)
            if (saved := version.verdict.get("saved")) is not None:
                self._saved.labels(name).set(saved)
            self._passed.labels(name).set(version.verdict["passed"])
            for check in version.verdict["reasons"]:
                if check["value"] is not None:
                    self._value.labels(name, check["check"]).set(check["value"])
                self._threshold.labels(name, check["check"]).set(check["threshold"])


def _outcome(progress: RoundProgress) -> str:
    if progress.stage is RoundStage.FAILED:
        return "failed"
    if not progress.ended:
        return "running"
    return {PROMOTED: "promoted", REFUSED: "refused"}.get(progress.outcome or "", "kept")


def _answers(version: Version) -> Mapping[str, Any]:
    """Returns the evaluation of best-of-k for the version's k, or nothing if it was not measured."""
    measured = version.evaluation.get("best_of_k", ())
    return next((one for one in measured if one["k"] == version.k), {})


def _set_bounds(gauge: Gauge, labels: tuple[str, ...], estimate: Mapping[str, Any] | None) -> None:
    """Sets the estimate and its interval, leaving out values that were not measured or are not finite."""
    for bound in BOUNDS:
        if estimate is not None and (value := estimate.get(bound)) is not None:
            gauge.labels(*labels, bound).set(value)
