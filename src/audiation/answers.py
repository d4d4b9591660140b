"""What a result's predictions say, read back from their text: every score can be computed again without any audio.

A result keeps references and estimates as `str(annotation)`. Which class reads the text of a task follows from the
target of the task, and is written down here and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from audiation.annotations import Beats, Emotion, Key, Label, Pitch, Segments, Tags, Tempo, Values
from audiation.frame_targets import BeatTarget, ChordTarget, KeyFramesTarget, SectionTarget
from audiation.magnitudes import MagnitudeTarget
from audiation.metrics import Metric
from audiation.metrics_separation import StemNames, StemScores
from audiation.results import Prediction, Result
from audiation.targets import (
    ClassTarget,
    EmotionTarget,
    KeyTarget,
    PitchTarget,
    TagsTarget,
    TempoTarget,
    ValuesTarget,
)
from audiation.tasks import TASKS, Task


class AnswerError(ValueError):
    """Answers that a result does not hold, or that cannot be read. Says which track and why."""


@dataclass(frozen=True)
class AnswerText:
    """How the answers to a task are read from text.

    reference, estimate: text -> annotation, ValueError where it is none.
    """

    reference: Callable[[str], Any]
    estimate: Callable[[str], Any]


@dataclass(frozen=True, eq=False)
class Answers:
    """track_ids, references, estimates: `(N,)` each, in one order."""

    track_ids: tuple[str, ...]
    references: tuple[Any, ...]
    estimates: tuple[Any, ...]


def read_answers(result: Result, track_ids: Sequence[str] | None = None) -> Answers:
    """The predictions of a result as annotations.

    Args:
        track_ids: which, in this order; None: all of them, in the order of the result.

    Raises:
        UnknownNameError: its task is none of TASKS (one of a user's own labels, say).
        AnswerError: there are no predictions, a track is answered twice or not at all, or a text cannot be read.
    """
    predictions = _predictions(result, track_ids)
    references = _read(predictions, "reference", text_of(TASKS[result.run["task"]]).reference)
    return Answers(tuple(p.track_id for p in predictions), references, read_estimates(result, track_ids))


def read_estimates(result: Result, track_ids: Sequence[str] | None = None) -> tuple[Any, ...]:
    """`(N,)`: the estimates of `read_answers` alone, for many systems on the same references. Raises as it does."""
    return _read(
        _predictions(result, track_ids), "estimate", text_of(TASKS[result.run["task"]]).estimate
    )  # fmt: skip


def rescore(result: Result) -> dict[str, float]:
    """Every score of a result, computed anew from the text of its predictions.

    Equal to the recorded scores, to the last bits of a sum.

    Raises:
        UnknownNameError, AnswerError: as `read_answers` and `metrics_of`.
        ValueError: a score that is not defined for these answers.
    """
    metrics = metrics_of(result)
    answers = read_answers(result)
    return {name: float(m.compute(answers.references, answers.estimates)) for name, m in metrics.items()}


def metrics_of(result: Result) -> dict[str, Metric]:
    """Name -> metric of every score of a result.

    Raises:
        UnknownNameError: its task is none of TASKS.
        AnswerError: a metric that the task does not have, or that was another version when the result was made. A
            result that does not record versions (`run.metrics`) is taken at its word.
    """
    task = TASKS[result.run["task"]]
    known = {m.name: m for m in task.metrics}
    recorded = result.run.get("metrics")
    versions = recorded if isinstance(recorded, list | tuple) else ()
    for name in result.scores:
        if name not in known:
            raise AnswerError(f"task '{task.name}' has no metric '{name}'. It has: {', '.join(known)}.")
        if recorded is not None and known[name].versioned_name not in versions:
            raise AnswerError(
                f"the result has '{name}' of another version: recorded are {recorded}, this code computes "
                f"{known[name].versioned_name}. Run it again, or use the audiation that made it."
            )
    return {name: known[name] for name in result.scores}


def text_of(task: Task) -> AnswerText:
    """How the answers to a task are read. AnswerError for a target that nobody has said it of."""
    found = _TEXTS.get(type(task.target))
    if found is None:
        raise AnswerError(
            f"answers of a {type(task.target).__name__}, as of task '{task.name}', cannot be read from text. "
            "audiation.answers has to learn it."
        )
    return found


# Reading ----------------------------------------------------------------------------------------------------


def _predictions(result: Result, track_ids: Sequence[str] | None) -> Sequence[Prediction]:
    if not result.predictions:
        raise AnswerError(
            f"the result of {result.run['backbone']} on {result.run['task']} keeps no predictions, so there is nothing "
            "to read. Run it again."
        )
    by_track = {p.track_id: p for p in result.predictions}
    if len(by_track) < len(result.predictions):
        ids = [p.track_id for p in result.predictions]
        twice = next(i for i in ids if ids.count(i) > 1)
        raise AnswerError(f"track '{twice}' has two predictions; a result has one per track")
    if track_ids is None:
        return result.predictions
    missing = [i for i in track_ids if i not in by_track]
    if missing:
        raise AnswerError(f"{len(missing)} tracks have no prediction, the first is '{missing[0]}'")
    return [by_track[i] for i in track_ids]


def _read(predictions: Sequence[Prediction], side: str, parse: Callable[[str], Any]) -> tuple[Any, ...]:
    annotations = []
    for prediction in predictions:
        try:
            annotations.append(parse(getattr(prediction, side)))
        except (ValueError, OverflowError) as error:  # JSON can hold integers that no float can
            raise AnswerError(f"the {side} of track '{prediction.track_id}': {error}") from None
    return tuple(annotations)


_RATE = re.compile(r"(\d{1,6}) Hz: (.+)")
_STEM = re.compile(r"(\S{1,40}) (-?\d{1,4}(?:\.\d{1,20})?(?:e-\d{1,3})?) dB")


def _parse_stem_names(text: str) -> StemNames:
    """'vocals, drums' -> the two names."""
    names = tuple(text.split(", "))
    if not all(re.fullmatch(r"\S{1,40}", name) for name in names) or len(set(names)) < len(names):
        raise ValueError(f"{text[:60]!r} is no list of stems. Write '<name>, <name>'.")
    return StemNames(names)


def _parse_stem_scores(text: str) -> StemScores:
    """'24000 Hz: vocals 5.12 dB, drums 4.00 dB; 44100 Hz: ...' -> the scores, as precisely as they are written."""
    sdr_db: dict[int, dict[str, float]] = {}
    for part in text.split("; "):
        rate = _RATE.fullmatch(part)
        stems = [_STEM.fullmatch(stem) for stem in rate[2].split(", ")] if rate else [None]
        if rate is None or int(rate[1]) in sdr_db or not all(stems):
            raise ValueError(
                f"{text[:60]!r} holds no separation scores. Write '<rate> Hz: <stem> <number> dB'."
            )
        values = {stem[1]: float(stem[2]) for stem in stems if stem is not None}
        if len(values) < len(stems):
            raise ValueError(f"{part[:60]!r} names a stem twice")
        sdr_db[int(rate[1])] = values
    return StemScores(sdr_db)


_TEXTS: dict[type, AnswerText] = {
    ClassTarget: AnswerText(Label.parse, Label.parse),
    KeyTarget: AnswerText(Key.parse, Key.parse),
    KeyFramesTarget: AnswerText(Key.parse, Key.parse),  # keys over time are for training only
    TagsTarget: AnswerText(Tags.parse, Tags.parse),
    ValuesTarget: AnswerText(Values.parse, Values.parse),
    EmotionTarget: AnswerText(Emotion.parse, Emotion.parse),
    TempoTarget: AnswerText(Tempo.parse, Tempo.parse),
    PitchTarget: AnswerText(Pitch.parse, Pitch.parse),
    BeatTarget: AnswerText(Beats.parse, Beats.parse),
    ChordTarget: AnswerText(Segments.parse, Segments.parse),
    SectionTarget: AnswerText(Segments.parse, Segments.parse),
    MagnitudeTarget: AnswerText(_parse_stem_names, _parse_stem_scores),
}
