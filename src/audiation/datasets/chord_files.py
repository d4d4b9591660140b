"""Songs with chords as others write them: `.lab` files, and lists of (start, end, label)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from audiation.annotations import Segments
from audiation.chord_labels import majmin_class
from audiation.datasets.annotation_files import AnnotationError, read_lines, seconds, segments_of, shown
from audiation.datasets.base import Skipped, Track

OVERLAP_SECONDS = 0.01  # ends and starts are rounded differently in some files

Row = tuple[float, float, str, str]  # start, end, label, where


@dataclass(frozen=True)
class LabTrack(Track):
    """A song with chords from a `.lab` file, or from `rows` where `lab_path` is None."""

    lab_path: Path | None = field(default=None, repr=False, compare=False)
    rows: tuple[Row, ...] = field(default=(), repr=False, compare=False)

    @cached_property
    def chords(self) -> Segments:
        """Labels as written, in Harte's syntax; `chord_labels.majmin_class` makes classes of them. Read when asked for.

        Raises `AnnotationError` naming file and line.
        """
        if self.lab_path is not None:
            return read_chord_lab(self.lab_path)
        return chord_segments(self.rows, self.track_id)


def with_labs(songs: Iterable[LabTrack]) -> tuple[list[LabTrack], list[Skipped]]:
    """Those whose chords are there, and the others."""
    there: list[LabTrack] = []
    missing: list[Skipped] = []
    for song in songs:
        if song.lab_path is None or song.lab_path.is_file():
            there.append(song)
        else:
            missing.append(Skipped(song.track_id, f"{song.lab_path} is missing", song.split))
    return there, missing


def read_chord_lab(path: Path) -> Segments:
    """Lines of start and end in seconds and a label in Harte's syntax, blanks or tabs between them.

    Raises:
        AnnotationError: anything else, an empty file, or an overlap of more than 0.01 s. Names file and line.
        FileNotFoundError: no such file.
    """
    rows: list[Row] = []
    for line in read_lines(path):
        cells = line.text.split()
        if len(cells) != 3:
            raise AnnotationError(
                f"{line.where}: start, end and a chord label were expected, got {shown(line.text)}"
            )
        rows.append((seconds(cells[0], line.where), seconds(cells[1], line.where), cells[2], line.where))
    return chord_segments(rows, str(path))


def chord_segments(rows: Sequence[Row], name: str) -> Segments:
    """Checked: times in order, labels that can be read. Segments of no length are left out.

    A segment that begins up to 0.01 s before the one above it ends begins there.
    """
    kept: list[Row] = []
    for start, end, label, where in rows:
        try:
            majmin_class(label, "none")
        except ValueError as error:
            raise AnnotationError(f"{where}: {error}") from None
        reached = kept[-1][1] if kept else 0.0
        if reached - OVERLAP_SECONDS <= start < reached <= end:
            start = reached
        if end != start:
            kept.append((start, end, label, where))
    if not kept:
        raise AnnotationError(f"{name}: no chord; 'N' stands for none")
    return segments_of(kept)
