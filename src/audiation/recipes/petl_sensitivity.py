"""PETL paper, section 5.5: how much the rank of LoRA and the bottleneck of adapters matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from audiation.backbones import BACKBONES
from audiation.evaluation import Run
from audiation.methods import format_method
from audiation.methods.adapter import Adapter
from audiation.methods.lora import LoRA
from audiation.recipes.base import RECIPES, carry_out_runs
from audiation.recipes.figures import Gap, Line, LinePanel, Point, check_matplotlib, save_lines, write_csv
from audiation.recipes.petl_table2 import (
    PETL_BACKBONES,
    PETL_LAYERS,
    Headline,
    names_in,
    petl_run,
    report_failed,
)
from audiation.results import Result


@RECIPES.register("petl_sensitivity")
@dataclass(frozen=True)
class PetlSensitivity:
    """Scores of LoRA over its rank and of adapters over their bottleneck (PETL paper, section 5.5).

    task: one task, for example scores-key, which needs no data.
    backbones: names joined by "+".
    ranks, bottlenecks: joined by "+".
    num_layers: first blocks of every backbone.
    weights: None for the official ones, or "random".
    train: choices that depart from the protocol, joined by "+", like steps=500+precision=fp32.
    """

    task: str = "mtt_clean"
    backbones: str = "+".join(PETL_BACKBONES)
    ranks: str = "1+2+4+8+16"
    bottlenecks: str = "4+8+16+32+64"
    num_layers: int = PETL_LAYERS
    weights: str | None = None
    train: str = ""

    def __post_init__(self) -> None:
        for backbone in names_in(self.backbones, "backbones"):
            BACKBONES[backbone]
        self.variants()

    def variants(self) -> list[Variant]:
        """Methods in order. ValueError for sizes that are no whole numbers from 1 on."""
        return [
            *(Variant("rank", n, format_method(LoRA(rank=n))) for n in _numbers(self.ranks, "ranks")),
            *(
                Variant("bottleneck", n, format_method(Adapter(bottleneck=n)))
                for n in _numbers(self.bottlenecks, "bottlenecks")
            ),
        ]

    def runs(self) -> list[Run]:
        return [cell.run for cell in self._cells()]

    def _cells(self) -> list[Cell]:
        return [
            Cell(
                variant,
                petl_run(backbone, variant.method, self.task, self.num_layers, self.weights, self.train),
            )
            for backbone in names_in(self.backbones, "backbones")
            for variant in self.variants()
        ]

    def carry_out(self, out: Path, device: str, console: Console) -> None:
        """Carry out the runs, print their scores, and write `sensitivity.png`, `.svg` and `.csv`."""
        check_matplotlib()
        cells = self._cells()
        carried = carry_out_runs(self.runs(), out, device, console)
        results = carried.results
        console.print(render_cells(cells, results))
        report_failed(carried.failed, console)
        reasons = {one.run: one.reason for one in carried.failed}
        rows = [_csv_row(cell, results, reasons) for cell in cells]
        written = [write_csv(out / "sensitivity.csv", CSV_HEADER, rows)]
        if results:
            written += save_lines(out, "sensitivity", line_panels(cells, results))
        else:
            console.print("No run has a result, so there is no chart.")
        console.print(f"Written: {', '.join(map(str, written))}", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Variant:
    """A method with one of its sizes. field: which, "rank" or "bottleneck"."""

    field: str
    size: int
    method: str


PANEL_TITLES = {"rank": "LoRA", "bottleneck": "Adapter"}


@dataclass(frozen=True)
class Cell:
    variant: Variant
    run: Run


def render_cells(cells: Sequence[Cell], results: Mapping[Run, Result]) -> Table:
    """A row per run that has a result."""
    table = Table(
        title=f"PETL, sensitivity on {cells[0].run.task}", title_justify="left", box=box.HORIZONTALS
    )
    for name in ("backbone", "method", "size"):
        table.add_column(name, justify="right" if name == "size" else "left")
    for name in ("trained", "score", "95 % interval"):
        table.add_column(name, justify="right")
    for cell in cells:
        result = results.get(cell.run)
        variant = cell.variant
        names = [cell.run.backbone, PANEL_TITLES[variant.field], f"{variant.field} {variant.size}"]
        if result is None:
            table.add_row(*names, "-", "failed", "-")
            continue
        ours = Headline.of(result)
        span = "-" if ours.interval is None else f"{ours.interval.low:.3f} to {ours.interval.high:.3f}"
        table.add_row(*names, f"{result.run['method_parameters']:,}", f"{ours.score:.3f}", span)
    return table


def line_panels(cells: Sequence[Cell], results: Mapping[Run, Result]) -> list[LinePanel]:
    """A chart per size, a line per backbone."""
    metric = Headline.of(next(iter(results.values()))).metric
    panels = []
    for field, title in PANEL_TITLES.items():
        own = [cell for cell in cells if cell.variant.field == field]
        lines = []
        for backbone in dict.fromkeys(cell.run.backbone for cell in own):
            points, gaps = [], []
            for cell in (c for c in own if c.run.backbone == backbone):
                result, size = results.get(cell.run), cell.variant.size
                if result is None:
                    gaps.append(Gap(size, "failed"))
                    continue
                ours = Headline.of(result)
                low, high = ours.interval or (None, None)
                points.append(Point(size, ours.score, low, high))
            lines.append(Line(backbone, tuple(points), tuple(gaps)))
        sizes = tuple(sorted({cell.variant.size for cell in own}))
        panels.append(LinePanel(title, field, f"{metric} on {cells[0].run.task}", sizes, tuple(lines)))
    return panels


CSV_HEADER = ("backbone", "method", "task", "size", "metric", "score", "low", "high", "note")


def _csv_row(cell: Cell, results: Mapping[Run, Result], reasons: Mapping[Run, str]) -> list[object]:
    run, result = cell.run, results.get(cell.run)
    ours: list[object] = [None] * 4
    if result is not None:
        score = Headline.of(result)
        ours = [score.metric, score.score, *(score.interval or (None, None))]
    return [run.backbone, run.method, run.task, cell.variant.size, *ours, reasons.get(run, "")]


def _numbers(text: str, field: str) -> list[int]:
    names = names_in(text, field)
    if not all(name.isdecimal() and int(name) > 0 for name in names):
        raise ValueError(f"{field} are whole numbers joined by '+', like {field}=2+4, got '{text}'")
    return [int(name) for name in names]
