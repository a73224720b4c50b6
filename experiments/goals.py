"""Compares the measurements with the goals, including those that were missed."""

from collections.abc import Iterator, Mapping, Sequence

from bonbon.theory import best_of_n_kl
from experiments import budgets, methods, real, text
from experiments.cells import Row
from experiments.distilled import DEFAULT
from experiments.tables import estimate, table

MAX_GAP, MAX_KL = 0.5, 1.1
"""Limits: percentage points of win rate below the frontier, and KL relative to best-of-n's own."""
MIN_RECOVERED = 0.95
MIN_REAL_WIN_RATE, MAX_REAL_KL = 0.8, 0.9
NOT_MEASURED = "not measured"

Line = tuple[str, str, str, str]


def shortcomings(rows: Mapping[str, Sequence[Row]]) -> str:
    """Returns every goal with its measurement and whether it was met."""
    lines = [*_exact(rows), *_text(rows[text.NAME])]
    if not lines:
        return "Not measured yet."
    lines += _real(rows[real.NAME])
    failed = sum(met == "no" for *_, met in lines)
    return f"""Of {len(lines)} goals {failed} {"is" if failed == 1 else "are"} **not** met.

{table(("", "goal", "measured", "met"), lines)}

Limits of these figures: the exact world's model is tiny and its prompts are eight, each asked hundreds of times. Its
losses share one learning rate and one number of steps, and neither was chosen by a search. On its own draws, the policy
stops when it has used `train.refine_tokens`, but it is neither validated nor moved back to the limit. There is one
world and one seed, so that small differences between losses may be chance.{_unseen(rows[budgets.NAME])}
In the text world the losses were compared with each other on 1,000 prompts, {len(text.CONTENDERS)} of them with three
seeds, and with one seed on 320 and 4,000 prompts; on the real language model they were not compared.
{_about_real(rows)}"""


def _unseen(rows: Sequence[Row]) -> str:
    """Returns what the policy gains on prompts without groups."""
    for row in rows:
        if "other_prompts" in row:
            return (
                f" A policy trained on {row['budget']['prompts']} of its prompts has a gain of "
                f"{row['other_prompts']['gain']:.2f} nats on the others, where the base has 0."
            )
    return ""


def _real(rows: Sequence[Row]) -> Iterator[Line]:
    """Yields the goals for real language models. A goal whose form has not been run counts as not met."""
    by_form = {row["form"]: row["evaluation"] for row in rows if row["name"] == DEFAULT}
    cpu, gpu = by_form.get(real.Form.CPU), by_form.get(real.Form.GPU)
    where = "real language model, CPU form"
    gain = None if cpu is None else cpu["gain"]
    met = "no" if gain is None or gain["low"] <= 0 else "yes"
    yield f"lower bound of the gain in J, {where}", "above 0", estimate(gain, digits=3, missing=NOT_MEASURED), met
    where = "real language model, GPU form"
    win_rate, kl = (None, None) if gpu is None else (gpu["win_rate"], gpu["kl"])
    met = "yes" if win_rate and win_rate["value"] >= MIN_REAL_WIN_RATE else "no"
    yield (
        f"win rate, {where}",
        f"at least {MIN_REAL_WIN_RATE:.2f}",
        estimate(win_rate, digits=3, missing=NOT_MEASURED),
        met,
    )
    met = "yes" if kl and kl["value"] <= MAX_REAL_KL else "no"
    yield f"KL, {where}", f"at most {MAX_REAL_KL:.1f}", estimate(kl, digits=3, missing=NOT_MEASURED), met


def _about_real(rows: Mapping[str, Sequence[Row]]) -> str:
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
        if own_tokens := row.get("own_tokens"):
            where += f" and {own_tokens / 1e6:g} million own tokens, KL {row['kl']:.2f}"
        yield _at_most(f"points under the frontier, {where}", MAX_GAP, 100 * row["gap"], 2)


def _text(rows: Sequence[Row]) -> Iterator[Line]:
    for row in rows:
        if row["name"] in text.GOALS and row["prompts"] == text.PROMPTS:
            found = row["evaluation"]
            where = f"{row['name']}, text, {row['prompts']:,} prompts, seed {row['seed']}"
            met = "yes" if found["recovered"]["value"] >= MIN_RECOVERED else "no"
            share = estimate(found["recovered"], digits=3)
            yield f"share of best-of-n's gain recovered, {where}", f"at least {MIN_RECOVERED}", share, met
            yield _at_most(f"KL, {where}", MAX_KL * best_of_n_kl(found["n"]), found["kl"]["value"], 3)


def _at_most(what: str, limit: float, measured: float, digits: int) -> Line:
    met = "yes" if measured <= limit else "no"
    return what, f"at most {limit:.{digits}f}", f"{measured:.{digits}f}", met
