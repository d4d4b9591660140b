"""The numbers that papers print, and which of them stand beside a result."""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from audiation.backbones import BACKBONES
from audiation.results import Result
from audiation.tasks import TASKS


@dataclass(frozen=True)
class PublishedScore:
    """A number as printed in a paper; percentages are turned into fractions.

    train_on: data set of the training where it is not that of the test.
    other_data: set by `published_beside` where it was measured on other recordings than the result beside it.
    """

    paper: str
    table: str
    system: str
    method: str
    task: str
    dataset: str
    metric: str
    value: float
    note: str
    train_on: str = ""
    other_data: bool = False


def published_rows(
    task: str, dataset: str, metric: str | None = None, systems: Sequence[str] | None = None
) -> list[PublishedScore]:
    """Published numbers for a question and data set, for example `("key", "giantsteps_key", "key_weighted")`.

    Args:
        systems: names as printed, for example ("CHROMA", "MFCC"), in the order wanted; None: all.

    Raises:
        ValueError: nothing is published under these names; lists what is.
    """
    everything = [r for r in _published() if (r.task, r.dataset) == (task, dataset)]
    found = [r for r in everything if metric in (None, r.metric)]
    if not found:
        known = sorted({r.metric for r in everything} or {f"{r.task}/{r.dataset}" for r in _published()})
        raise ValueError(f"no published numbers for {task}/{dataset}/{metric}. Known: {', '.join(known)}.")
    if systems is None:
        return found
    unknown = [s for s in systems if s not in {r.system for r in found}]
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)} has no published number for {task}/{dataset}. "
            f"Systems: {', '.join(sorted({r.system for r in found}))}."
        )
    return [r for s in systems for r in found if r.system == s]


_PUBLISHED_METHODS = {"probe": ("probing",), "finetune": ("ft", "fine-tuning")}


def published_beside(result: Result) -> list[PublishedScore]:
    """What papers print for the same representation and method: on the result's task, or the nearest to it.

    Empty for random weights, and where nothing is published.
    """
    if result.run["backbone"] not in BACKBONES:  # somebody's own
        return []
    task, spec = TASKS[result.run["task"]], BACKBONES[result.run["backbone"]]
    ids = task.published_as or task.compare_with
    if ids is None or result.run.get("weights") == "random":
        return []
    method = result.run["method"].partition(":")[0]
    names = {m.name: m.printed_name for m in task.metrics}
    printed = dict.fromkeys(names.get(metric, metric) for metric in result.scores)
    return [
        replace(row, other_data=task.published_as is None)
        for metric in printed
        for row in _published()
        # Beats and downbeats of one data set are two questions there, and one task here.
        if row.dataset == ids[1]
        and row.metric == metric
        and (row.task == ids[0] or row.metric == f"f1_{row.task}")
        and (task.published_as is None or row.train_on == task.published_train_on)
        and row.system in spec.published_names
        and row.method.lower().startswith(_PUBLISHED_METHODS.get(method, (method,)))
    ]


@functools.cache
def _published() -> tuple[PublishedScore, ...]:
    path = importlib.resources.files("audiation").joinpath("data/published_results.json")
    names = [f.name for f in fields(PublishedScore) if f.name not in ("other_data", "train_on")]
    rows = []
    for record in json.loads(path.read_text(encoding="utf-8"))["records"]:
        scale = 0.01 if record["unit"] == "percent" else 1.0
        # Rounding removes what the multiplication adds: 56.5 % is 0.565.
        rows.append(
            PublishedScore(
                **{n: record[n] for n in names}
                | {"value": round(record["value"] * scale, 6), "train_on": record.get("train_on") or ""}
            )
        )
    return tuple(rows)
