"""Annotations of GTZAN that others made: keys (A. Lerch), tempo and beats (the gtzan_tempo_beat repository)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

from audiation.annotations import Beats, Key, Tempo
from audiation.datasets.annotation_files import (
    AnnotationError,
    Line,
    beats_of,
    lines_of,
    number,
    seconds,
    shown,
    whole_number,
)
from audiation.datasets.annotation_folder import AnnotationFolder
from audiation.datasets.metadata import MetadataFolder

GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")

MIN_BPM, MAX_BPM = 10.0, 1000.0
MAX_BEATS_PER_BAR = 64

_KEYS_COMMIT = "9ef1591f81ee2f7821c7ce41e774ea7ac7f94cbe"
KEY_FOLDER = MetadataFolder(
    path="gtzan_key/gtzan_key/genres",
    url=f"https://github.com/alexanderlerch/gtzan_key/archive/{_KEYS_COMMIT}.zip",
    folder_in_archive="gtzan_key/genres",
    pattern=rf"(?P<genre>{'|'.join(GENRES)})/(?P=genre)\.\d{{5}}\.lerch\.txt",
    num_files=1000,
    sha256="4acc159cf089efe113c7ea426023ca154d4d827b8b705e0d95ce3ec22f9c5f81",
)


def _tempo_beat_folder(kind: str, suffix: str, sha256: str) -> MetadataFolder:
    return MetadataFolder(
        path=f"gtzan_tempo_beat/{kind}",
        url="https://github.com/TempoBeatDownbeat/gtzan_tempo_beat/archive/refs/heads/main.zip",
        folder_in_archive=kind,
        pattern=rf"gtzan_({'|'.join(GENRES)})_[0-9]{{5}}\.{suffix}",
        num_files=999,
        sha256=sha256,
    )


TEMPO_FOLDER = _tempo_beat_folder(
    "tempo", "bpm", "9377ad623e54a32a2fd31f1ebe6054e419be2c0cb928ad3b9a01ff44e5946e77"
)
BEATS_FOLDER = _tempo_beat_folder(
    "beats", "beats", "43ac205f847f1dfeaea9a0f2ef77922db313a20a5254ed873c50063a3aa54d86"
)


class KeyAnnotations:
    """The key files of A. Lerch, looked for when the first key is asked for.

    folders: data folders that may hold `gtzan_key/genres/<genre>/<track id>.lerch.txt` or a clone of the repository.
    """

    def __init__(self, folders: tuple[Path, ...], metadata_root: str | Path | None) -> None:
        places = (f / p for f in folders for p in ("gtzan_key/genres", "gtzan_key/gtzan_key/genres"))
        self._files = AnnotationFolder(places, KEY_FOLDER, metadata_root)

    def of(self, track_id: str) -> Key | None:
        name = f"{track_id.partition('.')[0]}/{track_id}.lerch.txt"
        content = self._files.read(name)
        return None if content is None else parse_lerch_key(content, self._files.where(name))

    def differences(self) -> list[str]:
        return self._files.differences()


class TempoBeatAnnotations:
    """Tempo and beats of 999 of the 1,000 tracks (not of reggae.00086), looked for when the first is asked for.

    folders: data folders that may hold `gtzan_tempo_beat/`, or `gtzan_tempo_beat-main/` as its archive unpacks.
    """

    def __init__(self, folders: tuple[Path, ...], metadata_root: str | Path | None) -> None:
        clones = [f / name for f in folders for name in ("gtzan_tempo_beat", "gtzan_tempo_beat-main")]
        self._tempo, self._beats = (
            AnnotationFolder([c / kind for c in clones], item, metadata_root, _not_pinned)
            for kind, item in (("tempo", TEMPO_FOLDER), ("beats", BEATS_FOLDER))
        )

    def tempo_of(self, track_id: str) -> Tempo | None:
        """None where the track is not annotated."""
        name = f"gtzan_{track_id.replace('.', '_')}.bpm"
        content = self._tempo.read(name)
        return None if content is None else parse_bpm(content, self._tempo.where(name))

    def beats_of(self, track_id: str) -> Beats | None:
        """None where the track is not annotated."""
        name = f"gtzan_{track_id.replace('.', '_')}.beats"
        content = self._beats.read(name)
        return None if content is None else parse_beats(content, self._beats.where(name))

    def differences(self) -> list[str]:
        return self._tempo.differences() + self._beats.differences()


def parse_lerch_key(content: bytes, where: str) -> Key | None:
    """One integer: 0..11 major on A, A#, ..., G#; 12..23 minor on the same tonics; -1 modulating or unknown."""
    text = content.decode("utf-8", "replace").strip()
    if not re.fullmatch(r"-?[0-9]{1,2}", text) or not -1 <= int(text) <= 23:
        raise AnnotationError(f"{where}, line 1: a key is one integer from -1 to 23, got {shown(text)}")
    value = int(text)
    return None if value == -1 else Key((value + 9) % 12, "major" if value < 12 else "minor")


def parse_bpm(content: bytes, name: str) -> Tempo:
    """A file with one number, in beats per minute."""
    lines = lines_of(content, name)
    if len(lines) != 1:
        where = lines[1].where if lines else f"{name}, line 1"
        raise AnnotationError(f"{where}: one number of beats per minute was expected, got {len(lines)} lines")
    return Tempo(number(lines[0].text, lines[0].where, at_least=MIN_BPM, at_most=MAX_BPM))


def parse_beats(content: bytes, name: str) -> Beats:
    """Rows of a time in seconds, a tab and the number of the beat in its bar.

    Six files of jazz have times only: their bars are not known, which is position 0 for all beats.
    """
    lines = lines_of(content, name)
    if not lines:
        raise AnnotationError(f"{name}, line 1: beats were expected, the file is empty")
    with_number = "\t" in lines[0].text
    return beats_of([_beat(line, with_number) for line in lines])


def _beat(line: Line, with_number: bool) -> tuple[float, int, str]:
    cells = line.text.split("\t")
    if len(cells) != (2 if with_number else 1):
        raise AnnotationError(
            f"{line.where}: every row has a beat number or none has, got {shown(line.text)}"
        )
    time = seconds(cells[0], line.where)
    if not with_number:
        return time, 0, line.where
    return time, whole_number(cells[1], line.where, at_least=1, at_most=MAX_BEATS_PER_BAR), line.where


def _not_pinned(url: str) -> BinaryIO:
    raise OSError("not fetched on its own, because a branch may change; wanted is its commit fd9cafd")
