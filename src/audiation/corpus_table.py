"""What a corpus knows about every file it was made of, and the two files that say it.

    corpus.json       name, rate, form, hash, hours, statistics; written last, so that where it is, the corpus is whole
    files.parquet     a row per file: stored, duplicate, left out or failed, with the reason

In the Lance form both are one table, `files.lance`, with the first in its metadata.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from audiation.cache import whole_file, write_text
from audiation.corpus_packed import CorpusError, Place

FORMAT = 1
HEADER_FILE, TABLE_FILE, AUDIO_STEM = "corpus.json", "files.parquet", "audio"
METADATA_KEY, HASH_KEY = b"audiation.corpus", b"audiation.corpus.hash"

Status = Literal["stored", "duplicate", "left out", "failed"]
Form = Literal["packed", "lance"]


@dataclass(frozen=True)
class FileEntry:
    """One file of the folders a corpus was built from.

    name: path below the folder that was given, with "/". group: artist or album, where a recipe knows it.
    status: "stored"; "duplicate": the same samples as `duplicate_of`, which is stored; "left out", "failed": `reason`.
    num_samples: at the corpus's rate. content_hash: SHA-256 of the stored 16-bit samples.
    near_duplicate_of: a stored recording of the same length that sounds the same; this one is stored too.
    peak: largest |x| before rounding to 16 bits. clipped_share: of samples at full scale or beyond.
    silent_share: of blocks of 0.1 s whose level without their mean is below -60 dB. dc_offset: mean of all samples.
    file, start: where it lies (`corpus_packed.Place`).
    """

    name: str
    status: Status
    reason: str = ""
    num_samples: int = 0
    content_hash: str = ""
    duplicate_of: str = ""
    near_duplicate_of: str = ""
    group: str = ""
    licence: str = ""
    source_rate_hz: int = 0
    peak: float = 0.0
    clipped_share: float = 0.0
    silent_share: float = 0.0
    dc_offset: float = 0.0
    file: int = 0
    start: int = 0


@dataclass(frozen=True)
class Recording:
    """A stored recording of a corpus; the fields are those of `FileEntry`."""

    name: str
    num_samples: int
    content_hash: str
    near_duplicate_of: str
    group: str
    licence: str
    source_rate_hz: int
    peak: float
    clipped_share: float
    silent_share: float
    dc_offset: float


@dataclass(frozen=True)
class CorpusHeader:
    """What is said about a corpus as a whole.

    hash: SHA-256 over the rate and the names and contents of the stored recordings, in whatever form they are.
    hours: of the stored recordings. statistics: see `corpus_statistics.summarise`.
    window_samples: of the Lance form, samples of a row; 0 in the packed form. windows: of the Lance form, its table.
    """

    name: str
    sample_rate_hz: int
    form: Form
    hash: str
    hours: float
    num_recordings: int
    window_samples: int = 0
    windows: str = "windows.lance"
    statistics: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT} | asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> CorpusHeader:
        """Raises CorpusError where the text is something else; `where` it came from is in the message."""
        try:
            values = dict(json.loads(text))
            if values.pop("format") != FORMAT:
                raise ValueError("it is of another format")
            _check_types(values, _HEADER_TYPES, "")
            _check_types(values["statistics"], _STATISTICS_TYPES, "statistics.")
            return cls(**values)
        except (ValueError, KeyError, TypeError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else error
            raise CorpusError(
                f"{where} is not about a corpus of format {FORMAT}: {why}. Call the same build again, or copy it again."
            ) from error


class FileTable(Sequence[Recording]):
    """The stored recordings of a corpus in order of name; a `Recording` is made when it is asked for.

    num_samples: `(R,)` int64. table: all files, also those that are not stored.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._stored = table.filter(pa.compute.equal(table["status"], "stored")).combine_chunks()
        self.num_samples: np.ndarray = self.numbers("num_samples")
        self._files, self._starts = self.numbers("file"), self.numbers("start")

    def __len__(self) -> int:
        return len(self.num_samples)

    @overload
    def __getitem__(self, index: int) -> Recording: ...
    @overload
    def __getitem__(self, index: slice) -> list[Recording]: ...
    def __getitem__(self, index: int | slice) -> Recording | list[Recording]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"recording {index} of {len(self)}")
        row = index % len(self)
        return Recording(**{n: self._stored[n][row].as_py() for n in Recording.__dataclass_fields__})

    def place(self, index: int) -> Place:
        """Where recording `index` lies."""
        return Place(int(self._files[index]), int(self._starts[index]), int(self.num_samples[index]))

    def content_hashes(self) -> list[str]:
        """Of the recordings, in their order."""
        return self._stored["content_hash"].to_pylist()

    def name(self, index: int) -> str:
        """Of recording `index`."""
        return self._stored["name"][int(index)].as_py()

    def numbers(self, column: str) -> np.ndarray:
        """`(R,)` of a numeric column of the table."""
        return self._stored[column].to_numpy()

    def near_duplicates(self) -> list[FileEntry]:
        """Stored files that sound like another stored one."""
        chosen = self._stored.filter(pa.compute.not_equal(self._stored["near_duplicate_of"], ""))
        return [FileEntry(**row) for row in chosen.select(_SCHEMA.names).to_pylist()]

    def with_status(self, *statuses: Status) -> list[FileEntry]:
        """The files of these kinds, in order of name."""
        chosen = self.table.filter(pa.compute.is_in(self.table["status"], pa.array(statuses)))
        return [FileEntry(**row) for row in chosen.select(_SCHEMA.names).to_pylist()]


def content_hash_of(rate_hz: int, entries: Iterable[FileEntry]) -> str:
    """The hash of a corpus: what is in it, whatever its form and the order in which it was read."""
    digest = hashlib.sha256(f"{rate_hz}\n".encode())
    for entry in entries:
        if entry.status == "stored":
            digest.update(f"{entry.name}\t{entry.content_hash}\n".encode())
    return digest.hexdigest()


def table_of(entries: Sequence[FileEntry]) -> pa.Table:
    """A row per entry."""
    return pa.Table.from_pylist([asdict(entry) for entry in entries], schema=_SCHEMA)


def write_packed(directory: Path, header: CorpusHeader, entries: Sequence[FileEntry]) -> None:
    """Write both files; a reader finds the old corpus or the new one."""
    with whole_file(directory / TABLE_FILE) as stream:
        pq.write_table(table_of(entries).replace_schema_metadata({HASH_KEY: header.hash}), stream)
    write_text(directory / HEADER_FILE, header.to_json())


def read_packed(directory: Path) -> tuple[CorpusHeader, FileTable]:
    """Raises CorpusError where there is no finished corpus, or its files do not belong together."""
    path = directory / HEADER_FILE
    if not path.is_file():
        raise CorpusError(
            f"{directory} has no finished corpus (looked for {HEADER_FILE}). Build it, or finish it: "
            f"audiation corpus build PATH... --out {directory}"
        )
    header = CorpusHeader.from_json(path.read_bytes(), str(path))
    try:
        table = pq.read_table(directory / TABLE_FILE)
        matches = table.schema.metadata[HASH_KEY].decode() == header.hash
        rows = FileTable(table.select(_SCHEMA.names))
    except (OSError, KeyError, TypeError, pa.ArrowException) as error:
        raise CorpusError(
            f"{directory / TABLE_FILE} cannot be read ({error}). Call the same build again."
        ) from error
    if not matches or len(rows) != header.num_recordings:
        raise CorpusError(
            f"{path} and {TABLE_FILE} are about different corpora. Call the same build again, or copy both again."
        )
    return header, rows


_HEADER_TYPES = {
    "name": str, "sample_rate_hz": int, "form": str, "hash": str, "hours": float, "num_recordings": int,
    "window_samples": int, "statistics": dict,
}  # fmt: skip
_STATISTICS_TYPES = {
    "files": dict, "left_out": dict, "duplicate_hours": float, "near_duplicates": int, "near_duplicate_hours": float,
    "silent_share": float, "clipped_share": float, "clipped_recordings": int, "dc_recordings": int,
    "source_rates_hz": dict, "licences": dict, "shortest_seconds": float, "longest_seconds": float,
    "files_of_other_kinds": int, "hidden_files": int,
}  # fmt: skip
_TYPE_NAMES = {str: "text", int: "a whole number", float: "a number", dict: "an object of whole numbers"}


def _check_types(values: Mapping[str, Any], types: Mapping[str, type], prefix: str) -> None:
    """Raises KeyError, ValueError."""
    for name, kind in types.items():
        value = values[name]
        fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
        if kind is dict and fits and name != "statistics":
            fits = all(type(number) is int for number in value.values())
        if not fits:
            raise ValueError(f"'{prefix}{name}' is {_TYPE_NAMES[kind]}, got {value!r}")


_TYPES = {"str": pa.string(), "Status": pa.string(), "int": pa.int64(), "float": pa.float64()}
_SCHEMA = pa.schema([(f.name, _TYPES[str(f.type)]) for f in FileEntry.__dataclass_fields__.values()])
