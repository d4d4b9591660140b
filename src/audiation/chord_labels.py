"""Chord labels in the syntax of C. Harte (2005): 'C:maj', 'F#:min7(9)/b3', 'D', 'N' (no chord), 'X' (unknown)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

from audiation.annotations import parse_pitch_class

NO_CHORD, OTHER_CHORD = 24, -1

_MAX_CHARACTERS = 100
_MAJOR, _MINOR = {0, 4, 7}, {0, 3, 7}
_DEGREE_SEMITONES = (0, 2, 4, 5, 7, 9, 11)  # of the major scale
# Ninths, elevenths and thirteenths have the degrees below them too, as in mir_eval; they decide no triad.
_QUALITIES = {
    "": _MAJOR,
    "maj": _MAJOR,
    "min": _MINOR,
    "aug": {0, 4, 8},
    "dim": {0, 3, 6},
    "1": {0},
    "5": {0, 7},
    "sus2": {0, 2, 7},
    "sus4": {0, 5, 7},
    "maj6": {0, 4, 7, 9},
    "min6": {0, 3, 7, 9},
    "7": {0, 4, 7, 10},
    "maj7": {0, 4, 7, 11},
    "min7": {0, 3, 7, 10},
    "minmaj7": {0, 3, 7, 11},
    "dim7": {0, 3, 6, 9},
    "hdim7": {0, 3, 6, 10},
    "aug7": {0, 4, 8, 10},
    "9": {0, 2, 4, 7, 10},
    "maj9": {0, 2, 4, 7, 11},
    "min9": {0, 2, 3, 7, 10},
    "11": {0, 2, 4, 5, 7, 10},
    "maj11": {0, 2, 4, 5, 7, 11},
    "min11": {0, 2, 3, 5, 7, 10},
    "13": {0, 2, 4, 5, 7, 9, 10},
    "maj13": {0, 2, 4, 5, 7, 9, 11},
    "min13": {0, 2, 3, 5, 7, 9, 10},
}
_DEGREE = r"(?:b*|\#*)(?:1[0-3]|[1-9])"
_CHORD = re.compile(
    rf"""(?P<root>[A-G](?:b*|\#*))
    (?: :(?P<quality>{"|".join(sorted(filter(None, _QUALITIES), key=len, reverse=True))})? )?
    (?: (?<=[:a-z0-9])\((?P<degrees>\*?{_DEGREE}(?:,\*?{_DEGREE})*)\) )?
    (?: /(?P<bass>{_DEGREE}) )?""",
    re.VERBOSE | re.ASCII,
)


@lru_cache(maxsize=4096)
def majmin_class(label: str, unknown_root: Literal["none", "ignore"]) -> int:
    """Class of a chord: 0..11 major on C, Db, ..., B, 12..23 minor on the same roots, 24 no chord, -1 any other.

    A chord whose pitch classes, bass included, hold the major triad on its root and not the minor one is major, and
    the other way round; so sevenths and sixths are their triad, and sus, dim, aug, power chords and chords with both
    thirds are -1, "ignored" (MARBLE v2; benchmark, 3.2). mir_eval's `majmin` differs where a further note lies
    between root and fifth (C:maj(4), C:maj/2: ignored there), and takes C:7(#9) as major.

    unknown_root: what "X" is: "none", no chord, as in MARBLE v2, or "ignore", -1, as in mir_eval (D7).

    Raises:
        ValueError: not a chord label.
    """
    if unknown_root not in ("none", "ignore"):
        raise ValueError(f"unknown_root is 'none' or 'ignore', got {unknown_root!r}")
    if label == "N":
        return NO_CHORD
    if label == "X":
        return NO_CHORD if unknown_root == "none" else OTHER_CHORD
    match = _CHORD.fullmatch(label) if len(label) <= _MAX_CHARACTERS else None
    if not match or label.endswith(":"):
        raise ValueError(
            f"{label[:_MAX_CHARACTERS]!a} is not a chord label. "
            "Write one like C, Bb:min7, F#:7(b9)/5, N (no chord) or X (unknown)."
        )
    notes = _notes(match["quality"], match["degrees"], match["bass"])
    if (_MAJOR <= notes) == (_MINOR <= notes):
        return OTHER_CHORD
    return parse_pitch_class(match["root"]) + (12 if notes >= _MINOR else 0)


def _notes(quality: str | None, degrees: str | None, bass: str | None) -> set[int]:
    """Pitch classes above the root. Degrees without a quality are the chord: C:(1,4) has no third.

    The bass belongs to the chord, and is the root where none is written, even if (*1) leaves it out (as in mir_eval).
    """
    notes = set(_QUALITIES[quality or ""]) if quality or not degrees else {0}
    listed = degrees.split(",") if degrees else []
    notes |= {_semitones(degree) for degree in listed if not degree.startswith("*")}
    notes -= {_semitones(degree[1:]) for degree in listed if degree.startswith("*")}
    return notes | {_semitones(bass or "1")}


def _semitones(degree: str) -> int:
    number = int(degree.lstrip("b#"))
    octave, step = divmod(number - 1, 7)
    return (12 * octave + _DEGREE_SEMITONES[step] + degree.count("#") - degree.count("b")) % 12
