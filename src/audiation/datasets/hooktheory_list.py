"""Entries of `Hooktheory.json.gz`, checked: which recording, how it is aligned, which chords and keys it has."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from audiation.annotations import PITCH_CLASSES
from audiation.datasets.annotation_files import MAX_SECONDS, AnnotationError, identifier, shown
from audiation.datasets.base import SPLITS

MAX_UNPACKED_BYTES = 1 << 29  # the published file has 309 MB
MAX_EVENTS, MAX_BEATS = 20_000, 100_000
OTHER_MODE = "none"

_MAJOR, _MINOR = [2, 2, 1, 2, 2, 2], [2, 1, 2, 2, 1, 2]


class Region(NamedTuple):
    """A chord or a key, in beats from the start of the excerpt."""

    onset_beats: float
    offset_beats: float
    label: str


@dataclass(frozen=True, eq=False)
class Alignment:
    """Beats `(N,)` and where they are in the file, in seconds `(N,)`; both strictly increasing, N >= 2."""

    beats: np.ndarray
    times_seconds: np.ndarray

    def seconds(self, beats: np.ndarray) -> np.ndarray:
        """Time of each beat `(M,)`: linear between those that are known, and on beyond them."""
        step = np.clip(np.searchsorted(self.beats, beats, side="right") - 1, 0, len(self.beats) - 2)
        slope = np.diff(self.times_seconds)[step] / np.diff(self.beats)[step]
        return self.times_seconds[step] + slope * (beats - self.beats[step])


class Entry(NamedTuple):
    """One excerpt. Chords and keys in beats.

    youtube_id: "" where no video is named. alignment: None where there is none, a reason where it cannot be used.
    """

    track_id: str
    split: str
    artist: str
    song: str
    youtube_id: str
    alignment: Alignment | str | None
    num_beats: float
    harmony: tuple[Region, ...]
    keys: tuple[Region, ...]


def read_entries(content: bytes, source: Path) -> Iterator[Entry]:
    """Entries of the gzip file that `content` is, one after the other: as objects all of them take gigabytes.

    Raises:
        AnnotationError: not a gzip file, not JSON, or an entry that is not as expected. Names file, line and entry.
    """
    text = _unpacked(content, source)
    seen: set[str] = set()
    for track_id, record, where in _top_level(text, str(source)):
        here = f"{where}, entry {shown(track_id)}"
        if not track_id or len(track_id) > 64 or not track_id.isprintable() or track_id in seen:
            raise AnnotationError(f"{here}: ids are different, printable and of 1 to 64 characters")
        seen.add(track_id)
        yield _entry(track_id, _Record(record, here))


def _unpacked(content: bytes, source: Path) -> str:
    try:
        unpacker = zlib.decompressobj(wbits=31)
        plain = unpacker.decompress(content, MAX_UNPACKED_BYTES)
        if unpacker.unconsumed_tail:
            raise AnnotationError(f"{source}: more than {MAX_UNPACKED_BYTES} bytes unpacked")
        if not unpacker.eof:
            raise AnnotationError(f"{source}: the gzip file is cut off; fetch it again")
    except zlib.error as error:
        raise AnnotationError(f"{source}: not a gzip file ({error})") from None
    try:
        return plain.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = plain[: error.start].count(b"\n") + 1
        raise AnnotationError(f"{source}, line {line}: not UTF-8 text") from None


def _top_level(text: str, name: str) -> Iterator[tuple[str, Any, str]]:
    """(key, value, file and line) of each entry of the JSON object that the text is."""

    def refuse(constant: str) -> Any:
        raise AnnotationError(f"{name}, line {line}: {constant} is not a number that JSON has")

    decoder = json.JSONDecoder(parse_constant=refuse)
    blank = re.compile(r"[ \t\r\n]*")
    line = 1
    counted = position = 0

    def skip_blanks() -> str:
        """To the next character that is not blank, which is returned; "" at the end."""
        nonlocal position, line, counted
        position = blank.match(text, position).end()  # type: ignore[union-attr]
        line += text.count("\n", counted, position)
        counted = position
        return text[position : position + 1]

    def expect(characters: str) -> str:
        nonlocal position
        found = skip_blanks()
        if not found or found not in characters:
            raise AnnotationError(
                f"{name}, line {line}: not JSON ({' or '.join(characters)} was expected, got "
                f"{shown(found) if found else 'the end'})"
            )
        position += 1
        return found

    def value() -> Any:
        nonlocal position
        skip_blanks()
        try:
            decoded, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise AnnotationError(f"{name}, line {error.lineno}: not JSON ({error.msg})") from None
        except RecursionError:
            raise AnnotationError(f"{name}, line {line}: nested too deeply") from None
        except AnnotationError:
            raise
        except ValueError as error:  # a number of thousands of digits
            raise AnnotationError(f"{name}, line {line}: {error}") from None
        return decoded

    expect("{")
    while True:
        key = value()
        where = f"{name}, line {line}"
        if not isinstance(key, str):
            raise AnnotationError(f"{where}: an entry with an id was expected, got {shown(str(key))}")
        expect(":")
        yield key, value(), where
        if expect(",}") == "}":
            break
    if skip_blanks():
        raise AnnotationError(f"{name}, line {line}: the list ends before {shown(text[position:])}")


def _entry(track_id: str, record: _Record) -> Entry:
    split = str(record.get("split")).lower()
    if split not in SPLITS:
        raise AnnotationError(f"{record.where}: the split is TRAIN, VALID or TEST, got {shown(split)}")
    song, video = record.child("hooktheory"), record.child("youtube")
    tags = record.items("tags")
    youtube_id = ""
    if "AUDIO_AVAILABLE" in tags and video is not None and video.get("id") is not None:
        youtube_id = identifier(str(video.get("id")), record.where, r"[A-Za-z0-9_-]{1,64}")
    annotations = record.child("annotations")
    if annotations is None:
        raise AnnotationError(f"{record.where}: no annotations")
    num_beats = annotations.number("num_beats")
    return Entry(
        track_id,
        split,
        "" if song is None else str(song.get("artist") or ""),
        "" if song is None else str(song.get("song") or ""),
        youtube_id,
        _alignment(record.child("alignment"), num_beats),
        num_beats,
        tuple(map(_chord, annotations.records("harmony"))),
        _keys(annotations.records("keys"), num_beats),
    )


def _alignment(record: _Record | None, num_beats: float) -> Alignment | str | None:
    chosen = record and (record.child("refined") or record.child("user"))
    if not chosen:
        return None
    beats, times = (np.array(chosen.numbers(name), dtype=np.float64) for name in ("beats", "times"))
    if len(beats) != len(times):
        raise AnnotationError(f"{chosen.where}: {len(beats)} beats but {len(times)} times")
    if (np.abs(times) > MAX_SECONDS).any() or (np.abs(beats) > MAX_BEATS).any():
        raise AnnotationError(f"{chosen.where}: a beat or a time of its alignment is absurd")
    if len(beats) < 2 or (np.diff(beats) <= 0).any() or (np.diff(times) <= 0).any():
        return "its alignment has fewer than two beats, or they do not advance in time"
    alignment = Alignment(beats, times)
    start, end = alignment.seconds(np.array([0.0, num_beats])).tolist()
    if not max(0.0, start) < end <= MAX_SECONDS:
        return f"its alignment puts it from {start:g} to {end:g} s"
    return alignment


def _chord(record: _Record) -> Region:
    onset, offset = record.span("onset", "offset")
    root, intervals = record.pitch_class("root_pitch_class"), record.numbers("root_position_intervals")
    quality = "maj" if intervals[:2] == [4, 3] else "min" if intervals[:2] == [3, 4] else None
    return Region(onset, offset, f"{PITCH_CLASSES[root]}:{quality}" if quality else "X")


def _keys(records: list[_Record], num_beats: float) -> tuple[Region, ...]:
    """Each lasts until the next begins, the last one to the end."""
    starts = sorted(((record.number("beat"), record) for record in records), key=lambda start: start[0])
    regions = []
    for i, (beat, record) in enumerate(starts):
        end = starts[i + 1][0] if i + 1 < len(starts) else num_beats
        tonic, scale = record.pitch_class("tonic_pitch_class"), record.numbers("scale_degree_intervals")
        mode = "major" if scale == _MAJOR else "minor" if scale == _MINOR else None
        regions.append(Region(beat, end, f"{PITCH_CLASSES[tonic]} {mode}" if mode else OTHER_MODE))
    return tuple(regions)


class _Record:
    """A JSON object, and where it stands. Every getter raises AnnotationError for another type."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise AnnotationError(f"{where}: a JSON object was expected, got {shown(json.dumps(value))}")
        self._value, self.where = value, where

    def get(self, name: str) -> Any:
        return self._value.get(name)

    def child(self, name: str) -> _Record | None:
        value = self._value.get(name)
        return None if value is None else _Record(value, f"{self.where}, {name}")

    def items(self, name: str) -> list[Any]:
        """Empty where it is missing or null."""
        value = self._value.get(name)
        value = [] if value is None else value
        if not isinstance(value, list) or len(value) > MAX_EVENTS:
            raise AnnotationError(f"{self.where}: '{name}' is a list of at most {MAX_EVENTS}")
        return value

    def records(self, name: str) -> list[_Record]:
        return [_Record(value, f"{self.where}, {name} {i}") for i, value in enumerate(self.items(name))]

    def numbers(self, name: str) -> list[float]:
        values = self.items(name)
        if not all(type(value) in (int, float) and abs(value) < 1e9 for value in values):
            raise AnnotationError(f"{self.where}: '{name}' is a list of numbers, got {shown(str(values))}")
        return values

    def number(self, name: str) -> float:
        value: Any = self._value.get(name)
        if type(value) not in (int, float) or not -MAX_BEATS <= value <= MAX_BEATS:
            raise AnnotationError(f"{self.where}: '{name}' is a number of beats, got {shown(str(value))}")
        return float(value)

    def span(self, first: str, last: str) -> tuple[float, float]:
        start, end = self.number(first), self.number(last)
        if end < start:
            raise AnnotationError(f"{self.where}: ends at beat {end:g}, before it begins at {start:g}")
        return start, end

    def pitch_class(self, name: str) -> int:
        value = self._value.get(name)
        if type(value) is not int or not 0 <= value <= 11:
            raise AnnotationError(f"{self.where}: '{name}' is a pitch class 0..11, got {shown(str(value))}")
        return value
