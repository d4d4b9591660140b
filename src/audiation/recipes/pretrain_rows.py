"""Rows of a table about pre-training as runs, at the paper's size and at a size for a CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from rich import box
from rich.table import Table

from audiation.backbones import BACKBONES, Backbone
from audiation.backbones.architecture import BuiltBackbone, is_architecture, outline, parse_architecture
from audiation.cache import write_text
from audiation.pretrain_run import PretrainRun

Size = Literal["paper", "mini"]

TRIAL_STEPS = 8  # that are timed
WARMUP_SHARE = 0.05  # of the steps of a small run
SMALL_BATCH_SECONDS = 120.0  # of audio in a step of a small run


@dataclass(frozen=True)
class PretrainRow:
    """A row of a table.

    name: as in the paper, or short for it.
    run: None where nothing is trained here, for the reason in `note`.
    printed_as: the system in the published results.
    note: what of the row, at this size, is our choice or reading.
    corpus: which of the recipe's corpora it is trained on.
    features_of: name of the row whose layers its teacher clusters; "": none.
    share_of_minutes: of the budget that each row has.
    """

    name: str
    run: PretrainRun | None
    printed_as: str
    note: str = ""
    corpus: str = ""
    features_of: str = ""
    share_of_minutes: float = 1.0


def backbone_outline(run: PretrainRun) -> Backbone:
    """The backbone of a run with shapes only; rows that share a backbone share it."""
    return _outline(run.backbone)


def loads_as(run: PretrainRun) -> str:
    """The name under which `load_backbone` takes what a run has trained."""
    return run.backbone.partition(":")[0] if is_architecture(run.backbone) else run.backbone


def small_run(
    run: PretrainRun, backbone: str, batch_seconds: float, objective: str | None = None
) -> PretrainRun:
    """The run at a size for a CPU: another backbone, float32, and batches of `batch_seconds` of audio.

    So rows with crops of another length hear as much in a step. Learning rate 5e-4, gradients clipped at 1. Steps are
    set by `train_rows`.
    """
    batch_size = max(1, round(batch_seconds / run.crop_seconds))
    train = replace(
        run.train,
        steps=TRIAL_STEPS,
        warmup_steps=0,
        batch_size=batch_size,
        micro_batch_size=None,
        learning_rate=5e-4,
        min_learning_rate=5e-6 if run.train.schedule == "tri-stage" else 0.0,
        clip_norm=1.0,
        precision="fp32",
    )
    return replace(run, backbone=backbone, objective=objective or run.objective, train=train)


def with_steps(run: PretrainRun, steps: int) -> PretrainRun:
    """The run with so many steps; the warm-up is a share of them."""
    warmup_steps = min(math.ceil(WARMUP_SHARE * steps), steps - 1)
    return replace(run, train=replace(run.train, steps=steps, warmup_steps=warmup_steps))


def render_rows(title: str, rows: Sequence[PretrainRow], size: Size) -> Table:
    """What is trained, with the sizes that follow. Small rows have no steps yet: those that fit into the minutes."""
    table = Table(title=title, title_justify="left", box=box.HORIZONTALS)
    columns = (
        "row",
        "encoder",
        "L x D",
        "parameters",
        "Hz",
        "mel hop x stacked",
        "crop",
        "steps x batch" if size == "paper" else "batch",
        "objective",
    )
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in columns[2:8] else "left")
    for row in rows:
        if row.run is None:
            table.add_row(row.name, f"not trained: {row.note}")
            continue
        backbone, run = backbone_outline(row.run), row.run
        stacking = "-"
        if isinstance(backbone, BuiltBackbone) and backbone.architecture.stem == "mel":
            stacking = f"{backbone.architecture.mel_hop_samples} x {backbone.architecture.stacked_frames}"
        batch = f"{run.train.batch_size:,}"
        table.add_row(
            row.name,
            run.backbone.partition(":")[0],
            f"{backbone.num_layers} x {backbone.dim:,}",
            f"{sum(p.numel() for p in backbone.parameters()):,}",
            f"{backbone.frame_rate_hz:g}",
            stacking,
            f"{run.crop_seconds:g} s",
            f"{run.train.steps:,} x {batch}" if size == "paper" else batch,
            run.objective,
        )
    return table


def write_runs(rows: Sequence[PretrainRow], out: Path) -> Path:
    """`OUT/runs/ROW.json` of every row that has a run, as `PretrainRun.from_json` reads it."""
    folder = out / "runs"
    for row in rows:
        if row.run is not None:
            write_text(folder / f"{file_name(row.name)}.json", row.run.to_json() + "\n")
    return folder


def file_name(row: str) -> str:
    """The name of a row as that of a file: letters, digits and hyphens."""
    return "-".join("".join(c if c.isalnum() else " " for c in row).split())


@cache
def _outline(backbone: str) -> Backbone:
    if backbone not in BACKBONES:
        return outline(parse_architecture(backbone))
    make = BACKBONES[backbone].outline
    assert make is not None
    return make()
