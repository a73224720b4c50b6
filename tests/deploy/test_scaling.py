"""Tests of the tables in docs/scaling.md: they are computed from constants that docs/benchmarks.md has."""

import re
import runpy
from typing import Any

import pytest

from bonbon.store.database import open_database
from tests.support.paths import DOCS, ROOT
from tests.support.servers.postgresql_server import PostgresqlServer


@pytest.fixture(scope="module")
def scale() -> dict[str, Any]:
    """Returns the names that the script defines."""
    return runpy.run_path(str(ROOT / "benchmarks" / "scale_table.py"))


def test_the_page_is_what_the_constants_give(scale: dict[str, Any]) -> None:
    assert (DOCS / "scaling.md").read_text() == scale["page"](), "run `make docs`"


def test_each_constant_is_in_the_row_that_it_names(scale: dict[str, Any]) -> None:
    rows = (DOCS / "benchmarks.md").read_text().splitlines()
    for value, row in scale["MEASURED"]:
        assert row in rows
        cells = [cell.replace(",", "").strip(" *") for cell in row.split("|")]
        assert value in [float(cell) for cell in cells if re.fullmatch(r"[\d.]+", cell)], row


def test_the_page_names_what_is_assumed(scale: dict[str, Any]) -> None:
    text = " ".join((DOCS / "scaling.md").read_text().split())
    assumed = text[text.index("**Assumed, not measured**") : text.index("<!-- scale: begin -->")]
    assert f"n = {scale['N']}, prompts and answers of {scale['ANSWER']} tokens" in assumed
    assert f"`service.retention_days = {scale['KEPT_DAYS']}`" in assumed
    assert f"draws {scale['DRAWN']:,} tokens a second or trains on {scale['TRAINED']:,}" in assumed
    assert scale["PEAK"] == 3
    assert scale["PROMPT"] == scale["ANSWER"]
    assert "a peak of three times the mean" in assumed


async def test_postgresql_takes_the_statements_for_large_logs(one_server: PostgresqlServer) -> None:
    (statements,) = re.findall(r"```sql\n(.*?)```", (DOCS / "scaling.md").read_text(), re.DOTALL)
    async with open_database(one_server.url):
        one_server.execute(*statements.strip().splitlines())
    options = one_server.rows("SELECT relname, reloptions FROM pg_class WHERE reloptions IS NOT NULL AND relkind = 'r'")
    factors = ["autovacuum_vacuum_scale_factor=0.01", "autovacuum_vacuum_insert_scale_factor=0.01"]
    assert {name: found for name, found in options if name in ("groups", "candidates")} == {
        "groups": factors,
        "candidates": factors,
    }
