"""PETL paper, section 5.3: how far each method moves the features of the test clips away from the pre-trained ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from audiation.backbones import BACKBONES
from audiation.compare_commands import check_matplotlib, compare_with_progress, show_comparisons
from audiation.compare_features import FeatureComparison
from audiation.console import evaluate_with_progress
from audiation.methods import format_method, parse_method
from audiation.methods.prefix import Prefix
from audiation.recipes.base import RECIPES, FailedRun
from audiation.recipes.petl_table2 import (
    METHOD_TITLES,
    PETL_BACKBONES,
    PETL_LAYERS,
    names_in,
    petl_run,
    report_failed,
)
from audiation.results import Result, ResultError, current_versions
from audiation.run import Run

# The paper looks at GTZAN's test clips through models for three questions.
TASKS_5_3 = ("gtzan_genre", "gtzan_key", "gtzan_tempo")


@RECIPES.register("petl_section5_3")
@dataclass(frozen=True)
class PetlSection53:
    """Correlation of adapted features with the pre-trained ones, every method on three questions (PETL paper, 5.3).

    backbones, tasks, methods: names joined by "+". A method may have one field, like lora:rank=8.
    num_layers: first blocks of every backbone.
    mert_prefix_tokens: as in petl_table2.
    weights: None for the official ones, or "random".
    train: choices that depart from the protocol, joined by "+", like steps=500+precision=fp32.
    """

    backbones: str = "+".join(PETL_BACKBONES)
    tasks: str = "+".join(TASKS_5_3)
    methods: str = "+".join(METHOD_TITLES)
    num_layers: int = PETL_LAYERS
    mert_prefix_tokens: int = 32
    weights: str | None = None
    train: str = ""

    def __post_init__(self) -> None:
        for backbone in names_in(self.backbones, "backbones"):
            BACKBONES[backbone]
        for method in names_in(self.methods, "methods"):
            parse_method(method)
        names_in(self.tasks, "tasks")  # one that does not exist yet is a run that fails

    def runs(self) -> list[Run]:
        return [
            petl_run(
                backbone, self._method(backbone, method), task, self.num_layers, self.weights, self.train
            )
            for backbone in names_in(self.backbones, "backbones")
            for method in names_in(self.methods, "methods")
            for task in names_in(self.tasks, "tasks")
        ]

    def _method(self, backbone: str, method: str) -> str:
        if backbone.startswith("mert") and method == "prefix":
            return format_method(Prefix(num_tokens=self.mert_prefix_tokens))
        return method

    def carry_out(self, out: Path, device: str, console: Console) -> None:
        """Train a model per run, keep it, and compare its features with the untouched backbone's; the numbers are in
        `comparison.csv` and `.json`, the heat map in `comparison.png` and `.svg`."""
        check_matplotlib()
        models, failed = keep_models(self.runs(), out, device, console)
        report_failed(failed, console)
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


def keep_models(
    runs: Sequence[Run], out: Path, device: str, console: Console
) -> tuple[list[Path], list[FailedRun]]:
    """Evaluate runs one after another and keep their models; one whose result and model of these versions lie in `out`
    is not repeated. Those that fail are returned with their reasons, and the others go on."""
    models: list[Path] = []
    failed: list[FailedRun] = []
    for number, run in enumerate(runs, start=1):
        path = out / f"{run.task}.{run.backbone}.{run.key}.json"
        model = path.with_suffix(".model")
        if not (_is_current(path) and model.is_dir()):
            console.print(
                f"run {number} of {len(runs)}: {run.backbone}, {run.method}, {run.task}", highlight=False
            )
            try:
                evaluate_with_progress(
                    run, out=path, console=console, show_table=False, device=device, model_out=model
                )
            except (ValueError, KeyError, OSError, torch.OutOfMemoryError) as error:
                failed.append(FailedRun(run, str(error)))
                console.print(f"  not carried out: {error}", markup=False, style="red", soft_wrap=True)
                continue
        models.append(model)
    return models, failed


def _is_current(path: Path) -> bool:
    """Whether a result of these versions is there."""
    try:
        return path.is_file() and Result.load(path).versions == current_versions()
    except ResultError:
        return False


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
