"""Compares the measurements with the goals, including those that were missed."""

from collections.abc import Iterator, Mapping, Sequence

from bonbon.theory import best_of_n_kl
from experiments import budgets, methods, real, text
from experiments.cells import Row
from experiments.tables import table

MAX_GAP, MAX_KL = 0.5, 1.1
"""Limits: percentage points of win rate below the frontier, and KL relative to best-of-n's own."""
MIN_RECOVERED = 0.95

Line = tuple[str, str, str, str]


def shortcomings(rows: Mapping[str, Sequence[Row]]) -> str:
    """Returns every goal with its measurement and whether it was met."""
    lines = [*_exact(rows), *_text(rows[text.NAME])]
    if not lines:
        return "Not measured yet."
    failed = sum(met == "no" for *_, met in lines)
    return f"""Of {len(lines)} goals {failed} {"is" if failed == 1 else "are"} **not** met.

{table(("", "goal", "measured", "met"), lines)}

What no figure here says: the exact world's model is tiny and its prompts are eight, each asked hundreds of times. Its
losses share one learning rate and one number of steps, and neither was chosen by a search. There is one world and one
seed, so that small differences between losses may be chance. {_real(rows)}"""


def _real(rows: Mapping[str, Sequence[Row]]) -> str:
    if not rows.get(real.NAME):
        return "Nothing here was measured on a real language model."
    return "The real language model is small, was distilled once, and its answers were cut off after few tokens."


def _exact(rows: Mapping[str, Sequence[Row]]) -> Iterator[Line]:
    measured = [
        *methods.of_method(rows[methods.NAME], budgets.DEFAULT),
        budgets.longer(rows[budgets.NAME]),
        *budgets.of_method(rows[budgets.NAME], budgets.WHOLE),
    ]
    for row in filter(None, measured):
        budget = row["budget"]
        where = f"{row['method']}, exact world, {budget['groups']:,} groups, {budget['steps']:,} steps"
        yield _at_most(f"points under the frontier, {where}", MAX_GAP, 100 * row["gap"], 2)


def _text(rows: Sequence[Row]) -> Iterator[Line]:
    for row in rows:
        if row["name"] in text.GOALS and row["prompts"] == text.PROMPTS:
            found = row["evaluation"]
            where = f"{row['name']}, text, {row['prompts']:,} prompts, seed {row['seed']}"
            recovered = found["recovered"]
            interval = f"{recovered['value']:.3f} ({recovered['low']:.3f} to {recovered['high']:.3f})"
            met = "yes" if recovered["value"] >= MIN_RECOVERED else "no"
            yield f"share of best-of-n's gain recovered, {where}", f"at least {MIN_RECOVERED}", interval, met
            yield _at_most(f"KL, {where}", MAX_KL * best_of_n_kl(found["n"]), found["kl"]["value"], 3)


def _at_most(what: str, limit: float, measured: float, digits: int) -> Line:
    met = "yes" if measured <= limit else "no"
    return what, f"at most {limit:.{digits}f}", f"{measured:.{digits}f}", met
