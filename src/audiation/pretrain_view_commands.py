"""`audiation pretrain show` and `compare`: what runs show of themselves, as text, events for TensorBoard, a figure."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import tyro


def show(run: tyro.conf.Positional[Path], /, tensorboard: Path | None = None) -> None:
    """Say how a pre-training run does: every quantity that it has logged as numbers and a small chart, and what looks
    wrong with it (collapse, spikes, numbers that are none). The exit code is 1 if something does.

    The run may still be training; nothing of it is changed.

    Args:
        run: folder of the run.
        tensorboard: folder to write TensorBoard events into, of all curves, throughput and probes included.
    """
    from audiation.output_places import require_writable_folder
    from audiation.pretrain_log import read_log
    from audiation.pretrain_monitors import summary, warnings_of, write_tensorboard

    curves = read_log(run)
    print(summary(curves))
    warnings = warnings_of(curves)
    if warnings:
        print()
    for line in warnings:
        print(f"warning: {line}")
    if tensorboard is not None:
        require_writable_folder(tensorboard)
        count = write_tensorboard(curves, tensorboard)
        print(f"Written: {count:,} numbers. Look at them with: tensorboard --logdir {tensorboard}")
    if warnings:
        sys.exit(1)


def compare(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    /,
    out: Path,
    axis: Literal["steps", "hours"] = "steps",
    panels: tuple[str, ...] = (),
    smooth_steps: int | None = None,
) -> None:
    """Draw pre-training runs over one another, a panel per quantity, as figure A.1 of the thesis does for its trials.

    Args:
        runs: folders of runs, which may still be training.
        out: file to draw, .png or .svg.
        axis: optimiser steps, or hours of audio heard.
        panels: quantities as they are called in the log; those of figure A.1 are grad_norm loss_scale cross_entropy_0
            cqt_mse. Default: the usual ones of each run, and probes.
        smooth_steps: steps that make a point; default: so many that the longest run has 200.
    """
    from audiation.output_places import require_writable_file
    from audiation.pretrain_compare import compare_runs

    require_writable_file(out)
    drawn = compare_runs(runs, out, axis=axis, quantities=panels, smooth_steps=smooth_steps)
    for note in drawn.notes:
        print(note)
    if drawn.not_drawn:
        print(f"Not drawn, ask for them with --panels: {', '.join(drawn.not_drawn)}.")
    print(f"Written: {drawn.path}")
