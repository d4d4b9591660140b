"""PETL paper, table 3: how many parameters each method trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from audiation.console import show_parameters
from audiation.parameters import TABLE3_BACKBONES, TABLE3_LAYERS
from audiation.recipes.base import RECIPES
from audiation.recipes.figures import write_csv
from audiation.recipes.petl_table2 import names_in


@RECIPES.register("petl_table3")
@dataclass(frozen=True)
class PetlTable3:
    """Parameters that every method trains, counted, beside those of the PETL paper (table 3).

    backbones: names joined by "+".
    num_layers: first blocks of every backbone. The paper has numbers for 6.
    """

    backbones: str = "+".join(TABLE3_BACKBONES)
    num_layers: int = TABLE3_LAYERS

    def carry_out(self, out: Path, device: str, console: Console) -> None:
        """Print the table, and write it as `table3.csv`. Only shapes are counted, so the device does not matter."""
        backbones = names_in(self.backbones, "backbones")
        counted = show_parameters(backbones, None, self.num_layers, console)
        rows = [
            [
                row.backbone, row.method, row.count.trainable, row.count.published_layout, row.count.added,
                row.count.registered, row.printed, {None: None, True: "yes", False: "no"}[row.agrees],
            ]
            for row in counted
        ]  # fmt: skip
        path = write_csv(out / "table3.csv", CSV_HEADER, rows)
        console.print(f"Numbers: {path}", highlight=False, soft_wrap=True)


CSV_HEADER = (
    "backbone", "method", "trained", "trained_as_published", "added", "backbone_parameters", "printed", "agrees",
)  # fmt: skip
