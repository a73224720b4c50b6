"""`python -m experiments [--quick] [--out DIR] [--only NAME]`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from bonbon.errors import UserError
from experiments import rounds
from experiments.cells import compute_missing
from experiments.readme_table import write_readme_table
from experiments.results import EXPERIMENTS, read, write

ROOT = Path(__file__).parents[1]
QUICK_OUT = ROOT / "build" / "experiments"


def main(
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Run small versions, which show that the experiments work but give no valid figures."
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Directory of data, page and pictures; by default the repository.")
    ] = None,
    only: Annotated[str | None, typer.Option(help=f"Run only this experiment: {', '.join(EXPERIMENTS)}.")] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Number of processes that run concurrently, with one thread each.")
    ] = 2,
) -> None:
    """Compute the missing figures of the experiments, then write the results page, its pictures and the README's table.

    Each cell's file is written when it is done, so an interrupted run continues where it stopped.
    """
    if only is not None and only not in EXPERIMENTS:
        raise UserError(f"--only {only}: there is no such experiment; there are {', '.join(EXPERIMENTS)}", param="only")
    if out is None and quick:
        out = QUICK_OUT
    data, docs = (ROOT / "experiments" / "data", ROOT / "docs") if out is None else (out / "data", out)
    modules = [module for name, (module, _) in EXPERIMENTS.items() if only in (None, name)]
    compute_missing([cell for module in modules for cell in module.cells(quick)], data, processes=processes)
    write(data, docs / "results.md", docs / "pictures", quick=quick)
    if out is None:
        write_readme_table(read(data, quick=quick).rows[rounds.NAME], ROOT / "README.md")
    typer.echo(f"results: {docs / 'results.md'}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        sys.exit(f"error: {error}")
