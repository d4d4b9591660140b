"""Normalised scores by layer, a line per task and their mean: PNG and SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiation.charts.drawing import line_style

DOTS_PER_INCH = 200
_SETTINGS: dict[Any, Any] = {"font.size": 9, "svg.hashsalt": "audiation", "text.parse_math": False}


@dataclass(frozen=True)
class LayerCurve:
    """values: layer -> 0 (worst) .. 1 (best), or None where there is no score."""

    name: str
    values: Mapping[int, float | None]


@dataclass(frozen=True)
class LayerPanel:
    """The chart of one backbone.

    num_layers: L; the axis is 0..L whichever layers were probed.
    mean: drawn in black above the others; empty where there is none.
    marked: a layer to mark with a line across, and what it is; None: no mark.
    """

    title: str
    num_layers: int
    curves: tuple[LayerCurve, ...]
    mean: Mapping[int, float | None]
    marked: tuple[int, str] | None = None


def check_matplotlib() -> None:
    """ValueError where the chart cannot be drawn; asked before anything long is begun."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ValueError("the chart is drawn with matplotlib: pip install 'audiation[figures]'") from None


def save_layer_curves(panels: Sequence[LayerPanel], directory: Path, name: str) -> list[Path]:
    """Draw panels beside one another into `directory/name.png` and `.svg`, with one legend for all.

    Lines differ by markers and strokes, so that they are told apart without colour.

    Raises:
        ValueError: matplotlib is not installed.
    """
    check_matplotlib()
    import matplotlib.style
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    names = list(dict.fromkeys(curve.name for panel in panels for curve in panel.curves))
    marks = list(dict.fromkeys(panel.marked[1] for panel in panels if panel.marked is not None))
    with matplotlib.style.context(["default", _SETTINGS], after_reset=True):
        width = max(6.0, 4.6 * len(panels))
        figure = Figure(figsize=(width, 4.2), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for panel, axis in zip(panels, axes, strict=True):
            _draw(axis, panel, names)
        axes[0].set_ylabel("normalised validation score")
        handles = [Line2D([], [], label=name, **_style(number)) for number, name in enumerate(names)]
        if any(_points(panel.mean) for panel in panels):
            handles.append(Line2D([], [], label="mean over tasks", **_MEAN))
        handles += [Line2D([], [], label=text, **_MARK) for text in marks]
        widest = 0.7 + 0.075 * max(
            len(str(handle.get_label())) for handle in handles
        )  # inches, with its line
        columns = max(1, min(len(handles), int(width / widest)))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
        directory.mkdir(parents=True, exist_ok=True)
        paths = [directory / f"{name}.png", directory / f"{name}.svg"]
        figure.savefig(paths[0], dpi=DOTS_PER_INCH)
        figure.savefig(paths[1], metadata={"Date": None})  # the same numbers, the same file
    return paths


_MEAN: dict[str, Any] = {"color": "#000000", "linewidth": 2.8, "linestyle": "-"}
_MARK: dict[str, Any] = {"color": "#595959", "linewidth": 0.9, "linestyle": ":"}


def _draw(axis: Any, panel: LayerPanel, names: Sequence[str]) -> None:
    if panel.marked is not None:
        axis.axvline(panel.marked[0], zorder=0, **_MARK)
    for curve in panel.curves:
        points = _points(curve.values)
        axis.plot(
            [x for x, _ in points], [y for _, y in points], alpha=0.8, **_style(names.index(curve.name))
        )
    mean = _points(panel.mean)
    axis.plot([x for x, _ in mean], [y for _, y in mean], zorder=3, **_MEAN)
    axis.set_title(panel.title, fontsize=10)
    axis.set_xlabel("layer")
    axis.set_xlim(-0.02 * panel.num_layers - 0.1, 1.02 * panel.num_layers + 0.1)
    axis.set_xticks(range(0, panel.num_layers + 1, -(-(panel.num_layers + 1) // 13)))
    axis.set_ylim(-0.04, 1.06)
    axis.grid(axis="y", linewidth=0.4, color="#D0D0D0")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _style(number: int) -> dict[str, Any]:
    """Black is kept for the mean."""
    style = line_style(number)
    return {**style, "color": "#7F7F7F"} if style["color"] == "#010203" else style


def _points(values: Mapping[int, float | None]) -> list[tuple[int, float]]:
    return [(layer, value) for layer, value in sorted(values.items()) if value is not None]
