"""What a musician would write down about a recording. Frozen, checked when made, times in seconds.

`str` of an annotation is a line of text, and `parse` of its class gives the annotation back, to the last bit.

Shape letters: `N` events or segments.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

PITCH_CLASSES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
_LETTERS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


def parse_pitch_class(name: str) -> int:
    """'C#', 'db', 'Bb' -> pitch class 0..11 with C = 0. Raises ValueError for anything else."""
    text = name.strip()
    if not text or text[0].upper() not in _LETTERS or any(c not in "#b" for c in text[1:]):
        raise ValueError(f"'{name}' is not a pitch class. Write one like C, C#, Db, F.")
    return (_LETTERS[text[0].upper()] + text[1:].count("#") - text[1:].count("b")) % 12


@dataclass(frozen=True)
class Key:
    """A key: tonic as pitch class (C = 0) and mode."""

    tonic: int
    mode: Literal["major", "minor"]

    def __post_init__(self) -> None:
        if not 0 <= self.tonic <= 11:
            raise ValueError(f"tonic must be a pitch class 0..11, got {self.tonic}")
        if self.mode not in ("major", "minor"):
            raise ValueError(f"mode must be 'major' or 'minor', got {self.mode!r}")

    def __str__(self) -> str:
        return f"{PITCH_CLASSES[self.tonic]} {self.mode}"

    @property
    def index(self) -> int:
        """0..11 major on C, Db, ..., B; 12..23 minor on the same tonics."""
        return self.tonic + (12 if self.mode == "minor" else 0)

    @classmethod
    def from_index(cls, index: int) -> Key:
        if not 0 <= index <= 23:
            raise ValueError(f"a key index is 0..23, got {index}")
        return cls(index % 12, "major" if index < 12 else "minor")

    @classmethod
    def parse(cls, text: str) -> Key:
        """'D# minor', 'eb major' (any case, any surrounding blanks) -> Key. Raises ValueError otherwise."""
        words = text.split()
        if len(words) != 2 or words[1].lower() not in ("major", "minor"):
            raise ValueError(f"'{text.strip()}' is not a key. Write '<tonic> major' or '<tonic> minor'.")
        mode: Literal["major", "minor"] = "minor" if words[1].lower() == "minor" else "major"
        return cls(parse_pitch_class(words[0]), mode)


@dataclass(frozen=True, eq=False)
class Beats:
    """Beat times in seconds `(N,)`, strictly increasing, and bar positions `(N,)`: 1 = downbeat, 0 = unknown."""

    times_seconds: np.ndarray
    positions: np.ndarray

    def __post_init__(self) -> None:
        times = np.asarray(self.times_seconds, dtype=np.float64)
        positions = np.asarray(self.positions, dtype=np.int64)
        if times.ndim != 1 or times.shape != positions.shape:
            raise ValueError(
                f"beats need times (N,) and positions (N,), got {times.shape}, {positions.shape}"
            )
        if not np.isfinite(times).all() or (times < 0).any() or (np.diff(times) <= 0).any():
            raise ValueError("beat times must be finite, >= 0 and strictly increasing seconds")
        if (positions < 0).any():
            raise ValueError("bar positions are 1, 2, ... with 1 = downbeat, or 0 where unknown")
        object.__setattr__(self, "times_seconds", times)
        object.__setattr__(self, "positions", positions)

    def __str__(self) -> str:
        """'[[0.5, 1], [1.0, 2]]': seconds and position of each beat."""
        return json.dumps(list(zip(self.times_seconds.tolist(), self.positions.tolist(), strict=True)))

    @classmethod
    def parse(cls, text: str) -> Beats:
        rows = _parsed(text, list, "beats")
        if not all(isinstance(row, list) and len(row) == 2 and _all_numbers(row) for row in rows):
            raise ValueError(f"{text[:60]!r} is no list of [seconds, position]")
        return cls(np.array([row[0] for row in rows]), np.array([row[1] for row in rows]))


@dataclass(frozen=True, eq=False)
class Segments:
    """Labelled intervals in seconds `(N, 2)`, in order, without overlap: chords, sections."""

    intervals_seconds: np.ndarray
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        intervals = np.asarray(self.intervals_seconds, dtype=np.float64).reshape(-1, 2)
        if len(intervals) != len(self.labels):
            raise ValueError(f"{len(intervals)} intervals but {len(self.labels)} labels")
        if not np.isfinite(intervals).all() or (intervals[:, 1] <= intervals[:, 0]).any():
            raise ValueError("each interval must be finite with start < end, in seconds")
        if (intervals[1:, 0] < intervals[:-1, 1] - 1e-9).any():
            raise ValueError("intervals must be in order and must not overlap")
        object.__setattr__(self, "intervals_seconds", intervals)

    def __str__(self) -> str:
        """'[[0.0, 1.5, "C:maj"], ...]': start, end and label of each segment."""
        rows = zip(self.intervals_seconds.tolist(), self.labels, strict=True)
        return json.dumps([[start, end, label] for (start, end), label in rows], ensure_ascii=False)

    @classmethod
    def parse(cls, text: str) -> Segments:
        rows = _parsed(text, list, "segments")
        if not all(
            isinstance(row, list) and len(row) == 3 and _all_numbers(row[:2]) and isinstance(row[2], str)
            for row in rows
        ):
            raise ValueError(f"{text[:60]!r} is no list of [start, end, label]")
        return cls(np.array([row[:2] for row in rows], dtype=np.float64), tuple(row[2] for row in rows))


@dataclass(frozen=True)
class Tempo:
    bpm: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.bpm) and self.bpm > 0):
            raise ValueError(f"a tempo is a positive number of beats per minute, got {self.bpm}")

    def __str__(self) -> str:
        return f"{self.bpm!r} BPM"

    @classmethod
    def parse(cls, text: str) -> Tempo:
        number, _, unit = text.strip().partition(" ")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if unit != "BPM":
            raise ValueError(f"{text[:60]!r} is no tempo. Write '<number> BPM'.")
        return cls(value)


@dataclass(frozen=True)
class Pitch:
    """A pitch as MIDI number: 60 = middle C, 69 = A4 (440 Hz)."""

    midi: int

    def __post_init__(self) -> None:
        if not 0 <= self.midi <= 127:
            raise ValueError(f"a MIDI pitch is 0..127, got {self.midi}")

    def __str__(self) -> str:
        """Scientific pitch notation: 'C4' for 60."""
        return f"{PITCH_CLASSES[self.midi % 12]}{self.midi // 12 - 1}"

    @classmethod
    def parse(cls, text: str) -> Pitch:
        name = text.strip().rstrip("0123456789-")
        octave = text.strip()[len(name) :]
        if not octave.lstrip("-").isdecimal() or len(octave) > 2:
            raise ValueError(f"{text[:60]!r} is no pitch. Write one like C4 or Bb-1.")
        return cls(parse_pitch_class(name) + 12 * (int(octave) + 1))


@dataclass(frozen=True)
class Emotion:
    """Arousal (calm to excited) and valence (sad to happy), on whatever scale the data set uses."""

    arousal: float
    valence: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.arousal) and math.isfinite(self.valence)):
            raise ValueError(f"arousal and valence are finite, got {self.arousal} and {self.valence}")

    def __str__(self) -> str:
        return json.dumps({"arousal": self.arousal, "valence": self.valence})

    @classmethod
    def parse(cls, text: str) -> Emotion:
        numbers = _named_numbers(text, "an emotion")
        if numbers.keys() != {"arousal", "valence"}:
            raise ValueError(f"{text[:60]!r} has no arousal and valence, or more than them")
        return cls(**numbers)


@dataclass(frozen=True)
class Label:
    """One class out of a closed list, for example a genre or an instrument."""

    name: str

    def __str__(self) -> str:
        return self.name

    @classmethod
    def parse(cls, text: str) -> Label:
        return cls(text)


@dataclass(frozen=True)
class Tags:
    """Tag -> score: 0.0 or 1.0 in a reference, anything in [0, 1] in an estimate."""

    scores: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for tag, score in self.scores.items():
            if not 0.0 <= score <= 1.0:
                raise ValueError(f"tag '{tag}' has score {score}; scores lie in [0, 1]")

    def __str__(self) -> str:
        return json.dumps(self.scores, ensure_ascii=False)

    @classmethod
    def parse(cls, text: str) -> Tags:
        return cls(_named_numbers(text, "tags"))


@dataclass(frozen=True)
class Values:
    """Name -> number, one or several, on whatever scale the data set uses: danceability, year, arousal."""

    values: dict[str, float]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("values need at least one name with a number")
        for name, value in self.values.items():
            if not math.isfinite(value):
                raise ValueError(f"'{name}' is {value}; values are finite numbers")

    def __str__(self) -> str:
        return json.dumps(self.values, ensure_ascii=False)

    @classmethod
    def parse(cls, text: str) -> Values:
        return cls(_named_numbers(text, "values"))


Annotation = Key | Beats | Segments | Tempo | Pitch | Emotion | Label | Tags | Values


def _parsed(text: str, kind: type, what: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise ValueError(f"{text[:60]!r} does not hold {what}")
    return value


def _all_numbers(values: list[Any]) -> bool:
    return all(type(value) in (int, float) for value in values)


def _named_numbers(text: str, what: str) -> dict[str, float]:
    numbers = _parsed(text, dict, what)
    if not _all_numbers(list(numbers.values())):
        raise ValueError(f"{text[:60]!r} does not hold {what}: each name has a number")
    return {name: float(value) for name, value in numbers.items()}
