"""The demo's table of results on a terminal of the usual width."""

from dataclasses import replace
from io import StringIO

from rich.console import Console

from bonbon.demo.demo_figures import Figures
from bonbon.demo.results_table import figures_table

BASE = Figures(
    version="tiny-support",
    k=1,
    win_rate=0.51,
    win_rate_low=0.478,
    win_rate_high=0.541,
    comparisons=3600,
    win_rate_best_of_n=None,
    win_rate_best_of_n_low=None,
    win_rate_best_of_n_high=None,
    kl=0.0,
    kl_estimator="identity",
    reward_mean=-0.38,
    length_mean=30.8,
    tokens_per_answer=30.8,
    saved_share=None,
    latency_p50_s=0.101,
    ttft_p50_s=0.021,
)
DISTILLED = replace(
    BASE,
    version="tiny-support-bonbon-0001-af184b0b",
    win_rate_best_of_n=0.3,
    win_rate_best_of_n_low=0.28,
    win_rate_best_of_n_high=0.35,
    kl_estimator="Rao-Blackwellised per-token",
)


def test_no_name_is_broken_on_80_columns() -> None:
    columns = {"base, one draw": BASE, "best of 8": replace(BASE, kl_estimator="log n - (n-1)/n")}
    columns |= {"distilled, one draw": DISTILLED, "distilled, best of 3": replace(DISTILLED, k=3, kl_estimator="")}
    out = StringIO()
    Console(file=out, width=80).print(figures_table(columns, 8))
    shown = out.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    words = " ".join(shown.split())
    assert "Versions: tiny-support, tiny-support-bonbon-0001-af184b0b." in words
    assert "distilled, one draw: Rao-Blackwellised per-token" in words
    assert shown.count("distilled,") == 3
    assert "…" not in shown
