"""`audiation list KIND`: what there is, as tables."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.table import Table


def render(kind: str, console: Console | None = None) -> None:
    """Print the table of one kind of registry entries."""
    console = console or Console()
    rows, columns = _TABLES[kind]()
    if not rows:
        console.print(f"No {kind} yet.")
        return
    table = Table(title=kind, title_justify="left", expand=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _backbones() -> tuple[list[list[str]], list[str]]:
    from audiation.backbones import BACKBONES

    rows = []
    for name in BACKBONES:
        spec = BACKBONES[name]
        size = f"{spec.published_parameters:,}" if spec.published_parameters else "-"
        rows.append([name, spec.summary, size, spec.weights_licence, _yes(spec.commercial_use)])
    return rows, ["name", "what it is", "parameters as published", "weights licence", "commercial use"]


def _tasks() -> tuple[list[list[str]], list[str]]:
    from audiation.tasks import TASKS

    rows = []
    for name in TASKS:
        task = TASKS[name]
        data = task.train_dataset
        if task.test_dataset != task.train_dataset:
            data += f" -> {task.test_dataset}"
        rows.append(
            [
                name,
                task.question,
                f"{task.level}, {task.task_type}",
                data,
                str(task.target.num_outputs),
                ", ".join(m.name for m in task.metrics),
            ]
        )
    return rows, ["name", "question", "level, type", "data", "outputs", "metrics (first selects)"]


def _datasets() -> tuple[list[list[str]], list[str]]:
    from audiation.datasets import DATASETS

    rows = []
    for name in DATASETS:
        info = DATASETS[name].info
        get = "audiation datasets get" if info.downloads else info.where
        rows.append([name, info.title, info.size, info.licence, _yes(info.commercial_use), get])
    return rows, ["name", "what it is", "size", "licence", "commercial use", "where"]


def _methods() -> tuple[list[list[str]], list[str]]:
    from audiation.methods import METHODS

    return [[name, _first_line(METHODS[name])] for name in METHODS], ["name", "what it is"]


def _protocols() -> tuple[list[list[str]], list[str]]:
    from audiation.protocols import PROTOCOLS

    return [[name, PROTOCOLS[name].describe()] for name in PROTOCOLS], ["name", "what it fixes"]


def _objectives() -> tuple[list[list[str]], list[str]]:
    from audiation.objectives import OBJECTIVES

    return [[name, _first_line(OBJECTIVES[name])] for name in OBJECTIVES], ["name", "what it is"]


def _first_line(thing: object) -> str:
    return (thing.__doc__ or "").strip().split("\n")[0]


_TABLES: dict[str, Callable[[], tuple[list[list[str]], list[str]]]] = {
    "backbones": _backbones,
    "tasks": _tasks,
    "datasets": _datasets,
    "methods": _methods,
    "protocols": _protocols,
    "objectives": _objectives,
}
