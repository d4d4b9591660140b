"""Folders of music -> a corpus: decoded, mixed to mono, resampled, measured, and packed, in several processes.

    DIR/build.json       settings that change samples
    DIR/journal.jsonl    a line per commit: what became of which files
    DIR/audio-00000.s16  samples (`corpus_packed.py`)
    DIR/corpus.json, files.parquet

The build can be killed at any moment and called again (`corpus_commits.py`): nothing is lost, nothing is there twice. A
file that cannot be read is a failure
with its reason, and is tried again by the next call.
"""

from __future__ import annotations

import functools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from audiation.audio import AudioError, audio_info, stream_audio
from audiation.cache import write_text
from audiation.corpus import TABLE_NAME, Corpus
from audiation.corpus_copy import BuildProgress, check_place, write_lance_unlocked
from audiation.corpus_journal import FileAnswer, Journal, Known
from audiation.corpus_packed import CorpusError
from audiation.corpus_sources import SourceFile, Sources
from audiation.corpus_statistics import CHUNK_SECONDS, listen, near_duplicates, summarise
from audiation.corpus_table import CorpusHeader, FileEntry, Form, content_hash_of, write_packed
from audiation.folder_lock import locked
from audiation.workers import WorkerDied, available_cores, serve

FORMAT = 1
SAMPLE_RATES_HZ = (24_000, 16_000)
SETTINGS_FILE, PACKED_FOLDER, DONE_FOLDER = "build.json", "packed", "packed.done"
TOO_SHORT, SILENT = "shorter than min_seconds", "silent throughout"


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
            removed in the end. A finished one of the same name and rate is read until the new one is whole.
        workers: processes that decode; None: as many as there are cores; 0: everything in this process.

    Raises:
        CorpusError: nothing could be stored, or a folder with other settings, another form or another corpus.
        FolderLockedError: another process builds there.
    """
    directory, settings = Path(directory), settings or BuildSettings()
    report = progress or (lambda _: None)
    with locked(directory, f"building corpus '{name}'"):
        if form == "packed":
            if (directory / TABLE_NAME).exists():
                raise CorpusError(f"{directory} holds a corpus in the Lance form. Use another folder.")
            return _build_packed(sources, directory, name, settings, workers, report)
        check_place(str(directory), name, settings.sample_rate_hz)
        packed, done = directory / PACKED_FOLDER, directory / DONE_FOLDER
        if done.exists():
            shutil.rmtree(done)  # of a build that was killed while it removed this
        corpus = _build_packed(sources, packed, name, settings, workers, report)
        copied = write_lance_unlocked(corpus, str(directory), progress=report)
        packed.rename(done)  # half of it is never taken for the beginning of a build
        shutil.rmtree(done)
        return copied


# Reading --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    source: SourceFile
    version: str


def _read_file(settings: BuildSettings, job: _Job) -> Iterator[FileAnswer]:
    """In a worker: one file -> samples and what was measured, or why not."""
    path, rate = job.source.path, settings.sample_rate_hz
    try:
        info = audio_info(path)
        chunks = (w.samples.numpy() for w in stream_audio(path, rate, window_seconds=CHUNK_SECONDS))
        heard = listen(chunks, rate)
    except AudioError as error:
        yield FileAnswer("failed", str(error))
    except Exception as error:  # whatever a decoder does with damaged bytes, one file never stops the others
        yield FileAnswer("failed", f"{type(error).__name__}: {error}")
    else:
        if len(heard.samples) < settings.min_seconds * rate:
            yield FileAnswer("left out", TOO_SHORT)
        elif heard.silent_share == 1.0 and not settings.keep_silence:
            yield FileAnswer("left out", SILENT)
        else:
            yield FileAnswer("stored", "", info.sample_rate_hz, heard)


def _build_packed(
    sources: Sources,
    directory: Path,
    name: str,
    settings: BuildSettings,
    workers: int | None,
    report: Callable[[BuildProgress], None],
) -> Corpus:
    _keep_settings(directory, settings)
    with Journal(directory) as journal:
        failed = _read_missing(sources, journal, settings, workers, report)
    known = [journal.known[source.name] for source in sources.files if source.name in journal.known]
    _finish(sources, directory, name, settings, known, failed)
    return Corpus(directory)


def _read_missing(
    sources: Sources,
    journal: Journal,
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
                message = FileAnswer("failed", reason)
            if message.status == "failed":
                failed.append(FileEntry(source.name, "failed", message.reason))
            else:
                samples += journal.append(source.name, answer.job.version, message).num_samples
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
    known: Sequence[Known],
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
