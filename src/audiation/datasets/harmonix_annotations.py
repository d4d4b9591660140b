"""Annotation files of the Harmonix Set: beats with their place in the bar, and sections of a song."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from audiation.annotations import Beats, Segments
from audiation.datasets.annotation_files import (
    AnnotationError,
    beats_of,
    lines_of,
    seconds,
    segments_of,
    shown,
    whole_number,
)
from audiation.datasets.annotation_folder import AnnotationFolder
from audiation.datasets.metadata import MetadataFolder

FILE = r"[0-9]{4}_[a-z0-9]{1,80}"
"""What a song is called: 0001_12step."""

MAX_BEATS_PER_BAR = 64
MAX_BARS = 20_000
_URL = "https://github.com/urinieto/harmonixset/archive/refs/heads/main.zip"


def _folder(name: str, sha256: str) -> MetadataFolder:
    return MetadataFolder(
        f"harmonixset/dataset/{name}", _URL, f"dataset/{name}", rf"{FILE}\.txt", 912, sha256
    )


BEATS = _folder("beats_and_downbeats", "e738cc76e576743cd23deaaf692117559aa256014c2e86baea175c99baa4d22a")
SEGMENTS = _folder("segments", "6ad4f42812b3623abe547bcf7e1a461ee14a5d2a491a322457465d1700f65891")


class HarmonixAnnotations:
    """The annotation files, each read when asked for. dataset: the folder `dataset` of a copy of the repository."""

    def __init__(self, dataset: Path, metadata_root: str | Path | None) -> None:
        self._beats = AnnotationFolder([dataset / "beats_and_downbeats"], BEATS, metadata_root, not_pinned)
        self._sections = AnnotationFolder([dataset / "segments"], SEGMENTS, metadata_root, not_pinned)

    def beats_of(self, file: str) -> Beats:
        return parse_beats(*_content(self._beats, f"{file}.txt"))

    def sections_of(self, file: str, duration_seconds: float) -> Segments:
        return parse_sections(*_content(self._sections, f"{file}.txt"), duration_seconds)

    def differences(self) -> list[str]:
        return self._beats.differences() + self._sections.differences()


def _content(folder: AnnotationFolder, name: str) -> tuple[bytes, str]:
    content = folder.read(name)
    if content is None:
        raise AnnotationError(f"{folder.where(name)}: missing; copy the whole folder of the Harmonix Set")
    return content, folder.where(name)


def parse_beats(content: bytes, name: str) -> Beats:
    """Rows of time in seconds, position in the bar (1 = downbeat) and number of the bar, with tabs or blanks."""
    rows = []
    for line in lines_of(content, name):
        cells = line.text.split()
        if len(cells) != 3:
            raise AnnotationError(
                f"{line.where}: time, position in the bar and number of the bar were expected, got {shown(line.text)}"
            )
        position = whole_number(cells[1], line.where, at_least=1, at_most=MAX_BEATS_PER_BAR)
        whole_number(cells[2], line.where, at_least=0, at_most=MAX_BARS)
        rows.append((seconds(cells[0], line.where), position, line.where))
    if not rows:
        raise AnnotationError(f"{name}, line 1: beats were expected, the file is empty")
    return beats_of(rows)


def parse_sections(content: bytes, name: str, duration_seconds: float) -> Segments:
    """Rows of the time a section starts, blank or tab, its label; the label `end` says where the last one ends.

    Four official files have a second `end`: what lies between has no label and is left out. Two have none: their last
    section ends with the song, at `duration_seconds`.
    """
    starts: list[tuple[float, str, str]] = []
    for line in lines_of(content, name):
        cells = line.text.split(maxsplit=1)
        if len(cells) != 2:
            raise AnnotationError(f"{line.where}: a time and a label were expected, got {shown(line.text)}")
        time, label = seconds(cells[0], line.where), cells[1].strip()
        ended = bool(starts) and starts[-1][1].lower() == "end"
        if ended and label.lower() != "end":
            raise AnnotationError(f"{line.where}: {shown(label)} after the end")
        if starts and time <= starts[-1][0]:
            raise AnnotationError(
                f"{line.where}: starts at {time:g} s, but the line above it at {starts[-1][0]:g} s"
            )
        if not ended:
            starts.append((time, label, line.where))
    if not starts or starts[0][1].lower() == "end":
        raise AnnotationError(f"{name}, line 1: sections were expected, there is none")
    if starts[-1][1].lower() != "end":
        starts.append((duration_seconds, "end", starts[-1][2]))
    return segments_of(
        [(start, end, label, where) for (start, label, where), (end, _, _) in pairwise(starts)]
    )


def not_pinned(url: str) -> BinaryIO:
    raise OSError("not fetched on its own, because a branch may change; wanted is its commit e35da7a")
