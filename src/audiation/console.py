"""What the command line shows while it works: progress with rates and time left, failures, results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from audiation.backbones import BACKBONES
from audiation.cache import cache_dir
from audiation.distributed import this_rank
from audiation.evaluation import EvaluationProgress, Run, evaluate
from audiation.extraction import ExtractProgress, extract
from audiation.grid import GridProgress
from audiation.layer_choices import parse_fixed
from audiation.leaderboard import render_table
from audiation.loading import load_backbone
from audiation.model_cost import cost_line
from audiation.music_files import find_music
from audiation.output_places import require_writable_file
from audiation.own_audio import AdaptReport, adapt, predict
from audiation.own_backbones import is_own_backbone
from audiation.parameters import CountRow, count_parameters
from audiation.predictions import (
    PER_FILE_FORMATS,
    Format,
    render_csv,
    render_json,
    render_timeline,
    write_predictions,
)
from audiation.published import published_beside
from audiation.results import Result
from audiation.store_rows import Failure
from audiation.stored_vectors import default_layer
from audiation.training import TrainingProgress, process_group


def new_progress(console: Console) -> Progress:
    """A bar with a free text behind it; without a terminal only the final state is printed."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), TimeElapsedColumn())
    return Progress(*columns, TextColumn("{task.fields[detail]}"), console=console, refresh_per_second=4)


def extract_with_progress(
    paths: Sequence[Path],
    backbone_name: str,
    store_dir: Path,
    *,
    weights: str | None,
    layers: Sequence[str] | None,
    last_layer: int | None,
    num_layers: int | None,
    precision: Any,
    convention: str,
    seed: int,
    **options: Any,
) -> int:
    """`audiation extract`: returns how many files failed."""
    console = Console()
    backbone = load_backbone(
        backbone_name, weights, num_layers=num_layers, seed=seed, precision=precision, convention=convention
    )
    if last_layer is not None:
        wanted, _ = backbone.resolve_layers(None, last_layer)
    else:
        named = parse_fixed("+".join(layers), backbone.num_layers) if layers else ()
        wanted = set(named) or {default_layer(BACKBONES[backbone_name], backbone)}
    if line := cost_line(backbone, max(wanted)):
        console.print(line, highlight=False, soft_wrap=True)
    with new_progress(console) as bar:
        row = bar.add_task(f"{backbone_name}, layers {_ranges(sorted(wanted))}", total=None, detail="")
        report = extract(
            paths,
            backbone,
            store_dir,
            layers=sorted(wanted),
            progress=lambda p: _show_extraction(bar, row, p),
            on_failure=lambda f: bar.console.print(
                f"failed: {_shown(f)}", style="red", markup=False, soft_wrap=True
            ),
            **options,
        )
        bar.update(row, total=1, completed=1)
    rate = report.audio_seconds / report.wall_seconds if report.wall_seconds else 0.0
    console.print(
        f"{report.num_done} files extracted ({report.audio_seconds / 3600:.2f} audio-hours at {rate:.0f} "
        f"audio-hours per hour, {report.num_rows} rows), {report.num_resumed} were there, "
        f"{report.num_duplicates} had the same content as another, {report.num_other} are not audio, "
        f"{report.num_hidden} hidden.",
        highlight=False,
    )
    if report.dropped_seconds:
        least = backbone.min_samples / backbone.sample_rate_hz
        console.print(
            f"{report.dropped_seconds:.2f} s at the ends of files were left out: the model needs {least:.3f} s."
        )
    if report.failures:
        console.print(f"{len(report.failures)} files failed:", style="bold red")
        for failure in report.failures:
            console.print(f"  {_shown(failure)}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"Features: {report.table}", highlight=False, soft_wrap=True)
    return len(report.failures)


def evaluate_with_progress(
    run: Run,
    *,
    out: Path | None = None,
    console: Console | None = None,
    show_table: bool = True,
    **options: Any,
) -> Result:
    """`audiation evaluate`: carry out the run, write the result, print it."""
    console = console or Console()
    path = out or result_path(run)
    require_writable_file(path)
    with new_progress(console) as bar:
        adapted = "" if run.method == "probe" else f", {run.method},"
        row = bar.add_task(f"{run.backbone}{adapted} on {run.task}", total=None, detail="")
        result = evaluate(run, progress=lambda p: _show_evaluation(bar, row, p), **options)
        bar.update(row, total=1, completed=1, detail=_headline(result))
    if show_table:  # before saving, so that a full disk does not take the answer with it
        console.print(render_table([result], published_beside(result)))
        for why in ("no_positive", "no_negative"):
            if tags := result.run.get(f"tags_with_{why}"):
                shown = ", ".join(tags[:10]) + (", ..." if len(tags) > 10 else "")
                line = f"{len(tags)} tags have {why.replace('_', ' ')} in the test split: {shown}. "
                line += "roc_auc leaves such tags out, ap counts those without a positive as 0."
                console.print(line, markup=False, highlight=False)
        console.print(_cost(result), highlight=False)
        for name, why in result.run.get("not_defined", {}).items():
            console.print(f"{name}: {why}", markup=False, highlight=False)
        for failure in result.failures:
            what = f"not used ({failure.split}): {failure.track_id}: {failure.reason}"
            console.print(what, markup=False, style="red")
    result.save(path)
    if show_table:
        console.print(
            f"Result: {path}\nAgain:  audiation evaluate --run {path}", highlight=False, soft_wrap=True
        )
    return result


def show_parameters(
    backbones: Sequence[str],
    methods: Sequence[str] | None,
    num_layers: int | None,
    console: Console | None = None,
) -> list[CountRow]:
    """`audiation parameters`: prints the table, and returns its rows."""
    rows = count_parameters(backbones, methods, num_layers)
    depth = "all blocks" if num_layers is None else f"first {num_layers} blocks"
    table = Table(
        title=f"Trained parameters, {depth}, without head", title_justify="left", box=box.HORIZONTALS
    )
    table.add_column("backbone")
    table.add_column("method", overflow="fold")
    for name in ("trained here", "as published", "PETL table 3", "of the backbone"):
        table.add_column(name, justify="right", no_wrap=True)
    previous = None
    for row in rows:
        if previous not in (None, row.backbone):
            table.add_section()
        previous = row.backbone
        mark = {None: "", True: " =", False: " differs"}[row.agrees]
        table.add_row(
            row.backbone,
            row.method,
            f"{row.count.trainable:,}",
            f"{row.count.published_layout:,}",
            "-" if row.printed is None else row.printed + mark,
            f"{row.count.trainable / row.count.registered:.2%}",
        )
    console = console or Console()
    console.print(table)
    compared = [row for row in rows if row.agrees is not None]
    if compared:
        equal = sum(bool(row.agrees) for row in compared)
        console.print(f"{equal} of {len(compared)} cells agree with the paper's table 3.", highlight=False)
    return rows


def adapt_with_progress(
    data: Path, backbone: str, method: str, out: Path, *, device: str, **options: Any
) -> AdaptReport:
    """`audiation adapt`: train, write the adapter, say how good it is. Under torchrun the first process speaks."""
    with process_group(device) as own_device:
        return _adapt_on(own_device, data, backbone, method, out, **options)


def _adapt_on(
    device: torch.device, data: Path, backbone: str, method: str, out: Path, **options: Any
) -> AdaptReport:
    console = Console(quiet=not this_rank().is_first)
    with new_progress(console) as bar:
        row = bar.add_task(f"{backbone}, {method}", total=None, detail="reading labels")

        def say(line: str) -> None:
            bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

        report = adapt(
            data, backbone, method, out, device=str(device), say=say,
            progress=lambda p: _show_training(bar, row, p), **options,
        )  # fmt: skip
        bar.update(row, detail=f"{report.metric} {report.valid_score:.3f} on validation")
    for name, score in report.scores.items():
        interval = report.intervals[name]
        span = "" if interval is None else f", 95 % interval {interval.low:.3f} to {interval.high:.3f}"
        console.print(f"{name} {score:.3f} on {report.num_test_tracks} test tracks{span}", highlight=False)
    if not report.scores:
        console.print("There is no test split, so nothing says how good this is on new recordings.")
    if report.unused:
        console.print(f"{len(report.unused)} recordings could not be used; see above.", style="red")
    console.print(
        f"Adapter: {report.directory} ({report.parameters.trainable:,} parameters and a head of "
        f"{report.head_parameters:,})\nAsk it:  audiation predict FILE... --adapter {report.directory}"
        + (f" --backbone {backbone}" if is_own_backbone(backbone) else ""),
        highlight=False,
        soft_wrap=True,
    )
    return report


def predict_with_progress(
    files: Sequence[Path], adapters: Sequence[Path], *, kind: Format, out: Path | None, **options: Any
) -> int:
    """`audiation predict`: returns how many answers are missing."""
    if kind in PER_FILE_FORMATS and out is None:
        raise ValueError(f"{kind} writes files for each audio file: give a folder with --out")
    found = find_music(files)
    err = Console(stderr=True)
    for path, reason in found.problems:
        err.print(f"failed: {path}: {reason}", style="red", markup=False, soft_wrap=True)
    if not found.files:
        raise ValueError(f"no audio file in {', '.join(map(str, files))}")
    total = len(found.files) * len(adapters)
    predictions = []
    with new_progress(err) as bar:
        row = bar.add_task("predict", total=total, detail="loading")
        for one in predict(found.files, adapters, **options):
            predictions.append(one)
            bar.update(row, completed=len(predictions), detail=f"{len(predictions)} answers")
        bar.update(row, total=len(predictions))
    if out is None:
        render = {"timeline": render_timeline, "json": render_json, "csv": render_csv}[kind]
        print(render(predictions), end="")
    else:
        for path in write_predictions(predictions, kind, out):
            err.print(f"Written: {path}", markup=False, highlight=False, soft_wrap=True)
    return sum(one.answer is None for one in predictions) + len(found.problems)


def result_path(run: Run) -> Path:
    """Where a result goes if nobody says: one file per run in the cache directory."""
    return cache_dir("results", f"{run.task}.{Path(run.backbone).name}.{run.key}.json")


def _show_extraction(bar: Progress, row: TaskID, state: ExtractProgress) -> None:
    settled = state.files_done + state.files_resumed + state.files_duplicate + state.files_failed
    parts = [f"{settled}/{state.files_total} files"]
    if state.files_failed:
        parts.append(f"{state.files_failed} failed")
    if state.audio_seconds:
        parts.append(f"{state.audio_hours_per_hour:.0f} audio-hours per hour")
    if state.seconds_left is not None and state.bytes_left:
        parts.append(f"{_duration(state.seconds_left)} left")
    # One more than there is: the caller says when everything is done, so that the clock runs until then.
    total = state.bytes_done + state.bytes_left + 1
    bar.update(row, total=total, completed=state.bytes_done, detail=", ".join(parts))


def _show_evaluation(bar: Progress, row: TaskID, state: EvaluationProgress) -> None:
    if state.extraction is not None:
        _show_extraction(bar, row, state.extraction)
    elif state.training is not None:
        _show_training(bar, row, state.training)
    elif state.detail:
        bar.console.print(state.detail, highlight=False)
    elif state.grid is not None:
        _show_grid(bar, row, state.grid)
    else:
        bar.update(row, total=None, detail=state.stage)


def _show_training(bar: Progress, row: TaskID, state: TrainingProgress) -> None:
    parts = [f"step {state.step}/{state.steps}", f"loss {state.loss:.3f}"]
    if state.best_score is not None:
        parts.append(f"best validation {state.best_score:.3f}")
    if state.seconds_left is not None:
        parts.append(f"{_duration(state.seconds_left)} left")
    bar.update(row, total=state.steps, completed=state.step, detail=", ".join(parts))


def _show_grid(bar: Progress, row: TaskID, state: GridProgress) -> None:
    parts = [f"{state.num_alive} of {state.num_configs} probes in training", f"step {state.step}"]
    if math.isfinite(state.best_score):
        parts.append(f"best validation {state.best_score:.3f}")
    if state.seconds_left is not None:
        parts.append(f"{_duration(state.seconds_left)} left or more")
    done = state.num_configs - state.num_alive
    bar.update(row, total=state.num_configs, completed=done, detail=", ".join(parts))


def _cost(result: Result) -> str:
    """What a result took, and what its search settled on."""
    unit = "GPU-hours" if result.hardware.get("gpus") else "core-hours"
    text = f"{result.compute_hours:.3f} {unit} on {result.hardware.get('device') or 'an unknown device'}"
    if stored := result.run.get("features_from_store"):
        text += f" (features of {stored} files were stored already and are not in it)"
    if len(result.trials) > 1:
        chosen = ", ".join(
            f"{k}={v}"
            for k, v in result.chosen.items()
            if len({str(t.choices.get(k)) for t in result.trials}) > 1
        )
        text += f"; best of {len(result.trials)} configurations: {chosen}"
    return text + "."


def _headline(result: Result) -> str:
    name, score = next(iter(result.scores.items()))
    return f"{name} {score:.3f}"


def _shown(failure: Failure) -> str:
    """One line, whatever the file is called: a name may hold line breaks or commands to the terminal."""
    text = f"{failure.path}: {failure.reason}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 7] -> "0-2, 7"."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and runs[-1][-1] == n - 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)
