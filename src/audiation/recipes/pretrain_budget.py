"""Rows trained one after another, each within a budget of minutes, so that it can be stopped and goes on.

Steps are counted out once, from measured steps, and recorded:

    OUT/ROW/budget.json      minutes, measured seconds per step, and the steps that follow
    OUT/ROW/run/             of `pretraining.pretrain`
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from audiation.cache import write_text
from audiation.console import new_progress
from audiation.objectives import parse_objective
from audiation.pretrain_run import PretrainRun
from audiation.recipes.pretrain_rows import TRIAL_STEPS, PretrainRow, file_name, loads_as, with_steps
from audiation.training import TrainingProgress

if TYPE_CHECKING:
    from audiation.pretraining import PretrainReport


@dataclass(frozen=True)
class Budget:
    """minutes: that were asked for. step_seconds: measured over a few steps. steps: as many as fit."""

    minutes: float
    step_seconds: float
    steps: int


@dataclass(frozen=True)
class Trained:
    """A row that was trained, its run with the steps that fitted, and what it cost."""

    row: PretrainRow
    budget: Budget
    report: PretrainReport


@dataclass(frozen=True)
class TrainedRows:
    """trained, failed: by name of the row; a row that is not trained has a reason."""

    trained: Mapping[str, Trained]
    failed: Mapping[str, str]


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
            failed[row.name] = row.note
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
                bar.update(task, completed=budget.steps)  # where the run had ended before
        except (ValueError, KeyError, OSError, torch.OutOfMemoryError) as error:
            failed[row.name] = str(error)
            console.print(f"  not trained: {error}", markup=False, style="red", soft_wrap=True)
            continue
        trained[row.name] = Trained(replace(row, run=run), budget, report)
    return TrainedRows(trained, failed)


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
    return table


def render_failed(reasons: Mapping[str, str]) -> Table:
    """What has no number, each with its reason."""
    table = Table(title="Without a number", title_justify="left", box=box.HORIZONTALS)
    for column in ("row", "why"):
        table.add_column(column, overflow="fold")
    for name, reason in reasons.items():
        table.add_row(name, Text(reason))
    return table


def check_positive(field: str, value: float) -> None:
    """ValueError for minutes or seconds that are none."""
    if not 0.0 < value < math.inf:
        raise ValueError(f"{field} must be a positive number, got {value}")


# Helpers -----------------------------------------------------------------------------------------------------


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
