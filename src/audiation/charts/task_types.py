"""Systems by type of task, beside the best that is published: figure 6.1 of the thesis, without its zeros.

The score of a type is the mean over its tasks, and of a task the mean of the metrics that the papers average. A system
has a score only where it has all the tasks of the type that any system here has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from audiation.charts.drawing import (
    BLUE,
    FAINT,
    INK,
    ORANGE,
    SMALL_SIZE,
    KeyEntry,
    Tooltips,
    clean,
    grid,
    listed,
    note_only,
    num_rows,
    panels,
    render,
    text_width,
)
from audiation.charts.systems import (
    TYPE_TITLES,
    PublishedBest,
    Unit,
    known_card,
    needs_frames,
    published_best,
    system_names,
    task_score,
    type_of,
    unit_of,
)
from audiation.results import Result

DECIBELS_AT_RIM = 10.0  # of the radar, where a score has 1
MIN_SPOKES = 3
LONGEST_NAME = 150  # in pixels, of a system beside two columns of bars
_BEST = {"color": ORANGE, "linestyle": "--", "linewidth": 1.6}
_OTHER_DATA = {"color": ORANGE, "linestyle": ":", "linewidth": 1.6}


@dataclass(frozen=True)
class TypeScores:
    """One type of task.

    scores: system -> mean; only of those that have all its tasks.
    absent: system -> why it has no score.
    best: of what is published, over the same tasks; None where a task has none.
    """

    name: str
    title: str
    unit: Unit
    tasks: tuple[str, ...]
    scores: dict[str, float]
    absent: dict[str, str]
    best: PublishedBest | None


def by_task_type(results: Sequence[Result]) -> list[TypeScores]:
    """Scores by type, in the order of the thesis. Runs that differ in their seed alone are averaged."""
    names = system_names(results, without_seed=True)
    systems = list(dict.fromkeys(names))
    backbone = {name: r.run["backbone"] for r, name in zip(results, names, strict=True)}
    scored: dict[tuple[str, str], list[float]] = {}
    units: dict[str, Unit] = {}
    for result, name in zip(results, names, strict=True):
        scored.setdefault((name, result.run["task"]), []).append(task_score(result))
        units[result.run["task"]] = unit_of(result)
    tasks_of: dict[tuple[str, Unit], list[str]] = {}  # decibels and scores have no mean
    for task, unit in units.items():
        tasks_of.setdefault((type_of(task), unit), []).append(task)
    order = list(TYPE_TITLES)
    rows = []
    for name, unit in sorted(tasks_of, key=lambda n: (order.index(n[0]) if n[0] in order else len(order), n)):
        tasks = tasks_of[name, unit]
        scores, absent = {}, {}
        for system in systems:
            had = [t for t in tasks if (system, t) in scored]
            if len(had) == len(tasks):
                means = [math.fsum(scored[system, t]) / len(scored[system, t]) for t in tasks]
                scores[system] = math.fsum(means) / len(means)
            else:
                absent[system] = _why_absent(backbone[system], tasks, len(had))
        best = [published_best(t) for t in tasks]
        there = [b for b in best if b is not None]
        mean_best = math.fsum(b.value for b in there) / len(there) if there else 0.0
        other = any(b.other_data for b in there)
        rows.append(
            TypeScores(
                name, TYPE_TITLES.get(name, clean(name)), unit, tuple(tasks), scores, absent,
                PublishedBest(mean_best, other) if len(there) == len(tasks) else None,
            )
        )  # fmt: skip
    return rows


def bars_by_task_type(results: Sequence[Result]) -> str:
    """A panel per task type with a bar per system and a line at the published best; words where there is no score."""
    kind, title = "bars", "Scores by type of task"
    rows = by_task_type(results)
    if not rows:
        return note_only(kind, title, "There are no results.")
    systems = list(dict.fromkeys(system_names(results, without_seed=True)))

    wide = max(text_width(s, SMALL_SIZE) for s in systems) > LONGEST_NAME
    columns = 1 if wide or len(rows) == 1 else 2

    def draw(figure: Any) -> Tooltips:
        tooltips: Tooltips = {}
        axes = panels(figure, len(rows), columns)
        for number, (axis, row) in enumerate(zip(axes, rows, strict=True)):
            reach = max([*row.scores.values(), *([row.best.value] if row.best else []), 1e-9])
            low = min([0.0, *row.scores.values()])
            right = max(1.0, reach) if row.unit == "score" else reach
            # The numbers stand in a column of their own, where no line runs through them.
            axis.set_xlim(low * 1.05, right + 0.2 * (right - low))
            axis.set_ylim(len(systems) - 0.4, -0.6)
            if row.unit == "score" and low == 0 and right == 1:
                axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
            for i, system in enumerate(systems):
                if system in row.scores:
                    score = row.scores[system]
                    (bar,) = axis.barh([i], [score], 0.68, color=BLUE)
                    bar.set_gid(f"bar-{number}-{i}")
                    tooltips[f"bar-{number}-{i}"] = f"{system}: {_shown(score, row.unit)}, {row.title}"
                    axis.text(
                        1.0, i, _shown(score, row.unit), transform=axis.get_yaxis_transform(), ha="right",
                        va="center", size=SMALL_SIZE,
                    )  # fmt: skip
                else:
                    axis.annotate(
                        row.absent[system], (0, i), (3, 0), textcoords="offset points", va="center",
                        size=SMALL_SIZE, style="italic", alpha=0.8,
                    )  # fmt: skip
            if row.best:
                (line,) = axis.plot(
                    [row.best.value] * 2, [-0.6, len(systems) - 0.4], **_best_style(row.best)
                )  # fmt: skip
                line.set_gid(f"best-{number}")
                tooltips[f"best-{number}"] = (
                    f"published best: {_shown(row.best.value, row.unit)}, {row.title}"
                )
            axis.axvline(0, color=INK, linewidth=0.7)
            axis.set_yticks(range(len(systems)), systems)
            axis.tick_params(axis="y", length=0)
            axis.spines["left"].set_visible(False)
            axis.set_title(row.title)
            if row.best:
                axis.set_title(f"best {_shown(row.best.value, row.unit)}", loc="right", size=SMALL_SIZE)
            if row.unit == "dB":
                axis.set_xlabel("dB")
            grid(axis, "x")
        return tooltips

    height = 44 + 14.5 * len(systems)
    return render(
        kind, title, _description(rows, systems), draw,
        body_height=height * num_rows(len(rows), columns) + (12 if any(r.unit == "dB" for r in rows) else 0),
        keys=_keys(rows, [KeyEntry("ours", {"color": BLUE, "linewidth": 8})]), notes=_notes(rows),
    )  # fmt: skip


def radar_by_task_type(results: Sequence[Result]) -> str:
    """A small radar per system with a spoke per task type, inside the published best; absent types leave a gap."""
    kind, title = "radar", "Scores by type of task"
    rows = by_task_type(results)
    if len(rows) < MIN_SPOKES:
        return note_only(
            kind,
            title,
            f"A radar needs {MIN_SPOKES} types of task, and these results have {len(rows)}: see the bars.",
        )
    systems = list(dict.fromkeys(system_names(results, without_seed=True)))
    angles = [math.pi / 2 - 2 * math.pi * i / len(rows) for i in range(len(rows))]

    def radius(value: float, unit: Unit) -> float:
        return min(1.0, max(0.0, value / (DECIBELS_AT_RIM if unit == "dB" else 1.0)))

    def draw(figure: Any) -> Tooltips:
        tooltips: Tooltips = {}
        columns = min(3, len(systems))
        for number, (axis, system) in enumerate(
            zip(panels(figure, len(systems), columns), systems, strict=True)
        ):
            _draw_web(axis, rows, angles)
            best = [radius(r.best.value, r.unit) if r.best else None for r in rows]
            _draw_outline(axis, angles, best, f"best-{number}", {**_BEST, "linewidth": 1.2}, fill=0.0)
            ours = [radius(r.scores[system], r.unit) if system in r.scores else None for r in rows]
            style = {"color": BLUE, "linewidth": 1.4, "marker": "o", "markersize": 3.5}
            _draw_outline(axis, angles, ours, f"system-{number}", style, fill=0.18)
            for i, (row, angle) in enumerate(zip(rows, angles, strict=True)):
                if system in row.absent:
                    (cross,) = axis.plot(
                        [1.0 * math.cos(angle)], [1.0 * math.sin(angle)], marker="x", color=INK, markersize=6
                    )  # fmt: skip
                    cross.set_gid(f"absent-{number}-{i}")
                    tooltips[f"absent-{number}-{i}"] = f"{row.title}: {row.absent[system]}"
            values = [
                f"{clean(r.name)} {_shown(r.scores[system], r.unit)}" for r in rows if system in r.scores
            ]
            tooltips[f"system-{number}"] = f"{system}: {', '.join(values) or 'no score'}"
            axis.set_title(clean(system, 34), loc="center", size=SMALL_SIZE + 1)
        return tooltips

    notes = ["Rings: 0.25, 0.5, 0.75 and 1."]
    if any(r.unit == "dB" for r in rows):
        notes[0] += f" Source separation: {DECIBELS_AT_RIM:g} dB at the rim."
    if low := [r.title for r in rows if any(v < 0 for v in r.scores.values())]:
        notes.append(f"Scores below 0 lie in the centre: {listed(low)}.")
    missing = {r.name for r in rows if r.absent}
    cross = [
        KeyEntry(
            "no score (a gap, not a zero)", {"color": INK, "marker": "x", "linestyle": "", "markersize": 6}
        )
    ]
    ours_key = KeyEntry("ours", {"color": BLUE, "linewidth": 1.4, "marker": "o", "markersize": 3.5})
    columns = min(3, len(systems))
    return render(
        kind, title, _description(rows, systems), draw,
        body_height={1: 400, 2: 270, 3: 190}[columns] * num_rows(len(systems), columns) + 6,
        keys=_keys(rows, [ours_key], one_style=True) + (cross if missing else []),
        notes=notes + _absences(rows, systems) + _notes(rows),
    )  # fmt: skip


# Parts ----------------------------------------------------------------------------------------------------


def _why_absent(backbone: str, tasks: Sequence[str], num_had: int) -> str:
    if num_had:
        return f"{num_had} of {len(tasks)} tasks"
    if all(needs_frames(t) for t in tasks) and not _gives_frames(backbone):
        return "not applicable"
    return "no result"


def _gives_frames(backbone: str) -> bool:
    """True also where nothing is known about it."""
    card = known_card(backbone)
    return card is None or card.gives_frames


def _shown(value: float, unit: Unit) -> str:
    return f"{value:.1f} dB" if unit == "dB" else f"{value:.3f}"


def _best_style(best: PublishedBest) -> dict[str, Any]:
    return _OTHER_DATA if best.other_data else _BEST


def _keys(rows: Sequence[TypeScores], ours: list[KeyEntry], one_style: bool = False) -> list[KeyEntry]:
    best = [r.best for r in rows if r.best]
    if any(not b.other_data for b in best) or (best and one_style):
        ours.append(KeyEntry("published best", _BEST))
    if any(b.other_data for b in best) and not one_style:
        ours.append(KeyEntry("published best, on other recordings", _OTHER_DATA))
    return ours


def _notes(rows: Sequence[TypeScores]) -> list[str]:
    notes = [f"{r.title}: mean of {listed(r.tasks, 8)}." for r in rows if len(r.tasks) > 1]
    if any(r.best for r in rows):
        notes.append(
            "Published best: of all published systems and methods, under the protocols of their papers."
        )
    if other := [r.title for r in rows if r.best and r.best.other_data]:
        notes.append(f"Published on other recordings, for orientation only: {listed(other, 8)}.")
    if none := [r.title for r in rows if not r.best]:
        notes.append(f"Nothing published to stand beside: {listed(none, 8)}.")
    if any("no result" in r.absent.values() for r in rows):
        notes.append("No result: not run yet, or the system cannot do it. It counts as nothing, not as 0.")
    return notes


def _absences(rows: Sequence[TypeScores], systems: Sequence[str]) -> list[str]:
    """Why scores are missing, where there is no room for words."""
    why: dict[str, list[str]] = {}
    for row in rows:
        for system in systems:
            if system in row.absent:
                why.setdefault(f"{row.title}: {row.absent[system]}", []).append(system)
    return [f"{reason} ({listed(who, 4)})." for reason, who in why.items()]


def _description(rows: Sequence[TypeScores], systems: Sequence[str]) -> str:
    best = [
        f"{r.title}: {max(r.scores, key=lambda s: r.scores[s])} {_shown(max(r.scores.values()), r.unit)}"
        for r in rows
        if r.scores
    ]
    return f"Scores of {listed(systems, 12)} by type of task. Best of them: {'; '.join(best) or 'none'}."


def _draw_web(axis: Any, rows: Sequence[TypeScores], angles: Sequence[float]) -> None:
    around = [*angles, angles[0]]
    for ring in (0.25, 0.5, 0.75, 1.0):
        axis.plot(
            [ring * math.cos(a) for a in around], [ring * math.sin(a) for a in around],
            color=INK, alpha=FAINT * (2 if ring == 1 else 1), linewidth=0.7,
        )  # fmt: skip
    for row, angle in zip(rows, angles, strict=True):
        x, y = math.cos(angle), math.sin(angle)
        axis.plot([0, x], [0, y], color=INK, alpha=FAINT, linewidth=0.7)
        side = "center" if abs(x) < 0.2 else "left" if x > 0 else "right"
        edge = "center" if abs(y) < 0.95 else "baseline" if y > 0 else "top"
        axis.text(1.12 * x, 1.12 * y, clean(row.name, 12), ha=side, va=edge, size=SMALL_SIZE - 0.5)
    axis.set_xlim(-1.7, 1.7)
    axis.set_ylim(-1.25, 1.25)
    axis.set_aspect("equal")
    axis.set_axis_off()


def _draw_outline(
    axis: Any,
    angles: Sequence[float],
    radii: Sequence[float | None],
    gid: str,
    style: dict[str, Any],
    *,
    fill: float,
) -> None:
    """A closed outline, open where a value is missing; filled where none is."""
    closed = [*zip(angles, radii, strict=True), (angles[0], radii[0])]
    x = [math.nan if r is None else r * math.cos(a) for a, r in closed]
    y = [math.nan if r is None else r * math.sin(a) for a, r in closed]
    if None not in radii and fill:
        axis.fill(x, y, color=style["color"], alpha=fill, linewidth=0)
    (line,) = axis.plot(x, y, **style)
    line.set_gid(gid)
