"""Results tables of the papers as values: every printed number, and what would answer it.

A table is registered by one of the `*_tables.py` beside this file. Its cells are the records of
`data/published_results.json` for that table; each has a run and a metric, an average over runs, a count of parameters,
or a reason why nothing here answers it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from audiation.averages import PAPER_AVERAGES
from audiation.backbones import BACKBONES
from audiation.published import PublishedScore, published_rows
from audiation.registry import Registry, UnknownNameError
from audiation.run import Run

# What stands in the way of a cell, whatever machine it is asked on.
NoAnswerKind = Literal["published by others", "weights never published"]


@dataclass(frozen=True)
class ByRun:
    """A run, and the first of its task's metrics that is printed under this name."""

    run: Run
    metric: str

    @property
    def backbone(self) -> str:
        return self.run.backbone

    @property
    def runs(self) -> tuple[Run, ...]:
        return (self.run,)


@dataclass(frozen=True)
class ByAverage:
    """The average of a paper (`averages.PAPER_AVERAGES`) over runs of one backbone."""

    average: str
    runs: tuple[Run, ...]

    @property
    def backbone(self) -> str:
        return self.runs[0].backbone


@dataclass(frozen=True)
class ByCount:
    """The number of parameters that a method trains: nothing is run."""

    backbone: str
    method: str
    runs: tuple[Run, ...] = ()


@dataclass(frozen=True)
class NoAnswer:
    """Nothing here can answer it, for `reason`."""

    kind: NoAnswerKind
    reason: str
    backbone: str = ""
    runs: tuple[Run, ...] = ()


Answer = ByRun | ByAverage | ByCount | NoAnswer


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    system, method, column: as printed; the column is "data set, metric" by their ids in the published results.
    published: the printed number; None in a figure whose values nobody printed.
    note: how our number differs in kind from the printed one; "" where nothing is known to differ.
    """

    system: str
    method: str
    column: str
    published: PublishedScore | None
    answer: Answer
    note: str = ""


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper.

    name: as in "jukemir/table3".
    protocol: what its runs follow, for people.
    make_cells: called when the cells are wanted, so that importing this costs nothing.
    remarks: what somebody who compares must know, one sentence or two each.
    """

    name: str
    title: str
    protocol: str
    make_cells: Callable[[], list[Cell]]
    remarks: tuple[str, ...] = ()

    def cells(self) -> list[Cell]:
        return self.make_cells()

    def runs(self) -> list[Run]:
        """Every run that a cell or an average needs, once; of backbones that are not in the zoo as well."""
        return runs_of(self.cells())


TABLES: Registry[PaperTable] = Registry("table", "audiation.recipes")


def runs_of(cells: Sequence[Cell]) -> list[Run]:
    """The runs behind cells, each once, in their order."""
    return list(dict.fromkeys(run for cell in cells for run in cell.answer.runs))


def select_cells(
    cells: Sequence[Cell],
    *,
    backbones: Sequence[str] = (),
    tasks: Sequence[str] = (),
    weights: Literal["random"] | None = None,
) -> list[Cell]:
    """The cells of some backbones and tasks; of all where none are named.

    A cell that nothing here answers belongs to no backbone, and an average to all of its tasks: it stays where all of
    them are named.

    Args:
        weights: "random" lets every backbone that has weights draw them, for a dry trial.

    Raises:
        ValueError: a name that no cell has; suggests the nearest.
    """
    _check_names("backbone", backbones, {cell.answer.backbone for cell in cells} - {""})
    _check_names("task", tasks, {run.task for cell in cells for run in cell.answer.runs})
    chosen = []
    for cell in cells:
        answer = cell.answer
        if backbones and answer.backbone not in backbones:
            continue
        if tasks and not (answer.runs and all(run.task in tasks for run in answer.runs)):
            continue
        chosen.append(cell if weights is None else replace(cell, answer=_with_random_weights(answer)))
    if not chosen:
        raise ValueError(
            f"no cell has both a backbone out of {', '.join(backbones)} and a task out of {', '.join(tasks)}"
        )
    return chosen


def _check_names(kind: str, names: Sequence[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise UnknownNameError(
                f"no cell of this table has the {kind} '{name}'.{hint} It has: {', '.join(sorted(known)) or 'none'}."
            )


def _with_random_weights(answer: Answer) -> Answer:
    if isinstance(answer, ByRun):
        return replace(answer, run=_randomised(answer.run))
    if isinstance(answer, ByAverage):
        return replace(answer, runs=tuple(_randomised(run) for run in answer.runs))
    return answer


def _randomised(run: Run) -> Run:
    """What is computed by a formula has no weights that could be drawn."""
    if run.backbone in BACKBONES and BACKBONES[run.backbone].from_published is None:
        return run
    return replace(run, weights="random")


# Building tables -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A printed column. task, dataset, metric: ids in the published results."""

    task: str
    dataset: str
    metric: str

    @property
    def title(self) -> str:
        return f"{self.dataset}, {self.metric}"


AVERAGE = Column("average", "all", "average")
_OTHERS = NoAnswer("published by others", "a number that the paper takes from other papers")


def printed_rows(paper: str, table: str, columns: Sequence[Column]) -> list[PublishedScore]:
    """Everything that a table prints in these columns, row by row as in print.

    table: as in the published results, "Table 3".
    """
    rows = [
        row
        for column in columns
        for row in published_rows(column.task, column.dataset, column.metric)
        if (row.paper, row.table) == (paper, table)
    ]
    systems = list(dict.fromkeys((row.system, row.method) for row in rows))
    return sorted(rows, key=lambda row: systems.index((row.system, row.method)))


def cell_of(row: PublishedScore, answer: Answer, note: str = "") -> Cell:
    return Cell(row.system, row.method, Column(row.task, row.dataset, row.metric).title, row, answer, note)


def by_others(row: PublishedScore) -> Cell:
    """A number that the paper itself took from somewhere."""
    return cell_of(row, _OTHERS)


def never_published(row: PublishedScore, why: str) -> Cell:
    """A system whose weights nobody can get."""
    return cell_of(row, NoAnswer("weights never published", why))


def average_tasks(average: str, tasks: Mapping[tuple[str, str], str]) -> list[str]:
    """Our tasks in the average of a paper. tasks: (task, dataset) ids in the published results -> our task."""
    return [tasks[one.task, one.dataset] for one in PAPER_AVERAGES[average]]
