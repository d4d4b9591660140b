"""What the charts compare: systems by name, one score for a task, tasks by type, and the best that is published."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from audiation.cards import BackboneCard, card_of
from audiation.charts.drawing import clean
from audiation.published import published_rows
from audiation.results import Result
from audiation.tasks import TASKS
from audiation.tasks.base import Task

Unit = Literal["score", "dB"]

# The task types of the thesis (table 3.1, second column), and those of the other questions.
TYPE_TITLES = {
    "key": "key detection",
    "tagging": "music tagging",
    "genre": "genre classification",
    "emotion": "emotion detection",
    "pitch": "pitch classification",
    "beats": "beat tracking",
    "technique": "vocal technique detection",
    "singer": "singer identification",
    "instrument": "instrument classification",
    "separation": "source separation",
    "tempo": "tempo estimation",
    "chords": "chord recognition",
    "structure": "structure analysis",
}
_TYPE_OF_QUESTION = {  # of the published results
    "mood": "emotion",
    "beat": "beats",
    "downbeat": "beats",
    "chord": "chords",
    "vocal_technique": "technique",
    "singer_id": "singer",
    "source_separation": "separation",
}
_TYPE_OF_TASK = {  # where nothing is published, or only on another question
    "scores-timbre": "instrument",
    "hooktheory_key": "key",
    "hooktheory_structure": "structure",
    "beatles_chord": "chords",
    "chords1217": "chords",
}
# Metrics that the papers average inside a task (protocols.md, section 6).
_AVERAGED = (("roc_auc", "ap"), ("r2_arousal", "r2_valence"))
_STEMS = ("sdr_vocals", "sdr_drums", "sdr_bass", "sdr_other")


@dataclass(frozen=True)
class PublishedBest:
    """other_data: on other recordings than the result beside it."""

    value: float
    other_data: bool


def system_names(results: Sequence[Result], *, without_seed: bool = False) -> list[str]:
    """A name for the system behind each result: short, and telling apart what differs in these results.

    The protocol is in it where results of several are shown, as they are not to be compared without a look at it.

    without_seed: runs that differ in their seed alone have one name.
    """
    several_protocols = len({r.run["protocol"] for r in results}) > 1
    bases = [_base_name(r, several_protocols) for r in results]
    full = []
    for result, base in zip(results, bases, strict=True):
        namesakes = [r.run for r, other in zip(results, bases, strict=True) if other == base]
        parts = [
            shown(result.run[field])
            for field, shown in _FIELDS
            if result.run.get(field) not in (None, "")
            and len({str(run.get(field)) for run in namesakes}) > 1
            and not (without_seed and field == "seed")
        ]
        full.append(", ".join([base, *parts]))
    return shortened(full)


def _base_name(result: Result, with_protocol: bool) -> str:
    run = result.run
    parts = [run["backbone"], "untrained" if run.get("weights") == "random" else ""]
    parts += ["" if run["method"] == "probe" else run["method"], run["protocol"] if with_protocol else ""]
    return ", ".join(part for part in parts if part)


def task_names(results: Sequence[Result]) -> list[str]:
    """The task of each result, fit to be shown."""
    return shortened([r.run["task"] for r in results])


def shortened(texts: Sequence[str], limit: int = 44) -> list[str]:
    """Texts fit to be shown: different ones stay different, equal ones equal."""
    short: dict[str, str] = {}
    for text in dict.fromkeys(texts):
        name, number = clean(text, limit), 1
        while name in short.values():
            number += 1
            name = f"{clean(text, limit)} ({number})"
        short[text] = name
    return [short[text] for text in texts]


# What a name holds where results that share the rest of it differ.
_FIELDS: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("layer", lambda value: f"layer {value}"),
    ("num_layers", lambda value: f"{value} layers"),
    ("precision", str),
    ("train", str),
    ("seed", lambda value: f"seed {value}"),
)


def apart(names: Sequence[str]) -> list[str]:
    """Equal names are numbered: 'chroma', 'chroma (2)'."""
    return [
        name if names[:i].count(name) == 0 else f"{name} ({names[:i].count(name) + 1})"
        for i, name in enumerate(names)
    ]


def task_of(result: Result) -> Task | None:
    """The registered task; None for one that lives with its data."""
    name = result.run["task"]
    return TASKS[name] if name in TASKS else None


def unit_of(result: Result) -> Unit:
    return "dB" if next(iter(result.scores)).startswith("sdr") else "score"


def task_score(result: Result) -> float:
    """One score for the task: its first metric, or the mean of the two that the papers average."""
    for pair in _AVERAGED:
        if set(pair) <= result.scores.keys():
            return math.fsum(result.scores[m] for m in pair) / 2
    return next(iter(result.scores.values()))


def type_of(task_name: str) -> str:
    """Task type of the thesis ("key", "tagging", ...), or the task's own name, as it is, where it is of none."""
    if task_name in _TYPE_OF_TASK:
        return _TYPE_OF_TASK[task_name]
    if task_name not in TASKS:
        return task_name
    ids = TASKS[task_name].published_as or TASKS[task_name].compare_with
    if ids is None:
        return task_name
    return _TYPE_OF_QUESTION.get(ids[0], ids[0])


def published_best(task_name: str) -> PublishedBest | None:
    """The best of all published systems on the task's data, of any method; else on the nearest data of the same type.

    Where papers average two metrics (or four stems), the best of each is averaged.
    """
    if task_name not in TASKS:
        return None
    task = TASKS[task_name]
    ids = task.published_as or task.compare_with
    if ids is None or _TYPE_OF_QUESTION.get(ids[0], ids[0]) != type_of(task_name):
        return None
    names = {m.name: m.printed_name for m in task.metrics}
    wanted: tuple[str, ...] = (next(iter(names.values())),)
    for pair in _AVERAGED:
        if set(pair) <= names.keys():
            wanted = pair
    if task.task_type == "separation":
        wanted = _STEMS
    best = []
    for metric in wanted:
        try:
            rows = published_rows(*ids, metric)
        except ValueError:
            return None
        values = [r.value for r in rows if r.train_on == task.published_train_on]
        if not values:
            return None
        best.append(max(values))
    return PublishedBest(math.fsum(best) / len(best), other_data=task.published_as is None)


def needs_frames(task_name: str) -> bool:
    """Whether only a backbone that gives frames can answer."""
    return task_name in TASKS and TASKS[task_name].target.per_frame


@functools.cache
def known_card(backbone_name: str) -> BackboneCard | None:
    """The card of a registered backbone; None for somebody's own."""
    try:
        return card_of(backbone_name)
    except KeyError:
        return None
