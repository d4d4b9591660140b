"""Files of JSON objects, one a line, that a process which may be killed appends to.

At worst half a line is left at the end, which is not counted. Anything else that cannot be read is damage.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHOWN_CHARACTERS = 60  # of a damaged line, in the message


class DamagedLinesError(ValueError):
    """A whole line that is no JSON object with what it must have; the message has its number."""


@dataclass(frozen=True)
class JsonLine:
    """number: of the line in its file; the first is 1. end_byte: where the next one begins."""

    number: int
    values: dict[str, Any]
    end_byte: int


def read_lines(path: Path, counted_by: str) -> list[JsonLine]:
    """The whole lines of a file; none where there is no file.

    counted_by: name that every line has, with a whole number from 0, like "step".

    Raises:
        DamagedLinesError: a line that is something else, and its number.
    """
    if not path.exists():
        return []
    lines: list[JsonLine] = []
    end_byte = 0
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            if not raw.endswith(b"\n"):  # being written, or left by a killed process
                break
            end_byte += len(raw)
            lines.append(JsonLine(number, _parsed(path, number, raw, counted_by), end_byte))
    return lines


def append_line(path: Path, values: Mapping[str, Any], after_byte: int) -> None:
    """Add a line behind the first `after_byte` bytes, and drop what follows these: lines of an abandoned try, or half a
    line. The line is on the disk before this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        stream.truncate(after_byte)
        stream.write(json.dumps(values).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def is_number(value: object) -> bool:
    """Of JSON, where true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _parsed(path: Path, number: int, raw: bytes, counted_by: str) -> dict[str, Any]:
    try:
        values = json.loads(raw)
        count = values[counted_by]
        if type(count) is not int or count < 0:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        shown = raw[:SHOWN_CHARACTERS].decode(errors="replace").strip()
        raise DamagedLinesError(
            f"{path}, line {number}, is no JSON object with a whole number '{counted_by}': {shown!r}. A killed process "
            "leaves half a line at the end only, so the file was damaged otherwise; take it from a copy, or delete the "
            "line to go without it."
        ) from None
    return values
