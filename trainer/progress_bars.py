"""Progress bars with a common style."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def bar(title: str, total: int, *, show: bool = True) -> Iterator[Callable[[int], None]]:
    """Shows a progress bar on standard error and yields the function that advances it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, *times, console=Console(stderr=True), disable=not show) as progress:
        task = progress.add_task(title, total=total)
        yield lambda steps: progress.advance(task, steps)


class Advance(Protocol):
    """Sets a task to `done`, with a note beside its bar."""

    def __call__(self, done: int, note: str = "") -> None: ...


class Bars:
    """Shows several tasks below each other, on standard error, while the block runs."""

    def __init__(self, *, show: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
        self._progress = Progress(*columns, *times, console=Console(stderr=True), disable=not show)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    @contextmanager
    def task(self, title: str, total: int, *, done: int = 0, transient: bool = False) -> Iterator[Advance]:
        """Adds a task. A transient one leaves no bar behind."""
        task = self._progress.add_task(title, total=total, completed=done, note="")
        yield lambda done, note="": self._progress.update(task, completed=done, note=note)
        if transient:
            self._progress.remove_task(task)
