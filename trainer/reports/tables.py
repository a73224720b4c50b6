"""Prints evaluations, verdicts and versions in the terminal."""

from rich.console import Console
from rich.table import Table

from bonbon.registry.version_records import Version
from trainer.evaluation.evaluation import Evaluation
from trainer.evaluation.gate import Verdict
from trainer.reports.report import evaluation_rows


def show(console: Console, evaluation: Evaluation, verdict: Verdict) -> None:
    """Prints the evaluation and the verdict as tables."""
    table = Table(title=f"{evaluation.version}: one draw on {evaluation.prompts} test prompts", title_justify="left")
    for title, justify in (("", "left"), ("value", "right"), ("95 % interval", "right"), ("count", "right")):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    for name, value, _ in evaluation_rows(evaluation):
        if isinstance(value, float):
            table.add_row(name, f"{value:.3f}")
        elif value is not None:
            table.add_row(name, f"{value.value:.3f}", f"{value.low:.3f} to {value.high:.3f}", f"{value.count:,}")
    console.print(table)
    show_verdict(console, verdict)


def show_verdict(console: Console, verdict: Verdict) -> None:
    if verdict.passed:
        saved = f", which saves {verdict.saved:.0%} of the tokens" if verdict.saved is not None else ""
        console.print(f"[bold green]The gate passed it to answer with {verdict.draws}{saved}.[/]")
    else:
        console.print("[bold red]The gate refused it.[/]")
    for reason in verdict.reasons:
        console.print(
            f"  [{'green' if reason.passed else 'red'}]{'✓' if reason.passed else '✗'}[/] {reason.text}",
            highlight=False,
        )


def show_version(console: Console, version: Version) -> None:
    console.print(f"[bold]{version.name}[/] is {version.state}", highlight=False)
    if version.verdict is not None:
        show(console, Evaluation.from_dict(version.evaluation), Verdict.from_dict(version.verdict))
