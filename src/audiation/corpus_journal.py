"""What a build has read so far, and the samples of it; what is committed survives a kill at any moment.

Samples are on the disk before the journal says so, and what the journal does not say is cut off.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from audiation.corpus_packed import PackedWriter, Place
from audiation.corpus_statistics import Heard
from audiation.corpus_table import AUDIO_STEM, FileEntry, Status
from audiation.json_lines import append_line, read_lines

COMMIT_BYTES = 2**26
COMMIT_SECONDS = 5.0
JOURNAL_FILE = "journal.jsonl"


@dataclass(frozen=True, eq=False)
class FileAnswer:
    """What became of a file. heard: None where it was left out or failed."""

    status: Status
    reason: str
    source_rate_hz: int = 0
    heard: Heard | None = None


@dataclass(frozen=True)
class Known:
    """version: size and time of change of the file when it was read."""

    entry: FileEntry
    version: str
    fingerprint: str

    @property
    def place(self) -> Place:
        return Place(self.entry.file, self.entry.start, self.entry.num_samples)


class Journal:
    """The samples of a folder and what is known about them, by name; a later line replaces an earlier one."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / JOURNAL_FILE
        lines = read_lines(self._path, counted_by="commit")
        self._commits, self._end_byte = len(lines), lines[-1].end_byte if lines else 0
        every = [_known(values) for line in lines for values in line.values["files"]]
        self.known = {k.entry.name: k for k in every}
        self._places = {k.entry.content_hash: k.place for k in every if k.entry.status == "stored"}
        self._writer = PackedWriter(directory, AUDIO_STEM, 1, self._places.values())
        self._pending: list[Known] = []
        self._pending_bytes, self._last_commit = 0, time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.commit()
        self._writer.__exit__()

    def append(self, name: str, version: str, answer: FileAnswer) -> FileEntry:
        """Keep the samples, once however many files have them, and remember the file."""
        entry = FileEntry(name, answer.status, answer.reason)
        fingerprint = ""
        if (heard := answer.heard) is not None:
            place = self._places.get(heard.content_hash)
            if place is None:
                place = self._places[heard.content_hash] = self._writer.append(heard.samples[:, None])
                self._pending_bytes += heard.samples.nbytes
            fingerprint = heard.fingerprint
            entry = replace(
                entry,
                num_samples=len(heard.samples),
                content_hash=heard.content_hash,
                source_rate_hz=answer.source_rate_hz,
                peak=heard.peak,
                clipped_share=heard.clipped_share,
                silent_share=heard.silent_share,
                dc_offset=heard.dc_offset,
                file=place.file,
                start=place.start,
            )
        known = Known(entry, version, fingerprint)
        self._pending.append(known)
        self.known[entry.name] = known
        if self._pending_bytes >= COMMIT_BYTES or time.monotonic() - self._last_commit >= COMMIT_SECONDS:
            self.commit()
        return entry

    def commit(self) -> None:
        """What was appended is there after a kill."""
        if self._pending:
            self._writer.sync()
            files = [asdict(k) for k in self._pending]
            append_line(self._path, {"commit": self._commits, "files": files}, self._end_byte)
            self._end_byte = self._path.stat().st_size
            self._commits, self._pending, self._pending_bytes = self._commits + 1, [], 0
        self._last_commit = time.monotonic()


def _known(values: dict[str, Any]) -> Known:
    return Known(FileEntry(**values["entry"]), values["version"], values["fingerprint"])
