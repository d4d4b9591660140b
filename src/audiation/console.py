"""What the command line shows while it works: progress with rates and time left, failures, results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from audiation.backbones import BACKBONES
from audiation.cache import cache_dir
from audiation.evaluation import EvaluationProgress, Run, default_layer, evaluate
from audiation.extraction import ExtractProgress, extract
from audiation.leaderboard import Result, published_beside, render_table
from audiation.loading import load_backbone
from audiation.store_rows import Failure


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
    layers: Sequence[int] | None,
    last_layer: int | None,
    num_layers: int | None,
    precision: Any,
    seed: int,
    **options: Any,
) -> int:
    """`audiation extract`: returns how many files failed."""
    console = Console()
    backbone = load_backbone(backbone_name, weights, num_layers=num_layers, seed=seed, precision=precision)
    if last_layer is not None:
        wanted, _ = backbone.resolve_layers(None, last_layer)
    else:
        wanted = set(layers) if layers else {default_layer(BACKBONES[backbone_name], backbone)}
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
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the result a file name, like {path / 'result.json'}")
    with new_progress(console) as bar:
        row = bar.add_task(f"{run.backbone} on {run.task}", total=None, detail="")
        result = evaluate(run, progress=lambda p: _show_evaluation(bar, row, p), **options)
        bar.update(row, total=1, completed=1, detail=_headline(result))
    if show_table:  # before saving, so that a full disk does not take the answer with it
        console.print(render_table([result], published_beside(result)))
        for failure in result.failures:
            what = f"not used ({failure.split}): {failure.track_id}: {failure.reason}"
            console.print(what, markup=False, style="red")
    result.save(path)
    if show_table:
        console.print(
            f"Result: {path}\nAgain:  audiation evaluate --run {path}", highlight=False, soft_wrap=True
        )
    return result


def result_path(run: Run) -> Path:
    """Where a result goes if nobody says: one file per run in the cache directory."""
    return cache_dir("results", f"{run.task}.{run.backbone}.{run.key}.json")


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
    elif state.stage == "probe":
        bar.update(
            row, total=None, detail=f"probe: step {state.step}, validation {state.validation_score:.3f}"
        )
    else:
        bar.update(row, total=None, detail=state.stage)


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
