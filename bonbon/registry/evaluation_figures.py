"""Extracts the important figures of an evaluation, for tables and model cards."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Figure(NamedTuple):
    """One figure with its 95 % interval, if it has one, and a note: the opponent or the estimator."""

    title: str
    value: float | None
    low: float | None
    high: float | None
    note: str = ""

    @property
    def shown(self) -> tuple[str, str]:
        """Value and interval as text, empty where there is none."""
        value = "" if self.value is None else f"{self.value:.3f}"
        interval = "" if self.low is None or self.high is None else f"{self.low:.3f} to {self.high:.3f}"
        return value, interval


def best_of(k: int) -> str:
    """Returns how a policy that answers with the best of k draws is called: `best-of-k`, or `one draw` when k is 1."""
    return f"best-of-{k}" if k > 1 else "one draw"


def evaluation_figures(evaluation: Mapping[str, Any], k: int) -> tuple[Figure, ...]:
    """Yields the figures of a stored evaluation and skips those that it lacks.

    Args:
        evaluation: As stored in the registry; that of an older release may lack some fields.
        k: The number of draws that the version answers with; the figures of this best-of-k are included.
    """
    return tuple(_figures(evaluation, k))


def _figures(e: Mapping[str, Any], k: int) -> Iterator[Figure]:
    best = f"best-of-{e['n']}" if "n" in e else "best-of-n"
    yield from _figure(e, "win_rate", "win rate of one draw", "the base")
    measured: Mapping[str, Any] = next((one for one in e.get("best_of_k") or () if one.get("k") == k), {})
    answers = best_of(k)
    if k > 1:
        yield from _figure(measured, "win_rate", f"win rate of {answers}", "the base")
    yield from _figure(measured, "win_rate_best_of_n", f"win rate of {answers}", f"{best} of the base")
    # Where best-of-n answered, the two are the same; an older release has stored only this one.
    best_of_n_served = (e.get("served"), e.get("served_k")) == (e.get("base"), e.get("n"))
    if not (best_of_n_served and "win_rate_best_of_n" in measured):
        yield from _figure(measured, "win_rate_served", f"win rate of {answers}", _served(e))
    yield from _figure(e, "best_of_n_win_rate", f"win rate of {best} (base)", "the base")
    yield from _figure(e, "held_out_win_rate", "win rate, held-out reward", str(e.get("held_out_reward") or ""))
    yield from _figure(e, "recovered", f"{best}'s gain recovered")
    yield from _figure(e, "gain", "gain in the objective, nats")
    yield from _figure(e, "kl", "KL from the base, nats", str(e.get("kl_estimator") or ""))
    yield from _figure(e, "kl_k1", "KL from the base, nats", "k1, the mean log ratio")
    yield from _figure(e, "length_ratio", "mean length over the base's")
    yield from _figure(e, "truncated", "share of answers cut off")


def _figure(values: Mapping[str, Any], name: str, title: str, note: str = "") -> Iterator[Figure]:
    found = values.get(name)
    if isinstance(found, Mapping):
        yield Figure(title, found.get("value"), found.get("low"), found.get("high"), note)
    elif found is not None:
        yield Figure(title, float(found), None, None, note)


def _served(e: Mapping[str, Any]) -> str:
    return f"{best_of(e.get('served_k', 1))} of {e['served']}" if "served" in e else ""
