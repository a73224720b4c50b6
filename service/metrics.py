"""What Prometheus scrapes. Labels are bounded: never a key, a user, a request id or a prompt."""

from collections.abc import Callable, Mapping
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bonbon.pairs.log import Kept
from bonbon.pairs.records import Comparison, Group
from service.serving import Plan

# The edges that vLLM's dashboards use, so that its panels and ours line up.
TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
        160.0, 640.0, 2560.0)  # fmt: skip
LATENCY = (0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
           480.0, 960.0, 1920.0, 7680.0)  # fmt: skip
DRAWN = (1, 2, 4, 8, 16, 32, 64, 128)
GAIN = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


class Metrics:
    """Counters and histograms of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "bonbon_requests", "Requests by route and status.", ["route", "status"], registry=registry
        )
        self._latency = Histogram(
            "bonbon_request_duration_seconds", "Request to last byte.", ["route"], buckets=LATENCY, registry=registry
        )
        self._ttft = Histogram(
            "bonbon_time_to_first_token_seconds",
            "Request to the first token of a streamed answer.",
            ["asked"],
            buckets=TTFT,
            registry=registry,
        )
        self._answers = Counter(
            "bonbon_answers",
            "Answers by the kind of model name asked for and the version that drew them.",
            ["asked", "model_version"],
            registry=registry,
        )
        self._tokens_drawn = Counter(
            "bonbon_tokens_drawn", "Completion tokens drawn, all candidates.", ["model_version"], registry=registry
        )
        self._tokens_returned = Counter(
            "bonbon_tokens_returned", "Completion tokens returned.", ["model_version"], registry=registry
        )
        self._n = Histogram(
            "bonbon_candidates_drawn", "Candidates drawn per answer.", ["asked"], buckets=DRAWN, registry=registry
        )
        self._gain = Histogram(
            "bonbon_reward_gain",
            "Best minus first reward.",
            ["reward"],
            buckets=GAIN,
            registry=registry,
        )
        self._degraded = Counter(
            "bonbon_degraded",
            "Rankings that the reward failed to give, by where: an answer or an audit.",
            ["origin", "reward"],
            registry=registry,
        )
        self._groups = Counter(
            "bonbon_groups_logged",
            "Groups logged, by origin and by why they are unclean (clean: empty).",
            ["origin", "unclean"],
            registry=registry,
        )
        self._kept = Counter(
            "bonbon_groups_kept", "Groups by where they went: logged, spooled or dropped.", ["where"], registry=registry
        )
        self._in_flight = Gauge(
            "bonbon_tokens_in_flight", "Tokens that may be drawn for the requests let in.", registry=registry
        )
        self._waiting = Gauge("bonbon_requests_waiting", "Requests that wait to be let in.", registry=registry)
        self._spool = Gauge("bonbon_spool_bytes", "Groups that the database has not taken yet.", registry=registry)
        self._comparisons = Counter(
            "bonbon_comparisons",
            "Audited answers of the champion, compared with one draw of the base, and with best-of-n of the base.",
            ["champion", "opponent", "reward", "outcome"],
            registry=registry,
        )
        self._audits_dropped = Counter(
            "bonbon_audits_dropped", "Audits not made, by why.", ["reason"], registry=registry
        )
        self._fallbacks = Counter(
            "bonbon_fallbacks",
            "Champions that fell under the floor and were replaced by best-of-n, by this process.",
            ["champion"],
            registry=registry,
        )
        self._swaps = Counter("bonbon_swaps", "Versions brought up, by outcome.", ["outcome"], registry=registry)
        self._swap_duration = Histogram(
            "bonbon_swap_duration_seconds", "Verify, load and check of a version.", buckets=LATENCY, registry=registry
        )
        self._pause_duration = Histogram(
            "bonbon_pause_duration_seconds",
            "Time that requests waited for other weights to take the place of those served.",
            buckets=LATENCY,
            registry=registry,
        )
        self._aliases = Gauge(
            "bonbon_alias_info", "1 for the version that each alias means now.", ["alias", "model_version"],
            registry=registry,
        )  # fmt: skip
        self._loaded = Gauge("bonbon_versions_loaded", "Versions that can be drawn from.", registry=registry)

    def requested(self, route: str, status: int, seconds: float) -> None:
        """A request ended."""
        self._requests.labels(route, str(status)).inc()
        self._latency.labels(route).observe(seconds)

    def first_token(self, plan: Plan, seconds: float) -> None:
        """A streamed answer's first token left, `seconds` after its request came."""
        self._ttft.labels(plan.asked).observe(seconds)

    def answered(self, plan: Plan, group: Group) -> None:
        """An answer was drawn and, where it had candidates to choose from, ranked."""
        self._answers.labels(plan.asked, group.version).inc()
        self._tokens_drawn.labels(group.version).inc(sum(len(c.token_ids) for c in group.candidates))
        self._tokens_returned.labels(group.version).inc(sum(len(c.token_ids) for c in group.served))
        self._n.labels(plan.asked).observe(group.n)
        best, first = group.best.reward, group.candidates[0].reward
        if best is not None and first is not None:
            self._gain.labels(group.reward_name).observe(best - first)
        if group.degraded is not None:
            self.degraded(group)

    def degraded(self, group: Group) -> None:
        """The reward gave no ranking of `group`."""
        self._degraded.labels(group.origin, group.reward_name).inc()

    def logged(self, group: Group, kept: Kept = Kept.LOGGED) -> None:
        """`group` is durable, or was dropped."""
        self._kept.labels(kept).inc()
        if kept is not Kept.DROPPED:
            self._groups.labels(group.origin, group.unclean or "").inc()

    def watch_admission(self, in_flight: Callable[[], float], waiting: Callable[[], float]) -> None:
        """Show what is let in, and how many wait."""
        self._in_flight.set_function(in_flight)
        self._waiting.set_function(waiting)

    def watch_spool(self, size: Callable[[], float]) -> None:
        """Show what the spool holds."""
        self._spool.set_function(size)

    def compared(self, comparison: Comparison) -> None:
        """An audit's comparison was stored."""
        labels = (comparison.version, comparison.opponent, comparison.reward_name, comparison.outcome)
        self._comparisons.labels(*labels).inc()

    def fell_back(self, version: str) -> None:
        """This process replaced the champion `version`, whose live win rate fell under the floor, by best-of-n."""
        self._fallbacks.labels(version).inc()

    def audit_dropped(self, reason: str) -> None:
        """An audit was not made: the queue was `full`, the reward `degraded`, the version `gone`, or it `failed`."""
        self._audits_dropped.labels(reason).inc()

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

    def exposition(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self.registry)


class MeasureRequests:
    """ASGI middleware that counts and times requests by route template."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = perf_counter(), 500

        async def observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, observe)
        finally:
            # The router leaves the route it matched in the scope; what matched none must not make a label each.
            route = getattr(scope.get("route"), "path", "unmatched")
            self.metrics.requested(route, status, perf_counter() - start)
