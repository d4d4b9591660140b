"""`audiation demo`: the main job end to end on real music: representations in one table, and one backbone adapted."""

from __future__ import annotations

import dataclasses
import time

from rich.console import Console

from audiation.annotations import Key
from audiation.bootstrap import paired_interval
from audiation.cache import cache_dir
from audiation.console import evaluate_with_progress, new_progress, result_path
from audiation.datasets.scores import make_scores
from audiation.leaderboard import render_table
from audiation.protocols import PROTOCOLS
from audiation.published import published_beside
from audiation.results import Result, ResultError, current_versions
from audiation.run import Run
from audiation.splits import load_splits
from audiation.tasks import TASKS

BACKBONES = ("chroma", "mfcc")
QUESTIONS = ("scores-key", "scores-timbre")
# No pre-trained backbone is small enough for a CPU and at hand without a download, so an untrained one is adapted.
ADAPTED_BACKBONE, ADAPTED_TASK, METHODS = "musicfm-mini", "scores-key", ("probe", "lora:rank=8")
ADAPTED_TRAINING = "steps=300,learning_rate=1e-3,precision=fp32,validate_every_steps=50"
# Questions about every frame: (backbone, task, metrics shown). No network is needed to hear where a note begins.
FRAME_QUESTIONS = (
    ("onset-frames", "scores-beats", ("beat_f_70ms_per_track", "downbeat_f_70ms_per_track")),
    ("chroma-frames", "scores-chords", ("chord_majmin_wcsr",)),
)
FRAME_TRAINING = "steps=330,learning_rate=1e-3,validate_every_steps=110"


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
    adapted_runs = [
        Run(ADAPTED_BACKBONE, ADAPTED_TASK, method, "petl", weights="random", train=ADAPTED_TRAINING)
        for method in METHODS
    ]
    adapted = [_kept_result(run, console) or _new_result(run, console, workers) for run in adapted_runs]
    frames = []
    for backbone, task, metrics in FRAME_QUESTIONS:
        run = Run(backbone, task, "probe", "musicfm", train=FRAME_TRAINING)
        frames.append(_only(_kept_result(run, console) or _new_result(run, console, workers), metrics))
    console.print()
    console.print(render_table(results, [row for result in results for row in published_beside(result)]))
    console.print(
        "scores are renderings of Bach chorales: they show that the code is right, not how good a representation "
        "is on recordings. The published rows are jukemir's numbers for the same two representations on other "
        "data, the best of 216 configurations; ours is one of these. For orientation, not for comparison.",
        style="dim",
        highlight=False,
    )
    console.print()
    console.print(render_table(adapted, title=f"One backbone, adapted ({METHODS[1]}) and probed"))
    console.print(_comparison(*adapted), highlight=False)
    console.print()
    console.print(
        render_table(frames, title="Every frame: beats by the bar-pointer model, chords by their runs")
    )
    console.print(
        "A head on hand-crafted frames; a beat counts within 70 ms. Bars are hard to hear for it: it knows of attacks, "
        "and not of harmony.",
        style="dim",
        highlight=False,
    )
    console.print(f"\nDone in {time.monotonic() - started:.0f} s. Next:", highlight=False)
    for command in (
        "audiation list backbones",
        "audiation extract ~/Music --backbone mfcc --store features/",
        "audiation evaluate --backbone mfcc --task gtzan_genre --data-root DIR",
        f"audiation evaluate --run {result_path(runs[0])}",
        "audiation adapt LABELS.csv --backbone musicfm-msd --method lora --out my-adapter",
    ):
        console.print(f"  {command}", highlight=False, soft_wrap=True)


def _only(result: Result, metrics: tuple[str, ...]) -> Result:
    """The result with fewer metrics, to be shown."""
    return dataclasses.replace(
        result,
        scores={m: result.scores[m] for m in metrics},
        intervals={m: result.intervals[m] for m in metrics},
    )


def _comparison(probe: Result, lora: Result) -> str:
    """What the adapted backbone gains over the probe on the same backbone, whichever way it comes out."""
    task = TASKS[ADAPTED_TASK]
    answers = {p.track_id: p.estimate for p in probe.predictions}
    shared = [p for p in lora.predictions if p.track_id in answers]
    references = [Key.parse(p.reference) for p in shared]
    with_lora = [Key.parse(p.estimate) for p in shared]
    with_probe = [Key.parse(answers[p.track_id]) for p in shared]
    metric = task.metrics[0]
    difference = metric.compute(references, with_lora) - metric.compute(references, with_probe)
    interval = paired_interval(metric, references, with_lora, with_probe)
    assert interval is not None
    if interval.low > 0:
        verdict = "LoRA is better than the probe"
    elif interval.high < 0:
        verdict = "LoRA is worse than the probe"
    else:
        verdict = "the two cannot be told apart"
    return (
        f"LoRA minus probe on the same {len(shared)} test clips: {difference:+.3f} {metric.name}, 95 % interval "
        f"{interval.low:+.3f} to {interval.high:+.3f} (paired bootstrap): {verdict}. The backbone is untrained "
        "(random weights), so neither says anything about a music foundation model."
    )


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
