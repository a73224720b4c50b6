"""Grafana's JSON, as far as these dashboards need it: panels on a grid of 24 columns, variables, one annotation."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24


@dataclass(frozen=True)
class Query:
    """A PromQL expression and how its series are called."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One panel; `kind` is Grafana's type of panel, `options` and `overrides` are its own.

    `instant` asks for the newest values only, as a table. `no_value` is shown where the queries have no result.
    """

    title: str
    kind: str
    queries: Sequence[Query]
    unit: str = "short"
    width: int = 8
    height: int = 8
    description: str = ""
    instant: bool = False
    minimum: float | None = None
    maximum: float | None = None
    decimals: int | None = None
    no_value: str | None = None
    custom: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    overrides: list[dict[str, Any]] = field(default_factory=list)
    mappings: list[dict[str, Any]] = field(default_factory=list)
    transformations: list[dict[str, Any]] = field(default_factory=list)

    def json(self, id: int, x: int, y: int) -> dict[str, Any]:
        """The panel at that place of the grid."""
        defaults: dict[str, Any] = {"unit": self.unit, "custom": self.custom, "mappings": self.mappings}
        limits = {"min": self.minimum, "max": self.maximum, "decimals": self.decimals, "noValue": self.no_value}
        defaults |= {name: value for name, value in limits.items() if value is not None}
        return {
            "id": id,
            "title": self.title,
            "type": self.kind,
            "description": self.description,
            "datasource": SOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "targets": [self._target(index, query) for index, query in enumerate(self.queries)],
            "fieldConfig": {"defaults": defaults, "overrides": self.overrides},
            "options": self.options,
            "transformations": self.transformations,
        }

    def _target(self, index: int, query: Query) -> dict[str, Any]:
        return {
            "refId": chr(ord("A") + index),
            "datasource": SOURCE,
            "expr": query.expr,
            "legendFormat": query.legend or "__auto",
            "instant": self.instant,
            "range": not self.instant,
            "format": "table" if self.instant and self.kind in ("table", "xychart") else "time_series",
        }


def lines(title: str, *queries: Query, **options: Any) -> Panel:
    """Series over time."""
    return Panel(
        title,
        "timeseries",
        queries,
        custom={"fillOpacity": 8, "showPoints": "never", "lineWidth": 2} | options.pop("custom", {}),
        options={"tooltip": {"mode": "multi"}, "legend": {"displayMode": "list", "placement": "bottom"}},
        **options,
    )


def stacked(title: str, *queries: Query, **options: Any) -> Panel:
    """Series over time, on top of each other."""
    return lines(title, *queries, custom={"stacking": {"mode": "normal"}, "fillOpacity": 40}, **options)


def number(title: str, query: Query, **options: Any) -> Panel:
    """One newest value, large."""
    reduce = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "none", "graphMode": "none"}
    reduce |= options.pop("options", {})
    return Panel(title, "stat", [query], height=4, instant=True, options=reduce, **({"width": 4} | options))


def age(title: str, timestamp: str, **options: Any) -> Panel:
    """How long ago the largest `timestamp` was, in seconds since 1970; 0 means never."""
    return number(title, Query(f"(max({timestamp}) > 0) * 1000"), unit="dateTimeFromNow", no_value="never", **options)


def words(**texts: tuple[str, str]) -> list[dict[str, Any]]:
    """Words in the place of numbers: `_0=("no", "red")`."""
    options = {value.removeprefix("_"): {"text": text, "color": color} for value, (text, color) in texts.items()}
    return [{"type": "value", "options": options}]


def band(title: str, low: Query, high: Query, *others: Query, **options: Any) -> Panel:
    """Series over time with the area between `low` and `high` filled."""
    edges = [
        {
            "matcher": {"id": "byName", "options": edge.legend},
            "properties": [{"id": "custom.lineWidth", "value": 0}, {"id": "custom.fillOpacity", "value": fill}]
            + ([{"id": "custom.fillBelowTo", "value": low.legend}] if edge is high else []),
        }
        for edge, fill in ((low, 0), (high, 20))
    ]
    return lines(title, *others, low, high, overrides=edges, unit="percentunit", minimum=0, maximum=1, **options)


def on_off(on: str, off: str) -> list[dict[str, Any]]:
    """Words in the place of 1 and 0."""
    return [{"type": "value", "options": {"0": {"text": off}, "1": {"text": on}}}]


def variable(name: str, query: str) -> dict[str, Any]:
    """A label's values to choose from; all of them at first."""
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def dashboard(
    uid: str, title: str, panels: Sequence[Panel], variables: Sequence[dict[str, Any]], annotation: dict[str, Any]
) -> dict[str, Any]:
    """A dashboard of `panels`, laid from left to right in rows as high as their highest panel."""
    placed: list[dict[str, Any]] = []
    x = y = row = 0
    for id, panel in enumerate(panels, start=1):
        if x + panel.width > WIDTH:
            x, y, row = 0, y + row, 0
        placed.append(panel.json(id, x, y))
        x, row = x + panel.width, max(row, panel.height)
    source = {"name": "datasource", "type": "datasource", "query": "prometheus", "current": {}, "hide": 2}
    return {
        "uid": uid,
        "title": title,
        "tags": ["bonbon"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source, *variables]},
        "annotations": {"list": [annotation]},
        "links": [{"type": "dashboards", "title": "bonbon", "tags": ["bonbon"], "asDropdown": False}],
        "panels": placed,
    }
