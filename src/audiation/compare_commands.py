"""`audiation compare-features`: what adaptation changed in a backbone's features, as table, heat map, CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from audiation.compare_features import Comparisons, FailedModel, FeatureComparison

FONT_SETTINGS: dict[Any, Any] = {"font.size": 9, "hatch.linewidth": 0.6, "svg.hashsalt": "audiation"}
DOTS_PER_INCH = 200
ABSENT = "#E8E8E8"


def compare_features(
    models: tyro.conf.Positional[tuple[Path, ...]],
    /,
    data_root: Path | None = None,
    metadata_root: Path | None = None,
    audio: tuple[Path, ...] = (),
    out: Path | None = None,
    layers: tuple[int, ...] | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    batch_size: int = 4,
    device: str = "cpu",
) -> None:
    """Correlate what adapted models make of the test clips with what their untouched backbones make of them.

    For each model the features that its head reads (the mean over time of its layer, and over the windows of a clip)
    are compared with those of the backbone before it was adapted: the mean over dimensions of Pearson's coefficient
    over clips, and linear CKA. Probing changes nothing and gives 1. The exit code is 1 if a model could not be
    compared.

    Args:
        models: directories that `audiation evaluate --model-out` or `audiation adapt` wrote.
        data_root: folder with one folder per data set (default: $AUDIATION_DATA_ROOT).
        metadata_root: folder with local copies of official split and annotation files.
        audio: files and folders to compare on, instead of the test clips of the models' tasks.
        out: folder for comparison.csv, .json, .png and .svg; default: only the terminal.
        layers: layers to compare, for example --layers 3 6; default: the one that each model's head reads.
        backbone: FILE.py:NAME that the models were made on, where it is your own; the file is executed.
        weights: of the backbones; default: the official ones, or the random ones that a model was made on.
        precision: bf16 runs under autocast.
        batch_size: windows per forward pass.
        device: torch device.
    """
    from rich.console import Console

    from audiation.output_places import require_writable_folder
    from audiation.own_backbones import load_own_backbone

    if backbone is not None:
        load_own_backbone(backbone)
    if out is not None:
        check_matplotlib()
        require_writable_folder(out)
    comparisons = compare_with_progress(
        models, Console(), data_root=data_root, metadata_root=metadata_root, audio=audio, layers=layers,
        weights=weights, precision=precision, batch_size=batch_size, device=device,
    )  # fmt: skip
    show_comparisons(comparisons, Console(), out)
    if comparisons.failed:
        sys.exit(1)


def compare_with_progress(models: Sequence[Path], console: Console, **options: Any) -> Comparisons:
    """`compare_models` with a bar."""
    from audiation.compare_features import compare_models
    from audiation.console import new_progress

    with new_progress(console) as bar:
        row = bar.add_task("compare", total=None, detail="loading")
        return compare_models(
            models,
            progress=lambda p: bar.update(
                row, total=p.total_clips, completed=p.num_clips,
                detail=f"{Path(p.model).name}, {p.side}: clip {p.num_clips + 1} of {p.total_clips}",
            ),
            **options,
        )  # fmt: skip


def show_comparisons(comparisons: Comparisons, console: Console, out: Path | None) -> list[Path]:
    """Print the table and what could not be compared; write the files."""
    rows = comparisons.rows
    if rows:
        console.print(render_comparisons(rows))
        for note in notes_on(rows):
            console.print(note, style="dim", highlight=False, markup=False)
    for failed in comparisons.failed:
        console.print(
            f"not compared: {failed.model}: {failed.reason}", style="red", markup=False, soft_wrap=True
        )
    if out is None:
        return []
    written = write_comparisons(comparisons, out)
    console.print(f"Written: {', '.join(map(str, written))}", highlight=False, soft_wrap=True)
    return written


# The table ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class System:
    """A row of the table. copy: counts models that are alike in all of this, from 0."""

    backbone: str
    num_layers: int
    layer: int
    method: str
    copy: int = 0

    @property
    def title(self) -> str:
        return self.method + (f" ({self.copy + 1})" if self.copy else "")


def by_system(rows: Sequence[FeatureComparison]) -> dict[System, dict[str, FeatureComparison]]:
    """System -> task -> comparison, in the order of the rows."""
    seen: Counter[tuple[object, ...]] = Counter()
    found: dict[System, dict[str, FeatureComparison]] = {}
    for row in rows:
        place = row.backbone, row.num_layers, row.layer, row.method
        copy = seen[*place, row.task]
        seen[*place, row.task] += 1
        found.setdefault(System(*place, copy), {})[row.task] = row
    return found


def render_comparisons(rows: Sequence[FeatureComparison]) -> Table:
    """Rows are systems, columns tasks; in a cell the mean correlation, and in brackets linear CKA."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title="Features after adaptation, against the untouched backbone: mean correlation (linear CKA)",
        title_justify="left",
        box=box.HORIZONTALS,
    )
    tasks = list(dict.fromkeys(row.task for row in rows))
    table.add_column("method", overflow="fold")
    for task in tasks:
        table.add_column(task, justify="right", overflow="fold")
    previous = None
    for system, cells in by_system(rows).items():
        trunk = f"{system.backbone}, layer {system.layer} of {system.num_layers}"
        if trunk != previous:
            table.add_section()
            table.add_row(Text(trunk, style="bold"))
            previous = trunk
        shown = [Text("-") if task not in cells else _cell_text(cells[task]) for task in tasks]
        table.add_row(Text(system.title), *shown)
    return table


def _cell_text(row: FeatureComparison) -> Any:
    from rich.text import Text

    found = row.similarity
    return Text.assemble(shown(found.correlation), (f" ({shown(found.cka)})", "dim"))


def shown(value: float) -> str:
    """Three places; 1.000 is kept for what is 1 exactly, as probing is."""
    if value == 1.0:
        return "1.000"
    return f"{min(value, 0.999):.3f}" if value > 0.999 else f"{value:.3f}"


def notes_on(rows: Sequence[FeatureComparison]) -> list[str]:
    """What the numbers rest on, for people."""
    lines = [
        "Pearson's coefficient over clips, its mean over dimensions; in brackets linear CKA, not debiased. A clip's "
        f"features are its mean over time and windows, in {' and '.join(dict.fromkeys(r.precision for r in rows))}."
    ]
    for task in dict.fromkeys(row.task for row in rows):
        of_task = [row for row in rows if row.task == task]
        counts = sorted({(row.similarity.num_clips, row.num_official_clips) for row in of_task})
        few = any(row.similarity.num_clips < row.similarity.num_dims for row in of_task)
        text = ", ".join(f"{used} of {official} clips" for used, official in counts)
        lines.append(f"{task}: {text}{'; fewer than dimensions, which raises CKA' if few else ''}.")
        lines += dict.fromkeys(f"  not read: {name}: {why}" for row in of_task for name, why in row.unread)
    for row in rows:
        if count := row.similarity.num_constant_dims:
            lines.append(
                f"{row.method} on {row.task} ({row.backbone}, layer {row.layer}): {count} of "
                f"{row.similarity.num_dims} dimensions do not vary over the clips, and are left out of the mean."
            )
    return lines


# Files ----------------------------------------------------------------------------------------------------

CSV_HEADER = (
    "backbone", "num_layers", "layer", "method", "task", "correlation", "linear_cka", "clips", "official_clips", "dims",
    "constant_dims", "precision", "weights_source", "model", "note",
)  # fmt: skip


def write_comparisons(comparisons: Comparisons, out: Path) -> list[Path]:
    """`comparison.csv`, `.json`, and, where anything was compared, `.png` and `.svg`."""
    out.mkdir(parents=True, exist_ok=True)
    written = [out / "comparison.csv", out / "comparison.json"]
    with written[0].open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(CSV_HEADER)
        writer.writerows(_csv_row(row) for row in comparisons.rows)
        writer.writerows(_csv_failed(one) for one in comparisons.failed)
    partial = out / f"comparison.json.{os.getpid()}.partial"
    partial.write_text(json.dumps(dataclasses.asdict(comparisons), indent=1) + "\n", encoding="utf-8")
    partial.replace(written[1])
    return written + (save_heat_map(comparisons.rows, out, "comparison") if comparisons.rows else [])


def _csv_row(row: FeatureComparison) -> list[object]:
    found = row.similarity
    return [
        row.backbone, row.num_layers, row.layer, row.method, row.task, found.correlation, found.cka, found.num_clips,
        row.num_official_clips, found.num_dims, found.num_constant_dims, row.precision, row.weights_source, row.model,
        f"{len(row.unread)} clips not read" if row.unread else "",
    ]  # fmt: skip


def _csv_failed(one: FailedModel) -> list[object]:
    return [*[None] * (len(CSV_HEADER) - 2), one.model, f"not compared: {one.reason}"]


def check_matplotlib() -> None:
    """ValueError where the heat map cannot be drawn; asked before anything long is begun."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ValueError(
            'the heat map is drawn with matplotlib: pip install "audiation[figures]", or leave --out away'
        ) from None


def save_heat_map(rows: Sequence[FeatureComparison], directory: Path, name: str) -> list[Path]:
    """Draw `directory/name.png` and `.svg`: a row of panels per backbone and layer, correlation beside CKA; methods
    downwards, tasks across. Every cell has its number, so that it is read without colour; what was not compared is
    hatched.

    Raises:
        ValueError: matplotlib is not installed.
    """
    check_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    systems = by_system(rows)
    trunks = list(dict.fromkeys((s.backbone, s.num_layers, s.layer) for s in systems))
    tasks = list(dict.fromkeys(row.task for row in rows))
    low = min([0.0, *(row.similarity.correlation for row in rows)])
    heights = [sum((s.backbone, s.num_layers, s.layer) == trunk for s in systems) for trunk in trunks]
    with matplotlib.rc_context(FONT_SETTINGS):
        size = (3.2 + 2 * max(1.6, 0.85 * len(tasks)), sum(1.1 + 0.32 * height for height in heights) + 0.5)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(
            len(trunks), 2, squeeze=False, height_ratios=[height + 1 for height in heights]
        )
        for trunk, pair in zip(trunks, axes, strict=True):
            own = {s: cells for s, cells in systems.items() if (s.backbone, s.num_layers, s.layer) == trunk}
            for axis, measure in zip(pair, ("correlation", "cka"), strict=True):
                values = [
                    [getattr(cells[t].similarity, measure) if t in cells else None for t in tasks]
                    for cells in own.values()
                ]
                image = _draw(axis, values, low)
                axis.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right", rotation_mode="anchor")
                axis.set_yticks(range(len(own)), [s.title for s in own] if measure == "correlation" else [])
                axis.set_title("mean correlation" if measure == "correlation" else "linear CKA", fontsize=9)
            pair[0].set_ylabel(f"{trunk[0]}\nlayer {trunk[2]} of {trunk[1]}")
        bar = figure.colorbar(image, ax=axes, shrink=0.9)
        bar.outline.set_visible(False)
        paths = [directory / f"{name}.png", directory / f"{name}.svg"]
        directory.mkdir(parents=True, exist_ok=True)
        figure.savefig(paths[0], dpi=DOTS_PER_INCH)
        figure.savefig(paths[1], metadata={"Date": None})  # the same numbers, the same file
    return paths


def _draw(axis: Any, values: Sequence[Sequence[float | None]], low: float) -> Any:
    import numpy as np
    from matplotlib.patches import Rectangle

    grid = np.array([[np.nan if v is None else v for v in line] for line in values], dtype=float)
    image = axis.imshow(np.ma.masked_invalid(grid), cmap="cividis", vmin=low, vmax=1.0, aspect="auto")
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            if value is None:
                axis.add_patch(
                    Rectangle(
                        (x - 0.5, y - 0.5), 1, 1, facecolor=ABSENT, edgecolor="#9A9A9A", hatch="////", lw=0
                    )
                )
                continue
            dark = (value - low) / (1.0 - low) < 0.55
            axis.text(
                x, y, shown(value), ha="center", va="center", fontsize=8, color="white" if dark else "black"
            )
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return image
