"""What recipes leave behind: bar and line charts (PNG and SVG, drawn with matplotlib), and numbers as CSV and JSON.

Charts are read without colour as well: bars differ by hatching, lines by markers and strokes. The colours are those of
Okabe and Ito, which people with any kind of colour vision can tell apart.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOTS_PER_INCH = 200
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#595959"
BAR_STYLES = ((BLUE, ""), (ORANGE, "////"))  # colour, hatching
LINE_STYLES = (  # colour, marker, stroke
    ("#000000", "s", "-"),
    ("#7F7F7F", "o", "--"),
    ("#0072B2", "^", "-"),
    ("#E69F00", "D", "--"),
    ("#009E73", "v", "-."),
    ("#CC79A7", "P", ":"),
    ("#56B4E9", "X", "-."),
    ("#D55E00", "*", "-"),
)
GAP_MARKERS = ("x", "+", "1", "2")  # one per reason why a point is missing
FONT_SETTINGS: dict[Any, Any] = {"font.size": 9, "hatch.linewidth": 0.6, "svg.hashsalt": "audiation"}


@dataclass(frozen=True)
class Bars:
    """Bars of one kind. values: one per category of the panel; None where there is no such bar."""

    name: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class BarPanel:
    """One chart: for every category, bars of each kind beside one another.

    reference: drawn as a line across; what the values are relative to.
    """

    title: str
    y_label: str
    categories: tuple[str, ...]
    bars: tuple[Bars, ...]
    reference: float


@dataclass(frozen=True)
class Point:
    """low, high: ends of an interval, or None."""

    x: int
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Gap:
    """A point that is missing, and in a few words why. Equal reasons share a mark and a line of the legend."""

    x: int
    reason: str


@dataclass(frozen=True)
class Line:
    name: str
    points: tuple[Point, ...]
    gaps: tuple[Gap, ...] = ()


@dataclass(frozen=True)
class LinePanel:
    """One chart. x_values: where points may lie; drawn at equal distances."""

    title: str
    x_label: str
    y_label: str
    x_values: tuple[int, ...]
    lines: tuple[Line, ...]


def check_matplotlib() -> None:
    """ValueError where charts cannot be drawn; asked before anything long is begun."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ValueError("this recipe draws charts with matplotlib: pip install matplotlib") from None


def save_bars(directory: Path, name: str, rows: Sequence[Sequence[BarPanel]]) -> list[Path]:
    """Draw rows of panels into `directory/name.png` and `.svg`. The panels of a row share their scale.

    Raises:
        ValueError: matplotlib is not installed.
    """
    check_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    num_columns = max(len(row) for row in rows)
    with matplotlib.rc_context(FONT_SETTINGS):
        width = max(6.5, num_columns * (1.2 + 0.62 * max(len(p.categories) for row in rows for p in row)))
        figure = Figure(figsize=(width, 0.6 + 2.9 * len(rows)), layout="constrained")
        axes = figure.subplots(len(rows), num_columns, squeeze=False)
        for row, row_axes in zip(rows, axes, strict=True):
            values = [v for panel in row for bars in panel.bars for v in bars.values if v is not None]
            top = 1.17 * max([*values, *(panel.reference for panel in row)])
            for axis in row_axes[len(row) :]:
                axis.set_visible(False)
            for position, (panel, axis) in enumerate(zip(row, row_axes, strict=False)):
                _draw_bars(axis, panel, top)
                axis.set_ylabel(panel.y_label if position == 0 else "")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        return _save(figure, directory, name)


def save_lines(directory: Path, name: str, panels: Sequence[LinePanel]) -> list[Path]:
    """Draw panels beside one another into `directory/name.png` and `.svg`, with one legend for all.

    Raises:
        ValueError: matplotlib is not installed.
    """
    check_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    reasons = list(dict.fromkeys(gap.reason for panel in panels for line in panel.lines for gap in line.gaps))
    with matplotlib.rc_context(FONT_SETTINGS):
        num_entries = len(names) + len(reasons)
        height = 3.6 + 0.22 * -(-num_entries // 4)
        figure = Figure(figsize=(max(6.5, 4.2 * len(panels)), height), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for panel, axis in zip(panels, axes, strict=True):
            _draw_lines(axis, panel, names, reasons)
        handles = [Line2D([], [], **_line_style(names.index(name)), label=name) for name in names]
        for reason in reasons:
            mark = _gap_marker(reasons.index(reason))
            handles.append(Line2D([], [], color=GREY, marker=mark, linestyle="", label=f"missing: {reason}"))
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, num_entries), frameon=False)
        return _save(figure, directory, name)


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    """A table as a file; None becomes an empty cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([header, *rows])
    return path


def write_json(path: Path, record: object) -> Path:
    """A record as a file, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


# Drawing -------------------------------------------------------------------------------------------------


def _draw_bars(axis: Any, panel: BarPanel, top: float) -> None:
    width = 0.8 / len(panel.bars)
    for number, bars in enumerate(panel.bars):
        colour, hatching = BAR_STYLES[number % len(BAR_STYLES)]
        # A lone bar stands in the middle of its category.
        lone = [sum(b.values[i] is not None for b in panel.bars) == 1 for i in range(len(bars.values))]
        places = [
            i + (0 if lone[i] else (number - (len(panel.bars) - 1) / 2) * width)
            for i in range(len(bars.values))
        ]
        kept = [(x, v) for x, v in zip(places, bars.values, strict=True) if v is not None]
        drawn = axis.bar(
            [x for x, _ in kept], [v for _, v in kept], width, label=bars.name,
            color=colour, hatch=hatching, edgecolor="white" if not hatching else "black", linewidth=0.5,
        )  # fmt: skip
        labels = axis.bar_label(drawn, fmt=_short, fontsize=7, padding=1.5)
        for label, (_, value) in zip(labels, kept, strict=True):
            if 0 < panel.reference - value < 0.1 * top:  # the line across would run through it
                label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6})
    axis.axhline(panel.reference, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
    axis.set_ylim(0, top)
    axis.margins(x=0.02)
    axis.set_xticks(range(len(panel.categories)), panel.categories, rotation=30, ha="right")
    axis.tick_params(axis="x", length=0)
    axis.set_title(panel.title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)


def _short(value: float) -> str:
    return f"{value:.2f}" if value >= 0.005 else "<0.01"


def _draw_lines(axis: Any, panel: LinePanel, names: list[str], reasons: list[str]) -> None:
    place: dict[int, float] = {x: i for i, x in enumerate(panel.x_values)}
    with_intervals = len(panel.lines) <= 2  # more would be a thicket
    missing = dict.fromkeys(panel.x_values, 0)  # marks drawn so far, stacked from the bottom of the chart
    for number, line in enumerate(panel.lines):
        style = _line_style(names.index(line.name))
        points = sorted(line.points, key=lambda p: p.x)
        aside = 0.06 * (number - (len(panel.lines) - 1) / 2) if with_intervals else 0.0
        axis.plot([place[p.x] + aside for p in points], [p.y for p in points], **style)
        for p in points:
            if with_intervals and p.low is not None and p.high is not None:
                axis.vlines(place[p.x] + aside, p.low, p.high, color=style["color"], linewidth=1)
        for gap in line.gaps:
            height = 0.035 + 0.045 * missing[gap.x]
            missing[gap.x] += 1
            axis.plot(
                [place[gap.x]], [height], transform=axis.get_xaxis_transform(), color=style["color"],
                marker=_gap_marker(reasons.index(gap.reason)), markersize=6, linestyle="", clip_on=False,
            )  # fmt: skip
    if any(line.points for line in panel.lines):
        _leave_room_below(axis, max(missing.values(), default=0))
    else:
        axis.set_yticks([])
    axis.set_xticks(range(len(panel.x_values)), [str(x) for x in panel.x_values])
    axis.set_xlim(-0.4, len(panel.x_values) - 0.6)
    axis.set_title(panel.title, fontsize=10)
    axis.set_xlabel(panel.x_label)
    axis.set_ylabel(panel.y_label)
    axis.grid(axis="y", linewidth=0.4, color="#D0D0D0")
    axis.spines[["top", "right"]].set_visible(False)


def _leave_room_below(axis: Any, num_marks: int) -> None:
    """Stretch the scale downwards, so that marks of missing points lie below the lines."""
    if num_marks == 0:
        return
    low, high = axis.get_ylim()
    share = 0.06 + 0.045 * num_marks
    axis.set_ylim(low - (high - low) * share / (1 - share), high)


def _line_style(number: int) -> dict[str, Any]:
    colour, marker, stroke = LINE_STYLES[number % len(LINE_STYLES)]
    return {
        "color": colour, "marker": marker, "linestyle": stroke, "markersize": 5, "linewidth": 1.4,
    }  # fmt: skip


def _gap_marker(number: int) -> str:
    return GAP_MARKERS[number % len(GAP_MARKERS)]


def _save(figure: Any, directory: Path, name: str) -> list[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{name}.png", directory / f"{name}.svg"]
    figure.savefig(paths[0], dpi=DOTS_PER_INCH)
    figure.savefig(paths[1], metadata={"Date": None})  # the same numbers, the same file
    return paths
