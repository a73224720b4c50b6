"""What Prometheus scrapes of this process. Labels are bounded: never a key, a user, a request id or a prompt.

`service/metrics/stored_metrics.py` adds what the database knows; docs/metrics.md lists everything.
"""

from collections.abc import Callable, Mapping

from bonbon import __version__
from bonbon.errors import RewardError
from bonbon.pairs.group_records import Comparison, Group
from bonbon.pairs.group_store import Kept
from service.metrics.metric_families import Families
from service.routing.router import Route

# The edges that vLLM's dashboards use, so that its panels and ours line up.
TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
        160.0, 640.0, 2560.0)  # fmt: skip
LATENCY = (0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
           480.0, 960.0, 1920.0, 7680.0)  # fmt: skip
DRAWN = (1, 2, 4, 8, 16, 32, 64, 128)
GAIN = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


class Metrics:
    """Counters, histograms and gauges of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.families = make = Families()
        self.registry = make.registry
        make.gauge("bonbon_build_info", "1, with the version of bonbon.", "version").labels(__version__).set(1)
        self._requests = make.counter("bonbon_requests_total", "Requests by route and status.", "route", "status")
        self._latency = make.histogram(
            "bonbon_request_duration_seconds", "Request to last byte.", "route", buckets=LATENCY
        )
        self._connections_closed = make.counter(
            "bonbon_connections_closed_total",
            "Connections that the service closed before their request was answered, by why: header_timeout, "
            "body_timeout, send_timeout, header_too_large, request_too_large, invalid_request, displaced (by a newer "
            "one), refused (too many).",
            "reason",
        )
        self._ttft = make.histogram(
            "bonbon_time_to_first_token_seconds",
            "Request to the first token of a streamed answer.",
            "asked",
            buckets=TTFT,
        )
        self._answers = make.counter(
            "bonbon_answers_total",
            "Answers by the kind of model name asked for (alias, base, version) and the version that drew them.",
            "asked",
            "model_version",
        )
        self._tokens_drawn = make.counter(
            "bonbon_tokens_drawn_total", "Completion tokens drawn, all candidates.", "asked", "model_version"
        )
        self._tokens_returned = make.counter(
            "bonbon_tokens_returned_total", "Completion tokens returned.", "asked", "model_version"
        )
        self._n = make.histogram("bonbon_candidates_drawn", "Candidates drawn per answer.", "asked", buckets=DRAWN)
        self._over_first = make.histogram(
            "bonbon_reward_best_minus_first",
            "Reward of the best candidate minus that of the first: what best-of-n gains over one draw.",
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
            "Rankings that the reward failed to give, by where (request, audit) and why (failed, late, invalid).",
            "origin",
            "reward",
            "reason",
        )
        self._groups = make.counter(
            "bonbon_groups_logged_total",
            "Groups that are durable, by origin and by why they are unclean (clean: empty).",
            "origin",
            "unclean",
        )
        self._kept = make.counter(
            "bonbon_groups_kept_total", "Groups by where they went: logged, spooled, dropped or repeated.", "where"
        )
        self._comparisons = make.counter(
            "bonbon_comparisons_total",
            "Audited answers of the champion, compared with one draw of the base, and with best-of-n of the base.",
            "champion",
            "opponent",
            "reward",
            "outcome",
        )
        self._audits_dropped = make.counter(
            "bonbon_audits_dropped_total", "Audits not made, by why (full, degraded, gone, failed).", "reason"
        )
        self._audit_tokens = make.counter(
            "bonbon_audit_tokens_drawn_total",
            "Completion tokens that audits of a version have drawn, from the base and from it.",
            "model_version",
        )
        # No version's label: these events are counted for good, and a fallen champion leaves soon.
        self._fallbacks = make.counter(
            "bonbon_fallbacks_total", "Champions that this process replaced by best-of-n: they fell under the floor."
        )
        self._raised = make.counter(
            "bonbon_k_raised_total",
            "Times that this process had the champion answer with the best of more draws: it fell under the floor.",
        )
        self._swaps = make.counter("bonbon_swaps_total", "Versions brought up (served) or not (refused).", "outcome")
        self._swap_duration = make.histogram(
            "bonbon_swap_duration_seconds", "Verify, load and check of a version.", buckets=LATENCY
        )
        self._pause_duration = make.histogram(
            "bonbon_pause_duration_seconds",
            "Time that requests waited for other weights to take the place of those served.",
            buckets=LATENCY,
        )
        self._aliases = make.gauge(
            "bonbon_alias_info", "1 for the version that each alias means now.", "alias", "model_version"
        )
        self._loaded = make.gauge("bonbon_versions_loaded", "Versions that can be drawn from.")
        for outcome in ("served", "refused"):
            self._swaps.labels(outcome)

    def watch(self, name: str, help: str, value: Callable[[], float]) -> None:
        """A gauge that is read when it is scraped."""
        self.families.gauge(name, help).set_function(value)

    def requested(self, route: str, status: int, seconds: float) -> None:
        """A request ended."""
        self._requests.labels(route, str(status)).inc()
        self._latency.labels(route).observe(seconds)

    def connection_closed(self, reason: str) -> None:
        """The service closed a connection whose client had done something else than it should."""
        self._connections_closed.labels(reason).inc()

    def first_token(self, plan: Route, seconds: float) -> None:
        """A streamed answer's first token left, `seconds` after its request came."""
        self._ttft.labels(plan.asked).observe(seconds)

    def answered(self, plan: Route, group: Group) -> None:
        """An answer was drawn and, where it had candidates to choose from, ranked."""
        labels = (plan.asked, group.version)
        self._answers.labels(*labels).inc()
        self._tokens_drawn.labels(*labels).inc(group.drawn_tokens)
        self._tokens_returned.labels(*labels).inc(sum(len(c.token_ids) for c in group.served))
        self._n.labels(plan.asked).observe(group.n)
        best, first, worst = group.best.reward, group.candidates[0].reward, group.worst.reward
        if best is not None and first is not None and worst is not None:
            self._over_first.labels(group.reward_name).observe(best - first)
            self._over_worst.labels(group.reward_name).observe(best - worst)

    def degraded(self, group: Group, failure: RewardError) -> None:
        """The reward gave no ranking of `group`."""
        self._degraded.labels(group.origin, group.reward_name, failure.reason).inc()

    def logged(self, group: Group, kept: Kept = Kept.LOGGED) -> None:
        """`group` is durable, or was dropped."""
        self._kept.labels(kept).inc()
        if kept is not Kept.DROPPED:
            self._groups.labels(group.origin, group.unclean or "").inc()

    def compared(self, comparison: Comparison) -> None:
        """An audit's comparison was stored."""
        labels = (comparison.version, comparison.opponent, comparison.reward_name, comparison.outcome)
        self._comparisons.labels(*labels).inc()

    def audit_drew(self, version: str, tokens: int) -> None:
        """An audit of `version` drew so many tokens."""
        self._audit_tokens.labels(version).inc(tokens)

    def audit_dropped(self, reason: str) -> None:
        """An audit was not made: the queue was `full`, the reward `degraded`, the version `gone`, or it `failed`."""
        self._audits_dropped.labels(reason).inc()

    def fell_back(self) -> None:
        """This process replaced a champion, whose live win rate fell under the floor, by best-of-n."""
        self._fallbacks.inc()

    def raised_k(self) -> None:
        """This process had a champion whose live win rate fell under the floor answer with more draws."""
        self._raised.inc()

    def swapped(self, outcome: str, seconds: float) -> None:
        """A version was brought up (`served`) or not (`refused`)."""
        self._swaps.labels(outcome).inc()
        self._swap_duration.observe(seconds)

    def paused(self, seconds: float) -> None:
        """Requests were held back while weights were replaced."""
        self._pause_duration.observe(seconds)

    def routed(self, aliases: Mapping[str, str], loaded: int) -> None:
        """The routing table changed."""
        self._aliases.clear()
        for alias, version in aliases.items():
            self._aliases.labels(alias, version).set(1)
        self._loaded.set(loaded)

    def retired(self, version: str) -> None:
        """`version` was drained and unloaded: its series end."""
        self.families.retire(version)

    def exposition(self) -> bytes:
        """All of it in Prometheus's text format."""
        return self.families.exposition()
