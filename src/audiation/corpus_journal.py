"""What a build has read so far, and the samples of it; what is committed survives a kill at any moment.

The samples are those of `corpus_packed.py`, the journal is that of `corpus_commits.py`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from audiation.corpus_commits import Commits
from audiation.corpus_packed import PackedWriter, Place
from audiation.corpus_statistics import Heard
from audiation.corpus_table import AUDIO_STEM, FileEntry, Status

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
        self._commits = Commits(directory / JOURNAL_FILE, "files", _known)
        every = self._commits.entries
        self.known = {k.entry.name: k for k in every}
        self._places = {k.entry.content_hash: k.place for k in every if k.entry.status == "stored"}
        self._writer = PackedWriter(directory, AUDIO_STEM, 1, self._places.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.commit()
        self._writer.__exit__()

    def append(self, name: str, version: str, answer: FileAnswer) -> FileEntry:
        """Keep the samples, once however many files have them, and remember the file."""
        entry = FileEntry(name, answer.status, answer.reason)
        fingerprint, num_bytes = "", 0
        if (heard := answer.heard) is not None:
            place = self._places.get(heard.content_hash)
            if place is None:
                place = self._places[heard.content_hash] = self._writer.append(heard.samples[:, None])
                num_bytes = heard.samples.nbytes
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
        self._commits.add(asdict(known), num_bytes)
        self.known[entry.name] = known
        if self._commits.is_due:
            self.commit()
        return entry

    def commit(self) -> None:
        """What was appended is there after a kill."""
        self._commits.commit(self._writer.sync)


def _known(values: dict[str, Any]) -> Known:
    return Known(FileEntry(**values["entry"]), values["version"], values["fingerprint"])
