"""Prometheus collectors in a registry of their own, with a list that describes them."""

from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

VERSION_LABELS = ("model_version", "champion")


@dataclass(frozen=True, slots=True)
class Family:
    """Describes one metric."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


class Families:
    """Creates collectors, and removes the series of versions that are unloaded."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.list: list[Family] = []
        self._versioned: list[tuple[Counter | Histogram | Gauge, str]] = []
        ProcessCollector(registry=self.registry)

    def counter(self, name: str, help: str, *labels: str) -> Counter:
        counter = Counter(name, help, labels, registry=self.registry)
        self._note(counter, Family(name, "counter", labels, help))
        return counter

    def gauge(self, name: str, help: str, *labels: str) -> Gauge:
        gauge = Gauge(name, help, labels, registry=self.registry)
        self._note(gauge, Family(name, "gauge", labels, help))
        return gauge

    def histogram(self, name: str, help: str, *labels: str, buckets: Sequence[float]) -> Histogram:
        histogram = Histogram(name, help, labels, buckets=buckets, registry=self.registry)
        self._note(histogram, Family(name, "histogram", labels, help))
        return histogram

    def retire(self, version: str) -> None:
        """Removes every series of `version`, which no longer answers."""
        for collector, label in self._versioned:
            collector.remove_by_labels({label: version})

    def exposition(self) -> bytes:
        """Returns all metrics in Prometheus's text format."""
        return generate_latest(self.registry)

    def _note(self, collector: Counter | Histogram | Gauge, family: Family) -> None:
        self.list.append(family)
        self._versioned += [(collector, label) for label in family.labels if label in VERSION_LABELS]
