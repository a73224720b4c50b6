"""What was aimed at beside what was measured: the part of the page that must not flatter."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from bonbon.theory import best_of_n_kl
from experiments import budgets, methods, text
from experiments.cells import Row
from experiments.tables import table

DEFAULT = "auto"
N, MOST = 8, 65536
OPEN = "undecided"


def shortcomings(rows: Mapping[str, Sequence[Row]]) -> str:
    """Every goal of the program's default loss with what was measured, and whether that is enough."""
    lines = [*_few_groups(rows[methods.NAME]), *_many_groups(rows[budgets.NAME]), *_text(rows[text.NAME])]
    if not lines:
        return "Not measured yet."
    failed, undecided = (sum(met.startswith(word) for *_, met in lines) for word in ("no", OPEN))
    verdict = f"Of {len(lines)} goals {failed} are **not** met and {undecided} are undecided."
    return f"""The goals of the program's default, `{DEFAULT}`, at n = {N}. {verdict}

{table(("", "goal", "measured", "met"), lines)}

What no figure here says: the exact world's model is tiny and its prompts are eight, each asked hundreds of times; the
gain of ranks over all candidates of a prompt needs prompts that come again. Learning rate and steps are the same for
all losses and were chosen for none of them by search. Nothing was measured on models of a size that is of use."""


Line = tuple[str, str, str, str]


def _few_groups(rows: Sequence[Row]) -> Iterator[Line]:
    if found := methods.of_method(rows, DEFAULT, N):
        where = f"{found[0]['budget']['groups']:,} groups, mean of {len(methods.SEEDS)} worlds"
        lines = (
            _at_most(f"points under the frontier, {where}", 1.0, 100 * fmean(row["gap"] for row in found), 2),
            _at_most(f"KL, {where}", 1.1 * best_of_n_kl(N), fmean(row["kl"] for row in found), 3),
        )
        short = len(found) < len(methods.SEEDS)
        yield from (
            (what, goal, measured, f"{OPEN}: {len(found)} of {len(methods.SEEDS)} worlds" if short else met)
            for what, goal, measured, met in lines
        )


def _many_groups(rows: Sequence[Row]) -> Iterator[Line]:
    for row in budgets.of_method(rows, DEFAULT):
        if row["budget"]["groups"] == MOST:
            yield _at_most(f"points under the frontier, {MOST:,} groups, one world", 0.5, 100 * row["gap"], 2)
            yield _at_most(f"KL(best-of-n, policy), {MOST:,} groups, one world", 0.05, row["from_best_of_n"], 3)


def _text(rows: Sequence[Row]) -> Iterator[Line]:
    for row in rows:
        if row["loss"] == "bonbon":
            recovered = row["evaluation"]["recovered"]
            interval = f"{recovered['value']:.3f} ({recovered['low']:.3f} to {recovered['high']:.3f})"
            met = "yes" if recovered["value"] >= 0.95 else "no"
            yield "share of best-of-n's gain recovered, text", "at least 0.95", interval, met


def _at_most(what: str, limit: float, measured: float, digits: int) -> Line:
    met = "yes" if measured <= limit else "no"
    return what, f"at most {limit:.{digits}f}", f"{measured:.{digits}f}", met
