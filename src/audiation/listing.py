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
    from audiation.cards import card_of

    rows = []
    for name in BACKBONES:
        card = card_of(name)
        lines = {line.label: line.text for line in card.lines()}
        size = f"{card.parameters:,}" if card.parameters else "-"
        learned = card.pretrain_data + (f" ({card.pretrain_hours:,g} h)" if card.pretrain_hours else "")
        rows.append(
            [
                name,
                card.summary,
                size,
                learned,
                lines["frames"],
                card.weights_licence,
                _yes(card.commercial_use),
            ]
        )
    columns = [
        "name",
        "what it is",
        "parameters",
        "pre-trained on",
        "frames",
        "weights licence",
        "commercial use",
    ]
    return rows, columns


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

    rows = [[name, str(PROTOCOLS[name].version), PROTOCOLS[name].source] for name in PROTOCOLS]
    return rows, ["name", "version", "rules of"]


def show_protocol(name: str, console: Console | None = None) -> None:
    """Print a protocol as prose, and the table of its tasks where they differ. UnknownNameError for other names."""
    from audiation.protocols import PROTOCOLS, Protocol

    console, protocol = console or Console(), PROTOCOLS[name]
    console.print(f"{name}, version {protocol.version}", style="bold", highlight=False)
    console.print(protocol.describe(), highlight=False, markup=False)
    if not (isinstance(protocol, Protocol) and protocol.task_schedules):
        return
    table = Table(title="tasks that differ", title_justify="left")
    for column in ("tasks", "max epochs", "rate is lowered after more than", "by", "ends after"):
        table.add_column(column, overflow="fold")
    for tasks, schedule in protocol.task_schedules:
        cells = (schedule.max_epochs, schedule.halve_patience, schedule.factor, schedule.patience)
        table.add_row(", ".join(tasks), *map(str, cells))
    console.print(table)
    for task, probes in protocol.task_probes:
        for p in probes:
            console.print(
                f"{task}: learning rate {p.learning_rate:g}, batch {p.batch_size}.", highlight=False
            )
    if protocol.task_layers:
        layers = ", ".join(f"{task} {layer} ({backbone})" for backbone, task, layer in protocol.task_layers)
        console.print(f"Layers: {layers}.", highlight=False)


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
