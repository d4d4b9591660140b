"""The curves of a pre-training run, from what it writes into its folder.

    log.jsonl        a line per step and per validation (`training.fit`)
    machines.jsonl   what it computes on (`pretrain_throughput`), from which throughput and FLOP share follow
    probe.jsonl      a line per probe while training (`probe_hook`)

Nothing here changes a run, which may still be training.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from audiation.json_lines import DamagedLinesError, JsonLine, is_number, read_lines
from audiation.pretrain_throughput import Machine, machine_at, read_machines

LOG, PROBES = "log.jsonl", "probe.jsonl"
AUDIO_PER_SECOND, FLOP_SHARE = "audio_per_second", "flop_share"
PROBE = "probe/"  # begins names of curves of probes: "probe/gtzan_genre accuracy"
OF_EVERY_STEP = ("loss", "learning_rate", "grad_norm", "seconds", "score")  # not parts of the loss
NUMBERS, PARTS = (*OF_EVERY_STEP, "loss_scale"), "parts"

# What is shown first, in this order, and what it is called for people.
TITLES = {
    "loss": "loss",
    "masked_accuracy": "masked accuracy",
    "accuracy": "masked accuracy",
    "cross_entropy": "cross-entropy",
    "cqt_mse": "CQT loss",
    "feature_penalty": "feature penalty",
    "target_perplexity": "target perplexity",
    "prediction_perplexity": "prediction perplexity",
    "targets_used": "share of codes used",
    "target_std": "target deviation",
    "prediction_std": "prediction deviation",
    "grad_norm": "gradient norm",
    "loss_scale": "loss scale",
    "learning_rate": "learning rate",
    "score": "validation score",
    "seconds": "seconds per step",
    AUDIO_PER_SECOND: "audio per second (s)",
    FLOP_SHARE: "FLOP share (MFU)",
}

# Of several streams of codes; behind the name stands the number of a codebook, or what its codes are made of.
PER_STREAM = ("cross_entropy", "accuracy")


@dataclass(frozen=True, eq=False)
class Curve:
    """steps: `(N,)` int64, rising; the first of a run is 1. values: `(N,)` float64, possibly not finite."""

    steps: np.ndarray
    values: np.ndarray

    def recent(self, num_values: int) -> float:
        """Mean of the last finite values; nan where there are none."""
        return finite_mean(self.values[-num_values:])


@dataclass(frozen=True)
class LogEvent:
    """Something that was noted at a step and is no number. text: as in the log."""

    step: int
    name: str
    text: str


@dataclass(frozen=True, eq=False)
class RunCurves:
    """A run as its folder has it.

    curves: by name; parts of the loss under their own ("masked_accuracy"), with "parts/" where a name is taken.
    events: notes, and steps from which a run was put back.
    last_step: optimiser steps done; 0 before the first. planned_steps: None where nobody has noted it.
    identity: what was noted about the run when it began: what `training.fit` took, and the choices of the run in it.
    audio_seconds_per_step: None where neither a crop's length nor a machine was noted.
    num_cut: files with half a line at their end, which is not counted: they are being written, or a run was killed.
    """

    directory: Path
    curves: Mapping[str, Curve]
    events: tuple[LogEvent, ...] = ()
    planned_steps: int | None = None
    identity: Mapping[str, str] = field(default_factory=dict)
    audio_seconds_per_step: float | None = None
    num_cut: int = 0

    @property
    def name(self) -> str:
        return self.directory.resolve().name

    @property
    def last_step(self) -> int:
        return int(self.curves["loss"].steps[-1]) if "loss" in self.curves else 0

    @property
    def audio_hours(self) -> float | None:
        """Heard so far, the same music counted as often as it was heard."""
        per_step = self.audio_seconds_per_step
        return None if per_step is None else self.last_step * per_step / 3600


def read_log(run_dir: str | Path) -> RunCurves:
    """Curves and notes of a run, also while it is being written: half a line at the end is not counted.

    A line whose step is not behind the one before takes back what came after it, as a run does that goes on from an
    earlier checkpoint.

    Raises:
        FileNotFoundError: a folder without a log.
        DamagedLinesError: a line that cannot be read, by its number.
    """
    directory = Path(run_dir)
    if not (directory / LOG).is_file():
        raise FileNotFoundError(
            f"{directory} has no {LOG}, so it is not the folder of a run that has begun. Give the folder that "
            "`audiation pretrain` writes into."
        )
    logged, probed = _Collected(), _Collected()
    for line in read_lines(directory / LOG, "step"):
        logged.add(line.values["step"], _entries(directory / LOG, line))
    for line in read_lines(directory / PROBES, "step"):
        probed.add(line.values["step"], _probe_entries(directory / PROBES, line))
    curves, machines, described = logged.curves(), read_machines(directory), _description(directory)
    curves |= _throughput(curves, machines) | probed.curves()
    return RunCurves(
        directory,
        curves,
        tuple(logged.events),
        described.config.get("steps"),
        described.identity,
        machines[-1].audio_seconds_per_step if machines else described.audio_seconds_per_step,
        sum(_ends_in_half_a_line(directory / name) for name in (LOG, PROBES)),
    )


def titled(name: str) -> str:
    """What a quantity is called for people: 'cqt_mse' -> 'CQT loss', 'accuracy_3' -> 'masked accuracy, codebook 3'."""
    family = family_of(name)
    if name in TITLES or family is None:
        return TITLES.get(
            name, name.removeprefix(PROBE) if name.startswith(PROBE) else name.replace("_", " ")
        )
    member = member_of(name)
    if family in PER_STREAM:
        return f"{titled(family)}, {'codebook ' if member.isdecimal() else ''}{member}"
    return f"{titled(family)} {member}"


def family_of(name: str) -> str | None:
    """What quantities have in common that differ in a number at their end, or in a stream: 'accuracy_chroma' ->
    'accuracy'; None for others."""
    if name.startswith(PROBE) or name in TITLES:
        return None
    stream = next((prefix for prefix in PER_STREAM if name.startswith(f"{prefix}_")), None)
    found = re.fullmatch(r"(.*[^\d_])_?\d+", name)
    return stream or (found[1] if found else None)


def member_of(name: str) -> str:
    """What a quantity does not share with its family: 'accuracy_chroma' -> 'chroma'; "" where it has none."""
    family = family_of(name)
    return "" if family is None else name.removeprefix(family).lstrip("_")


def in_order(names: Sequence[str]) -> list[str]:
    """The order of `TITLES`, numbers by their size, and what is not in it behind, probes last."""
    known = list(TITLES)

    def key(name: str) -> tuple[Any, ...]:
        family = family_of(name) or name
        place = known.index(family) if family in TITLES else len(known) + name.startswith(PROBE)
        number = re.search(r"\d+$", name)
        return place, family, int(number[0]) if number else -1, name

    return sorted(names, key=key)


def finite_mean(values: np.ndarray) -> float:
    """Mean of those that are finite; nan where none is."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


# Reading --------------------------------------------------------------------------------------------------


class _Collected:
    """Curves while lines are read."""

    def __init__(self) -> None:
        self._steps = defaultdict[str, list[int]](list)
        self._values = defaultdict[str, list[float]](list)
        self.events: list[LogEvent] = []

    def add(self, step: int, entries: Mapping[str, float | str]) -> None:
        names = list(self._steps) if "loss" in entries else list(entries)
        last = max((self._steps[name][-1] for name in names if self._steps.get(name)), default=0)
        if last >= step:
            self._take_back(step, names)
            self.events = [event for event in self.events if event.step < step]
            self.events.append(LogEvent(step, "went back", f"steps {step:,} to {last:,} were made again"))
        for name, value in entries.items():
            if isinstance(value, str):
                self.events.append(LogEvent(step, name, value))
            else:
                self._steps[name].append(step)
                self._values[name].append(value)

    def _take_back(self, step: int, names: Sequence[str]) -> None:
        """What these curves have from `step` on does not count any more."""
        for name in names:
            kept = int(np.searchsorted(self._steps[name], step))
            del self._steps[name][kept:], self._values[name][kept:]

    def curves(self) -> dict[str, Curve]:
        return {
            name: Curve(np.array(steps, dtype=np.int64), np.array(self._values[name], dtype=np.float64))
            for name, steps in self._steps.items()
            if steps
        }


def _entries(path: Path, line: JsonLine) -> dict[str, float | str]:
    """Name -> number, or the text of what is none. What is absent (false, null) is not there."""
    _check_types(path, line)
    found: dict[str, float | str] = {}
    for name, value in line.values.items():
        if name == "step":
            continue
        for part, one in value.items() if isinstance(value, dict) else [("", value)]:
            if one is None or one is False:
                continue
            key = _key(name, part)
            found[key] = float(one) if is_number(one) else one if isinstance(one, str) else json.dumps(one)
    return found


def _check_types(path: Path, line: JsonLine) -> None:
    """Of what `fit` writes; what somebody has added may be anything."""
    numbers = {name: line.values[name] for name in NUMBERS if name in line.values}
    parts = line.values.get(PARTS, {})
    numbers |= (
        {f"{PARTS}/{name}": value for name, value in parts.items()}
        if isinstance(parts, dict)
        else {PARTS: "?"}
    )
    if bad := [name for name, value in numbers.items() if value is not None and not is_number(value)]:
        wanted = "an object of numbers" if bad[0] == PARTS else "a number"
        raise DamagedLinesError(
            f"{path}, line {line.number}: {bad[0]} must be {wanted}. Take the file from a copy, or delete the line to "
            "go without it."
        )


def _key(name: str, part: str) -> str:
    if not part:
        return name
    return part if name == PARTS and part not in OF_EVERY_STEP else f"{name}/{part}"


def _probe_entries(path: Path, line: JsonLine) -> dict[str, float | str]:
    task, scores = line.values.get("task"), line.values.get("probe")
    if not isinstance(task, str) or not isinstance(scores, dict):
        raise DamagedLinesError(
            f"{path}, line {line.number}, has no task and scores of a probe. Delete the line."
        )
    if bad := [metric for metric, score in scores.items() if not is_number(score)]:
        raise DamagedLinesError(
            f"{path}, line {line.number}: the score '{bad[0]}' must be a number, got {scores[bad[0]]!r}. Delete the "
            "line."
        )
    return {f"{PROBE}{task} {metric}": float(score) for metric, score in scores.items()}


def _throughput(curves: Mapping[str, Curve], machines: list[Machine]) -> dict[str, Curve]:
    """Curves that follow from how long steps took, where a machine was noted."""
    if "seconds" not in curves or not machines:
        return {}
    rows: dict[str, list[tuple[int, float]]] = {AUDIO_PER_SECOND: [], FLOP_SHARE: []}
    for step, seconds in zip(
        curves["seconds"].steps.tolist(), curves["seconds"].values.tolist(), strict=True
    ):
        machine = machine_at(machines, step)
        if machine is None or not seconds > 0:
            continue
        rows[AUDIO_PER_SECOND].append((step, machine.audio_per_second(seconds)))
        if (share := machine.flop_share(seconds)) is not None:
            rows[FLOP_SHARE].append((step, share))
    return {
        name: Curve(np.array([s for s, _ in points], dtype=np.int64), np.array([v for _, v in points]))
        for name, points in rows.items()
        if points
    }


@dataclass(frozen=True)
class _Description:
    config: Mapping[str, Any] = field(default_factory=dict)
    identity: Mapping[str, str] = field(default_factory=dict)

    @property
    def audio_seconds_per_step(self) -> float | None:
        try:
            return float(self.identity["crop_seconds"]) * self.config["batch_size"]
        except (KeyError, ValueError):  # somebody's own training has none
            return None


def _description(directory: Path) -> _Description:
    """What `fit` has noted about the run; empty where nothing is, because a log can be read without.

    The choices of a pre-training run are a JSON text among it, of which those that are no groups are named.
    """
    path = directory / "run.json"
    if not path.exists():
        return _Description()
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        config, identity = dict(described["config"]), dict(described["identity"])
        choices = dict(json.loads(identity.pop("run", "{}")))
        if not all(type(config.get(name, 1)) is int for name in ("steps", "batch_size")):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} is damaged. Take it from a copy; without the file the log alone is read."
        ) from None
    named = {k: str(v) for k, v in choices.items() if isinstance(v, str | int | float) and v != ""}
    return _Description(config, named | identity)


def _ends_in_half_a_line(path: Path) -> bool:
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as stream:
        stream.seek(-1, 2)
        return stream.read(1) != b"\n"
