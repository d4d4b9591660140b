"""`audiation demo`: the main job end to end on real music: a grid of probes for two representations and two questions,
one backbone adapted, beats and chords, and all of it as a site."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from rich.console import Console

from audiation.annotations import Key
from audiation.bootstrap import paired_interval
from audiation.cache import cache_dir
from audiation.console import evaluate_with_progress, new_progress, result_path
from audiation.datasets.scores import make_scores
from audiation.leaderboard import render_table
from audiation.loading import load_backbone
from audiation.maps import clip_maps
from audiation.protocols import PROTOCOLS
from audiation.published import published_beside
from audiation.results import Result, ResultError, current_versions
from audiation.run import Run
from audiation.site import write_site
from audiation.splits import load_splits
from audiation.tasks import TASKS
from audiation.weights import WeightsError

BACKBONES = ("chroma", "mfcc")
QUESTIONS = ("scores-key", "scores-timbre")
GRID_SLICE = "batch_size=64,weight_decay=0"  # 36 of the 216 configurations of jukemir
# The one pre-trained model whose weights come with a Python package. Its vectors are long, so its probes are linear.
PRETRAINED, PRETRAINED_SLICE = "musicnn-msd", "batch_size=64,weight_decay=0,hidden_size=none"
# Ours, whose weights come with this package; its first blocks, which know most about keys (docs/audiation-mini.md).
ADAPTED_BACKBONE, ADAPTED_TASK, METHODS = "audiation-mini", "scores-key", ("probe", "lora:rank=8")
ADAPTED_LAYERS, ADAPTED_TRAINING = 2, "steps=100,learning_rate=1e-3,precision=fp32,validate_every_steps=25"
# Questions about every frame: (backbone, task, metrics shown). No network is needed to hear where a note begins.
FRAME_QUESTIONS = (
    ("onset-frames", "scores-beats", ("beat_f_70ms_per_track", "downbeat_f_70ms_per_track")),
    ("chroma-frames", "scores-chords", ("chord_majmin_wcsr",)),
)
FRAME_TRAINING = "steps=330,learning_rate=1e-3,validate_every_steps=110"


def run_demo(*, workers: int = 2, full_grid: bool = False, console: Console | None = None) -> None:
    """Make `scores`, extract, probe, score, compare, write the site. What an earlier call made is used again.

    Args:
        workers: processes that render and extract.
        full_grid: all 216 configurations of jukemir instead of 36 of them.
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
    slices = dict.fromkeys(BACKBONES, GRID_SLICE) | dict.fromkeys(_pretrained(console), PRETRAINED_SLICE)
    runs = [
        Run(backbone, task, protocol="jukemir", train="" if full_grid else train)
        for task in QUESTIONS
        for backbone, train in slices.items()
    ]
    results = [_kept_result(run, console) or _new_result(run, console, workers) for run in runs]
    adapted_runs = [
        Run(ADAPTED_BACKBONE, ADAPTED_TASK, method, "petl", num_layers=ADAPTED_LAYERS, train=ADAPTED_TRAINING)
        for method in METHODS
    ]
    adapted = [_kept_result(run, console) or _new_result(run, console, workers) for run in adapted_runs]
    frame_runs = [
        Run(backbone, task, "probe", "musicfm", train=FRAME_TRAINING) for backbone, task, _ in FRAME_QUESTIONS
    ]
    frames = [_kept_result(run, console) or _new_result(run, console, workers) for run in frame_runs]
    console.print()
    console.print(render_table(results, [row for result in results for row in published_beside(result)]))
    console.print(
        "scores are renderings of Bach chorales: they show that the code is right, not how good a representation "
        "is on recordings. The published rows are jukemir's numbers for chroma and mfcc on other data, the best of "
        f"216 configurations; ours is the best of {len(results[0].trials)}. For orientation, not for comparison. The "
        "pattern is the paper's: chroma hears keys and is nearly deaf to timbre, mfcc the reverse.",
        style="dim",
        highlight=False,
    )
    console.print()
    console.print(render_table(adapted, title=f"One backbone, adapted ({METHODS[1]}) and probed"))
    console.print(_comparison(*adapted), highlight=False)
    console.print()
    console.print(
        render_table(
            [_only(r, metrics) for r, (_, _, metrics) in zip(frames, FRAME_QUESTIONS, strict=True)],
            title="Every frame: beats by the bar-pointer model, chords by their runs",
        )
    )
    console.print(
        "A head on hand-crafted frames; a beat counts within 70 ms. Bars are hard to hear for it: it knows of attacks, "
        "and not of harmony.",
        style="dim",
        highlight=False,
    )
    console.print(f"\nSite: {_site([*results, *adapted, *frames], runs)}", highlight=False, soft_wrap=True)
    console.print(f"\nDone in {time.monotonic() - started:.0f} s. Next:", highlight=False)
    for command in (
        "audiation list backbones",
        "audiation extract ~/Music --store features/",
        "audiation evaluate --backbone mfcc --task gtzan_genre --data-root DIR",
        f"audiation evaluate --run {result_path(runs[0])}",
        "audiation reproduce jukemir/table3 --data-root DIR",
        "audiation adapt LABELS.csv --method lora --out my-adapter",
    ):
        console.print(f"  {command}", highlight=False, soft_wrap=True)


def _pretrained(console: Console) -> tuple[str, ...]:
    """The pre-trained representation, where its weights are here or can be had; else nothing, and why."""
    try:
        load_backbone(PRETRAINED)
    except WeightsError as error:
        console.print(f"{PRETRAINED} is left out: {error}", markup=False, highlight=False, soft_wrap=True)
        return ()
    return (PRETRAINED,)


def _site(results: list[Result], mapped: list[Run]) -> Path:
    """Write the leaderboard with a map of the clips for each of the runs; gives its first page."""
    maps = [one for run in mapped for one in clip_maps(run, data_root=cache_dir("datasets"))]
    return write_site(results, cache_dir("demo-site"), title="The demo of audiation", maps=maps).index


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
        f"{interval.low:+.3f} to {interval.high:+.3f} (paired bootstrap): {verdict}."
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
