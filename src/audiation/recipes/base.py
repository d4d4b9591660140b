"""What a recipe is, and how its runs are carried out: one after another, each kept, so that it can be stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.table import Table

from audiation.choices import parse_choices
from audiation.console import evaluate_with_progress
from audiation.protocols import PROTOCOLS
from audiation.registry import Registry
from audiation.results import Result, ResultError, current_versions
from audiation.run import Run


class Recipe(Protocol):
    """A frozen dataclass whose fields are what can be chosen; its docstring says what it makes."""

    def carry_out(self, out: Path, device: str, console: Console) -> None:
        """Make it. Files go into `out`, a folder of its own."""
        ...


RECIPES: Registry[type[Any]] = Registry("recipe", "audiation.recipes")


def parse_recipe(text: str) -> Any:
    """'petl_sensitivity:task=scores-key' -> the recipe.

    Raises:
        UnknownNameError: no recipe has that name.
        ValueError: fields it does not have, or values it does not take.
    """
    name, _, choices = text.strip().partition(":")
    kind = RECIPES[name.strip()]
    return kind(**parse_choices(kind, choices, f"recipe '{name.strip()}'"))


def run_recipe(text: str, out: Path, *, device: str = "cpu", console: Console | None = None) -> None:
    """Carry out a recipe by its short form; its files go into a folder of its name below `out`."""
    recipe = parse_recipe(text)
    recipe.carry_out(out / text.partition(":")[0].strip(), device, console or Console())


def list_recipes(console: Console | None = None) -> None:
    """Print name, fields and purpose of every recipe."""
    table = Table(title="recipes", title_justify="left")
    for column in ("name", "what it makes", "choices"):
        table.add_column(column, overflow="fold")
    for name in RECIPES:
        kind = RECIPES[name]
        fields = ", ".join(f"{f}={v.default}" for f, v in kind.__dataclass_fields__.items())
        table.add_row(name, (kind.__doc__ or "").strip().split("\n")[0], fields or "-")
    (console or Console()).print(table)


@dataclass(frozen=True)
class FailedRun:
    run: Run
    reason: str


@dataclass(frozen=True)
class Carried:
    """results: of the runs that ended, in their order. failed: the others, with their reasons."""

    results: Mapping[Run, Result]
    failed: tuple[FailedRun, ...]


def carry_out_runs(
    runs: Sequence[Run],
    out: Path,
    device: str,
    console: Console,
    *,
    data_root: Path | None = None,
    metadata_root: Path | None = None,
    keep_models: bool = False,
) -> Carried:
    """Evaluate runs one after another; one whose result of these versions lies in `out` is not repeated.

    A run that cannot be carried out (data that is not there, a task that does not exist) is reported with its reason,
    and the others go on.

    keep_models: write the trained models as well (`model_path`).
    """
    results: dict[Run, Result] = {}
    failed: list[FailedRun] = []
    for number, run in enumerate(runs, start=1):
        path = out / result_name(run)
        model = model_path(out, run) if keep_models else None
        kept = kept_result(path) if model is None or model.is_dir() else None
        if kept is not None:
            results[run] = kept
            continue
        console.print(
            f"run {number} of {len(runs)}: {run.backbone}, {run.method}, {run.task}", highlight=False
        )
        try:
            result = evaluate_with_progress(
                run, out=path, console=console, show_table=False, device=device, data_root=data_root,
                metadata_root=metadata_root, model_out=model,
            )  # fmt: skip
        except (ValueError, KeyError, OSError, torch.OutOfMemoryError) as error:
            failed.append(FailedRun(run, str(error)))
            console.print(f"  not carried out: {error}", markup=False, style="red", soft_wrap=True)
            continue
        results[run] = result
    return Carried(results, tuple(failed))


def result_name(run: Run) -> str:
    """What the file of a run's result is called."""
    return f"{run.task}.{Path(run.backbone).name}.{run.key}.json"


def model_path(out: Path, run: Run) -> Path:
    """Where the model of a run lies."""
    return (out / result_name(run)).with_suffix(".model")


def kept_result(path: Path) -> Result | None:
    """A result that these versions of packages and protocol would make again; None where there is none."""
    if not path.is_file():
        return None
    try:
        result = Result.load(path)
    except ResultError:
        return None
    protocol = PROTOCOLS[result.run["protocol"]] if result.run["protocol"] in PROTOCOLS else None
    same_rules = protocol is not None and result.run.get("protocol_version") == protocol.version
    return result if same_rules and result.versions == current_versions() else None
