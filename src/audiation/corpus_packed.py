"""Packed form: arrays of 16-bit integers one after the other in large files, mapped into memory where they are read.

A corpus has one array per recording, `(N, 1)` samples; stored targets have one per recording, `(N, Q)` codes. The
files hold nothing but the numbers, little-endian, row by row; where an array lies is in the table beside them.

Shape letters: `N` items (samples or frames), `C` columns.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

FILE_BYTES = 2**30  # a new file begins where an array would go beyond
ITEM = np.dtype("<i2")


class CorpusError(ValueError):
    """A corpus that is missing, damaged, unfinished, of another kind, or does not hold what was asked for."""


@dataclass(frozen=True)
class Place:
    """Where an array lies. Packed: number of the file, and its first item there. Lance: `file` is 0, and `start` is the
    first of its rows. length: items of the array."""

    file: int
    start: int
    length: int


@dataclass(frozen=True)
class Piece:
    """Items [first, first + count) of the array at `place`."""

    place: Place
    first: int
    count: int

    def check(self) -> None:
        """Raises ValueError where it reaches beyond the array."""
        if self.first < 0 or self.count < 0 or self.first + self.count > self.place.length:
            raise ValueError(
                f"items [{self.first}, {self.first + self.count}) were asked for, and there are {self.place.length}"
            )


class PackedArrays:
    """The arrays of one folder, to read. Files are opened when they are first needed, and only the pages that are read
    come from the disk; one object may be used by several threads.

    stem: of the names of files, as in `audio-00000.s16`. num_columns: C.
    """

    def __init__(self, directory: Path, stem: str, num_columns: int) -> None:
        self._directory, self._stem, self._num_columns = directory, stem, num_columns
        self._maps: dict[int, np.ndarray] = {}

    def read(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        """Each `(count, C)` int16, a view of the file that cannot be written to.

        Raises:
            CorpusError: a file that is missing or cut short.
            ValueError: a piece beyond its array.
        """
        return [self._read(piece) for piece in pieces]

    def _read(self, piece: Piece) -> np.ndarray:
        piece.check()
        start = piece.place.start + piece.first
        items = self._mapped(piece.place.file)
        if piece.place.start + piece.place.length > len(items):
            path = file_path(self._directory, self._stem, piece.place.file)
            raise CorpusError(
                f"{path} is cut short: it has {len(items)} items, and {piece.place.start + piece.place.length} are "
                "needed. Copy it again, or delete the corpus and build it again."
            )
        return items[start : start + piece.count]

    def _mapped(self, number: int) -> np.ndarray:
        if number not in self._maps:
            path = file_path(self._directory, self._stem, number)
            try:
                flat = np.memmap(path, ITEM, mode="r")
            except (OSError, ValueError) as error:  # ValueError: an empty file
                raise CorpusError(
                    f"{path} cannot be read ({error}). Copy it again, or build the corpus again."
                ) from error
            whole = len(flat) - len(flat) % self._num_columns
            self._maps[number] = flat[:whole].reshape(-1, self._num_columns)
        return self._maps[number]


class PackedWriter:
    """Appends arrays to the files of one folder; the only process that does.

    What a killed writer had appended without its place being remembered is cut off.

    Args:
        kept: places that are remembered.
    """

    def __init__(
        self,
        directory: Path,
        stem: str,
        num_columns: int,
        kept: Iterable[Place] = (),
        file_bytes: int = FILE_BYTES,
    ) -> None:
        self._directory, self._stem, self._num_columns = directory, stem, num_columns
        self._item_bytes = num_columns * ITEM.itemsize
        self._file_items = max(1, file_bytes // self._item_bytes)
        ends: dict[int, int] = {}
        for place in kept:
            ends[place.file] = max(ends.get(place.file, 0), place.start + place.length)
        directory.mkdir(parents=True, exist_ok=True)
        self._number = max(ends, default=0)
        self._end = ends.get(self._number, 0)
        self._remove_files_after(self._number)
        self._stream = self._open(self._number, self._end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def append(self, items: np.ndarray) -> Place:
        """Write `(N, C)` int16; it is on the disk for certain after `sync`."""
        assert items.dtype == ITEM and items.ndim == 2 and items.shape[1] == self._num_columns
        if self._end and self._end + len(items) > self._file_items:
            self.sync()
            self._stream.close()
            self._number, self._end = self._number + 1, 0
            self._stream = self._open(self._number, 0)
        self._stream.write(np.ascontiguousarray(items).data)
        place = Place(self._number, self._end, len(items))
        self._end += len(items)
        return place

    def sync(self) -> None:
        """Everything that was appended is on the disk when this returns."""
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def _open(self, number: int, end: int):  # type: ignore[no-untyped-def]
        path = file_path(self._directory, self._stem, number)
        stream = path.open("ab")
        held = stream.tell() // self._item_bytes
        if held < end:
            stream.close()
            raise CorpusError(
                f"{path} has {held} items, and {end} were written to it. Delete the folder and build it again."
            )
        stream.truncate(end * self._item_bytes)
        return stream

    def _remove_files_after(self, number: int) -> None:
        while (path := file_path(self._directory, self._stem, number + 1)).exists():
            path.unlink()
            number += 1


def file_path(directory: Path, stem: str, number: int) -> Path:
    """Path of file `number`."""
    return directory / f"{stem}-{number:05d}.s16"
