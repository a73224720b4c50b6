"""The progress bar of the commands that work on the database and the registry."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""A function that makes a progress bar from its title and the total; the block gets a function that sets how much is
done."""


@contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a progress bar on standard error until the block ends.

    The block gets a function that sets how much is done.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done)
