"""`audiation profile-layers`: which layer is good for which task, as table, chart, CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from audiation.adapted_evaluation import EvaluationProgress
    from audiation.profile_layers import LayerProfile, TaskProfile


def profile_layers(
    backbone: str,
    task: tuple[str, ...],
    layers: str = "all",
    choose: str = "",
    protocol: str = "jukemir-single",
    train: str = "hidden_size=none",
    weights: str | None = None,
    num_layers: int | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    seed: int = 0,
    data_root: Path | None = None,
    metadata_root: Path | None = None,
    store: Path | None = None,
    out: Path | None = None,
    device: str = "cpu",
    workers: int = 1,
) -> None:
    """Train a linear probe on every layer of a frozen backbone, and say which layers are good.

    Scores are those of the validation split; the test split is not heard. On each task the worst layer is 0 and the
    best is 1, and the mean over tasks ranks the layers. All layers are stored in one pass. The command can be stopped
    at any moment and started again. The exit code is 1 if a task could not be profiled.

    Args:
        backbone: name as in `audiation list backbones`, or FILE.py:NAME of your own.
        task: one or several, as in `audiation list tasks`, that ask about whole clips.
        layers: all, middle, every:k (0, k, 2k, ...), or numbers like 3+7.
        choose: greedy:n also looks, for each task, for up to n layers that are jointly best.
        protocol: that probes stored vectors, as in `audiation protocols list`.
        train: what departs from the protocol; "" takes its own heads.
        weights: checkpoint file, directory or Hub id; "random" for untrained weights; default: the official ones.
        num_layers: cut the model to its first blocks.
        precision: bf16 computes encoder and stem in bfloat16.
        seed: of the probes and of random weights.
        data_root: folder with one folder per data set (default: $AUDIATION_DATA_ROOT); `scores` makes itself.
        metadata_root: folder with local copies of official split and annotation files.
        store: feature store (default: in the cache directory).
        out: folder for layers.csv, .json, .png and .svg; default: only the terminal.
        device: torch device.
        workers: processes that decode audio.
    """
    from rich.console import Console

    from audiation.charts.layer_curves import check_matplotlib
    from audiation.output_places import require_writable_folder

    if out is not None:
        check_matplotlib()
        require_writable_folder(out)
    console = Console()
    profile = profile_with_progress(
        backbone, task, layers, console, choose=choose, protocol=protocol, train=train, weights=weights,
        num_layers=num_layers, precision=precision, seed=seed, data_root=data_root, metadata_root=metadata_root,
        store_dir=store, out=out, device=device, workers=workers,
    )  # fmt: skip
    show_profiles([profile], console, out)
    if profile.failed:
        sys.exit(1)


def profile_with_progress(
    backbone: str, tasks: Sequence[str], layers: str, console: Console, **options: Any
) -> LayerProfile:
    """`profile_layers.profile_layers` with a bar."""
    from audiation.console import new_progress
    from audiation.profile_layers import profile_layers as profile

    with new_progress(console) as bar:
        row = bar.add_task(f"{backbone}, layers {layers}", total=None, detail="loading")

        def show(task: str, state: EvaluationProgress) -> None:
            if state.detail:
                bar.console.print(state.detail, style="red", markup=False, highlight=False, soft_wrap=True)
            bar.update(row, detail=f"{task}: {_stage(state)}")

        found = profile(backbone, tasks, layers, progress=show, **options)
        bar.update(row, total=1, completed=1, detail="")
    return found


def _stage(state: EvaluationProgress) -> str:
    if state.extraction is not None:
        files = state.extraction
        return f"features of {files.files_done + files.files_resumed} of {files.files_total} files"
    if state.grid is not None:
        return (
            f"{state.grid.num_alive} of {state.grid.num_configs} probes in training, step {state.grid.step}"
        )
    return state.stage


def show_profiles(
    profiles: Sequence[LayerProfile],
    console: Console,
    out: Path | None,
    marked: dict[str, tuple[int, str]] | None = None,
) -> list[Path]:
    """Print a table per backbone and what was found; write the files.

    marked: backbone -> a layer to mark in its chart, and what it is.
    """
    for profile in profiles:
        if profile.tasks:
            console.print(render_profile(profile))
        for line in notes_on(profile):
            console.print(line, style="dim", highlight=False, markup=False, soft_wrap=True)
        for line in findings_of(profile):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        for failed in profile.failed:
            text = f"not profiled: {failed.task}: {failed.reason}"
            console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    if out is None:
        return []
    written = write_profiles(profiles, out, marked)
    console.print(f"Written: {', '.join(map(str, written))}", highlight=False, soft_wrap=True)
    return written


# Table and text -------------------------------------------------------------------------------------------


def render_profile(profile: LayerProfile) -> Table:
    """Rows are layers, columns tasks and their mean; in a cell the score, and in brackets the normalised one. The best
    of a column has an asterisk."""
    from rich import box
    from rich.table import Table

    title = f"{profile.backbone}: validation score by layer (0 worst .. 1 best), {profile.probes}"
    table = Table(title=title, title_justify="left", box=box.HORIZONTALS)
    table.add_column("layer", justify="right")
    for one in profile.tasks:
        table.add_column(f"{one.task}\n{one.metric}", justify="right", overflow="fold")
    table.add_column("mean", justify="right")
    mean, best = profile.mean, profile.best_layer
    for layer in profile.layers:
        cells = [_cell(one, layer) for one in profile.tasks]
        table.add_row(str(layer), *cells, _number(mean[layer], 2) + ("*" if layer == best else " "))
    return table


def _cell(one: TaskProfile, layer: int) -> str:
    score = one.scores[layer]
    if score is None:
        return "diverged "
    mark = "*" if layer == one.best_layer else " "
    return f"{_number(_shown(one, score))} ({_number(one.normalised[layer], 2)}){mark}"


def _shown(one: TaskProfile, score: float) -> float:
    """As the metric itself has it."""
    return score if one.higher_is_better else -score


def _number(value: float | None, places: int = 3) -> str:
    return "-" if value is None else f"{value:.{places}f}"


def findings_of(profile: LayerProfile) -> list[str]:
    """Which layers are best, in words."""
    lines = []
    for one in profile.tasks:
        if one.best_layer is not None:
            score = one.scores[one.best_layer]
            assert score is not None
            lines.append(f"{one.task}: layer {one.best_layer} ({one.metric} {_shown(one, score):.3f})")
        if one.selection is not None:
            steps = ", ".join(f"{s.layer} ({_shown(one, s.score):.3f})" for s in one.selection.steps)
            over = one.selection.passed_over
            end = "" if over is None else f"; {over.layer} would not raise it ({_shown(one, over.score):.3f})"
            lines.append(f"{one.task}: together, in this order: {steps}{end}")
    if profile.best_layer is not None and len(profile.counted) > 1:
        depth = profile.best_layer / max(1, profile.num_layers)
        lines.append(
            f"Mean over {len(profile.counted)} tasks: layer {profile.best_layer} of {profile.num_layers}, "
            f"{depth:.0%} of the depth."
        )
    return lines


def notes_on(profile: LayerProfile) -> list[str]:
    """What the numbers rest on, for people."""
    from audiation.layer_choices import SAME_SCORE

    lines = [f"Weights: {profile.weights_source}. Layer 0 enters the first block."] if profile.tasks else []
    for one in profile.tasks:
        text = (
            f"{one.task}: {one.num_train_windows} windows to train, {one.num_valid_tracks} tracks to validate"
        )
        if one.num_probes > 1:
            text += f", the best of {one.num_probes} probes per layer"
        if one.failures:
            text += f"; {len(one.failures)} recordings were not used, the first: {': '.join(one.failures[0])}"
        known = [score for score in one.scores.values() if score is not None]
        if len(known) > 1:  # what 0 and 1 stand for may be one track
            text += f"; best and worst layer differ by {max(known) - min(known):.3f}"
        lines.append(f"{text}.")
        if len(known) > 1 and max(known) - min(known) < SAME_SCORE:
            lines.append(f"{one.task} does not tell these layers apart, and is not in the mean.")
    return lines


# Files ----------------------------------------------------------------------------------------------------

CSV_HEADER = (
    "backbone", "num_layers", "task", "metric", "layer", "score", "normalised", "train_windows", "valid_tracks",
    "selected_with", "note",
)  # fmt: skip


def write_profiles(
    profiles: Sequence[LayerProfile], out: Path, marked: dict[str, tuple[int, str]] | None = None
) -> list[Path]:
    """`layers.csv` and `.json`, and, where layers can be compared, `layers.png` and `.svg`. Nothing where nothing was
    profiled: what an earlier call wrote stays."""
    from audiation.charts.layer_curves import save_layer_curves

    if not any(profile.tasks for profile in profiles):
        return []

    out.mkdir(parents=True, exist_ok=True)
    written = [out / "layers.csv", out / "layers.json"]
    partial = out / f"layers.csv.{os.getpid()}.partial"
    with partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(CSV_HEADER)
        writer.writerows(row for profile in profiles for row in _csv_rows(profile))
    partial.replace(written[0])
    partial = out / f"layers.json.{os.getpid()}.partial"
    partial.write_text(
        json.dumps([_record(p) for p in profiles], indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    partial.replace(written[1])
    compared = [p for p in profiles if p.tasks and len(p.layers) > 1]
    for chart in (out / "layers.png", out / "layers.svg"):  # of an earlier call
        chart.unlink(missing_ok=True)
    panels = [layer_panel(p, (marked or {}).get(p.backbone)) for p in compared]
    return written + (save_layer_curves(panels, out, "layers") if panels else [])


def layer_panel(profile: LayerProfile, marked: tuple[int, str] | None = None) -> Any:
    """What `charts.layer_curves` draws of a profile."""
    from audiation.charts.layer_curves import LayerCurve, LayerPanel

    curves = tuple(LayerCurve(one.task, one.normalised) for one in profile.tasks)
    mean = profile.mean if len(profile.tasks) > 1 else {}
    return LayerPanel(profile.backbone, profile.num_layers, curves, mean, marked)


def _record(profile: LayerProfile) -> dict[str, Any]:
    record = dataclasses.asdict(profile)
    for one, written in zip(profile.tasks, record["tasks"], strict=True):
        written |= {"normalised": one.normalised, "best_layer": one.best_layer}
        if one.selection is not None:
            written["selection"]["layers"] = list(one.selection.layers)
    return record | {"mean": profile.mean, "best_layer": profile.best_layer}


def _csv_rows(profile: LayerProfile) -> list[list[object]]:
    """A row per task and layer; the mean is a task of its own, without a metric."""
    rows: list[list[object]] = []
    begin: list[object] = [Path(profile.backbone).name, profile.num_layers]
    for one in profile.tasks:
        selected = () if one.selection is None else one.selection.layers
        for layer in profile.layers:
            score = one.scores[layer]
            rows.append(
                [*begin, one.task, one.metric, layer, None if score is None else _shown(one, score),
                 one.normalised[layer], one.num_train_windows, one.num_valid_tracks,
                 "+".join(map(str, selected)) if layer in selected else None, None]
            )  # fmt: skip
    if len(profile.tasks) > 1:
        rows += [
            [*begin, "mean", None, layer, None, value, *[None] * 4] for layer, value in profile.mean.items()
        ]
    rows += [
        [*begin, failed.task, *[None] * 7, f"not profiled: {failed.reason}"] for failed in profile.failed
    ]
    return rows
