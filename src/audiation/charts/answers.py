"""What was answered: which class is taken for which, and whether a probability can be believed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from audiation.annotations import PITCH_CLASSES, Key, Tags, Tempo
from audiation.charts.drawing import (
    BLUE,
    INK,
    ORANGE,
    SMALL_SIZE,
    KeyEntry,
    Tooltips,
    clean,
    grid,
    render,
    text_width,
)
from audiation.charts.systems import system_names, task_of
from audiation.frame_targets import KeyFramesTarget
from audiation.results import Result
from audiation.targets import ClassTarget, KeyTarget, PitchTarget, TagsTarget

NUM_BINS = 10
MAX_CLASSES_WITH_COUNTS = 12
MAX_CLASSES_WITH_NAMES = 60
STRONGEST = 0.75  # opacity of a full cell: a number in the page's ink stays readable on it

# Majors by rising fifths, then minors in the same order: neighbours share all notes but one.
FIFTHS = tuple(str(Key.from_index(7 * i % 12 + mode)) for mode in (0, 12) for i in range(12))


def confusion(result: Result) -> str | None:
    """How often each class (row) was answered with each class (column), as shares of the row.

    Keys stand in the order of the circle of fifths, major then minor, so that the errors that musicians forgive lie
    near the diagonal. None for tasks without a short closed list of classes, and without predictions.
    """
    classes = _classes(result)
    if classes is None:
        return None
    place = {name: i for i, name in enumerate(classes)}
    counted = Counter((place[p.reference], place[p.estimate]) for p in result.predictions)
    totals = Counter(place[p.reference] for p in result.predictions)
    num_classes, num_right = len(classes), sum(n for (row, column), n in counted.items() if row == column)
    named = num_classes <= MAX_CLASSES_WITH_NAMES
    labels = [_short_key(name) if classes[:24] == FIFTHS else clean(name, 20) for name in classes]
    # The names of the columns stand upright below the square.
    below = 22 + (max(text_width(label, SMALL_SIZE) for label in labels) if named else 0)
    side = min(460.0, max(200.0, 30.0 * num_classes))

    def draw(figure: Any) -> Tooltips:
        from matplotlib.patches import Rectangle

        axis = figure.subplots()
        tooltips: Tooltips = {}
        for (row, column), count in sorted(counted.items()):
            share = count / totals[row]
            cell = Rectangle(
                (column - 0.5, row - 0.5), 1, 1, linewidth=0, facecolor=BLUE, alpha=STRONGEST * share
            )
            cell.set_gid(f"cell-{row}-{column}")
            axis.add_patch(cell)
            tooltips[f"cell-{row}-{column}"] = (
                f"{clean(classes[row])} answered as {clean(classes[column])}: {count} of {totals[row]}"
            )
            if num_classes <= MAX_CLASSES_WITH_COUNTS:
                axis.text(column, row, str(count), ha="center", va="center", size=SMALL_SIZE)
        axis.set_xlim(-0.5, num_classes - 0.5)
        axis.set_ylim(num_classes - 0.5, -0.5)
        axis.set_aspect("equal")
        ticks = range(num_classes) if named else ()
        axis.set_xticks(ticks, labels if named else [], rotation=90)
        axis.set_yticks(ticks, labels if named else [])
        axis.tick_params(length=0)
        axis.spines[["top", "right"]].set_visible(True)
        if classes[:24] == FIFTHS:
            for border in (11.5, 23.5)[: 1 if num_classes == 24 else 2]:
                axis.axhline(border, color=INK, alpha=0.5, linewidth=0.6)
                axis.axvline(border, color=INK, alpha=0.5, linewidth=0.6)
        axis.set_xlabel("answered")
        axis.set_ylabel("right answer")
        return tooltips

    notes = ["Colour: share of the row; a full cell is all recordings of that class."]
    if num_classes <= MAX_CLASSES_WITH_COUNTS:
        notes[0] += " Numbers: recordings."
    if not named:
        notes.append(f"{num_classes} classes are too many to be named here; point at a cell.")
    if unseen := [name for i, name in enumerate(classes) if not totals[i]]:
        notes.append(
            f"Not in the test split, so their rows are empty: {len(unseen)} of {num_classes} classes."
        )
    return render(
        "confusion",
        f"Answers of {_who(result)}",
        f"Table of right against given answers: {num_right} of {len(result.predictions)} on the diagonal.",
        draw, body_height=side + below, notes=notes,
    )  # fmt: skip


@dataclass(frozen=True)
class Bin:
    """Answers of similar probability: how many, their mean probability, and how many of them were right."""

    count: int
    confidence: float
    accuracy: float


def reliability(result: Result) -> str | None:
    """Whether answers given with 80 % probability are right in 80 % of the cases, and how many there are of each.

    Classes: the probability of the given answer. Tags: the probability of every tag for every recording, against
    whether it has the tag. The expected calibration error (ECE) is the mean distance from the diagonal, over the
    answers, in ten bins of equal width. None for other tasks, and where no probability was kept.
    """
    answers = _probabilities(result)
    if answers is None:
        return None
    bins = reliability_bins(answers.probabilities, answers.right)
    error = expected_calibration_error(bins)
    is_tags = answers.of_tags
    unit, event = ("decisions on tags", "the recording has the tag") if is_tags else ("answers", "right")

    def draw(figure: Any) -> Tooltips:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        tooltips: Tooltips = {}
        upper.plot([0, 1], [0, 1], color=INK, alpha=0.5, linewidth=0.8, linestyle="--")
        filled = [(i, b) for i, b in enumerate(bins) if b.count]
        upper.plot(
            [b.confidence for _, b in filled], [b.accuracy for _, b in filled], color=BLUE, linewidth=0.8
        )
        for i, b in filled:
            (gap,) = upper.plot(
                [b.confidence] * 2, [b.confidence, b.accuracy], color=ORANGE, linewidth=2.2, alpha=0.7
            )
            gap.set_gid(f"gap-{i}")
            (point,) = upper.plot(
                [b.confidence], [b.accuracy], color=BLUE, marker="o", markersize=5.5, linestyle=""
            )
            point.set_gid(f"bin-{i}")
            (bar,) = lower.bar([(i + 0.5) / NUM_BINS], [b.count], 0.9 / NUM_BINS, color=BLUE)
            bar.set_gid(f"count-{i}")
            says = f"{b.count:,} {unit} of probability {b.confidence:.2f}: {event} in {b.accuracy:.2f}"
            tooltips |= dict.fromkeys((f"bin-{i}", f"gap-{i}", f"count-{i}"), says)
        upper.set_xlim(0, 1)
        upper.set_ylim(-0.02, 1.02)
        upper.set_ylabel("share of tags present" if is_tags else "share of right answers")
        lower.set_ylabel("how many")
        lower.set_xlabel("probability of a tag" if is_tags else "probability of the given answer")
        lower.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        lower.locator_params(axis="y", nbins=3, integer=True)
        for axis in (upper, lower):
            grid(axis)
        return tooltips

    keys = [
        KeyEntry(
            f"{unit} of similar probability",
            {"color": BLUE, "marker": "o", "markersize": 5.5, "linewidth": 0.8},
        ),
        KeyEntry("distance", {"color": ORANGE, "linewidth": 2.2, "alpha": 0.7}),
        KeyEntry("as it should be", {"color": INK, "alpha": 0.5, "linewidth": 0.8, "linestyle": "--"}),
    ]
    says = (
        f"Expected calibration error (ECE, {NUM_BINS} bins): {error:.3f}, over {len(answers.right):,} {unit}."
    )
    return render(
        "reliability", f"Can the probabilities of {_who(result)} be believed?", says, draw,
        body_height=340, keys=keys, notes=[says],
    )  # fmt: skip


def reliability_bins(confidences: Sequence[float], right: Sequence[bool]) -> list[Bin]:
    """Bins of equal width; a probability on a border belongs to the bin above it, 1 to the last one."""
    p, hit = np.asarray(confidences, float), np.asarray(right, float)
    numbers = np.minimum((p * NUM_BINS).astype(int), NUM_BINS - 1)
    bins = []
    for number in range(NUM_BINS):
        inside = numbers == number
        count = int(inside.sum())
        bins.append(Bin(count, p[inside].mean(), hit[inside].mean()) if count else Bin(0, math.nan, math.nan))
    return bins


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean of |share right - probability| over the bins, each with the weight of its answers."""
    total = sum(b.count for b in bins)
    return math.fsum(b.count * abs(b.accuracy - b.confidence) for b in bins if b.count) / total


def _who(result: Result) -> str:
    return f"{system_names([result])[0]} on {clean(result.run['task'])}"


def _short_key(name: str) -> str:
    """'Eb minor' -> 'Eb m'."""
    tonic, _, mode = name.partition(" ")
    return (
        f"{tonic} m"
        if mode == "minor" and tonic in PITCH_CLASSES
        else tonic
        if mode == "major"
        else clean(name, 20)
    )


def _classes(result: Result) -> tuple[str, ...] | None:
    """Every class, in the order to be shown; answers outside the list follow it. None: no closed list."""
    answered = dict.fromkeys(text for p in result.predictions for text in (p.reference, p.estimate))
    if not answered:
        return None
    task = task_of(result)
    if task is None:  # a question that lives with its data: its answers are all that is known
        if any(p.confidence is None for p in result.predictions) or any(_is_tempo(text) for text in answered):
            return None
        return FIFTHS if answered.keys() <= set(FIFTHS) else tuple(sorted(answered))
    if isinstance(task.target, KeyTarget | KeyFramesTarget):
        known = FIFTHS
    elif isinstance(task.target, ClassTarget):
        known = task.target.classes
    else:
        return None
    return (*known, *(text for text in sorted(answered) if text not in known))


@dataclass(frozen=True)
class _Judged:
    """Probabilities, and whether what each stands for was so."""

    probabilities: list[float]
    right: list[bool]
    of_tags: bool


def _probabilities(result: Result) -> _Judged | None:
    task = task_of(result)
    if task is not None and isinstance(task.target, TagsTarget):
        return _tag_probabilities(result)
    if task is not None and not isinstance(
        task.target, ClassTarget | KeyTarget | KeyFramesTarget | PitchTarget
    ):
        return None
    kept = [p for p in result.predictions if p.confidence is not None and 0 <= p.confidence <= 1]
    if not kept:
        return _tag_probabilities(result) if task is None else None
    if task is None and any(_is_tempo(p.reference) for p in kept):
        return None  # a tempo within a few percent is right
    return _Judged(
        [float(p.confidence or 0.0) for p in kept], [p.reference == p.estimate for p in kept], of_tags=False
    )


def _tag_probabilities(result: Result) -> _Judged | None:
    confidences: list[float] = []
    present: list[bool] = []
    for prediction in result.predictions:
        try:
            reference, estimate = (
                Tags.parse(prediction.reference).scores,
                Tags.parse(prediction.estimate).scores,
            )
        except ValueError:
            return None
        shared = [tag for tag in estimate if tag in reference]
        confidences += [estimate[tag] for tag in shared]
        present += [reference[tag] >= 0.5 for tag in shared]
    return _Judged(confidences, present, of_tags=True) if confidences else None


def _is_tempo(text: str) -> bool:
    try:
        Tempo.parse(text)
    except ValueError:
        return False
    return True
