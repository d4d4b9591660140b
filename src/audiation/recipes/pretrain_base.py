"""What recipes of pre-training share: rows of a table as runs, training within a budget, and contrasts with intervals.

A row is trained, its backbone is probed, and pairs of rows are compared on the tracks that both answered, beside the
difference that the paper prints. Everything is kept and goes on where it stopped: steps are counted out once, from
measured steps, and recorded.

    OUT/ROW/budget.json      minutes, measured seconds per step, and the steps that follow
    OUT/ROW/run/             of `pretraining.pretrain`
    OUT/results/             a result per row and task
    OUT/contrasts.csv        every contrast, ours and the paper's
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from audiation.backbones import BACKBONES, Backbone
from audiation.backbones.architecture import BuiltBackbone, is_architecture, outline, parse_architecture
from audiation.cache import write_text
from audiation.console import new_progress
from audiation.objectives import parse_objective
from audiation.pretrain_run import PretrainRun
from audiation.published import PublishedScore, published_rows
from audiation.ranking import Comparison, compare
from audiation.recipes.base import carry_out_runs
from audiation.recipes.figures import write_csv
from audiation.recipes.tables import Column
from audiation.run import Run
from audiation.training import TrainingProgress

if TYPE_CHECKING:
    from audiation.pretraining import PretrainReport

TRIAL_STEPS = 8  # that are timed
WARMUP_SHARE = 0.05  # of the steps of a small run
PROVES_NOTHING = (
    "These are small models, trained for minutes on little music. What differs between them proves nothing about the "
    "sizes of the paper."
)


@dataclass(frozen=True)
class PretrainRow:
    """A row of a table.

    name: as in the paper, or short for it.
    run: None where nothing is trained here, for the reason in `note`.
    printed_as: the system in the published results.
    note: what of the row is our choice or reading.
    corpus: which of the recipe's corpora it is trained on.
    features_of: name of the row whose layers its teacher clusters; "": none.
    share_of_minutes: of the budget that each row has.
    """

    name: str
    run: PretrainRun | None
    printed_as: str
    note: str = ""
    corpus: str = ""
    features_of: str = ""
    share_of_minutes: float = 1.0


@dataclass(frozen=True)
class Contrast:
    """Row `a` minus row `b`, which differ in `what`."""

    what: str
    a: str
    b: str


@dataclass(frozen=True)
class Budget:
    """minutes: that were asked for. step_seconds: measured over a few steps. steps: as many as fit."""

    minutes: float
    step_seconds: float
    steps: int


@dataclass(frozen=True)
class Trained:
    """A row that was trained, and what it cost."""

    row: PretrainRow
    budget: Budget
    report: PretrainReport


@dataclass(frozen=True)
class TrainedRows:
    """trained, failed: by name of the row; a row that is not trained has a reason."""

    trained: Mapping[str, Trained]
    failed: Mapping[str, str]


# Rows as values ----------------------------------------------------------------------------------------------


def backbone_outline(run: PretrainRun) -> Backbone:
    """The backbone of a run with shapes only."""
    if run.backbone not in BACKBONES:
        return outline(parse_architecture(run.backbone))
    make = BACKBONES[run.backbone].outline
    assert make is not None
    return make()


def small_run(
    run: PretrainRun, backbone: str, batch_seconds: float, objective: str | None = None
) -> PretrainRun:
    """The run at a size for a CPU: another backbone, float32, and batches of `batch_seconds` of audio.

    So rows with crops of another length hear as much in a step. Learning rate 5e-4, gradients clipped at 1. Steps are
    set by `train_rows`.
    """
    batch_size = max(1, round(batch_seconds / run.crop_seconds))
    train = replace(
        run.train,
        steps=TRIAL_STEPS,
        warmup_steps=0,
        batch_size=batch_size,
        micro_batch_size=None,
        learning_rate=5e-4,
        min_learning_rate=5e-6 if run.train.schedule == "tri-stage" else 0.0,
        clip_norm=1.0,
        precision="fp32",
    )
    return replace(run, backbone=backbone, objective=objective or run.objective, train=train)


def render_rows(title: str, rows: Sequence[PretrainRow]) -> Table:
    """What is trained, with the sizes that follow."""
    table = Table(title=title, title_justify="left", box=box.HORIZONTALS)
    columns = (
        "row",
        "encoder",
        "L x D",
        "parameters",
        "Hz",
        "mel hop x stacked",
        "crop",
        "steps x batch",
        "objective",
    )
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in columns[2:8] else "left")
    for row in rows:
        if row.run is None:
            table.add_row(row.name, f"not trained: {row.note}")
            continue
        backbone, run = backbone_outline(row.run), row.run
        stacking = "-"
        if isinstance(backbone, BuiltBackbone) and backbone.architecture.stem == "mel":
            stacking = f"{backbone.architecture.mel_hop_samples} x {backbone.architecture.stacked_frames}"
        table.add_row(
            row.name,
            run.backbone.partition(":")[0],
            f"{backbone.num_layers} x {backbone.dim:,}",
            f"{sum(p.numel() for p in backbone.parameters()):,}",
            f"{backbone.frame_rate_hz:g}",
            stacking,
            f"{run.crop_seconds:g} s",
            f"{run.train.steps:,} x {run.train.batch_size:,}",
            run.objective,
        )
    return table


def write_runs(rows: Sequence[PretrainRow], out: Path) -> Path:
    """`OUT/runs/ROW.json` of every row that is trained, as `PretrainRun.from_json` reads it."""
    folder = out / "runs"
    for row in rows:
        if row.run is not None:
            write_text(folder / f"{file_name(row.name)}.json", row.run.to_json() + "\n")
    return folder


def file_name(row: str) -> str:
    """The name of a row as that of a file: letters, digits and hyphens."""
    return "-".join("".join(c if c.isalnum() else " " for c in row).split())


# Training ----------------------------------------------------------------------------------------------------


def train_rows(
    rows: Sequence[PretrainRow],
    corpora: Mapping[str, str],
    out: Path,
    minutes_each: float,
    device: str,
    console: Console,
) -> TrainedRows:
    """Train rows one after another, each for as many steps as fit into the minutes, without measuring twice.

    A row that cannot be trained (a corpus that is not there, targets that are missing) is reported with its reason, and
    the others go on. Missing targets of k-means teachers are computed.

    Args:
        corpora: name of a corpus, as in `PretrainRow.corpus` -> its folder; "": there is none.
    """
    from audiation.pretraining import pretrain  # late, so that listing recipes does not load it

    trained: dict[str, Trained] = {}
    failed: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        if row.run is None:
            failed[row.name] = f"not trained here: {row.note}"
            continue
        console.print(f"row {number} of {len(rows)}: {row.name}", highlight=False)
        try:
            corpus = corpora[row.corpus]
            if not corpus:
                raise ValueError(f"no corpus was given for it ({row.corpus or 'corpus'}=FOLDER)")
            folder = out / file_name(row.name)
            _make_targets(row, corpus, trained, device, console)
            minutes = minutes_each * row.share_of_minutes
            budget = _budget(row.run, corpus, folder, minutes, device)
            run = with_steps(row.run, budget.steps)
            with new_progress(console) as bar:
                task = bar.add_task(row.name, total=budget.steps, detail="")

                def show(p: TrainingProgress, bar=bar, task=task) -> None:
                    detail = (
                        f"step {p.step:,} of {p.steps:,}, loss {p.loss:.3f}, {p.seconds_left:,.0f} s left"
                    )
                    bar.update(task, completed=p.step, detail=detail)

                report = pretrain(run, corpus, folder / "run", device=device, progress=show)
        except (ValueError, KeyError, OSError, torch.OutOfMemoryError) as error:
            failed[row.name] = str(error)
            console.print(f"  not trained: {error}", markup=False, style="red", soft_wrap=True)
            continue
        trained[row.name] = Trained(row, budget, report)
    return TrainedRows(trained, failed)


def with_steps(run: PretrainRun, steps: int) -> PretrainRun:
    """The run with so many steps; the warm-up is a share of them."""
    warmup_steps = min(math.ceil(WARMUP_SHARE * steps), steps - 1)
    return replace(run, train=replace(run.train, steps=steps, warmup_steps=warmup_steps))


def _budget(run: PretrainRun, corpus: str, folder: Path, minutes: float, device: str) -> Budget:
    """As many steps as fit. Measured once, so that a run that is started again has the steps that it began with."""
    from audiation.pretraining import pretrain

    path = folder / "budget.json"
    if path.is_file():
        try:
            held = Budget(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is no budget ({error}). Delete {folder} to begin anew.") from error
        if held.minutes != minutes:
            raise ValueError(
                f"{folder} was begun with {held.minutes:g} minutes, and {minutes:g} are asked for. Delete it to begin "
                "anew, or take another --out."
            )
        return held
    trial = replace(run, train=replace(run.train, steps=TRIAL_STEPS, warmup_steps=0))
    report = pretrain(trial, corpus, folder / "timing", device=device)
    step_seconds = report.seconds / report.steps
    budget = Budget(minutes, step_seconds, max(2, int(60 * minutes / step_seconds)))
    write_text(path, json.dumps(asdict(budget), indent=1) + "\n")
    shutil.rmtree(folder / "timing", ignore_errors=True)
    return budget


def _make_targets(
    row: PretrainRow, corpus_dir: str, trained: Mapping[str, Trained], device: str, console: Console
) -> None:
    """Compute the codes of k-means teachers that the corpus lacks, or has none of for some recordings yet."""
    from audiation.corpus import Corpus
    from audiation.teachers.base import TEACHERS, parse_teacher
    from audiation.teachers.targets import compute_targets, open_teacher

    assert row.run is not None
    names = parse_objective(row.run.objective).targets
    if not names:
        return
    corpus = Corpus(corpus_dir)
    for name in names:
        if TEACHERS[parse_teacher(name).kind].features is None:
            if name not in corpus.targets:
                raise ValueError(
                    f"corpus '{corpus.name}' has no targets '{name}'. Make them with `audiation corpus targets "
                    f"{corpus_dir} --teacher {name}`."
                )
            continue
        backbone = weights = None
        if row.features_of:
            if row.features_of not in trained:
                raise ValueError(f"its teacher clusters layers of '{row.features_of}', which is not trained")
            source = trained[row.features_of]
            assert source.row.run is not None
            backbone, weights = loads_as(source.row.run), str(source.report.backbone_dir)
        console.print(f"  targets {name}", highlight=False)
        compute_targets(corpus, name, open_teacher(name, corpus, backbone, weights, device))


def loads_as(run: PretrainRun) -> str:
    """The name under which `load_backbone` takes what a run has trained."""
    return run.backbone.partition(":")[0] if is_architecture(run.backbone) else run.backbone


# Judging -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """A task that the trained backbones are probed on, and the column of the paper that is nearest to it, if any."""

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

    contrast: Contrast
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
        contrast = self.contrast
        return [
            contrast.what,
            contrast.a,
            contrast.b,
            self.task,
            self.metric,
            *ours,
            self.column,
            self.printed,
        ]


CSV_HEADER = (
    "contrast", "a", "b", "task", "metric", "score_a", "score_b", "difference", "low", "high", "verdict",
    "printed_column", "printed_difference",
)  # fmt: skip


@dataclass(frozen=True)
class PrintedTable:
    """The table of a paper as in the published results. method: of the rows that stand for pre-training."""

    paper: str
    table: str
    method: str
    columns: tuple[Column, ...]

    def value(self, system: str, column: Column) -> float | None:
        found: Iterator[PublishedScore] = (
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


def judge_rows(
    trained: TrainedRows,
    questions: Sequence[Question],
    contrasts: Sequence[Contrast],
    printed: PrintedTable,
    rows: Sequence[PretrainRow],
    out: Path,
    device: str,
    console: Console,
    data_root: Path | None = None,
) -> list[ContrastCell]:
    """Probe what was trained and compare it. Contrasts whose rows have no result are there without a number of ours."""
    runs = {
        (name, question.task): Run(
            loads_as(one.row.run), question.task, "probe", question.protocol,
            weights=str(one.report.backbone_dir), train=question.train,
        )
        for name, one in trained.trained.items() if one.row.run is not None
        for question in questions
    }  # fmt: skip
    results = carry_out_runs(
        list(runs.values()), out / "results", device, console, data_root=data_root
    ).results
    by_name = {row.name: row for row in rows}
    cells = []
    for contrast in contrasts:
        for question in questions:
            a, b = (results.get(runs[name, question.task]) if (name, question.task) in runs else None
                    for name in (contrast.a, contrast.b))  # fmt: skip
            ours = compare(a, b) if a is not None and b is not None else None
            column, difference = question.printed, None
            if column is not None:
                difference = printed.difference(by_name[contrast.a], by_name[contrast.b], column)
            cells.append(
                ContrastCell(
                    contrast,
                    question.task,
                    ours.metric if ours is not None else "",
                    ours,
                    column.title if column is not None else "",
                    difference,
                )
            )
    return cells


def printed_cells(
    contrasts: Sequence[Contrast], printed: PrintedTable, rows: Sequence[PretrainRow]
) -> list[ContrastCell]:
    """The contrasts as the paper has them, in all of its columns."""
    by_name = {row.name: row for row in rows}
    return [
        ContrastCell(
            contrast, "", column.metric, None, column.title,
            printed.difference(by_name[contrast.a], by_name[contrast.b], column),
        )
        for contrast in contrasts
        for column in printed.columns
    ]  # fmt: skip


def write_contrasts(cells: Sequence[ContrastCell], out: Path) -> Path:
    return write_csv(out / "contrasts.csv", CSV_HEADER, [cell.csv_row() for cell in cells])


def render_budgets(trained: TrainedRows) -> Table:
    """What every model cost."""
    table = Table(title="Trained", title_justify="left", box=box.HORIZONTALS)
    for column in ("row", "minutes", "s per step", "steps", "hours of audio"):
        table.add_column(column, justify="left" if column == "row" else "right")
    for name, one in trained.trained.items():
        table.add_row(
            name,
            f"{one.report.seconds / 60:.1f} of {one.budget.minutes:g}",
            f"{one.budget.step_seconds:.3g}",
            f"{one.report.steps:,}",
            f"{one.report.audio_hours:.2f}",
        )
    for name, reason in trained.failed.items():
        table.add_row(name, f"- ({reason})")
    return table


def render_contrasts(title: str, cells: Sequence[ContrastCell]) -> Table:
    """A row per contrast; in a cell our difference with its interval, and in brackets the paper's."""
    table = Table(title=title, title_justify="left", box=box.HORIZONTALS)
    table.add_column("contrast", overflow="fold")
    columns = list(dict.fromkeys((cell.task, cell.column) for cell in cells))
    for task, column in columns:
        table.add_column("\n".join(filter(None, (task, f"({column})" if column else ""))), justify="right")
    by_place = {(cell.contrast, cell.task, cell.column): cell for cell in cells}
    for contrast in dict.fromkeys(cell.contrast for cell in cells):
        texts = [_cell_text(by_place[contrast, task, column]) for task, column in columns]
        table.add_row(f"{contrast.what}\n{contrast.a} minus {contrast.b}", *texts)
    return table


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


def check_minutes(minutes_each: float) -> None:
    """ValueError for a budget that is none."""
    if not 0.0 < minutes_each < math.inf:
        raise ValueError(f"minutes_each must be a positive number, got {minutes_each}")
