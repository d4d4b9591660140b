"""A journal that says what is on the disk for certain: a line per commit, with entries whose data was written before.

Data is on the disk before the journal says so, and whoever writes data cuts off what the journal does not say. So a
kill costs what came after the last commit, and nothing is there twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from audiation.json_lines import DamagedLinesError, append_line, read_lines

COMMIT_BYTES = 2**26
COMMIT_SECONDS = 5.0

E = TypeVar("E")


class Commits(Generic[E]):
    """The commits of one file, `{"commit": 0, FIELD: [entry, ...]}` a line.

    entries: what was committed before this process, in order.
    """

    def __init__(self, path: Path, field: str, parse: Callable[[Any], E]) -> None:
        """
        Args:
            parse: one entry as JSON has it -> what it says.

        Raises:
            DamagedLinesError: a whole line that is something else; the message has its number.
        """
        self._path, self._field = path, field
        lines = read_lines(path, counted_by="commit")
        self._num_lines, self._end_byte = len(lines), lines[-1].end_byte if lines else 0
        self.entries: list[E] = []
        for line in lines:
            try:
                self.entries += [parse(entry) for entry in line.values[field]]
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise DamagedLinesError(
                    f"{path}, line {line.number}, has no '{field}' that can be read ({type(error).__name__}: {error}), "
                    "so the file was damaged. Take it from a copy, or delete the line: what it speaks of is then made "
                    "again."
                ) from None
        self._pending: list[Any] = []
        self._pending_bytes, self._last_commit = 0, time.monotonic()

    def add(self, entry: Any, num_bytes: int = 0) -> None:
        """An entry, as JSON takes it, of the next commit. num_bytes: of its data."""
        self._pending.append(entry)
        self._pending_bytes += num_bytes

    @property
    def is_due(self) -> bool:
        """Whether a kill would cost more than it should."""
        waited = time.monotonic() - self._last_commit
        return self._pending_bytes >= COMMIT_BYTES or waited >= COMMIT_SECONDS

    def commit(self, sync: Callable[[], None]) -> None:
        """What was added is there after a kill. sync: puts the data on the disk."""
        if self._pending:
            sync()
            append_line(self._path, {"commit": self._num_lines, self._field: self._pending}, self._end_byte)
            self._end_byte = self._path.stat().st_size
            self._num_lines, self._pending, self._pending_bytes = self._num_lines + 1, [], 0
        self._last_commit = time.monotonic()
