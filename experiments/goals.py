"""What was aimed at beside what was measured: the part of the page that must not flatter."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from bonbon.theory import best_of_n_kl
from experiments import budgets, text
from experiments.cells import Row
from experiments.tables import table

N, FEW, MOST = 8, 8192, 65536
OPEN = "undecided"


def shortcomings(rows: Mapping[str, Sequence[Row]]) -> str:
    """Every goal of the program's default loss with what was measured, and whether that is enough."""
    lines = [*_exact(rows[budgets.NAME]), *_text(rows[text.NAME])]
    if not lines:
        return "Not measured yet."
    failed, undecided = (sum(met.startswith(word) for *_, met in lines) for word in ("no", OPEN))
    verdict = f"Of {len(lines)} goals {failed} are **not** met and {undecided} are undecided."
    return f"""The goals of the program's default, `{budgets.DEFAULT}`, at n = {N}. {verdict}

{table(("", "goal", "measured", "met"), lines)}

What no figure here says: the exact world's model is tiny and its prompts are eight, each asked hundreds of times; the
gain of ranks over all candidates of a prompt needs prompts that come again. Learning rate and steps are the same for
all losses and were chosen for none of them by search. Nothing was measured on models of a size that is of use."""


Line = tuple[str, str, str, str]


def _exact(rows: Sequence[Row]) -> Iterator[Line]:
    for groups, gap, what, key, limit in (
        (FEW, 1.0, "KL", "kl", 1.1 * best_of_n_kl(N)),
        (MOST, 0.5, "KL(best-of-n, policy)", "from_best_of_n", 0.05),
    ):
        if found := budgets.longer(rows, groups):
            where = f"{groups:,} groups, mean of {len(budgets.SEEDS)} worlds"
            lines = (
                _at_most(f"points under the frontier, {where}", gap, 100 * fmean(row["gap"] for row in found), 2),
                _at_most(f"{what}, {where}", limit, fmean(row[key] for row in found), 3),
            )
            short = f"{OPEN}: {len(found)} of {len(budgets.SEEDS)} worlds"
            whole = len(found) == len(budgets.SEEDS)
            yield from ((name, goal, measured, met if whole else short) for name, goal, measured, met in lines)


def _text(rows: Sequence[Row]) -> Iterator[Line]:
    for row in rows:
        if row["loss"] == "bonbon":
            recovered = row["evaluation"]["recovered"]
            interval = f"{recovered['value']:.3f} ({recovered['low']:.3f} to {recovered['high']:.3f})"
            met = "yes" if recovered["value"] >= 0.95 else "no"
            where = f"text, {text.WEIGHTS[row['method']]}"
            yield f"share of best-of-n's gain recovered, {where}", "at least 0.95", interval, met
            kl = row["evaluation"]["kl"]["value"]
            yield _at_most(f"KL, {where}", 1.1 * best_of_n_kl(N), kl, 3)


def _at_most(what: str, limit: float, measured: float, digits: int) -> Line:
    met = "yes" if measured <= limit else "no"
    return what, f"at most {limit:.{digits}f}", f"{measured:.{digits}f}", met
