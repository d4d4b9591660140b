"""How numbers, marks and names are written on the pages."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from audiation.bootstrap import Interval
from audiation.results import Result
from audiation.site.markup import Markup, join, tag
from audiation.site.systems import Column, Mark, task_of
from audiation.site.tables import Entry

BAR_WIDTH, BAR_HEIGHT, BAR_MARGIN = 72, 12, 4
_PAPERS = {
    "jukemir": "jukemir paper",
    "thesis": "MARBLE/MERT thesis",
    "musicfm": "MusicFM paper",
    "petl": "PETL paper",
}
_RUN_FLAGS = ("method", "weights", "num_layers", "layer", "precision", "train", "seed")
_RUN_DEFAULTS: dict[str, Any] = {"method": "probe", "precision": "fp32", "train": "", "seed": 0}


def score_text(score: float, column: Column) -> str:
    """ "61.3" percent, or "5.60" dB."""
    return f"{100 * score:.1f}" if column.in_percent else f"{score:.2f}"


def interval_text(interval: Interval, column: Column) -> str:
    return f"{score_text(interval.low, column)} to {score_text(interval.high, column)}"


def unit_text(column: Column) -> str:
    return "%" if column.in_percent else "dB"


def paper_title(paper: str) -> str:
    return _PAPERS.get(paper, paper)


def count_text(number: int, one: str, many: str = "") -> str:
    """ "1 system", "2 systems"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def size_text(parameters: int | None) -> str:
    """A number of parameters, as people say it."""
    if parameters is None:
        return "size unknown"
    if parameters == 0:
        return "no parameters"
    for scale, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if parameters >= scale:
            return f"{parameters / scale:.3g} {letter} parameters"
    return count_text(parameters, "parameter")


def duration_text(seconds: float) -> str:
    """Rounded to what matters: "4.2 s", "3 min 20 s", "5 h 10 min", "8.2 days"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{seconds / 86400:.1f} days"


def cost_text(result: Result) -> str:
    """Time and compute of a run, with the machine: costs of different machines are not equal."""
    kind = "GPU-hours" if result.hardware.get("gpus") else "core-hours"
    device = result.hardware.get("device") or "an unknown device"
    where = (
        f"{device}, {result.hardware['cores']} cores"
        if device == "cpu" and "cores" in result.hardware
        else device
    )
    seconds = result.extract_seconds + result.train_seconds
    return f"{duration_text(seconds)} on {where} ({result.compute_hours:.3g} {kind})"


def choices_text(choices: dict[str, Any]) -> str:
    """ "layer 7, learning rate 0.001"."""
    return ", ".join(
        f"{name.replace('_', ' ')} {f'{value:g}' if isinstance(value, float) else value}"
        for name, value in choices.items()
    )


def chosen_text(result: Result) -> str:
    """What the search chose; without a search, the layer that was named."""
    if result.chosen:
        return choices_text(result.chosen)
    layer = result.run.get("layer")
    return "no search" if layer is None else f"no search; layer {layer}"


def repeat_command(result: Result) -> str:
    """The command that repeats a run, for a shell."""
    run = result.run
    words = ["audiation", "evaluate"]
    for name in ("backbone", "task", "protocol"):
        words += [f"--{name}", str(run[name])]
    for name in _RUN_FLAGS:
        value = run.get(name)
        if value != _RUN_DEFAULTS.get(name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def column_title(column: Column) -> str:
    return column.task


def task_question(name: str) -> str:
    task = task_of(name)
    return "this version does not know the task" if task is None else task.question


def mark_badges(marks: Sequence[Mark]) -> Markup | None:
    """The marks in a word or two each; the whole sentence is in the title, and on the page of the system."""
    if not marks:
        return None
    badges = [tag("span", {"class": f"mark {m.kind}", "title": m.detail}, m.label) for m in marks]
    return tag("span", {"class": "marks"}, *badges)


def interval_bar(score: float, interval: Interval | None, low: float, high: float, *, ours: bool) -> Markup:
    """A score on the scale of its column: a dot in its interval for ours, a hollow diamond for a published one."""

    def x(value: float) -> str:
        share = (value - low) / (high - low) if high > low else 0.5
        return f"{BAR_MARGIN + share * (BAR_WIDTH - 2 * BAR_MARGIN):.1f}"

    middle = BAR_HEIGHT / 2
    parts = [tag("line", {"class": "axis", "x1": 0, "x2": BAR_WIDTH, "y1": middle, "y2": middle})]
    if interval is not None:
        span: dict[str, str | float] = {
            "class": "span",
            "x1": x(interval.low),
            "x2": x(interval.high),
            "y1": middle,
            "y2": middle,
        }
        parts.append(tag("line", span))
    if ours:
        parts.append(tag("circle", {"class": "dot", "cx": x(score), "cy": middle, "r": 3}))
    else:
        place = f"translate({x(score)} {middle:g})"
        parts.append(tag("path", {"class": "diamond", "d": "M0 -4L4 0L0 4L-4 0Z", "transform": place}))
    frame = {"class": "bar", "viewBox": f"0 0 {BAR_WIDTH} {BAR_HEIGHT}", "aria-hidden": "true"}
    return tag("svg", frame, *parts)


def score_cell(entry: Entry, column: Column, low: float, high: float) -> Markup:
    """Score, bar, interval, rank and marks."""
    interval = entry.interval
    first = tag(
        "span",
        {"class": "score"},
        tag("span", {"class": "num"}, score_text(entry.score, column)),
        interval_bar(entry.score, interval, low, high, ours=True),
    )
    said = "no interval" if interval is None else interval_text(interval, column)
    rank = None
    if entry.rank is not None:
        rank = tag("span", {"class": "rank", "title": "rank: 1 + number of systems that are better beyond chance"},
                   tag("span", {"class": "sr"}, "rank "), f"#{entry.rank}")  # fmt: skip
    return join(
        first, tag("span", {"class": "range"}, said, " " if rank else None, rank), mark_badges(entry.marks)
    )
