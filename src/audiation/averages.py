"""One number over several tasks: the averages that papers print, and two that do not mix units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from audiation.published import PublishedScore
from audiation.results import Result
from audiation.tasks import TASKS

# Averages of the papers -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AveragedTask:
    """A task of a paper's average. task, dataset, metrics: ids in the published results."""

    task: str
    dataset: str
    metrics: tuple[str, ...]


_RANKING = ("roc_auc", "ap")
_MTT = AveragedTask("tagging", "mtt", _RANKING)
_KEY = AveragedTask("key", "giantsteps_key", ("key_weighted",))
_GENRE = AveragedTask("genre", "gtzan_genre", ("accuracy",))
_EMOTION = AveragedTask("emotion", "emomusic", ("r2_arousal", "r2_valence"))
_FOUR = (_MTT, _KEY, _GENRE, _EMOTION)
_NINE = (
    *_FOUR,
    AveragedTask("pitch", "nsynth_pitch", ("accuracy",)),
    AveragedTask("instrument", "nsynth_instrument", ("accuracy",)),
    AveragedTask("vocal_technique", "vocalset_technique", ("accuracy",)),
    AveragedTask("singer_id", "vocalset_singer", ("accuracy",)),
    AveragedTask("beat", "gtzan_rhythm", ("f1_beat",)),
)
_FOURTEEN = (
    *_NINE,
    AveragedTask("instrument", "mtg_instrument", _RANKING),
    AveragedTask("mood", "mtg_moodtheme", _RANKING),
    AveragedTask("genre", "mtg_genre", _RANKING),
    AveragedTask("tagging", "mtg_top50", _RANKING),
    AveragedTask("source_separation", "musdb18", ("sdr_vocals", "sdr_drums", "sdr_bass", "sdr_other")),
)
# Which tasks a table averages (protocols, 6). Inside a task metrics are averaged first; every task weighs the same.
PAPER_AVERAGES: dict[str, tuple[AveragedTask, ...]] = {
    "jukemir-3": _FOUR,
    "thesis-4.2": _NINE,
    "thesis-4.3": _NINE,
    "thesis-5.2": _FOURTEEN,
    "thesis-5.3": _FOUR,
    "thesis-5.4": _FOUR,
    "thesis-6.3": _FOURTEEN,
}


@dataclass(frozen=True)
class PaperAverage:
    """The average of a paper's table for one system.

    value: in percent as printed, SDR in dB as it is, which mixes units where separation is one of the tasks; None
        where a task is missing.
    by_task: mean of the metrics of each task that is there, in percent or dB, by the dataset's id.
    missing: data sets of tasks that the system lacks, wholly or one of their metrics.
    other_rules: data sets whose result here follows other rules than the table's (pieces of a song that answer
        together, say), so that the average is for orientation only.
    partial: data sets whose result does not cover all of the test split.
    protocols: of our results that are in it; more than one where they were made under several, as those of the
        thesis's tables were.
    """

    table: str
    value: float | None
    by_task: dict[str, float]
    missing: tuple[str, ...]
    other_rules: tuple[str, ...] = ()
    partial: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()


def paper_average(rows: Sequence[PublishedScore] | Sequence[Result], table: str) -> PaperAverage:
    """The mean inside each task, then the mean over tasks, as a paper's table has it (protocols, 6).

    Args:
        rows: of one system: published numbers (`published.published_rows`) or our results. Rows of tasks that the
            table does not average are not read, nor those that were trained on other data than the table's. Of metrics
            with variants the one counts that stands first in the task, as beside published numbers.
        table: one of PAPER_AVERAGES.

    Raises:
        ValueError: an unknown table, rows of several systems, or two numbers for one cell.
    """
    if table not in PAPER_AVERAGES:
        raise ValueError(f"no table '{table}' has an average here. Known: {', '.join(PAPER_AVERAGES)}.")
    cells = _cells(rows)
    by_task: dict[str, float] = {}
    missing, other_rules, partial = [], [], []
    protocols: set[str] = set()
    for task in PAPER_AVERAGES[table]:
        found = [cells.get((task.task, task.dataset, metric)) for metric in task.metrics]
        there = [cell for cell in found if cell is not None]
        if len(there) < len(found):
            missing.append(task.dataset)
            continue
        by_task[task.dataset] = float(np.mean([cell.value for cell in there]))
        other_rules += [task.dataset] * any(cell.other_rules for cell in there)
        partial += [task.dataset] * any(cell.partial for cell in there)
        protocols |= {cell.protocol for cell in there if cell.protocol}
    value = None if missing else float(np.mean(list(by_task.values())))
    return PaperAverage(
        table, value, by_task, tuple(missing), tuple(other_rules), tuple(partial), tuple(sorted(protocols))
    )


@dataclass(frozen=True)
class _Cell:
    """A number of a table, in percent or dB."""

    value: float
    other_rules: bool = False
    partial: bool = False
    protocol: str = ""


_CellKey = tuple[str, str, str]  # task, dataset, metric


def _cells(rows: Sequence[PublishedScore] | Sequence[Result]) -> dict[_CellKey, _Cell]:
    cells: dict[_CellKey, _Cell] = {}
    systems = set()
    for row in rows:
        found = _published_cell(row) if isinstance(row, PublishedScore) else _result_cells(row)
        systems.add((row.paper, row.system) if isinstance(row, PublishedScore) else _name_of_system(row))
        for key, cell in found.items():
            if key in cells:
                raise ValueError(
                    f"{'/'.join(key)} has two numbers, {cells[key].value:g} and {cell.value:g}. Give one row per cell: "
                    "of one table, one variant of the task and one seed."
                )
            cells[key] = cell
    if len(systems) > 1:
        raise ValueError(f"an average is of one system, got {len(systems)}: {sorted(map(str, systems))[:4]}")
    return cells


def _published_cell(row: PublishedScore) -> dict[_CellKey, _Cell]:
    if row.train_on or row.metric == "average":
        return {}
    return {(row.task, row.dataset, row.metric): _Cell(_as_printed(row.metric, row.value))}


def _result_cells(result: Result) -> dict[_CellKey, _Cell]:
    task = TASKS[result.run["task"]]
    stands_in = task.published_as is None and (task.compare_with or ("", ""))[1] == task.test_dataset
    ids = task.compare_with if stands_in else task.published_as
    if ids is None or task.published_train_on:
        return {}
    cells: dict[_CellKey, _Cell] = {}
    for metric in task.metrics:
        key = (*ids, metric.printed_name)
        if metric.name in result.scores and key not in cells:
            value = _as_printed(metric.printed_name, result.scores[metric.name])
            cells[key] = _Cell(value, stands_in, result.coverage < 1, str(result.run["protocol"]))
    return cells


def _as_printed(metric: str, value: float) -> float:
    return value if metric.startswith("sdr_") else 100 * value


def _name_of_system(result: Result) -> tuple[Any, ...]:
    """The layer may be another in each task."""
    return tuple(result.run.get(name) for name in ("backbone", "method", "weights", "num_layers"))


# Averages that do not mix units -----------------------------------------------------------------------------------

Scores = Mapping[str, Mapping[str, float]]  # system -> task -> score, larger is better


@dataclass(frozen=True)
class TaskAverage:
    """One number over several tasks for a system.

    value: None where tasks are missing.
    num_tasks: that the average is over.
    missing: tasks that the system lacks.
    """

    value: float | None
    num_tasks: int
    missing: tuple[str, ...] = ()


def rank_average(scores: Scores) -> dict[str, TaskAverage]:
    """The mean over tasks of the rank of each system; 1 is the best. Systems of equal score share the mean of their
    ranks.

    The tasks are all that any system has. A system without one of them gets no average and takes no part in the ranks
    of the others, so that all averages are over the same tasks and rivals. Ranks say nothing about distances and depend
    on the company: a further system may turn the order of two others.

    Args:
        scores: system -> task -> score, larger is better; not rounded, or ties appear that are none.

    Raises:
        ValueError: a score that is not finite.
    """
    tasks, missing = _tasks_and_missing(scores)
    complete = [system for system in scores if not missing[system]]
    ranks: dict[str, list[float]] = {system: [] for system in complete}
    for task in tasks:
        values = np.array([scores[system][task] for system in complete])
        for system, value in zip(complete, values, strict=True):
            ranks[system].append(float((values > value).sum() + ((values == value).sum() + 1) / 2))
    return {
        s: TaskAverage(float(np.mean(ranks[s])) if s in ranks and tasks else None, len(tasks), missing[s])
        for s in scores
    }


def normalised_average(scores: Scores, floor: str) -> dict[str, TaskAverage]:
    """The mean over tasks of (score - floor) / (best - floor): 0 is the floor, 1 would be the best in every task.

    The floor is a system of the table that everybody can be measured from, such as hand-crafted features or random
    weights, not 0 and not the worst system: 0.5 is nothing for a ROC AUC and a lot for 24 keys, and the worst
    system of the day would move every number. The best is the best complete system in each task, so the average depends
    on the company, though less than ranks do. Scores below the floor are negative and stay so. Where no system is above
    the floor a task tells nobody apart and there is no scale: that is an error, not a task left out.

    Args:
        scores: system -> task -> score, larger is better.
        floor: name of a system with all tasks.

    Raises:
        ValueError: a floor that is not there or lacks tasks, a task in which no system is above it, or a score that is
            not finite.
    """
    tasks, missing = _tasks_and_missing(scores)
    if floor not in scores or missing[floor]:
        lacks = f"lacks {', '.join(missing[floor])}" if floor in scores else "is no system of the table"
        complete = ", ".join(s for s in scores if not missing[s]) or "none"
        raise ValueError(f"the floor '{floor}' {lacks}. Systems with all {len(tasks)} tasks: {complete}.")
    shares: dict[str, list[float]] = {system: [] for system in scores if not missing[system]}
    for task in tasks:
        low = scores[floor][task]
        span = max(scores[system][task] for system in shares) - low
        if span <= 0:
            raise ValueError(
                f"no system is above the floor '{floor}' in {task}. Leave the task out, or choose another."
            )
        for system, values in shares.items():
            values.append((scores[system][task] - low) / span)
    return {
        s: TaskAverage(float(np.mean(shares[s])) if s in shares and tasks else None, len(tasks), missing[s])
        for s in scores
    }


def _tasks_and_missing(scores: Scores) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """All tasks, in the order in which they appear; and per system those that it lacks."""
    tasks = list(dict.fromkeys(task for of_system in scores.values() for task in of_system))
    for system, of_system in scores.items():
        for task, score in of_system.items():
            if not math.isfinite(score):
                raise ValueError(f"the score of {system} in {task} is {score}; leave out what is not there")
    return tasks, {system: tuple(t for t in tasks if t not in of) for system, of in scores.items()}
