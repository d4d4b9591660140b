"""Run what can be run of a paper's table, and put every number beside the printed one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from audiation.averages import paper_average
from audiation.bootstrap import Interval
from audiation.parameters import CountRow, count_parameters
from audiation.recipes.base import carry_out_runs
from audiation.recipes.figures import write_csv, write_json
from audiation.recipes.table_plan import Plan, fetch_weights, result_name
from audiation.recipes.tables import ByAverage, ByCount, ByRun, Cell, NoAnswer, PaperTable
from audiation.results import Result
from audiation.run import Run
from audiation.tasks import TASKS


@dataclass(frozen=True)
class CellOutcome:
    """What came out for one cell.

    ours: a fraction, dB or a count, as `cell.published.value`; None for `reason`.
    interval: of ours; None for averages, counts and single tracks.
    results: behind ours.
    marks: what keeps ours from being what the table asks, in words: a part of the tracks, random weights, and so on.
    """

    cell: Cell
    ours: float | None
    reason: str = ""
    interval: Interval | None = None
    results: tuple[Result, ...] = ()
    marks: tuple[str, ...] = ()

    @property
    def is_asked(self) -> bool:
        """Whether a number of ours is wanted: not for what the paper took from others."""
        return not (isinstance(self.cell.answer, NoAnswer) and self.cell.answer.kind == "published by others")

    @property
    def difference(self) -> float | None:
        """Ours - published."""
        published = self.cell.published
        return None if self.ours is None or published is None else self.ours - published.value

    @property
    def published_inside(self) -> bool | None:
        """Whether the printed number lies in our interval; None where one of them is not there."""
        if self.interval is None or self.cell.published is None:
            return None
        return self.interval.low <= self.cell.published.value <= self.interval.high


@dataclass(frozen=True)
class Reproduction:
    """plan: as it was carried out; weights that could not be fetched are among its obstacles."""

    table: PaperTable
    plan: Plan
    outcomes: tuple[CellOutcome, ...]

    @property
    def asked(self) -> list[CellOutcome]:
        return [outcome for outcome in self.outcomes if outcome.is_asked]

    @property
    def is_complete(self) -> bool:
        """Whether everything that was asked has a number."""
        return all(outcome.ours is not None for outcome in self.asked)

    @property
    def results(self) -> list[Result]:
        """Every result behind a number, once."""
        return list({id(r): r for outcome in self.outcomes for r in outcome.results}.values())


def carry_out_table(
    table: PaperTable,
    cells: Sequence[Cell],
    plan: Plan,
    out: Path,
    *,
    device: str,
    console: Console,
    data_root: Path | None = None,
    metadata_root: Path | None = None,
) -> Reproduction:
    """Fetch weights, carry out the possible runs one after another, and compare.

    Results lie in `out/results`, which all tables share: a run that another table, or an earlier call, has done with
    these versions is not repeated, and one that was stopped goes on.

    Args:
        cells: of `tables.select_cells`; plan: of their runs.
    """
    plan = fetch_weights(plan)
    carried = carry_out_runs(
        plan.possible, out / "results", device, console, data_root=data_root, metadata_root=metadata_root
    )
    reasons = {
        planned.run: "; ".join(f"{o.kind}: {o.what}" for o in planned.obstacles)
        for planned in plan.runs
        if planned.obstacles
    }
    reasons |= {failed.run: failed.reason for failed in carried.failed}
    counts = _count(cells)
    outcomes = tuple(_outcome(cell, carried.results, reasons, counts) for cell in cells)
    return Reproduction(table, plan, outcomes)


def write_reproduction(reproduction: Reproduction, out: Path) -> list[Path]:
    """`out/jukemir-table3.csv`, a row per cell, and `.json`, with hardware and code as well."""
    name = reproduction.table.name.replace("/", "-")
    rows = [_csv_row(outcome) for outcome in reproduction.outcomes]
    record = {
        "table": reproduction.table.name,
        "title": reproduction.table.title,
        "protocol": reproduction.table.protocol,
        "remarks": list(reproduction.table.remarks),
        "cells": [dict(zip(CSV_HEADER, row, strict=True)) for row in rows],
        "missing": [
            {"kind": o.kind, "what": o.what, "reason": o.reason, "runs": [asdict(run) for run in runs]}
            for o, runs in reproduction.plan.runs_behind.items()
        ],
        "made_with": [
            {"hardware": made.hardware, "code": made.code, "runs": made.num_runs}
            for made in made_with(reproduction.results)
        ],
    }
    return [write_csv(out / f"{name}.csv", CSV_HEADER, rows), write_json(out / f"{name}.json", record)]


@dataclass(frozen=True)
class MadeWith:
    """hardware, code: as in results. num_runs: that were made with both."""

    hardware: dict[str, Any]
    code: dict[str, str]
    num_runs: int


def made_with(results: Sequence[Result]) -> list[MadeWith]:
    """The different machines and codes behind results: a folder may hold those of several."""
    found: list[MadeWith] = []
    for result in results:
        same = next(
            (i for i, m in enumerate(found) if (m.hardware, m.code) == (result.hardware, result.code)), None
        )
        if same is None:
            found.append(MadeWith(result.hardware, result.code, 1))
        else:
            found[same] = MadeWith(result.hardware, result.code, found[same].num_runs + 1)
    return found


# Cells -------------------------------------------------------------------------------------------------------


def _outcome(
    cell: Cell,
    results: Mapping[Run, Result],
    reasons: Mapping[Run, str],
    counts: Mapping[tuple[str, str], CountRow],
) -> CellOutcome:
    answer = cell.answer
    if isinstance(answer, NoAnswer):
        return CellOutcome(cell, None, f"{answer.kind}: {answer.reason}")
    if isinstance(answer, ByCount):
        return _counted(cell, counts[answer.backbone, answer.method])
    missing = [run for run in answer.runs if run not in results]
    if isinstance(answer, ByRun):
        if missing:
            return CellOutcome(cell, None, reasons[answer.run])
        return _measured(cell, results[answer.run], answer.metric)
    if missing:
        tasks = ", ".join(run.task for run in missing)
        return CellOutcome(cell, None, f"{len(missing)} of {len(answer.runs)} runs have no result: {tasks}")
    return _averaged(cell, [results[run] for run in answer.runs], answer)


def _measured(cell: Cell, result: Result, printed_metric: str) -> CellOutcome:
    names = [m.name for m in TASKS[result.run["task"]].metrics if m.printed_name == printed_metric]
    metric = next((name for name in names if name in result.scores), None)
    if metric is None:
        why = result.run.get("not_defined", {})
        reason = next((why[name] for name in names if name in why), f"the result has no {printed_metric}")
        return CellOutcome(cell, None, reason)
    return CellOutcome(
        cell, result.scores[metric], "", result.intervals[metric], (result,), tuple(_marks(result))
    )


def _averaged(cell: Cell, results: list[Result], answer: ByAverage) -> CellOutcome:
    found = paper_average(results, answer.average)
    if found.value is None:
        return CellOutcome(cell, None, f"no score for the average in: {', '.join(found.missing)}")
    marks = list(dict.fromkeys(mark for result in results for mark in _marks(result) if "tracks" not in mark))
    if found.partial:
        marks.append(f"partial: {', '.join(found.partial)}")
    if found.other_rules:
        marks.append(f"other rules: {', '.join(found.other_rules)}")
    return CellOutcome(cell, found.value / 100, "", None, tuple(results), tuple(marks))


def _marks(result: Result) -> list[str]:
    marks = []
    if result.coverage < 1:
        marks.append(f"partial: {result.num_test_tracks} of {result.num_official_test_tracks} tracks")
    if result.run.get("weights") == "random" and not result.run["protocol"] == "scratch":
        marks.append("random weights, a dry trial")
    if "beyond_wall_hours" in result.run:
        marks.append(f"* took more than {result.run['beyond_wall_hours']:g} hours")
    return marks + [f"departs from its protocol: {departure}" for departure in result.departures]


def _count(cells: Sequence[Cell]) -> dict[tuple[str, str], CountRow]:
    """(backbone, method) -> count, of what cells ask."""
    backbones = dict.fromkeys(c.answer.backbone for c in cells if isinstance(c.answer, ByCount))
    counts = {}
    for row in count_parameters(list(backbones)) if backbones else []:
        counts[row.backbone, row.method.partition(":")[0]] = row
    return counts


def _counted(cell: Cell, row: CountRow) -> CellOutcome:
    # Full fine-tuning is printed in millions, so equal counts differ there.
    agrees = {True: "agrees as printed", False: "does not agree", None: "not compared"}[row.agrees]
    return CellOutcome(cell, float(row.count.published_layout), marks=(agrees,))


CSV_HEADER = (
    "system", "method", "column", "ours", "low", "high", "published", "difference", "published_inside_interval",
    "answered_by", "backbone", "task", "protocol", "tracks", "official_tracks", "split_hash", "lock_sha256", "results",
    "marks", "published_note", "note", "reason",
)  # fmt: skip


def _csv_row(outcome: CellOutcome) -> list[object]:
    cell, answer, results = outcome.cell, outcome.cell.answer, outcome.results
    low, high = outcome.interval or (None, None)
    kind = {ByRun: "run", ByAverage: "average", ByCount: "count", NoAnswer: "nothing"}[type(answer)]
    one = results[0] if len(results) == 1 else None
    locks = dict.fromkeys(r.code.get("lock_sha256", r.code.get("lock", "")) for r in results)
    return [
        cell.system, cell.method, cell.column, outcome.ours, low, high,
        None if cell.published is None else cell.published.value, outcome.difference,
        {None: None, True: "yes", False: "no"}[outcome.published_inside], kind,
        None if isinstance(answer, NoAnswer) else answer.backbone,
        "+".join(run.task for run in answer.runs), "+".join(dict.fromkeys(run.protocol for run in answer.runs)),
        one.num_test_tracks if one else None, one.num_official_test_tracks if one else None,
        one.split_hash if one else None, "+".join(locks),
        "+".join(f"results/{result_name(run)}" for run in answer.runs) if results else "",
        "; ".join(outcome.marks), "" if cell.published is None else cell.published.note, cell.note, outcome.reason,
    ]  # fmt: skip
