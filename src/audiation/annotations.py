"""What a musician would write down about a recording. Frozen, checked when made, times in seconds.

Shape letters: `N` events or segments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

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


@dataclass(frozen=True)
class Tempo:
    bpm: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.bpm) and self.bpm > 0):
            raise ValueError(f"a tempo is a positive number of beats per minute, got {self.bpm}")


@dataclass(frozen=True)
class Pitch:
    """A pitch as MIDI number: 60 = middle C, 69 = A4 (440 Hz)."""

    midi: int

    def __post_init__(self) -> None:
        if not 0 <= self.midi <= 127:
            raise ValueError(f"a MIDI pitch is 0..127, got {self.midi}")

    def __str__(self) -> str:
        return f"{PITCH_CLASSES[self.midi % 12]}{self.midi // 12 - 1}"


@dataclass(frozen=True)
class Emotion:
    """Arousal (calm to excited) and valence (sad to happy), on whatever scale the data set uses."""

    arousal: float
    valence: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.arousal) and math.isfinite(self.valence)):
            raise ValueError(f"arousal and valence are finite, got {self.arousal} and {self.valence}")


@dataclass(frozen=True)
class Label:
    """One class out of a closed list, for example a genre or an instrument."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Tags:
    """Tag -> score: 0.0 or 1.0 in a reference, anything in [0, 1] in an estimate."""

    scores: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for tag, score in self.scores.items():
            if not 0.0 <= score <= 1.0:
                raise ValueError(f"tag '{tag}' has score {score}; scores lie in [0, 1]")


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


Annotation = Key | Beats | Segments | Tempo | Pitch | Emotion | Label | Tags | Values
