"""Progress bars of all commands, on standard error."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""A function that makes a progress bar from its title and the total; the block gets a function that sets how much is
done."""


class Task:
    """One bar. A call sets how much is done, with a note beside the bar."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def __call__(self, done: int, note: str = "") -> None:
        self._progress.update(self._task, completed=done, note=note)

    def advance(self, steps: int) -> None:
        """Adds `steps` to what is done."""
        self._progress.advance(self._task, steps)


class Bars:
    """Shows several tasks below each other while the block runs."""

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
    def task(self, title: str, total: int, *, done: int = 0, transient: bool = False) -> Iterator[Task]:
        """Adds a task. A transient one leaves no bar behind."""
        task = self._progress.add_task(title, total=total, completed=done, note="")
        try:
            yield Task(self._progress, task)
        finally:
            if transient:
                self._progress.remove_task(task)


@contextmanager
def bar(title: str, total: int, *, done: int = 0, show: bool = True, transient: bool = True) -> Iterator[Task]:
    """Shows a single task until the block ends."""
    with Bars(show=show) as bars, bars.task(title, total, done=done, transient=transient) as task:
        yield task
