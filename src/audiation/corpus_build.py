"""Folders of music -> a corpus: decoded, mixed to mono, resampled, measured, and packed, in several processes.

    DIR/build.json       settings that change samples
    DIR/journal.jsonl    a line per commit: what became of which files
    DIR/audio-00000.s16  samples (`corpus_packed.py`)
    DIR/corpus.json, files.parquet

The build can be killed at any moment and called again. Samples are on the disk before the journal says so, and what the
journal does not say is cut off, so nothing is lost and nothing is there twice. A file that cannot be read is a failure
with its reason, and is tried again by the next call.
"""

from __future__ import annotations

import functools
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import lance
import numpy as np
import pyarrow as pa

from audiation.audio import AudioError, audio_info, stream_audio
from audiation.cache import write_text
from audiation.corpus import AUDIO_STEM, TABLE_NAME, TARGETS_KEY, WINDOWS_NAME, Corpus, frames_column
from audiation.corpus_lance import COMMIT_BYTES as LANCE_COMMIT_BYTES
from audiation.corpus_lance import KeyedArray, try_table, write_windows
from audiation.corpus_packed import ITEM, CorpusError, PackedWriter, Place
from audiation.corpus_statistics import CHUNK_SECONDS, Heard, listen, near_duplicates, summarise
from audiation.corpus_table import (
    METADATA_KEY,
    CorpusHeader,
    FileEntry,
    Form,
    content_hash_of,
    table_of,
    write_packed,
)
from audiation.corpus_targets import StoredTargets
from audiation.json_lines import append_line, read_lines
from audiation.music_files import find_music
from audiation.store import WriterLock
from audiation.workers import WorkerDied, available_cores, serve

FORMAT = 1
SAMPLE_RATES_HZ = (24_000, 16_000)
WINDOW_SECONDS = 10.0  # of a row of the Lance form
COMMIT_BYTES = 2**26
COMMIT_SECONDS = 5.0
SETTINGS_FILE, JOURNAL_FILE, LOCK_FILE, PACKED_FOLDER = "build.json", "journal.jsonl", "writer.lock", "packed"
TOO_SHORT, SILENT = "shorter than min_seconds", "silent throughout"


@dataclass(frozen=True)
class SourceFile:
    """A file to put into a corpus. name: in the corpus. group: artist or album, licence: where a recipe knows them."""

    path: Path
    name: str
    group: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Sources:
    """What a corpus is made of. left_out: files that are not even decoded, and why; failed: that cannot be."""

    files: tuple[SourceFile, ...]
    left_out: tuple[FileEntry, ...] = ()
    failed: tuple[FileEntry, ...] = ()
    num_other: int = 0
    num_hidden: int = 0


@dataclass(frozen=True)
class BuildProgress:
    """So far: `done` of `total` files, hours that are stored, failures.

    what: "reading", or "writing Lance", where `done` and `total` are recordings.
    """

    what: str
    done: int
    total: int
    hours: float
    failures: int


@dataclass(frozen=True)
class BuildSettings:
    """What decides about the samples of a corpus.

    min_seconds: files that are shorter are left out. keep_silence: keep files that are silent throughout.
    """

    sample_rate_hz: int = 24_000
    min_seconds: float = 1.0
    keep_silence: bool = False

    def __post_init__(self) -> None:
        if self.sample_rate_hz not in SAMPLE_RATES_HZ:
            allowed = " or ".join(map(str, SAMPLE_RATES_HZ))
            raise ValueError(f"sample_rate_hz must be {allowed}, got {self.sample_rate_hz}")
        if not (math.isfinite(self.min_seconds) and self.min_seconds >= 0.0):
            raise ValueError(f"min_seconds must be 0 or more, got {self.min_seconds}")


def find_sources(paths: Sequence[str | Path]) -> Sources:
    """The audio files in and below `paths`, named as they lie below the path that was given.

    With several paths, the last part of the path comes before the name.

    Raises:
        ValueError: no path, or two files that would have the same name.
    """
    if not paths:
        raise ValueError("no path to build from was given. Name at least one folder or file.")
    files: list[SourceFile] = []
    failed: list[FileEntry] = []
    num_other = num_hidden = 0
    for root in map(Path, paths):
        found = find_music([root])
        num_other, num_hidden = num_other + found.num_other, num_hidden + found.num_hidden
        prefix = root.resolve().name if len(paths) > 1 and root.is_dir() else ""
        files += [SourceFile(path, _name(path, root, prefix)) for path in found.files]
        failed += [FileEntry(_name(path, root, prefix), "failed", reason) for path, reason in found.problems]
    named: dict[str, SourceFile] = {}
    for source in files:
        if (other := named.setdefault(source.name, source)) is not source:
            raise ValueError(
                f"{other.path} and {source.path} would both be called '{source.name}'. Give a folder above both."
            )
    return Sources(tuple(files), failed=tuple(failed), num_other=num_other, num_hidden=num_hidden)


def build_corpus(
    sources: Sources,
    directory: str | Path,
    name: str,
    settings: BuildSettings | None = None,
    *,
    form: Form = "packed",
    workers: int | None = None,
    progress: Callable[[BuildProgress], None] | None = None,
) -> Corpus:
    """Make the corpus of these files, or bring one up to date: what was read before is not read again, unless the file
    has changed since.

    Of files with the same samples the first in order of name is stored, and the others are listed as its duplicates.

    Args:
        directory: of this corpus alone. For the Lance form the packed one is made in `directory/packed` first, and
            removed in the end.
        workers: processes that decode; None: as many as there are cores; 0: everything in this process.

    Raises:
        CorpusError: nothing could be stored, or a folder with other settings or a finished Lance corpus.
        StoreLockedError: another process builds there.
    """
    directory, settings = Path(directory), settings or BuildSettings()
    report = progress or (lambda _: None)
    if form == "packed" and (directory / TABLE_NAME).exists():
        raise CorpusError(f"{directory} holds a corpus in the Lance form. Use another folder.")
    if form == "packed":
        return _build_packed(sources, directory, name, settings, workers, report)
    packed = directory / PACKED_FOLDER
    if (directory / TABLE_NAME).exists() and not packed.exists():
        raise CorpusError(
            f"{directory} holds a finished corpus in the Lance form, which cannot be added to. Remove it, or use "
            "another folder."
        )
    corpus = _build_packed(sources, packed, name, settings, workers, report)
    write_lance(corpus, str(directory), progress=report)
    shutil.rmtree(packed)
    return Corpus(directory)


def write_lance(
    corpus: Corpus,
    uri: str,
    *,
    commit_bytes: int = LANCE_COMMIT_BYTES,
    progress: Callable[[BuildProgress], None] | None = None,
) -> Corpus:
    """Copy a corpus and its stored targets into the Lance form, to a folder or a place like `s3://bucket/corpus`.

    Can be killed and called again; the table of files is written last. A finished copy of the same corpus gets the
    targets that it lacks.

    Raises:
        CorpusError: another corpus is there, or targets are not complete.
    """
    uri = uri.rstrip("/")
    opened = [corpus.open_targets(name) for name in corpus.targets]
    window = round(WINDOW_SECONDS * corpus.sample_rate_hz)
    total = len(corpus.recordings) * (1 + len(opened))

    def said(before: int) -> Callable[[int, int], None] | None:
        if progress is None:
            return None
        return lambda done, _: progress(BuildProgress("writing Lance", before + done, total, corpus.hours, 0))

    audio = [
        KeyedArray(key, int(n), functools.partial(corpus.read_int16, i))
        for i, (key, n) in enumerate(zip(corpus.recordings.content_hashes(), corpus.num_samples, strict=True))
    ]
    places = write_windows(
        f"{uri}/{WINDOWS_NAME}",
        audio,
        1,
        window,
        corpus.hash,
        commit_bytes=commit_bytes,
        progress=said(0),
    )
    listed: list[dict[str, Any]] = []
    for t, targets in enumerate(opened, 1):
        frames = max(1, round(WINDOW_SECONDS * targets.rate_hz))
        codes = [
            KeyedArray(array.key, targets.num_frames(i), functools.partial(_codes, targets, i))
            for i, array in enumerate(audio)
        ]
        write_windows(
            f"{uri}/targets/{targets.name}.lance",
            codes,
            targets.num_streams,
            frames,
            f"{corpus.hash} {targets.spec}",
            commit_bytes=commit_bytes,
            progress=said(t * len(audio)),
        )
        listed.append(asdict(targets.spec) | {"window_frames": frames})
    at = dict(zip((array.key for array in audio), places, strict=True))
    entries = [
        replace(e, file=0, start=at[e.content_hash].start) if e.status == "stored" else e
        for e in corpus.recordings.with_status("stored", "duplicate", "left out", "failed")
    ]
    header = replace(corpus.header, form="lance", window_samples=window)
    table = table_of(entries)
    index = {array.key: i for i, array in enumerate(audio)}
    for targets in opened:
        lengths = [targets.num_frames(index[e.content_hash]) if e.status == "stored" else 0 for e in entries]
        table = table.append_column(frames_column(targets.name), pa.array(lengths, pa.int64()))
    table = table.replace_schema_metadata({METADATA_KEY: header.to_json(), TARGETS_KEY: json.dumps(listed)})
    mode = "create" if try_table(f"{uri}/{TABLE_NAME}") is None else "overwrite"
    lance.write_dataset(table, f"{uri}/{TABLE_NAME}", mode=mode)
    return Corpus(uri)


# Reading --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    source: SourceFile
    version: str


@dataclass(frozen=True, eq=False)
class _Answer:
    """heard: None where the file was left out or failed."""

    status: str
    reason: str
    source_rate_hz: int = 0
    heard: Heard | None = None


def _read_file(settings: BuildSettings, job: _Job) -> Iterator[_Answer]:
    """In a worker: one file -> samples and what was measured, or why not."""
    path, rate = job.source.path, settings.sample_rate_hz
    try:
        info = audio_info(path)
        chunks = (w.samples.numpy() for w in stream_audio(path, rate, window_seconds=CHUNK_SECONDS))
        heard = listen(chunks, rate)
    except AudioError as error:
        yield _Answer("failed", str(error))
    except Exception as error:  # whatever a decoder does with damaged bytes, one file never stops the others
        yield _Answer("failed", f"{type(error).__name__}: {error}")
    else:
        if len(heard.samples) < settings.min_seconds * rate:
            yield _Answer("left out", TOO_SHORT)
        elif heard.silent_share == 1.0 and not settings.keep_silence:
            yield _Answer("left out", SILENT)
        else:
            yield _Answer("stored", "", info.sample_rate_hz, heard)


def _build_packed(
    sources: Sources,
    directory: Path,
    name: str,
    settings: BuildSettings,
    workers: int | None,
    report: Callable[[BuildProgress], None],
) -> Corpus:
    directory.mkdir(parents=True, exist_ok=True)
    lock = WriterLock(directory / LOCK_FILE)
    try:
        _keep_settings(directory, settings)
        with _Journal(directory) as journal:
            failed = _read_missing(sources, journal, settings, workers, report)
        known = [journal.known[source.name] for source in sources.files if source.name in journal.known]
        _finish(sources, directory, name, settings, known, failed)
    finally:
        lock.release()
    return Corpus(directory)


def _read_missing(
    sources: Sources,
    journal: _Journal,
    settings: BuildSettings,
    workers: int | None,
    report: Callable[[BuildProgress], None],
) -> list[FileEntry]:
    """Read what the journal does not know; returns what failed."""
    failed: list[FileEntry] = []
    jobs: list[_Job] = []
    samples = 0
    for source in sources.files:
        version = _version(source.path)
        known = journal.known.get(source.name)
        if known is None or known.version != version:
            journal.known.pop(source.name, None)
            jobs.append(_Job(source, version))
        else:
            samples += known.entry.num_samples
    done, total = len(sources.files) - len(jobs), len(sources.files)
    crew = serve(
        jobs,
        functools.partial(_read_file, settings),
        min(available_cores() if workers is None else workers, len(jobs)),
        threads=1,
    )
    with closing(crew):
        for answer in crew:
            source, message = answer.job.source, answer.message
            if isinstance(message, WorkerDied):
                reason = f"the process that read it ended (exit code {message.exit_code}): out of memory, or damaged"
                message = _Answer("failed", reason)
            if message.status == "failed":
                failed.append(FileEntry(source.name, "failed", message.reason))
            else:
                samples += journal.append(answer.job, message).num_samples
            done += 1
            report(
                BuildProgress("reading", done, total, samples / settings.sample_rate_hz / 3600, len(failed))
            )
    return failed


def _finish(
    sources: Sources,
    directory: Path,
    name: str,
    settings: BuildSettings,
    known: Sequence[_Known],
    failed: Sequence[FileEntry],
) -> None:
    """Find duplicates, and write what makes the folder a corpus."""
    labels = {source.name: source for source in sources.files}
    by_name = sorted(known, key=lambda k: k.entry.name)
    first: dict[str, str] = {}
    entries: list[FileEntry] = []
    prints: dict[str, str] = {}
    for k in by_name:
        source = labels[k.entry.name]
        entry = replace(k.entry, group=source.group, licence=source.licence)
        if entry.status == "stored":
            original = first.setdefault(entry.content_hash, entry.name)
            if original != entry.name:
                entry = replace(entry, status="duplicate", duplicate_of=original)
            else:
                prints[entry.name] = k.fingerprint
        entries.append(entry)
    lengths = {e.name: e.num_samples for e in entries}
    near = near_duplicates(prints, lengths, settings.sample_rate_hz)
    entries = [replace(e, near_duplicate_of=near.get(e.name, "")) for e in entries]
    entries += [*failed, *sources.failed, *sources.left_out]
    entries.sort(key=lambda e: e.name)
    stored = [e for e in entries if e.status == "stored"]
    if not stored:
        why = next((f"{e.name}: {e.reason}" for e in entries), "there are no audio files")
        raise CorpusError(f"nothing could be stored of {len(entries)} files. The first: {why}")
    statistics = summarise(entries, settings.sample_rate_hz)
    statistics |= {"files_of_other_kinds": sources.num_other, "hidden_files": sources.num_hidden}
    header = CorpusHeader(
        name,
        settings.sample_rate_hz,
        "packed",
        content_hash_of(settings.sample_rate_hz, entries),
        sum(e.num_samples for e in stored) / settings.sample_rate_hz / 3600,
        len(stored),
        statistics=statistics,
    )
    write_packed(directory, header, entries)


# What was read before -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Known:
    """version: size and time of change of the file when it was read."""

    entry: FileEntry
    version: str
    fingerprint: str

    @property
    def place(self) -> Place:
        return Place(self.entry.file, self.entry.start, self.entry.num_samples)


class _Journal:
    """The samples of a folder and what is known about them, by name; a later line replaces an earlier one."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / JOURNAL_FILE
        lines = read_lines(self._path, counted_by="commit")
        self._commits, self._end_byte = len(lines), lines[-1].end_byte if lines else 0
        every = [_known(values) for line in lines for values in line.values["files"]]
        self.known = {k.entry.name: k for k in every}
        self._places = {k.entry.content_hash: k.place for k in every if k.entry.status == "stored"}
        self._writer = PackedWriter(directory, AUDIO_STEM, 1, self._places.values())
        self._pending: list[_Known] = []
        self._pending_bytes, self._last_commit = 0, time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.commit()
        self._writer.__exit__()

    def append(self, job: _Job, answer: _Answer) -> FileEntry:
        """Keep the samples, once however many files have them, and remember the file."""
        entry = FileEntry(job.source.name, answer.status, answer.reason)  # type: ignore[arg-type]
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
        known = _Known(entry, job.version, fingerprint)
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


def _known(values: dict[str, Any]) -> _Known:
    return _Known(FileEntry(**values["entry"]), values["version"], values["fingerprint"])


def _keep_settings(directory: Path, settings: BuildSettings) -> None:
    path, wanted = directory / SETTINGS_FILE, {"format": FORMAT} | asdict(settings)
    if not path.exists():
        write_text(path, json.dumps(wanted, indent=1) + "\n")
        return
    try:
        held = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CorpusError(f"{path} is damaged ({error}). Delete the folder and build again.") from error
    different = [f"{key} was {held.get(key)}" for key in wanted if held.get(key) != wanted[key]]
    if different:
        raise CorpusError(
            f"{directory} was begun with other settings ({', '.join(different)}). Use these, or another folder."
        )


def _version(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return ""  # reading it says why
    return f"{status.st_size} {status.st_mtime_ns}"


def _name(path: Path, root: Path, prefix: str) -> str:
    below = path.name if path == root else path.relative_to(root).as_posix()
    text = f"{prefix}/{below}" if prefix else below
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _codes(targets: StoredTargets, recording: int) -> np.ndarray:
    whole = targets.read(recording, 0, targets.num_frames(recording))
    return whole.T.numpy().astype(ITEM)
