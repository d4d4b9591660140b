"""Curves of pre-training runs, a panel per quantity and the runs over one another: PNG or SVG."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from audiation.charts.drawing import clean, line_style, num_rows, panels

DOTS_PER_INCH = 200
KINDS = (".png", ".svg")
PANEL_INCHES = (3.6, 2.3)
NUM_MARKS = 7  # along a line, so that lines are told apart without colour
SHADE = 0.16  # opacity of the range around a line
_SETTINGS: dict[Any, Any] = {"font.size": 8.5, "svg.hashsalt": "audiation", "text.parse_math": False}


@dataclass(frozen=True, eq=False)
class RunLine:
    """A run in a panel: `(N,)` each, nan where a value is not finite. low, high: the range around the line.

    ended_early: has its end marked by a cross.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    ended_early: bool = False


@dataclass(frozen=True)
class CurvePanel:
    """A quantity. logarithmic: its axis."""

    title: str
    lines: tuple[RunLine, ...]
    logarithmic: bool = False


def check_kind(path: Path) -> None:
    """ValueError for a file that is neither PNG nor SVG, or where matplotlib is missing; asked before the work."""
    if path.suffix.lower() not in KINDS:
        raise ValueError(
            f"a figure is written as {' or '.join(KINDS)}, got '{path.name}'. Name it {path.stem}.svg, for example."
        )
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ValueError("the chart is drawn with matplotlib: pip install 'audiation[figures]'") from None


def save_pretrain_curves(
    drawn: Sequence[CurvePanel], names: Sequence[str], path: Path, *, x_label: str, notes: Sequence[str] = ()
) -> None:
    """Draw the panels row by row into one file, with one legend for all; a run looks the same in every panel.

    Args:
        names: of all runs, in the order of the legend.
        notes: lines of text at the end: how lines were smoothed, what is missing.

    Raises:
        ValueError: as `check_kind`.
    """
    check_kind(path)
    import matplotlib.style
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    with matplotlib.style.context(["default", _SETTINGS], after_reset=True):
        columns = 1 if len(drawn) == 1 else 2 if len(drawn) <= 6 else 3
        width = max(5.0, PANEL_INCHES[0] * columns)
        text = [line for note in notes for line in textwrap.wrap(note, int(width * 15))]
        entries = [Line2D([], [], label=clean(name), **line_style(i)) for i, name in enumerate(names)]
        if any(line.ended_early for panel in drawn for line in panel.lines):
            entries.append(Line2D([], [], label="has not reached its last step", **_CROSS))
        widest = 0.75 + 0.068 * max(len(str(entry.get_label())) for entry in entries)  # inches, with its line
        legend_columns = max(1, min(len(entries), int(width / widest)))
        height = PANEL_INCHES[1] * num_rows(len(drawn), columns)
        height += 0.2 * num_rows(len(entries), legend_columns) + 0.15 * len(text) + 0.2
        figure = Figure(figsize=(width, height), layout="constrained")
        for panel, axis in zip(drawn, panels(figure, len(drawn), columns), strict=True):
            _draw(axis, panel, list(names))
            axis.set_xlabel(x_label)
        figure.legend(handles=entries, loc="outside upper center", ncols=legend_columns, frameon=False)
        if text:
            figure.supxlabel("\n".join(text), x=0.01, ha="left", fontsize=7.5, color="#404040")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".png":
            figure.savefig(path, dpi=DOTS_PER_INCH)
        else:
            figure.savefig(path, metadata={"Date": None})  # the same numbers, the same file


_CROSS: dict[str, Any] = {
    "marker": "x", "markersize": 8, "markeredgewidth": 1.8, "linestyle": "", "color": "#010203"
}  # fmt: skip


def _draw(axis: Any, panel: CurvePanel, names: list[str]) -> None:
    for line in panel.lines:
        style = line_style(names.index(line.name)) | {"markevery": max(1, -(-len(line.x) // NUM_MARKS))}
        color = style["color"]
        axis.fill_between(line.x, line.low, line.high, color=color, alpha=SHADE, linewidth=0)
        axis.plot(line.x, line.y, **style)
        finite = np.flatnonzero(np.isfinite(line.y))
        if line.ended_early and len(finite):
            last = finite[-1]
            axis.plot(line.x[last], line.y[last], zorder=4, **_CROSS | {"color": color})
    if panel.logarithmic:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # matplotlib's own is a formula
        axis.yaxis.set_minor_formatter(lambda *_: "")
    axis.set_title(clean(panel.title, 60), loc="left", fontsize=9.5)
    axis.xaxis.set_major_formatter(lambda value, _: _thousands(value))
    axis.locator_params(axis="x", nbins=6)
    axis.grid(axis="y", linewidth=0.4, color="#D0D0D0")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _thousands(value: float) -> str:
    """20000 -> '20k'."""
    return f"{value / 1000:,g}k" if abs(value) >= 10_000 else f"{value:g}"
