"""Systems: results grouped by what was judged, the column a score belongs to, and what to know before comparing it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from audiation.backbones import BACKBONES
from audiation.cards import exposure
from audiation.results import Result
from audiation.site.markup import file_name
from audiation.tasks import TASKS, Task

WALL_SECONDS = 7 * 24 * 3600
WALL_PROTOCOL = "marble-constrained"


@dataclass(frozen=True)
class Mark:
    """Something a reader must know before comparing a score. label: a word or two; detail: the whole of it."""

    kind: Literal["partial", "departs", "seen", "wall", "seeds"]
    label: str
    detail: str


@dataclass(frozen=True)
class Column:
    """Scores that may be compared: one task, metric and split.

    metric: versioned name. test_size: official test tracks.
    """

    task: str
    metric: str
    split_hash: str
    test_size: int

    @property
    def name(self) -> str:
        """Of the metric, as in `Result.scores`."""
        return self.metric.partition("@")[0]

    @property
    def in_percent(self) -> bool:
        """Separation is measured in dB; everything else is printed in percent, as papers do."""
        return not self.name.startswith("sdr")


@dataclass(frozen=True)
class System:
    """What is judged, as its results say: backbone, weights, depth, method, protocol, and choices that depart from it.

    page: address from the index.
    """

    name: str
    page: str
    backbone: str
    method: str
    protocol: str
    protocol_version: int | None
    results: tuple[Result, ...]


def systems_of(results: Sequence[Result]) -> list[System]:
    """Results grouped by what was judged, in the order of names."""
    grouped: defaultdict[tuple[Any, ...], list[Result]] = defaultdict(list)
    for result in results:
        grouped[_identity(result)].append(result)
    split: list[tuple[str, tuple[Any, ...], list[Result]]] = []
    for identity, members in grouped.items():
        # The layer is a part of the name where it tells systems apart, not where it is chosen for each task.
        per_task: defaultdict[str, set[str]] = defaultdict(set)
        for result in members:
            per_task[result.run["task"]].add(_named_layer(result))
        by_layer = any(len(layers) > 1 for layers in per_task.values())
        parts: defaultdict[str, list[Result]] = defaultdict(list)
        for result in members:
            parts[f"layer {_named_layer(result)}" if by_layer else ""].append(result)
        split += [(layer, (*identity, layer), part) for layer, part in parts.items()]
    systems = [_system(layer, identity, members) for layer, identity, members in split]
    return sorted(systems, key=lambda s: (s.name, s.protocol, str(s.protocol_version), s.page))


def column_of(result: Result) -> Column:
    """The column a result belongs to."""
    metric = next(iter(result.scores))
    versions = [str(name) for name in result.run.get("metrics") or ()]
    versioned = next((name for name in versions if name.partition("@")[0] == metric), metric)
    return Column(result.run["task"], versioned, result.split_hash, result.num_official_test_tracks)


def task_of(name: str) -> Task | None:
    """The task, or None where results name one that this version does not have."""
    return TASKS[name] if name in TASKS else None


def marks_of(results: Sequence[Result]) -> tuple[Mark, ...]:
    """What must be known before the score of a system (one result per seed) is compared."""
    result = results[0]
    marks = []
    if (coverage := min(r.coverage for r in results)) < 1:
        missing = max(r.num_official_test_tracks - r.num_test_tracks for r in results)
        # Never "100 %": a partial result stays one when a single track of thousands is missing.
        label = f"partial, {min(99, int(100 * coverage))} %"
        marks.append(
            Mark(
                "partial", label, f"{missing} of {result.num_official_test_tracks} test tracks lack an answer"
            )
        )
    if departures := list(dict.fromkeys(d for r in results for d in r.departures)):
        marks.append(
            Mark("departs", "departs", f"departs from {result.run['protocol']}: {'; '.join(departures)}")
        )
    backbone, task = result.run["backbone"], result.run["task"]
    if backbone in BACKBONES and task in TASKS:
        found = exposure(backbone, task, result.run.get("weights"))
        if found.mark != "none":
            label = "test data seen" if found.mark == "was" else "may have been seen"
            marks.append(Mark("seen", label, f"test data in pre-training: {found.mark}. {found.reason}"))
    seconds = max(r.extract_seconds + r.train_seconds for r in results)
    if result.run["protocol"] == WALL_PROTOCOL and seconds > WALL_SECONDS:
        device = result.hardware.get("device") or "an unknown device"
        took = f"took {seconds / 86400:.1f} days on {device}; the limit is 7 days on one RTX 3090"
        marks.append(Mark("wall", "★ over a week", took))
    if len(results) > 1:
        spread = [next(iter(r.scores.values())) for r in results]
        detail = f"mean of {len(results)} seeds, from {min(spread):.3f} to {max(spread):.3f}"
        marks.append(Mark("seeds", f"{len(results)} seeds", detail))
    return tuple(marks)


def without_repeats(results: Iterable[Result]) -> tuple[list[Result], list[str]]:
    """The newest result of every run, in a fixed order, and a line for each other one that differs from it."""
    newest: dict[tuple[Any, ...], Result] = {}
    notes: list[str] = []
    for result in sorted(results, key=lambda r: (r.created, r.to_json()), reverse=True):
        run = result.run
        key = (*_identity(result), _named_layer(result), column_of(result), str(run.get("seed")))
        kept = newest.setdefault(key, result)
        if kept != result:
            what = f"{run['backbone']}, {run['method']}, on {run['task']} ({run['protocol']})"
            notes.append(
                f"{what}: the result of {result.created} is left out, that of {kept.created} is shown"
            )
    order = sorted(newest.values(), key=lambda r: (json.dumps(r.run, sort_keys=True, default=str), r.created))
    return order, sorted(notes)


# Systems -----------------------------------------------------------------------------------------------


def _identity(result: Result) -> tuple[Any, ...]:
    """What makes two results results of one system. Random weights differ with the seed, and are one system."""
    run = result.run
    weights = None if run.get("weights") == "random" else run.get("weights_hash")
    fields = (
        "backbone",
        "method",
        "protocol",
        "protocol_version",
        "weights",
        "num_layers",
        "precision",
        "train",
    )
    return (*(_plain(run.get(name)) for name in fields), _plain(weights))


def _named_layer(result: Result) -> str:
    """The layer that the run asks for; "" where validation chose it."""
    return "" if len(result.layer_profile) > 1 else str(result.run.get("layer"))


def _plain(value: Any) -> Any:
    """Result files are edited by hand at times: a list where a name belongs must not end in a TypeError."""
    return (
        value if value is None or isinstance(value, (str, int, float)) else json.dumps(value, sort_keys=True)
    )


def _system(layer: str, identity: tuple[Any, ...], members: Sequence[Result]) -> System:
    run = members[0].run
    weights = run.get("weights")
    parts = [run["backbone"]]
    parts += ["untrained"] if weights == "random" else [f"weights {weights}"] if weights else []
    parts += [f"first {run['num_layers']} blocks"] if run.get("num_layers") is not None else []
    parts += [layer] if layer else []
    parts += [run["method"]] if run["method"] != "probe" else []
    parts += [str(run["precision"])] if run.get("precision") not in (None, "fp32") else []
    parts += [f"with {run['train']}"] if run.get("train") else []
    name = ", ".join(parts)
    version = run.get("protocol_version")
    ordered = sorted(members, key=lambda r: (column_of(r).task, column_of(r).metric, _seed(r), r.created))
    return System(
        name,
        "systems/" + file_name(f"{name} {run['protocol']}", json.dumps(identity)),
        run["backbone"],
        run["method"],
        run["protocol"],
        version if isinstance(version, int) else None,
        tuple(ordered),
    )


def _seed(result: Result) -> int:
    seed = result.run.get("seed")
    return seed if isinstance(seed, int) else 0
