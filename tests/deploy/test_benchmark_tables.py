"""The tables that the benchmarks print on a terminal of the usual width."""

import runpy

import pytest

from tests.support.paths import ROOT


def test_the_gateways_are_compared_on_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    overhead = runpy.run_path(str(ROOT / "benchmarks" / "overhead.py"))
    figure = {key: 1234.5 for _, key, _, _ in overhead["ROWS"]}
    names = ("upstream alone", "bonbon", "LiteLLM", "its_hub")
    overhead["_show"](dict.fromkeys(names, figure))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    assert all(name in shown.splitlines()[2] for name in names)
    assert shown.count("1234.50") == 4 * 5
