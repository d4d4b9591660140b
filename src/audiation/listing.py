"""`audiation list KIND`: what there is, as tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table


def render(kind: str, console: Console | None = None, *, commercial: bool = False) -> None:
    """Print the table of one kind of registry entries.

    commercial: of backbones, only those whose weights may be used commercially (no legal advice).

    Raises:
        ValueError: `commercial` with another kind.
    """
    console = console or Console()
    if commercial and kind != "backbones":
        raise ValueError(f"only backbones are listed by commercial use, got {kind}. Leave --commercial away.")
    rows, columns = _backbones(commercial) if kind == "backbones" else _TABLES[kind]()
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


CLIP_SECONDS = 30.0  # that the cost of a backbone is stated for


def _backbones(commercial: bool) -> tuple[list[list[str]], list[str]]:
    from audiation.backbones import BACKBONES
    from audiation.cards import card_of

    rows = []
    names = [name for name in BACKBONES if BACKBONES[name].commercial_use or not commercial]
    costs = _gflop_texts(names)
    for name in names:
        card = card_of(name)
        lines = {line.label: line.text for line in card.lines()}
        learned = card.pretrain_data + (f" ({card.pretrain_hours:,g} h)" if card.pretrain_hours else "")
        rows.append(
            [
                name,
                card.summary,
                f"{card.parameters:,}" if card.parameters else "-",
                f"{card.dim:,}",
                costs[name],
                methods_text(name),
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
        "dimensions",
        f"GFLOP per {CLIP_SECONDS:g} s",
        "methods",
        "pre-trained on",
        "frames",
        "weights licence",
        "commercial use",
    ]
    return rows, columns


def _gflop_texts(names: Sequence[str]) -> dict[str, str]:
    """Counting takes seconds for so many models, so it is done once for a version of the code."""
    from audiation.cache import cache_dir, keep_text
    from audiation.provenance import sources_sha256

    path = cache_dir("costs", f"{sources_sha256()[:16]}.json")
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kept = {}
    known = {n: kept[n] for n in names if isinstance(kept, dict) and isinstance(kept.get(n), str)}
    if missing := [name for name in names if name not in known]:
        known |= {name: gflop_text(name) for name in missing}
        keep_text(path, json.dumps(known))
    return known


def gflop_text(name: str) -> str:
    """Work of a backbone for a clip of 30 s, counted from shapes; "-" where nothing can be counted."""
    from audiation.backbones import BACKBONES
    from audiation.model_cost import count_gflop

    spec = BACKBONES[name]
    model = (spec.build() if spec.outline is None else spec.outline()).eval()
    try:
        cost = count_gflop(model, CLIP_SECONDS)
    except ValueError:  # a list is no place to fail; `count_gflop` itself says why
        return "not known"
    if cost is None:
        return "-"
    return f"{cost.gflop:,.0f}" if cost.gflop >= 10 else f"{cost.gflop:.2g}"


def methods_text(name: str) -> str:
    """Which methods a backbone takes: all of them where it has blocks; else full fine-tuning where it has weights."""
    from audiation.backbones import BACKBONES

    spec = BACKBONES[name]
    if spec.has_encoder:
        return "all"
    model = spec.build() if spec.outline is None else spec.outline()
    return "probe, finetune" if any(p.requires_grad for p in model.parameters()) else "probe"


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
    "tasks": _tasks,
    "datasets": _datasets,
    "methods": _methods,
    "protocols": _protocols,
    "objectives": _objectives,
}
