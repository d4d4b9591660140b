"""Rows of a table about pre-training against each other: probed, and compared beside the printed differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from audiation.published import published_rows
from audiation.ranking import Comparison, compare
from audiation.recipes.base import carry_out_runs
from audiation.recipes.figures import write_csv
from audiation.recipes.pretrain_budget import TrainedRows
from audiation.recipes.pretrain_differences import Contrast, RowPair, pair_of
from audiation.recipes.pretrain_rows import PretrainRow, loads_as
from audiation.recipes.tables import Column
from audiation.results import Result
from audiation.run import Run

SEVERAL = "(several factors)"


@dataclass(frozen=True)
class Question:
    """A task that the trained backbones are probed on, and the column of the paper that is nearest to it, if any.

    train: choices that depart from the protocol, as in `Run`.
    """

    task: str
    protocol: str
    printed: Column | None = None
    train: str = ""


@dataclass(frozen=True)
class ContrastCell:
    """A contrast on one question.

    ours: None where a result is missing.
    printed: difference of the printed numbers in the column that is named; None where the paper has none.
    """

    pair: RowPair
    task: str
    metric: str
    ours: Comparison | None
    column: str
    printed: float | None

    def csv_row(self) -> list[object]:
        ours: list[object] = [None] * 6
        if self.ours is not None:
            interval = self.ours.interval
            span = (interval.low, interval.high) if interval is not None else (None, None)
            ours = [self.ours.score_a, self.ours.score_b, self.ours.difference, *span, self.ours.verdict]
        contrast = self.pair.contrast
        factors = "one" if self.pair.is_single_factor else "several"
        return [
            contrast.what,
            contrast.a,
            contrast.b,
            factors,
            self.pair.text,
            self.task,
            self.metric,
            *ours,
            self.column,
            self.printed,
        ]


CSV_HEADER = (
    "contrast", "a", "b", "factors", "differs_in", "task", "metric", "score_a", "score_b", "difference", "low", "high",
    "verdict", "printed_column", "printed_difference",
)  # fmt: skip


@dataclass(frozen=True)
class PrintedTable:
    """The table of a paper as in the published results. method: of the rows that stand for pre-training."""

    paper: str
    table: str
    method: str
    columns: tuple[Column, ...]

    def value(self, system: str, column: Column) -> float | None:
        found = (
            row
            for row in published_rows(column.task, column.dataset, column.metric)
            if (row.paper, row.table, row.method) == (self.paper, self.table, self.method)
            and row.system == system
        )
        return next((row.value for row in found), None)

    def difference(self, a: PretrainRow, b: PretrainRow, column: Column) -> float | None:
        """Of what is printed; None where one of the two has no number."""
        first, second = self.value(a.printed_as, column), self.value(b.printed_as, column)
        return None if first is None or second is None else first - second


@dataclass(frozen=True)
class Probed:
    """results: by row and task. failed: (row, task) -> why there is none."""

    results: Mapping[tuple[str, str], Result]
    failed: Mapping[tuple[str, str], str]


def probe_rows(
    trained: TrainedRows,
    questions: Sequence[Question],
    out: Path,
    device: str,
    console: Console,
    data_root: Path | None = None,
) -> Probed:
    """Probe what was trained, on every question; results are kept in `OUT/results`."""
    runs = {
        (name, question.task): Run(
            loads_as(one.row.run), question.task, "probe", question.protocol,
            weights=str(one.report.backbone_dir), train=question.train,
        )
        for name, one in trained.trained.items() if one.row.run is not None
        for question in questions
    }  # fmt: skip
    carried = carry_out_runs(list(runs.values()), out / "results", device, console, data_root=data_root)
    reasons = {failed.run: failed.reason for failed in carried.failed}
    return Probed(
        {place: carried.results[run] for place, run in runs.items() if run in carried.results},
        {place: reasons[run] for place, run in runs.items() if run in reasons},
    )


def contrast_cells(
    contrasts: Sequence[Contrast],
    rows: Sequence[PretrainRow],
    questions: Sequence[Question],
    printed: PrintedTable,
    trained: TrainedRows,
    probed: Probed,
) -> list[ContrastCell]:
    """Every contrast on every question; without a number of ours where one of its rows has no result."""
    by_name = {row.name: row for row in rows}
    cells = []
    for contrast in contrasts:
        both = [trained.trained[name].row for name in (contrast.a, contrast.b) if name in trained.trained]
        if len(both) == 2:  # with the steps that they were trained for
            pair = pair_of(contrast, both[0], both[1], equal_minutes=True)
        else:
            pair = pair_of(contrast, by_name[contrast.a], by_name[contrast.b], equal_minutes=True)
        for question in questions:
            a, b = (probed.results.get((name, question.task)) for name in (contrast.a, contrast.b))
            ours = compare(a, b) if a is not None and b is not None else None
            column, metric = question.printed, ours.metric if ours is not None else ""
            difference, title = None, ""
            if column is not None:
                difference = printed.difference(by_name[contrast.a], by_name[contrast.b], column)
                title = column.title
            cells.append(ContrastCell(pair, question.task, metric, ours, title, difference))
    return cells


def printed_cells(
    contrasts: Sequence[Contrast], rows: Sequence[PretrainRow], printed: PrintedTable
) -> list[ContrastCell]:
    """The contrasts as the paper has them, in all of its columns."""
    by_name = {row.name: row for row in rows}
    return [
        ContrastCell(
            pair_of(contrast, by_name[contrast.a], by_name[contrast.b]), "", column.metric, None, column.title,
            printed.difference(by_name[contrast.a], by_name[contrast.b], column),
        )
        for contrast in contrasts
        for column in printed.columns
    ]  # fmt: skip


def write_contrasts(cells: Sequence[ContrastCell], out: Path) -> Path:
    return write_csv(out / "contrasts.csv", CSV_HEADER, [cell.csv_row() for cell in cells])


def render_scores(probed: Probed) -> Table:
    """What every trained row scores in the first metric of a task, with its interval."""
    table = Table(title="Scores, 95 % interval", title_justify="left", box=box.HORIZONTALS)
    table.add_column("row")
    places = [*probed.results, *probed.failed]
    tasks = list(dict.fromkeys(task for _, task in places))
    for task in tasks:
        metrics = dict.fromkeys(_first_metric(r) for (_, t), r in probed.results.items() if t == task)
        table.add_column("\n".join([task, *metrics]), justify="right")
    for name in dict.fromkeys(row for row, _ in places):
        found = (probed.results.get((name, task)) for task in tasks)
        table.add_row(name, *("-" if result is None else _score_text(result) for result in found))
    return table


def render_contrasts(title: str, cells: Sequence[ContrastCell]) -> Table:
    """A row per contrast; in a cell our difference with its interval, and in brackets the paper's."""
    table = Table(title=title, title_justify="left", box=box.HORIZONTALS)
    table.add_column("contrast", overflow="fold")
    columns = list(dict.fromkeys((cell.task, cell.column) for cell in cells))
    for task, column in columns:
        title = "\n".join(filter(None, (task, f"({column})" if column else "")))
        table.add_column(title, justify="right", overflow="fold")
    by_place = {(cell.pair.contrast, cell.task, cell.column): cell for cell in cells}
    for pair in pairs_of(cells):
        contrast = pair.contrast
        texts = [_cell_text(by_place[contrast, task, column]) for task, column in columns]
        mark = "" if pair.is_single_factor else f" {SEVERAL}"
        table.add_row(f"{contrast.what}{mark}\n{contrast.a} minus {contrast.b}", *texts)
    return table


def pairs_of(cells: Sequence[ContrastCell]) -> list[RowPair]:
    """The contrasts of the cells, each once."""
    return list({cell.pair.contrast: cell.pair for cell in cells}.values())


def _first_metric(result: Result) -> str:
    return next(iter(result.scores))


def _score_text(result: Result) -> str:
    metric = _first_metric(result)
    interval = result.intervals.get(metric)
    span = "" if interval is None else f"\n{interval[0]:.3f} to {interval[1]:.3f}"
    return f"{result.scores[metric]:.3f}{span}"


def _cell_text(cell: ContrastCell) -> str:
    lines = []
    if cell.ours is not None:
        mark = "" if cell.ours.verdict == "cannot be told apart" else "*"
        lines.append(f"{cell.ours.difference:+.3f}{mark}")
        if (interval := cell.ours.interval) is not None:
            lines.append(f"{interval.low:+.3f} to {interval.high:+.3f}")
    elif cell.task:
        lines.append("-")
    if cell.printed is not None:
        lines.append(f"({cell.printed:+.3f})")
    return "\n".join(lines) or "-"
