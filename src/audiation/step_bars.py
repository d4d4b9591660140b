"""A progress bar for each step of a command, one below the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class StepBars:
    """Moves the bars; made by `step_bars`."""

    def __init__(self, bars: Progress) -> None:
        self._bars, self._rows = bars, dict[str, TaskID]()

    def show(self, what: str, done: int, total: int, detail: str = "") -> None:
        """Step `what` is so far; its bar appears when it is first heard of. detail: text behind the bar."""
        if what not in self._rows:
            self._rows[what] = self._bars.add_task(what, total=total, detail="")
        self._bars.update(self._rows[what], completed=done, total=total, detail=detail)


@contextmanager
def step_bars(console: Console) -> Iterator[StepBars]:
    """The bars of one command; they stay on the screen when it is done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        yield StepBars(bars)
