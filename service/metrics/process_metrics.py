"""Metrics of this process. Labels are bounded: they never contain a key, a user, a request id or a prompt.

`service/metrics/stored_metrics.py` adds metrics that are read from the database; docs/metrics.md lists all of them.
"""

from collections.abc import Callable, Mapping

from bonbon import __version__
from bonbon.errors import RewardError
from bonbon.pairs.group_records import Comparison, Group
from bonbon.pairs.group_store import Kept
from service.metrics.metric_families import Families
from service.routing.router import Route

# The bucket boundaries of vLLM's metrics, so that panels for both can be compared.
TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
        160.0, 640.0, 2560.0)  # fmt: skip
LATENCY = (0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
           480.0, 960.0, 1920.0, 7680.0)  # fmt: skip
DRAWN = (1, 2, 4, 8, 16, 32, 64, 128)
GAIN = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


class Metrics:
    """The counters, histograms and gauges of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.families = make = Families()
        self.registry = make.registry
        make.gauge("bonbon_build_info", "Always 1; the label is the version of bonbon.", "version").labels(
            __version__
        ).set(1)
        self._requests = make.counter("bonbon_requests_total", "Requests by route and status.", "route", "status")
        self._latency = make.histogram(
            "bonbon_request_duration_seconds",
            "Seconds from a request to the last byte of its answer.",
            "route",
            buckets=LATENCY,
        )
        self._connections_closed = make.counter(
            "bonbon_connections_closed_total",
            "Connections that the service closed before their request was answered, by reason: header_timeout, "
            "body_timeout, send_timeout, header_too_large, request_too_large, invalid_request, displaced (by a newer "
            "connection), refused (too many connections).",
            "reason",
        )
        self._ttft = make.histogram(
            "bonbon_time_to_first_token_seconds",
            "Seconds from a request to the first token of a streamed answer.",
            "asked",
            buckets=TTFT,
        )
        self._answers = make.counter(
            "bonbon_answers_total",
            "Answers by the kind of model name in the request (alias, base, version) and the version that answered.",
            "asked",
            "model_version",
        )
        self._tokens_drawn = make.counter(
            "bonbon_tokens_drawn_total", "Completion tokens generated, over all candidates.", "asked", "model_version"
        )
        self._tokens_returned = make.counter(
            "bonbon_tokens_returned_total", "Completion tokens returned.", "asked", "model_version"
        )
        self._n = make.histogram("bonbon_candidates_drawn", "Candidates sampled per answer.", "asked", buckets=DRAWN)
        self._over_first = make.histogram(
            "bonbon_reward_best_minus_first",
            "Reward of the best candidate minus that of the first: the gain of best-of-n over a single candidate.",
            "reward",
            buckets=GAIN,
        )
        self._over_worst = make.histogram(
            "bonbon_reward_best_minus_worst",
            "Reward of the best candidate minus that of the worst: the margin of a training pair.",
            "reward",
            buckets=GAIN,
        )
        self._degraded = make.counter(
            "bonbon_degraded_total",
            "Groups that the reward could not rank, by origin (request, audit) and reason (failed, late, invalid).",
            "origin",
            "reward",
            "reason",
        )
        self._groups = make.counter(
            "bonbon_groups_logged_total",
            "Durably logged groups by origin and by the reason why they are unclean (empty for clean groups).",
            "origin",
            "unclean",
        )
        self._kept = make.counter(
            "bonbon_groups_kept_total",
            "Groups by what happened to them: logged, spooled, dropped or repeated.",
            "where",
        )
        self._comparisons = make.counter(
            "bonbon_comparisons_total",
            "Comparisons of the champion's audited answers with one candidate and with best-of-n of the base.",
            "champion",
            "opponent",
            "reward",
            "outcome",
        )
        self._audits_dropped = make.counter(
            "bonbon_audits_dropped_total",
            "Audits that were not made, by reason (full, degraded, gone, failed).",
            "reason",
        )
        self._audit_tokens = make.counter(
            "bonbon_audit_tokens_drawn_total",
            "Completion tokens that audits of a version generated, with the base and with the version.",
            "model_version",
        )
        # These counters have no version label, because the series of a replaced champion are removed soon.
        self._fallbacks = make.counter(
            "bonbon_fallbacks_total", "Champions below the minimum win rate that this process replaced by best-of-n."
        )
        self._raised = make.counter(
            "bonbon_k_raised_total",
            "Times that this process made a champion below the minimum win rate sample more candidates.",
        )
        self._swaps = make.counter(
            "bonbon_swaps_total", "Attempts to load a version, by outcome (served, refused).", "outcome"
        )
        self._swap_duration = make.histogram(
            "bonbon_swap_duration_seconds", "Seconds to verify, load and check a version.", buckets=LATENCY
        )
        self._pause_duration = make.histogram(
            "bonbon_pause_duration_seconds",
            "Seconds that requests waited while other weights replaced the served ones.",
            buckets=LATENCY,
        )
        self._aliases = make.gauge(
            "bonbon_alias_info", "1 for the version to which each alias refers now.", "alias", "model_version"
        )
        self._loaded = make.gauge("bonbon_versions_loaded", "Versions that are loaded.")
        for outcome in ("served", "refused"):
            self._swaps.labels(outcome)

    def watch(self, name: str, help: str, value: Callable[[], float]) -> None:
        """Adds a gauge whose value is computed when it is scraped."""
        self.families.gauge(name, help).set_function(value)

    def requested(self, route: str, status: int, seconds: float) -> None:
        """Counts a request that has ended."""
        self._requests.labels(route, str(status)).inc()
        self._latency.labels(route).observe(seconds)

    def connection_closed(self, reason: str) -> None:
        """Counts a connection that the service closed because of its client's behaviour."""
        self._connections_closed.labels(reason).inc()

    def first_token(self, route: Route, seconds: float) -> None:
        """Records that the first token of a streamed answer was sent `seconds` after its request arrived."""
        self._ttft.labels(route.asked).observe(seconds)

    def answered(self, route: Route, group: Group) -> None:
        """Counts an answer and, if its candidates were ranked, their rewards."""
        labels = (route.asked, group.version)
        self._answers.labels(*labels).inc()
        self._tokens_drawn.labels(*labels).inc(group.drawn_tokens)
        self._tokens_returned.labels(*labels).inc(sum(len(c.token_ids) for c in group.served))
        self._n.labels(route.asked).observe(group.n)
        best, first, worst = group.best.reward, group.candidates[0].reward, group.worst.reward
        if best is not None and first is not None and worst is not None:
            self._over_first.labels(group.reward_name).observe(best - first)
            self._over_worst.labels(group.reward_name).observe(best - worst)

    def degraded(self, group: Group, failure: RewardError) -> None:
        """Counts that the reward could not rank `group`."""
        self._degraded.labels(group.origin, group.reward_name, failure.reason).inc()

    def logged(self, group: Group, kept: Kept = Kept.LOGGED) -> None:
        """Counts that `group` is durable, or was dropped."""
        self._kept.labels(kept).inc()
        if kept is not Kept.DROPPED:
            self._groups.labels(group.origin, group.unclean or "").inc()

    def compared(self, comparison: Comparison) -> None:
        """Counts a stored comparison."""
        labels = (comparison.version, comparison.opponent, comparison.reward_name, comparison.outcome)
        self._comparisons.labels(*labels).inc()

    def audit_drew(self, version: str, tokens: int) -> None:
        """Counts the tokens that an audit of `version` generated."""
        self._audit_tokens.labels(version).inc(tokens)

    def audit_dropped(self, reason: str) -> None:
        """Counts an audit that was not made: the queue was `full`, the reward `degraded`, the version `gone`, or it
        `failed`."""
        self._audits_dropped.labels(reason).inc()

    def fell_back(self) -> None:
        """Counts that this process replaced a champion below the minimum win rate by best-of-n."""
        self._fallbacks.inc()

    def raised_k(self) -> None:
        """Counts that this process made a champion below the minimum win rate sample more candidates."""
        self._raised.inc()

    def swapped(self, outcome: str, seconds: float) -> None:
        """Counts an attempt to load a version: `served` or `refused`."""
        self._swaps.labels(outcome).inc()
        self._swap_duration.observe(seconds)

    def paused(self, seconds: float) -> None:
        """Records how long requests waited while weights were replaced."""
        self._pause_duration.observe(seconds)

    def routed(self, aliases: Mapping[str, str], loaded: int) -> None:
        """Records the new routing table."""
        self._aliases.clear()
        for alias, version in aliases.items():
            self._aliases.labels(alias, version).set(1)
        self._loaded.set(loaded)

    def retired(self, version: str) -> None:
        """Removes the series of `version`, which was drained and unloaded."""
        self.families.retire(version)

    def exposition(self) -> bytes:
        """Returns all metrics in Prometheus's text format."""
        return self.families.exposition()
