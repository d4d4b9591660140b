"""Annotation files that somebody else wrote: bounded, decoded strictly, and every problem with its file and line."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from audiation.annotations import Beats, Segments

MAX_BYTES = 1 << 20  # of a file about one recording
MAX_LINES = 20_000  # of a file about one recording: more than three beats a second for an hour and a half
MAX_SECONDS = 86_400.0
SHOWN_CHARACTERS = 60
# One way to read each digit: with an optional point between two runs of them, a long line would cost its square.
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", re.ASCII)


class AnnotationError(ValueError):
    """An annotation file that cannot be used. The message names the file, the line, and what was expected."""


@dataclass(frozen=True)
class Line:
    """where: "FILE, line N", for messages."""

    text: str
    where: str


def read_lines(path: Path, *, max_bytes: int = MAX_BYTES, max_lines: int = MAX_LINES) -> list[Line]:
    """The lines that are not blank, without line ends (LF, CRLF or CR) and without a byte order mark.

    Raises:
        AnnotationError: not UTF-8, NUL bytes, more bytes or lines than allowed.
        FileNotFoundError: no such file.
    """
    return lines_of(read_bytes(path, max_bytes), str(path), max_lines=max_lines)


def read_bytes(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """At most `max_bytes`; AnnotationError for a longer file."""
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise AnnotationError(f"{path}: longer than the {max_bytes} bytes that such a file may have")
    return content


def lines_of(content: bytes, name: str, *, max_lines: int = MAX_LINES) -> list[Line]:
    """As `read_lines`, of bytes that are here; `name` stands for the file in messages."""
    content = content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise AnnotationError(f"{name}, line {line}: not UTF-8 text; save the file as UTF-8") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise AnnotationError(f"{name}, line {line}: holds a NUL character, so this is not a text file")
    rows = text.removesuffix("\n").split("\n")
    if len(rows) > max_lines:
        raise AnnotationError(f"{name}, line {max_lines + 1}: more than {max_lines} lines")
    return [Line(row, f"{name}, line {number}") for number, row in enumerate(rows, 1) if row.strip()]


def number(text: str, where: str, *, at_least: float = -math.inf, at_most: float = math.inf) -> float:
    """A finite decimal number in the range, blanks around it allowed. AnnotationError otherwise."""
    stripped = text.strip()
    if _NUMBER.fullmatch(stripped):
        value = float(stripped)
        if math.isfinite(value) and at_least <= value <= at_most:
            return value
    bounds = "" if math.isinf(at_least) and math.isinf(at_most) else f" from {at_least:g} to {at_most:g}"
    raise AnnotationError(f"{where}: a number{bounds} was expected, got {shown(text)}")


def whole_number(text: str, where: str, *, at_least: int, at_most: int) -> int:
    """A whole number in the range, "3" or "3.0". AnnotationError otherwise."""
    value = number(text, where, at_least=at_least, at_most=at_most)
    if value != int(value):
        raise AnnotationError(f"{where}: a whole number was expected, got {shown(text)}")
    return int(value)


def seconds(text: str, where: str) -> float:
    """A time from 0 s to one day. AnnotationError otherwise."""
    return number(text, where, at_least=0.0, at_most=MAX_SECONDS)


def identifier(text: str, where: str, pattern: str) -> str:
    """Text that becomes part of a path: it must match the whole pattern. AnnotationError otherwise."""
    if not re.fullmatch(pattern, text, re.ASCII):
        raise AnnotationError(f"{where}: {shown(text)} is not a name of this data set (expected {pattern})")
    return text


def relative_path(text: str, where: str) -> str:
    """A path below a folder, with '/': no '..', no drive, no leading slash, no control characters."""
    parts = text.split("/")
    if not text or any(p in ("", ".", "..") for p in parts) or re.search(r"[\x00-\x1f\x7f\\:]", text):
        raise AnnotationError(f"{where}: {shown(text)} is not a path inside the data set's folder")
    return text


def beats_of(rows: Sequence[tuple[float, int, str]]) -> Beats:
    """(seconds, position in the bar, where) -> Beats. AnnotationError where times do not increase strictly."""
    for (before, _, _), (time, _, where) in pairwise(rows):
        if time <= before:
            raise AnnotationError(f"{where}: beat times must increase, got {time:g} s after {before:g} s")
    times = np.array([time for time, _, _ in rows], dtype=np.float64)
    return Beats(times, np.array([position for _, position, _ in rows], dtype=np.int64))


def segments_of(rows: Sequence[tuple[float, float, str, str]]) -> Segments:
    """(start, end, label, where) -> Segments. AnnotationError for empty, unordered or overlapping ones."""
    last = 0.0
    for start, end, _, where in rows:
        if end <= start:
            raise AnnotationError(
                f"{where}: a segment must end after it starts, got {start:g} s to {end:g} s"
            )
        if start < last - 1e-9:
            raise AnnotationError(
                f"{where}: starts at {start:g} s, before the one above it ends ({last:g} s)"
            )
        last = end
    intervals = np.array([(start, end) for start, end, _, _ in rows], dtype=np.float64)
    return Segments(intervals, tuple(label for _, _, label, _ in rows))


def table_rows(
    content: bytes, name: str, columns: Sequence[str], *, delimiter: str = ",", max_lines: int
) -> Iterator[tuple[Mapping[str, str], str]]:
    """Rows of a CSV or TSV file with a header, by column name, blanks around cells removed, with where they stand.

    Other columns are allowed and handed over too. Quoted cells may hold delimiters, not line breaks.

    Raises:
        AnnotationError: not text, a column that is missing or doubled, a row with more or fewer cells.
    """
    lines = lines_of(content, name, max_lines=max_lines)
    if not lines:
        raise AnnotationError(f"{name}: empty; a header with {', '.join(columns)} was expected")
    header: list[str] | None = None
    for line in lines:
        try:
            (cells,) = csv.reader([line.text], delimiter=delimiter, strict=True)
        except (csv.Error, ValueError) as error:
            raise AnnotationError(f"{line.where}: not a row of quoted or plain cells ({error})") from None
        cells = [cell.strip() for cell in cells]
        if header is None:
            header = cells
            if len(set(header)) < len(header) or not set(columns) <= set(header):
                raise AnnotationError(
                    f"{line.where}: a header with each of {', '.join(columns)} was expected, got {shown(line.text)}"
                )
            continue
        if len(cells) != len(header):
            raise AnnotationError(f"{line.where}: {len(header)} cells were expected, got {len(cells)}")
        yield dict(zip(header, cells, strict=True)), line.where


def parse_json(content: bytes, name: str) -> Any:
    """JSON without NaN and Infinity. AnnotationError naming the line where it breaks."""

    def refuse(constant: str) -> Any:
        line = content[: max(content.find(constant.encode()), 0)].count(b"\n") + 1
        raise AnnotationError(f"{name}, line {line}: {constant} is not a number that JSON has")

    def finite(text: str) -> float:
        if math.isfinite(value := float(text)):
            return value
        return refuse(text)

    try:
        return json.loads(content.decode("utf-8-sig"), parse_constant=refuse, parse_float=finite)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise AnnotationError(f"{name}, line {line}: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise AnnotationError(f"{name}, line {error.lineno}: not JSON ({error.msg})") from None
    except AnnotationError:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise AnnotationError(f"{name}: {error}") from None
    except RecursionError:
        raise AnnotationError(f"{name}: nested too deeply") from None


def shown(text: str) -> str:
    """Quoted for a message, short, control characters escaped."""
    return ascii(text[:SHOWN_CHARACTERS]) + ("..." if len(text) > SHOWN_CHARACTERS else "")
