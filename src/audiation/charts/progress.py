"""How a search went: the score on every layer, and the validation score while training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from audiation.charts.drawing import (
    INK,
    KeyEntry,
    Tooltips,
    clean,
    grid,
    line_style,
    listed,
    note_only,
    num_rows,
    panels,
    render,
)
from audiation.charts.systems import apart, system_names, task_names, unit_of
from audiation.results import Result

_RING = {"marker": "o", "markersize": 10, "markerfacecolor": "none", "markeredgecolor": INK, "linestyle": ""}


@dataclass(frozen=True)
class _Line:
    """A line of a panel. style: number of its looks."""

    result: Result
    name: str
    style: int


def layer_profile(results: Sequence[Result]) -> str:
    """The best validation score on every layer, one line per system, one panel per task.

    Results of a single system share a panel, with a line per task. A learned mix of the layers stands apart at the
    right; the layer that was tested has a ring.
    """
    kind, title = "layer-profile", "Validation score by layer"
    shown = [r for r in results if any(math.isfinite(v) for v in r.layer_profile.values())]
    notes = []
    if missing := _without(results, shown):
        notes.append(f"No search over layers: {listed(missing)}.")
    if not shown:
        return note_only(kind, title, " ".join(notes) or "There are no results.")
    mixes = sorted({layer for r in shown for layer in r.layer_profile if not _is_number(layer)})
    last = max([int(layer) for r in shown for layer in r.layer_profile if _is_number(layer)], default=0)
    gap = max(1.0, 0.09 * last)
    place: dict[str, float] = {mix: last + gap * (i + 1) for i, mix in enumerate(mixes)}

    def draw_line(axis: Any, line: _Line, gid: str) -> Tooltips:
        scores = {k: v for k, v in line.result.layer_profile.items() if math.isfinite(v)}
        layers = sorted((int(k), v) for k, v in scores.items() if _is_number(k))
        style = line_style(line.style)
        (drawn,) = axis.plot([k for k, _ in layers], [v for _, v in layers], **style)
        drawn.set_gid(gid)
        for mix in scores.keys() & place.keys():
            (drawn,) = axis.plot([place[mix]], [scores[mix]], **{**style, "linestyle": ""})
            drawn.set_gid(f"{gid}-mix-{mixes.index(mix)}")
        tooltips = {gid: line.name}
        chosen = str(line.result.chosen.get("layer"))
        if chosen in scores:
            x = int(chosen) if _is_number(chosen) else place[chosen]
            (ring,) = axis.plot([x], [scores[chosen]], **_RING)
            ring.set_gid(f"{gid}-chosen")
            tooltips[f"{gid}-chosen"] = f"{line.name}: layer {clean(chosen)}, {scores[chosen]:.3f}, tested"
        return tooltips

    def finish(axis: Any) -> None:
        axis.set_xlabel("layer")
        step = -(-(last + 1) // 13)
        ticks = list(range(0, last + 1, step))
        names = [{"weighted-sum": "mix"}.get(mix, clean(mix, 8)) for mix in mixes]
        axis.set_xticks([*ticks, *(place[mix] for mix in mixes)], [*map(str, ticks), *names])
        axis.set_xlim(-0.5, max(last, *place.values(), 0) + 0.5)
        if mixes:
            axis.axvline(last + gap / 2, color=INK, alpha=0.4, linewidth=0.7, linestyle=":")

    if "weighted-sum" in mixes:
        notes.insert(0, "mix: a learned weighted sum of all layers.")
    keys = [KeyEntry("tested", _RING)]
    return _line_chart(
        kind, title, shown, notes, keys, draw_line, finish, "the best validation score on every layer"
    )


def learning_curves(results: Sequence[Result]) -> str:
    """The validation score after so many updates of the trial that was tested; its best step has a ring."""
    kind, title = "learning-curves", "Validation score while training"
    shown = [r for r in results if _curve(r)]
    notes = []
    if missing := _without(results, shown):
        notes.append(f"No curve was kept: {listed(missing)}.")
    if not shown:
        return note_only(kind, title, " ".join(notes) or "There are no results.")

    def draw_line(axis: Any, line: _Line, gid: str) -> Tooltips:
        curve = _curve(line.result)
        style = line_style(line.style) | {"markevery": max(1, len(curve) // 8)}
        (drawn,) = axis.plot([s for s, _ in curve], [v for _, v in curve], **style)
        drawn.set_gid(gid)
        tooltips = {gid: line.name}
        best = {step: value for step, value in curve}.get(line.result.best_step)
        if best is not None:
            (ring,) = axis.plot([line.result.best_step], [best], **_RING)
            ring.set_gid(f"{gid}-best")
            tooltips[f"{gid}-best"] = f"{line.name}: {best:.3f} after {line.result.best_step:,} updates"
        return tooltips

    def finish(axis: Any) -> None:
        axis.set_xlabel("updates")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axis.locator_params(axis="x", nbins=6, integer=True)

    keys = [KeyEntry("kept: the best step", _RING)]
    return _line_chart(kind, title, shown, notes, keys, draw_line, finish, "the validation score by updates")


def _without(results: Sequence[Result], shown: Sequence[Result]) -> list[str]:
    pairs = zip(results, system_names(results), task_names(results), strict=True)
    return list(dict.fromkeys(f"{name} on {task}" for r, name, task in pairs if r not in shown))


def _is_number(layer: str) -> bool:
    return layer.isdecimal() and len(layer) <= 4


def _curve(result: Result) -> list[tuple[int, float]]:
    return [(step, value) for step, value in result.curve if math.isfinite(value)]


def _line_chart(
    kind: str,
    title: str,
    results: Sequence[Result],
    notes: Sequence[str],
    keys: Sequence[KeyEntry],
    draw_line: Callable[[Any, _Line, str], Tooltips],
    finish: Callable[[Any], None],
    subject: str,
) -> str:
    """Panels of lines: one per task with a line per system, or, of one system, one per unit with a line per task."""
    systems = system_names(results)
    tasks = task_names(results)
    one_system = len(set(systems)) == 1 and len(set(tasks)) > 1
    names = apart([f"{s}\0{t}" for s, t in zip(systems, tasks, strict=True)])
    names = [
        (n.split("\0")[1] if one_system else n.replace(f"\0{t}", ""))
        for n, t in zip(names, tasks, strict=True)
    ]
    looks = {name: i for i, name in enumerate(dict.fromkeys(names))}
    by_panel: dict[str, list[_Line]] = {}
    for result, name, task in zip(results, names, tasks, strict=True):
        panel = f"{systems[0]} ({unit_of(result)})" if one_system else task
        by_panel.setdefault(panel, []).append(_Line(result, name, looks[name]))

    def draw(figure: Any) -> Tooltips:
        tooltips: Tooltips = {}
        columns = 1 if len(by_panel) == 1 else 2
        axes = panels(figure, len(by_panel), columns)
        for number, (axis, (heading, lines)) in enumerate(zip(axes, by_panel.items(), strict=True)):
            grid(axis)
            for line in lines:
                tooltips |= draw_line(axis, line, f"line-{number}-{line.style}")
            axis.set_title(heading)
            metrics = {next(iter(line.result.scores)) for line in lines}
            axis.set_ylabel(clean(metrics.pop(), 24) if len(metrics) == 1 else "score")
            axis.margins(y=0.12)
            finish(axis)
        return tooltips

    columns = 1 if len(by_panel) == 1 else 2
    systems_of_key = [KeyEntry(name, line_style(number)) for name, number in looks.items()]
    description = (
        f"Lines with {subject} for {listed(list(looks), 12)}, on {listed(list(dict.fromkeys(tasks)), 12)}."
    )
    return render(
        kind, title, description, draw,
        body_height=(230 if columns == 1 else 185) * num_rows(len(by_panel), columns) + 8,
        keys=[*systems_of_key, *keys], notes=notes,
    )  # fmt: skip
