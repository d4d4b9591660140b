"""`audiation demo`: the main job end to end on real music, in one table."""

from __future__ import annotations

import time

from rich.console import Console

from audiation.cache import cache_dir
from audiation.console import evaluate_with_progress, new_progress, result_path
from audiation.datasets.scores import make_scores
from audiation.evaluation import Run, load_splits
from audiation.leaderboard import Result, ResultError, current_versions, published_beside, render_table
from audiation.protocols import PROTOCOLS
from audiation.tasks import TASKS

BACKBONES = ("chroma", "mfcc")
QUESTIONS = ("scores-key", "scores-timbre")


def run_demo(*, workers: int = 2, console: Console | None = None) -> None:
    """Make `scores`, extract, probe, score, compare. What an earlier call made is used again.

    Args:
        workers: processes that render and extract.
    """
    console = console or Console()
    started = time.monotonic()
    with new_progress(console) as bar:
        row = bar.add_task("scores: Bach chorales, rendered", total=None, detail="")
        scores = make_scores(
            cache_dir("datasets", "scores"),
            workers=workers,
            progress=lambda done, total, what: bar.update(row, total=total, completed=done, detail=what),
        )
        counts = ", ".join(f"{n} {split}" for split, n in scores.counts.items())
        bar.update(row, total=1, completed=1, detail=f"{len(scores.tracks)} clips: {counts}")
    runs = [Run(backbone, task) for task in QUESTIONS for backbone in BACKBONES]
    results = [_kept_result(run, console) or _new_result(run, console, workers) for run in runs]
    console.print()
    console.print(render_table(results, [row for result in results for row in published_beside(result)]))
    console.print(
        "scores are renderings of Bach chorales: they show that the code is right, not how good a representation "
        "is on recordings. The published rows are jukemir's numbers for the same two representations on other "
        "data, the best of 216 configurations; ours is one of these. For orientation, not for comparison.",
        style="dim",
        highlight=False,
    )
    console.print(f"\nDone in {time.monotonic() - started:.0f} s. Next:", highlight=False)
    for command in (
        "audiation list backbones",
        "audiation extract ~/Music --backbone mfcc --store features/",
        "audiation evaluate --backbone mfcc --task gtzan_genre --data-root DIR",
        f"audiation evaluate --run {result_path(runs[0])}",
    ):
        console.print(f"  {command}", highlight=False, soft_wrap=True)


def _new_result(run: Run, console: Console, workers: int) -> Result:
    return evaluate_with_progress(
        run, console=console, workers=workers, data_root=cache_dir("datasets"), show_table=False
    )


def _kept_result(run: Run, console: Console) -> Result | None:
    """The result of an earlier demo, if the same code would compute it from the same clips again."""
    path = result_path(run)
    if not path.is_file():
        return None
    try:
        result = Result.load(path)
    except ResultError:  # written by another version
        return None
    _, split_hash = load_splits(TASKS[run.task], cache_dir("datasets"))
    rules = {
        "metrics": [m.versioned_name for m in TASKS[run.task].metrics],
        "protocol_version": PROTOCOLS[run.protocol].version,
    }
    if any(result.run.get(name) != value for name, value in rules.items()):
        return None
    if result.versions != current_versions() or result.split_hash != split_hash:
        return None
    console.print(f"{run.backbone} on {run.task}: result of {result.created} is used again", highlight=False)
    return result
