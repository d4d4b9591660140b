"""PETL paper, section 5.3: how far each method moves the features of the test clips away from the pre-trained ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from audiation.compare_commands import check_matplotlib, compare_with_progress, show_comparisons
from audiation.compare_features import FeatureComparison
from audiation.methods import parse_method
from audiation.recipes.base import RECIPES, carry_out_runs, model_path
from audiation.recipes.petl_table2 import PetlTable2, report_failed

# The paper looks at GTZAN's test clips through models for three questions.
TASKS_5_3 = ("gtzan_genre", "gtzan_key", "gtzan_tempo")


@RECIPES.register("petl_section5_3")
@dataclass(frozen=True)
class PetlSection53(PetlTable2):
    """Correlation of adapted features with the pre-trained ones, every method on three questions (PETL paper, 5.3).

    Choices as in petl_table2.
    """

    tasks: str = "+".join(TASKS_5_3)

    def carry_out(self, out: Path, device: str, console: Console) -> None:
        """Train a model per run, keep it, and compare its features with the untouched backbone's; the numbers are in
        `comparison.csv` and `.json`, the heat map in `comparison.png` and `.svg`."""
        check_matplotlib()
        carried = carry_out_runs(self.runs(), out, device, console, keep_models=True)
        report_failed(carried.failed, console)
        models = [model_path(out, run) for run in carried.results]
        if not models:
            console.print("No run has a model, so there is nothing to compare.")
            return
        own = None if self.weights == "random" else self.weights
        comparisons = compare_with_progress(models, console, weights=own, device=device)
        show_comparisons(comparisons, console, out)
        for line in means_over_methods(comparisons.rows):
            console.print(line, highlight=False)
        done = len(comparisons.rows)
        console.print(f"{done} of {len(self.runs())} runs were compared.", highlight=False)


def means_over_methods(rows: Sequence[FeatureComparison]) -> list[str]:
    """Per backbone, the mean correlation of every task over the methods that change features, beside what the paper
    says (it prints no numbers)."""
    lines = []
    for backbone in dict.fromkeys(row.backbone for row in rows):
        means = []
        for task in dict.fromkeys(row.task for row in rows):
            of_task = [
                row.similarity.correlation
                for row in rows
                if (row.backbone, row.task) == (backbone, task) and parse_method(row.method).trains_backbone
            ]
            if of_task:
                means.append(f"{task} {sum(of_task) / len(of_task):.3f}")
        if means:
            lines.append(f"{backbone}, mean over methods that change features: {', '.join(means)}.")
    if {row.task for row in rows} >= set(TASKS_5_3):
        lines.append(
            "The paper prints no numbers; it finds genre much more strongly correlated than key and tempo, and the "
            "largest changes with FT, Adapter and LoRA."
        )
    return lines
