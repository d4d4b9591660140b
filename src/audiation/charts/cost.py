"""What a score costs: hours of computing here, hours of music before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from audiation.charts.drawing import (
    INK,
    MARKERS,
    PALETTE,
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
)
from audiation.charts.systems import known_card, system_names, task_names, task_of, task_score, unit_of
from audiation.results import Result

LEVELS = {
    "acoustic": "acoustic level",
    "performance": "performance level",
    "score": "score level",
    "high-level": "high level",
}


@dataclass(frozen=True)
class _Cost:
    """hours: of the device. with_features: whether making the features is in them."""

    system: int
    task: str
    device: str
    hours: float
    score: float
    with_features: bool


def cost_against_score(results: Sequence[Result]) -> str:
    """Hours of computing (log scale) against the first metric, one panel per task, a marker for each device.

    An hour of a processor core and one of a GPU are not the same; the chart says so and equates nothing. Systems have
    numbers. A point without the cost of its features, which were there before, is open.
    """
    kind, title = "cost", "Score against compute"
    names, tasks = system_names(results), task_names(results)
    systems = list(dict.fromkeys(names))
    costs = [
        _Cost(
            systems.index(name), task, _device(r), _hours(r),
            next(iter(r.scores.values())), r.extract_seconds > 0,
        )
        for r, name, task in zip(results, names, tasks, strict=True)
    ]  # fmt: skip
    shown = [c for c in costs if 0 < c.hours < math.inf]
    notes = []
    if missing := [names[i] for i, c in enumerate(costs) if c not in shown]:
        notes.append(f"No cost was recorded: {listed(list(dict.fromkeys(missing)))}.")
    if not shown:
        return note_only(kind, title, " ".join(notes) or "There are no results.")
    devices = list(dict.fromkeys(c.device for c in shown))
    metric = {task: clean(next(iter(r.scores)), 24) for r, task in zip(results, tasks, strict=True)}
    by_task: dict[str, list[_Cost]] = {}
    for cost in shown:
        by_task.setdefault(cost.task, []).append(cost)

    def draw(figure: Any) -> Tooltips:
        tooltips: Tooltips = {}
        axes = panels(figure, len(by_task), 1 if len(by_task) == 1 else 2)
        for number, (axis, (task, points)) in enumerate(zip(axes, by_task.items(), strict=True)):
            _log_hours(axis, [p.hours for p in points])
            for i, p in enumerate(points):
                colour = PALETTE[p.system % len(PALETTE)]
                (point,) = axis.plot(
                    [p.hours], [p.score], linestyle="", marker=_device_marker(devices, p.device), markersize=6.5,
                    color=colour, markerfacecolor=colour if p.with_features else "none",
                )  # fmt: skip
                point.set_gid(f"point-{number}-{i}")
                says = f"{systems[p.system]}: {p.score:.3f}, {p.hours:.3g} h of {p.device}"
                tooltips[f"point-{number}-{i}"] = says if p.with_features else f"{says}, without the features"
            axis.set_title(task)
            axis.set_ylabel(metric[task])
            axis.set_xlabel("core- or GPU-hours")
            axis.margins(y=0.16)
        figure.draw_without_rendering()  # places are known after the layout
        for axis, points in zip(axes, by_task.values(), strict=True):
            _number_points(axis, [(p.hours, p.score, str(p.system + 1)) for p in points])
        return tooltips

    keys = [
        KeyEntry(f"{i + 1} {name}") for i, name in enumerate(systems) if any(c.system == i for c in shown)
    ]
    keys += [
        KeyEntry(
            device,
            {"marker": _device_marker(devices, device), "color": INK, "linestyle": "", "markersize": 6.5},
        )
        for device in devices
    ]
    if any(not c.with_features for c in shown):
        open_mark = {
            "marker": "o",
            "markerfacecolor": "none",
            "color": INK,
            "linestyle": "",
            "markersize": 6.5,
        }
        keys.append(KeyEntry("open: features were there, their cost is not in it", open_mark))
    if len(devices) > 1:
        notes.insert(0, "Hours of different devices are not the same hours: compare within a device only.")
    else:
        notes.insert(0, f"All on one device: {devices[0]}.")
    return render(
        kind, title, f"Points of hours against score, for {listed(systems, 12)}.", draw,
        body_height=(250 if len(by_task) == 1 else 190) * num_rows(len(by_task), 1 if len(by_task) == 1 else 2) + 8,
        keys=keys, notes=notes,
    )  # fmt: skip


@dataclass(frozen=True)
class _Scaled:
    """A system on a level: hours of music it was trained on, parameters, mean score."""

    system: int
    hours: float
    parameters: int | None
    score: float


def score_against_hours(results: Sequence[Result]) -> str:
    """Hours of music in pre-training (log scale) against the mean score on each level of description.

    After figure 6.2 of the thesis, with the facts of its table 6.1: the area of a marker grows with the logarithm of
    the parameters. As there, a level's mean is over the tasks that all systems here have; source separation, in dB, is
    in none. Systems without known hours are named below.
    """
    kind, title = "hours", "Score against hours of pre-training"
    names = system_names(results, without_seed=True)
    systems = list(dict.fromkeys(names))
    backbone = {name: r.run["backbone"] for r, name in zip(results, names, strict=True)}
    untrained = {name for r, name in zip(results, names, strict=True) if r.run.get("weights") == "random"}
    hours = {s: None if s in untrained else _pretrain_hours(backbone[s]) for s in systems}
    known = [s for s in systems if hours[s]]
    notes = []
    if missing := [s for s in systems if s not in known]:
        notes.append(f"Hours of pre-training unknown, or none: {listed(missing, 12)}.")
    if not known:
        return note_only(kind, title, " ".join(notes) or "There are no results.")
    scores: dict[tuple[str, str], list[float]] = {}
    level_of: dict[str, str] = {}
    for result, name in zip(results, names, strict=True):
        task = task_of(result)
        if name in known and task is not None and unit_of(result) == "score":
            level_of[task.name] = task.level
            scores.setdefault((name, task.name), []).append(task_score(result))
    tasks_of_level: dict[str, list[str]] = {}
    left_out = []
    for level in LEVELS:
        tasks = [t for t in level_of if level_of[t] == level]
        having = [s for s in known if any((s, t) in scores for t in tasks)]
        common = [t for t in tasks if all((s, t) in scores for s in having)]
        left_out += [t for t in tasks if t not in common]
        if common:
            tasks_of_level[level] = common
    if left_out:
        notes.append(f"Not in the means, as not all systems of the level have them: {listed(left_out, 12)}.")
    if not tasks_of_level:
        return note_only(kind, title, " ".join(notes) or "No task of a level is shared by all systems.")
    points: dict[str, list[_Scaled]] = {
        level: [
            _Scaled(
                known.index(s), float(hours[s] or 0), _parameters(backbone[s]),
                math.fsum(math.fsum(scores[s, t]) / len(scores[s, t]) for t in tasks) / len(tasks),
            )
            for s in known
            if all((s, t) in scores for t in tasks)
        ]
        for level, tasks in tasks_of_level.items()
    }  # fmt: skip

    def draw(figure: Any) -> Tooltips:
        tooltips: Tooltips = {}
        axes = panels(figure, len(points), 2 if len(points) > 1 else 1)
        for number, (axis, (level, row)) in enumerate(zip(axes, points.items(), strict=True)):
            _log_hours(axis, [p.hours for p in row])
            for i, p in enumerate(row):
                area = _area(p.parameters)
                mark = axis.scatter(
                    [p.hours], [p.score], s=area, color=PALETTE[p.system % len(PALETTE)], alpha=0.65,
                    marker="o" if p.parameters else "x", linewidth=0.8 if p.parameters else 1.4,
                )  # fmt: skip
                mark.set_gid(f"point-{number}-{i}")
                size = f"{p.parameters:,} parameters" if p.parameters else "parameters unknown"
                tooltips[f"point-{number}-{i}"] = (
                    f"{known[p.system]}: {p.score:.3f}, {p.hours:,.0f} h, {size}"
                )
            axis.set_title(LEVELS[level])
            axis.set_ylabel("mean score")
            axis.set_xlabel("hours of music")
            axis.margins(y=0.2)
        figure.draw_without_rendering()  # places are known after the layout
        for axis, row in zip(axes, points.values(), strict=True):
            reach = max(math.sqrt(_area(p.parameters)) / 2 for p in row)
            _number_points(axis, [(p.hours, p.score, str(p.system + 1)) for p in row], reach=reach)
        return tooltips

    keys = [KeyEntry(f"{i + 1} {s}") for i, s in enumerate(known)]
    for parameters, text in ((10**6, "1 M"), (10**8, "100 M parameters"), (10**10, "10 G")):
        style = {
            "marker": "o",
            "color": INK,
            "alpha": 0.5,
            "linestyle": "",
            "markersize": math.sqrt(_area(parameters)),
        }
        keys.append(KeyEntry(text, style))
    notes = [
        f"{LEVELS[level]}: mean of {listed(tasks, 12)}." for level, tasks in tasks_of_level.items()
    ] + notes
    return render(
        kind, title, f"Points of hours of pre-training against mean score, for {listed(known, 12)}.", draw,
        body_height=(250 if len(points) == 1 else 195) * num_rows(len(points), 2 if len(points) > 1 else 1) + 8,
        keys=keys, notes=notes,
    )  # fmt: skip


def _hours(result: Result) -> float:
    """nan where a result file holds no numbers for its hardware."""
    try:
        return float(result.compute_hours)
    except (TypeError, ValueError):
        return math.nan


def _device(result: Result) -> str:
    hardware = result.hardware
    if hardware.get("gpus"):
        return clean(hardware.get("device") or "GPU")
    return f"CPU ({clean(hardware['cpu'], 24)})" if hardware.get("cpu") else "CPU"


def _device_marker(devices: list[str], device: str) -> str:
    return MARKERS[devices.index(device) % len(MARKERS)]


def _pretrain_hours(backbone: str) -> float | None:
    card = known_card(backbone)
    return None if card is None else card.pretrain_hours


def _parameters(backbone: str) -> int | None:
    card = known_card(backbone)
    return None if card is None else card.parameters


def _area(parameters: int | None) -> float:
    """Of a marker, in square points; 1 M parameters: 18, ten times as many: 30 more."""
    if not parameters:
        return 30.0
    return 18.0 + 30.0 * max(0.0, math.log10(parameters) - 6)


def _log_hours(axis: Any, hours: Sequence[float]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = min(hours), max(hours)
    axis.set_xscale("log")
    axis.set_xlim(low / 2.2, high * 2.2)
    wide = high / low > 8
    axis.xaxis.set_major_locator(LogLocator(10, subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    grid(axis, "both")


# Where the number of a point may stand: beside it, then above and below, then at the corners.
_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8))


def _number_points(axis: Any, points: Sequence[tuple[float, float, str]], reach: float = 4.0) -> None:
    """The number of its system beside each point: right of it, or on another side where that place is taken."""
    spots = axis.transData.transform([(x, y) for x, y, _ in points])
    taken = [(float(x), float(y)) for x, y in spots]
    step = reach + 5.5
    for (x, y, text), spot in zip(points, spots, strict=True):
        places = [(spot[0] + step * right, spot[1] + step * up) for right, up in _SIDES]
        room = [min(math.dist(place, other) for other in taken) for place in places]
        free = next((i for i, distance in enumerate(room) if distance > 9), room.index(max(room)))
        taken.append(places[free])
        right, up = _SIDES[free]
        axis.annotate(
            text, (x, y), (step * right, step * up), textcoords="offset points",
            ha="center", va="center", size=SMALL_SIZE,
        )  # fmt: skip
