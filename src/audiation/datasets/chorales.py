"""The Bach chorales of the music21 corpus as plain numbers: notes, bars, written key, and which share a tune.

music21 (the optional extra `scores`) is imported inside functions only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from audiation.annotations import PITCH_CLASSES, Key

PART_NAMES = ("Soprano", "Alto", "Tenor", "Bass")
# The beat of each time signature in the corpus, in quarter notes, and the beats of a bar.
METRES = {"4/4": (1.0, 4), "3/4": (1.0, 3), "3/2": (2.0, 3), "12/8": (1.5, 4)}
LONG_INCIPIT = 16  # intervals of the first part: 54 groups of two or more files cover 139 of the 413
TUNE_INCIPIT = 8  # intervals of the soprano, note by note or beat by beat: what the splits go by


Incipit = tuple[str, Any]
"""(what kind it is, its value): two files with an equal one have the same tune."""


class ScoreNote(NamedTuple):
    """A note of the score, ties joined: onset and length in quarter notes, MIDI pitch."""

    onset: float
    length: float
    midi: int


@dataclass(frozen=True)
class Chorale:
    """One file of the corpus, the sung parts only, repeats not expanded, fermatas ignored.

    beat_positions: bar position of each beat from the first note's beat on, 1 = downbeat; None where the bars do not
    follow one time signature. beat_quarters: length of a beat in quarter notes.
    written_key: from the key signature and mode. final_bass: pitch class of the bass's last note.
    incipits: keys under which a file with the same tune is found.
    """

    name: str
    notes: tuple[ScoreNote, ...]
    beat_quarters: float
    beat_positions: tuple[int, ...] | None
    written_key: Key | None
    final_bass: int
    incipits: tuple[Incipit, ...] = ()

    @cached_property
    def note_table(self) -> np.ndarray:
        """Onset, length and pitch of every note `(N, 3)`."""
        return np.array(self.notes, dtype=np.float64).reshape(-1, 3)

    @property
    def end_quarters(self) -> float:
        return max(n.onset + n.length for n in self.notes)


def chorale_files() -> list[Path]:
    """The Bach scores of the installed music21 corpus (without its analyses), sorted by name."""
    _music21()
    from music21.common.pathTools import getCorpusFilePath

    folder = Path(getCorpusFilePath()) / "bach"
    files = sorted(p for p in folder.glob("bwv*") if p.suffix in (".mxl", ".xml", ".krn"))
    if not files:
        raise FileNotFoundError(
            f"no Bach chorales in {folder}: this music21 came without its corpus. Install it from PyPI: "
            'pip install --force-reinstall "music21>=9.3"'
        )
    return files


def parse_score(path: Path, scratch_dir: Path) -> Any:
    """What music21 makes of a file. It stores no pickle here, and what it may unpack goes to `scratch_dir`, not to the
    system's temporary folder."""
    _music21()
    from music21 import converter, environment

    settings = environment.Environment()  # in memory only; the user's own settings file is not written
    before = settings["directoryScratch"]
    settings["directoryScratch"] = str(scratch_dir)
    try:
        return converter.parse(path, forceSource=True, storePickle=False)
    finally:
        settings["directoryScratch"] = before


def read_chorale(path: Path, scratch_dir: Path) -> Chorale | None:
    """Parse one file; None when it has no four sung parts (a keyboard piece)."""
    parts = list(parse_score(path, scratch_dir).parts)
    sung = [p for p in parts if str(p.id).startswith(PART_NAMES)]
    if not sung and len(parts) == 4:
        sung = parts  # the Humdrum files name no parts
    if len(sung) < 4:
        return None
    sung_notes = [_notes(part) for part in sung]
    name = path.stem if path.suffix != ".krn" else f"{path.stem}-krn"  # three works are there twice
    unit, positions = _metre(sung[0], end=max(n.onset + n.length for n in sung_notes[0]))
    return Chorale(
        name=name,
        notes=tuple(sorted(note for notes in sung_notes for note in notes)),
        beat_quarters=unit,
        beat_positions=positions,
        written_key=_written_key(sung[0], parts),
        final_bass=min(n.midi for n in sung_notes[-1] if n.onset == sung_notes[-1][-1].onset) % 12,
        incipits=_incipits(name, _notes(parts[0]), sung_notes[0], unit),
    )


def tunes(incipits_by_name: Mapping[str, Iterable[Incipit]]) -> dict[str, str]:
    """File name -> name of its tune: files that share an incipit, directly or through others, share a tune."""
    parent = {name: name for name in incipits_by_name}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    first_with: dict[Incipit, str] = {}
    for name in sorted(incipits_by_name):
        for incipit in incipits_by_name[name]:
            a, b = root(first_with.setdefault(incipit, name)), root(name)
            parent[max(a, b)] = min(a, b)
    return {name: root(name) for name in parent}


# Krumhansl & Kessler's probe-tone profiles (Krumhansl 1990, Cognitive Foundations of Musical Pitch, table 2.1).
_MAJOR = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
_MINOR = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)


def _key_templates() -> np.ndarray:
    """`(24, 12)` in the order of `Key.index`, each centred and of unit length."""
    rows = np.array([np.roll(p, tonic) for p in (_MAJOR, _MINOR) for tonic in range(12)])
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.sqrt((rows * rows).sum(axis=1, keepdims=True))


def krumhansl(durations: np.ndarray) -> np.ndarray:
    """Krumhansl-Schmuckler: pitch-class durations `(..., 12)` -> best `Key.index` `(...)`.

    The key whose profile correlates best with the durations. The profiles are centred, so the mean of the
    durations drops out, and their spread is common to all keys.
    """
    scores = np.zeros((*durations.shape[:-1], 24))
    for pitch_class in range(12):  # in a fixed order, so that near ties fall alike on every machine
        scores += durations[..., pitch_class, None] * _TEMPLATES[:, pitch_class]
    return np.argmax(np.round(scores, 9), axis=-1)


_TEMPLATES = np.round(_key_templates(), 12)


def pitch_class_durations(notes: np.ndarray, start: float, end: float) -> np.ndarray:
    """How long each pitch class sounds in [start, end), summed over the parts: notes `(N, 3)` -> `(12,)`."""
    onsets, lengths, midi = notes[:, 0], notes[:, 1], notes[:, 2].astype(np.int64)
    overlaps = np.maximum(0.0, np.minimum(end, onsets + lengths) - np.maximum(start, onsets))
    return np.bincount(midi % 12, weights=overlaps, minlength=12)


def chord_label(notes: Sequence[ScoreNote], start: float, end: float) -> str:
    """'C:maj', 'A:min' when exactly a triad's pitch classes sound for more than half of [start, end).

    'N' where nothing sounds at all, 'X' for everything else (sevenths, suspensions, open fifths, ...).
    """
    steps, counts = 8, [0] * 12  # sampled at the middles of eight equal parts
    near = [n for n in notes if n.onset < end and n.onset + n.length > start]
    for i in range(steps):
        at = start + (end - start) * (i + 0.5) / steps
        for pitch_class in {n.midi % 12 for n in near if n.onset <= at < n.onset + n.length}:
            counts[pitch_class] += 1
    if not any(counts):
        return "N"
    sounding = {pitch_class for pitch_class, count in enumerate(counts) if 2 * count > steps}
    for root in sorted(sounding):
        for third, quality in ((4, "maj"), (3, "min")):
            if sounding == {root, (root + third) % 12, (root + 7) % 12}:
                return f"{PITCH_CLASSES[root]}:{quality}"
    return "X"


def bar_positions(bar_lengths: Sequence[float], beats_per_bar: int) -> tuple[int, ...] | None:
    """Lengths of a part's measures in beats -> bar position of every beat; None where the bars are not regular.

    A short first measure is an upbeat and ends with its bar. A bar may be split in two (at a repeat sign in the
    middle of it), the second piece then counts on. The last measure may be short. Anything else is irregular.
    """
    positions: list[int] = []
    counted_on = 0
    for i, length in enumerate(bar_lengths):
        if length != int(length) or not 0 < length <= beats_per_bar:
            return None
        n = int(length)
        if i == 0 and n < beats_per_bar:
            first = beats_per_bar - n + 1
        else:
            first = counted_on + 1
            if first - 1 + n > beats_per_bar:
                return None
        positions += range(first, first + n)
        counted_on = (first - 1 + n) % beats_per_bar
        if counted_on and i + 1 < len(bar_lengths) and counted_on + bar_lengths[i + 1] > beats_per_bar:
            return None
    return tuple(positions)


def _music21() -> Any:
    try:
        import music21
    except ImportError as error:
        raise ImportError(
            "making the data set 'scores' needs music21, which is not installed. "
            'Install the extra: pip install "audiation[scores]"'
        ) from error
    return music21


def _notes(part: Any) -> list[ScoreNote]:
    """Notes of a part in order, ties joined, grace notes left out."""
    notes: list[ScoreNote] = []
    tied: dict[int, int] = {}  # pitch -> index of the note it may go on with
    for element in part.flatten().notes:
        if element.duration.isGrace:
            continue
        onset, length = float(element.offset), float(element.quarterLength)
        tie = element.tie.type if element.tie else None
        for pitch in element.pitches:
            before = tied.pop(pitch.midi, None)
            joins = before is not None and abs(notes[before].onset + notes[before].length - onset) < 1e-6
            if tie in ("stop", "continue") and before is not None and joins:
                notes[before] = notes[before]._replace(length=notes[before].length + length)
            else:
                before = len(notes)
                notes.append(ScoreNote(onset, length, int(pitch.midi)))
            if tie in ("start", "continue"):
                tied[pitch.midi] = before
    return notes


def _metre(part: Any, end: float) -> tuple[float, tuple[int, ...] | None]:
    """(length of a beat in quarter notes, bar positions of all beats)."""
    signatures = {t.ratioString for t in part.flatten().getElementsByClass("TimeSignature")}
    if len(signatures) != 1 or not signatures <= set(METRES):
        return 1.0, None
    unit, beats_per_bar = METRES[signatures.pop()]
    starts = [float(m.offset) for m in part.getElementsByClass("Measure")]
    lengths = [(b - a) / unit for a, b in zip(starts, [*starts[1:], end], strict=True)]
    return unit, bar_positions(lengths, beats_per_bar) if starts[0] == 0.0 else None


def _written_key(soprano: Any, parts: list[Any]) -> Key | None:
    """Key signature of the soprano with the mode that the first part with that signature states."""
    signatures = [p.flatten().getElementsByClass("KeySignature").first() for p in (soprano, *parts)]
    for key in signatures:
        stated = key is not None and getattr(key, "mode", None) in ("major", "minor")
        if stated and key.sharps == signatures[0].sharps:
            return Key(key.tonic.pitchClass, key.mode)
    return None


def _incipits(
    name: str, first_part: list[ScoreNote], soprano: list[ScoreNote], unit: float
) -> tuple[Incipit, ...]:
    top = {n.onset: n.midi for n in sorted(soprano)}  # the highest where a part divides
    first_top = {n.onset: n.midi for n in sorted(first_part)}
    by_beat: list[int] = []
    at, end = soprano[0].onset, soprano[-1].onset
    while len(by_beat) <= TUNE_INCIPIT and at <= end:
        by_beat += [n.midi for n in soprano if n.onset <= at < n.onset + n.length][:1]
        at += unit
    return (
        ("first part", _intervals(list(first_top.values()), LONG_INCIPIT)),
        ("soprano by note", _intervals(list(top.values()), TUNE_INCIPIT)),
        ("soprano by beat", _intervals(by_beat, TUNE_INCIPIT)),
        ("work", name.split("-")[0]),  # versions of one movement: bwv248.23-2, bwv248.23-s
    )


def _intervals(midi: list[int], count: int) -> tuple[int, ...]:
    return tuple(b - a for a, b in pairwise(midi[: count + 1]))


def incipit_groups(incipits_by_name: Mapping[str, Iterable[Incipit]], kind: str) -> list[list[str]]:
    """Files of two or more that share the incipit of one kind, without going through others."""
    files: dict[Incipit, list[str]] = defaultdict(list)
    for name, incipits in incipits_by_name.items():
        for incipit in incipits:
            if incipit[0] == kind:
                files[incipit].append(name)
    return [names for names in files.values() if len(names) > 1]
