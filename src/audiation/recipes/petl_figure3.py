"""PETL paper, figure 3: scores of every method with 3, 6, 9 and 12 layers, where there is memory for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from audiation import __version__
from audiation.adaptation import GIB, AdaptConfig
from audiation.adapted_evaluation import with_choices
from audiation.backbones import BACKBONES, Backbone
from audiation.console import new_progress
from audiation.evaluation import Run
from audiation.methods import inject, parse_method, set_modes
from audiation.protocols import PROTOCOLS, AdaptProtocol
from audiation.recipes.base import RECIPES, carry_out_runs
from audiation.recipes.figures import (
    Gap,
    Line,
    LinePanel,
    Point,
    check_matplotlib,
    save_lines,
    write_csv,
    write_json,
)
from audiation.recipes.petl_table2 import (
    METHOD_TITLES,
    PETL_BACKBONES,
    Headline,
    names_in,
    petl_run,
    report_failed,
    short,
)
from audiation.recipes.step_memory import (
    MARGIN,
    RUNTIME_BYTES,
    MemoryCheck,
    MemoryNeed,
    Shapes,
    check_estimate,
    memory_need,
)
from audiation.results import Result


@RECIPES.register("petl_figure3")
@dataclass(frozen=True)
class PetlFigure3:
    """Scores with 3, 6, 9 and 12 layers, all methods, and the memory that each needs (PETL paper, figure 3).

    A cell whose estimated memory is above the limit is not run but marked, as the paper's missing cells are.

    task: one task, for example scores-key, which needs no data.
    backbones, methods, layers: joined by "+".
    memory_limit_gib: of the device; the paper had 24.
    weights: None for the official ones, or "random".
    train: choices that depart from the protocol, joined by "+", like steps=500+micro_batch_size=4. The estimate
        follows them.
    """

    task: str = "mtt_clean"
    backbones: str = "+".join(PETL_BACKBONES)
    methods: str = "+".join(METHOD_TITLES)
    layers: str = "3+6+9+12"
    memory_limit_gib: float = 24.0
    weights: str | None = None
    train: str = ""

    def __post_init__(self) -> None:
        for backbone in names_in(self.backbones, "backbones"):
            BACKBONES[backbone]
        for method in names_in(self.methods, "methods"):
            parse_method(method)
        if not all(text.isdecimal() and int(text) for text in names_in(self.layers, "layers")):
            raise ValueError(f"layers are whole numbers joined by '+', like layers=3+6, got '{self.layers}'")
        if not self.memory_limit_gib > 0:
            raise ValueError(f"memory_limit_gib must be positive, got {self.memory_limit_gib}")

    def runs(self) -> list[Run]:
        return [
            petl_run(backbone, method, self.task, num_layers, self.weights, self.train)
            for backbone in names_in(self.backbones, "backbones")
            for method in names_in(self.methods, "methods")
            for num_layers in map(int, names_in(self.layers, "layers"))
        ]

    def carry_out(self, out: Path, device: str, console: Console) -> None:
        """Estimate the memory, print it with a check, carry out the runs that fit, and draw `figure3.png`, `.svg`;
        the numbers are in `figure3.csv` and `memory.json`."""
        check_matplotlib()
        cells, check = self._memory(out / "memory.json", device, console)
        console.print(render_memory(cells, self.memory_limit_gib))
        for note in [*memory_notes(cells, self.memory_limit_gib), check.sentence]:
            console.print(note, style="dim", highlight=False)
        fitting = [cell.run for cell in cells if cell.gap(self.memory_limit_gib) == ""]
        carried = carry_out_runs(fitting, out, device, console)
        results = carried.results
        console.print(render_scores(cells, results, self.memory_limit_gib))
        report_failed(carried.failed, console)
        reasons = {one.run: one.reason for one in carried.failed}
        rows = [_csv_row(cell, results, reasons, self.memory_limit_gib) for cell in cells]
        written = [write_csv(out / "figure3.csv", CSV_HEADER, rows)]
        if results:
            written += save_lines(out, "figure3", line_panels(cells, results, self.memory_limit_gib))
        else:
            console.print("No run has a result, so there is no chart.")
        console.print(f"Written: {', '.join(map(str, written))}", highlight=False, soft_wrap=True)

    def _memory(self, path: Path, device: str, console: Console) -> tuple[list[Cell], MemoryCheck]:
        """The estimate of every cell, and how far off one is; those of an earlier call with the same choices are used
        again."""
        conditions = {
            "runs": [asdict(run) for run in self.runs()], "on_cpu": torch.device(device).type == "cpu",
            "torch": torch.__version__, "audiation": __version__,
        }  # fmt: skip
        if (kept := _read(path, conditions)) is not None:
            return kept
        with new_progress(console) as bar:
            row = bar.add_task("memory of a training step", total=len(self.runs()) + 1, detail="")
            cells, shapes = [], Shapes()
            for run in self.runs():
                bar.update(row, detail=f"{run.backbone}, {run.method}, {run.num_layers} layers")
                cells.append(estimate(run, shapes, fused_attention=not conditions["on_cpu"]))
                bar.advance(row)
            bar.update(row, detail="one is measured")
            counted = [cell.run for cell in cells if cell.need is not None]
            if not counted:
                raise ValueError(f"no backbone of {self.backbones} has as few layers as layers={self.layers}")
            cheapest = min(counted, key=lambda run: run.num_layers or 0)
            check = check_estimate(cheapest.backbone, cheapest.num_layers or 0, shapes)
            bar.update(row, advance=1, detail="")
        record = {"conditions": conditions, "check": asdict(check), "cells": [asdict(cell) for cell in cells]}
        write_json(path, record)
        return cells, check


# Cells ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A run with its memory. need: None where the backbone has fewer layers than asked. num_layers: that it has."""

    run: Run
    need: MemoryNeed | None
    num_layers: int

    def gap(self, limit_gib: float) -> str:
        """Why it is not run; "" where it is."""
        if self.need is None:
            return f"has only {self.num_layers} layers"
        return f"needs more than {limit_gib:g} GiB" if self.need.gib > limit_gib else ""


def estimate(run: Run, shapes: Shapes, *, fused_attention: bool) -> Cell:
    """The memory of a training step of a run, by its protocol and choices.

    fused_attention: no kernel keeps attention matrices, as on GPUs. On a CPU those of blocks with dropout are kept.

    Raises:
        ValueError: a backbone without encoder, or choices of the training that do not exist.
    """
    depth = shapes.whole(run.backbone).num_layers
    if run.num_layers is None or run.num_layers > depth:
        return Cell(run, None, depth)
    backbone = shapes.backbone(run.backbone, run.num_layers)
    inject(backbone, parse_method(run.method))
    config = config_of(run, backbone)
    clip_seconds = config.crop_seconds or backbone.max_seconds
    if clip_seconds is None:
        raise ValueError(f"'{run.backbone}' takes clips of any length; say train=crop_seconds=...")
    set_modes(backbone, config.frozen_mode, config.backbone_dropout)
    assert backbone.encoder is not None
    backbone.encoder.recompute_blocks = config.gradient_checkpointing
    need = memory_need(
        backbone, clip_seconds, config.micro_batch_size or config.batch_size,
        bf16=config.precision == "bf16", fused_attention=fused_attention,
    )  # fmt: skip
    return Cell(run, need, depth)


def config_of(run: Run, backbone: Backbone) -> AdaptConfig:
    """How a run is trained (but for the number of steps, which depends on the data)."""
    protocol = PROTOCOLS[run.protocol]
    assert isinstance(protocol, AdaptProtocol)
    method = parse_method(run.method)
    config = protocol.config(method, run.backbone, backbone.max_seconds, run.task, 1, run.seed)
    return with_choices(config, run.train, "train")


def _read(path: Path, conditions: dict[str, Any]) -> tuple[list[Cell], MemoryCheck] | None:
    """Estimates of an earlier call under the same conditions."""
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["conditions"] != conditions:
            return None
        cells = [
            Cell(Run(**c["run"]), MemoryNeed(**c["need"]) if c["need"] else None, c["num_layers"])
            for c in record["cells"]
        ]
        return cells, MemoryCheck(**record["check"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a file of this recipe ({error}). Remove it, or give another folder."
        ) from None


# Tables and chart ----------------------------------------------------------------------------------------


def render_memory(cells: Sequence[Cell], limit_gib: float) -> Table:
    """Rows are systems, columns numbers of layers."""
    table = _table("PETL, figure 3: estimated memory of a training step, GiB", cells)
    for backbone, method in _systems(cells):
        texts = []
        for cell in _row(cells, backbone, method):
            if cell.need is None:
                texts.append("-")
            else:
                texts.append(f"{cell.need.gib:.1f}{' !' if cell.gap(limit_gib) else ''}")
        table.add_row(backbone, METHOD_TITLES.get(method, method), *texts)
    return table


def memory_notes(cells: Sequence[Cell], limit_gib: float) -> list[str]:
    """What the numbers of `render_memory` are."""
    lines = [
        "Weights, gradients, Adam's moments, activations and working memory of one step, as the protocol trains "
        f"(batch, window, precision), with nothing kept of the frozen part; {MARGIN - 1:.0%} for gaps and workspaces; "
        f"and {RUNTIME_BYTES / GIB:g} GiB for process or device."
    ]
    if any(cell.need is not None and cell.gap(limit_gib) for cell in cells):
        lines.append(f"!: above the limit of {limit_gib:g} GiB, not run.")
    shallow = {cell.run.backbone: cell.num_layers for cell in cells if cell.need is None}
    return lines + [f"-: {backbone} has only {depth} layers." for backbone, depth in shallow.items()]


def render_scores(cells: Sequence[Cell], results: Mapping[Run, Result], limit_gib: float) -> Table:
    """Rows are systems, columns numbers of layers."""
    table = _table(f"PETL, figure 3: scores on {cells[0].run.task}", cells)
    for backbone, method in _systems(cells):
        texts = []
        for cell in _row(cells, backbone, method):
            result = results.get(cell.run)
            if result is not None:
                texts.append(short(Headline.of(result).score))
            else:
                texts.append(cell.gap(limit_gib) or "failed")
        table.add_row(backbone, METHOD_TITLES.get(method, method), *texts)
    return table


def line_panels(cells: Sequence[Cell], results: Mapping[Run, Result], limit_gib: float) -> list[LinePanel]:
    """One chart per backbone, one line per method."""
    panels = []
    metric = Headline.of(next(iter(results.values()))).metric
    x_values = tuple(sorted({cell.run.num_layers or 0 for cell in cells}))
    for backbone in dict.fromkeys(cell.run.backbone for cell in cells):
        lines = []
        for _, method in (system for system in _systems(cells) if system[0] == backbone):
            points, gaps = [], []
            for cell in _row(cells, backbone, method):
                num_layers, result = cell.run.num_layers or 0, results.get(cell.run)
                if result is None:
                    gaps.append(Gap(num_layers, cell.gap(limit_gib) or "failed"))
                    continue
                ours = Headline.of(result)
                low, high = ours.interval or (None, None)
                points.append(Point(num_layers, ours.score, low, high))
            lines.append(Line(METHOD_TITLES.get(method, method), tuple(points), tuple(gaps)))
        panels.append(
            LinePanel(backbone, "layers", f"{metric} on {cells[0].run.task}", x_values, tuple(lines))
        )
    return panels


def _table(title: str, cells: Sequence[Cell]) -> Table:
    table = Table(title=title, title_justify="left", box=box.HORIZONTALS)
    table.add_column("backbone")
    table.add_column("method", overflow="fold")
    for num_layers in dict.fromkeys(cell.run.num_layers for cell in cells):
        table.add_column(f"{num_layers} layers", justify="right")
    return table


def _systems(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((cell.run.backbone, cell.run.method) for cell in cells))


def _row(cells: Sequence[Cell], backbone: str, method: str) -> list[Cell]:
    return [cell for cell in cells if (cell.run.backbone, cell.run.method) == (backbone, method)]


CSV_HEADER = (
    "backbone",
    "method",
    "task",
    "num_layers",
    "memory_gib",
    "metric",
    "score",
    "low",
    "high",
    "note",
)


def _csv_row(
    cell: Cell, results: Mapping[Run, Result], reasons: Mapping[Run, str], limit_gib: float
) -> list[object]:
    run, result = cell.run, results.get(cell.run)
    memory = None if cell.need is None else round(cell.need.gib, 3)
    ours: list[object] = [None] * 4
    if result is not None:
        score = Headline.of(result)
        ours = [score.metric, score.score, *(score.interval or (None, None))]
    return [
        run.backbone,
        run.method,
        run.task,
        run.num_layers,
        memory,
        *ours,
        cell.gap(limit_gib) or reasons.get(run, ""),
    ]
