"""A corpus and its stored targets -> a copy in the Lance form, on a disk or in object storage.

    PLACE/files.lance                 table of files; says which of the others are the corpus's. Written last.
    PLACE/windows-HASH.lance          samples, by the hash of the corpus
    PLACE/targets/NAME-HASH.lance     codes, by the corpus and what they were computed with

So a copy of a later state lies beside the one before, until it is whole and takes its place; then the one before is
removed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa

from audiation.corpus import TABLE_NAME, TARGETS_KEY, Corpus, frames_column
from audiation.corpus_lance import COMMIT_BYTES, KeyedArray, try_table, write_windows
from audiation.corpus_packed import ITEM, CorpusError
from audiation.corpus_table import HEADER_FILE, METADATA_KEY, table_of
from audiation.corpus_targets import LanceTargets, StoredTargets, TargetsSpec
from audiation.folder_lock import locked

WINDOW_SECONDS = 5.0  # of a row: a crop of 5 s needs two of them
_OWN_TABLE = re.compile(r"(windows|targets/.+)-[0-9a-f]{12}\.lance")


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


def write_lance(
    corpus: Corpus,
    uri: str,
    *,
    commit_bytes: int = COMMIT_BYTES,
    progress: Callable[[BuildProgress], None] | None = None,
) -> Corpus:
    """Copy a corpus and its stored targets into the Lance form, to a folder or a place like `s3://bucket/corpus`.

    Can be killed and called again; the table of files is written last. A finished copy of the same corpus gets the
    targets that it lacks, and one of an earlier state is replaced: what it had is removed when all else is there.

    Raises:
        CorpusError: another corpus is there, or targets are not complete.
        FolderLockedError: another process writes there.
    """
    uri = uri.rstrip("/")
    folder = _local(uri)
    if folder is not None and corpus.directory is not None and folder.resolve() == corpus.directory.resolve():
        raise CorpusError(f"{uri} is where the corpus itself lies. Name another place for the copy.")
    check_place(uri, corpus.name, corpus.sample_rate_hz)
    with nullcontext() if folder is None else locked(folder, "writing a corpus in the Lance form"):
        return write_lance_unlocked(corpus, uri, commit_bytes=commit_bytes, progress=progress)


def check_place(uri: str, name: str, sample_rate_hz: int) -> None:
    """Raises CorpusError where something other lies than an earlier state of the corpus of that name and rate."""
    folder = _local(uri)
    if folder is not None and (folder / HEADER_FILE).exists():
        raise CorpusError(f"{uri} holds a corpus in the packed form. Use another folder.")
    if try_table(f"{uri}/{TABLE_NAME}") is None:
        return
    held = Corpus(uri)
    if (held.name, held.sample_rate_hz) != (name, sample_rate_hz):
        raise CorpusError(
            f"{uri} holds something else: corpus '{held.name}' at {held.sample_rate_hz} Hz, not '{name}' at "
            f"{sample_rate_hz} Hz. Remove it, or choose another place."
        )


def write_lance_unlocked(
    corpus: Corpus,
    uri: str,
    *,
    commit_bytes: int = COMMIT_BYTES,
    progress: Callable[[BuildProgress], None] | None = None,
) -> Corpus:
    """`write_lance` for who has checked the place and holds its lock."""
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
    windows = f"windows-{corpus.hash[:12]}.lance"
    places = write_windows(
        f"{uri}/{windows}",
        audio,
        1,
        window,
        corpus.hash,
        commit_bytes=commit_bytes,
        progress=said(0),
    )
    listed: list[LanceTargets] = []
    for t, targets in enumerate(opened, 1):
        frames = max(1, round(WINDOW_SECONDS * targets.rate_hz))
        codes = [
            KeyedArray(array.key, targets.num_frames(i), functools.partial(_codes, targets, i))
            for i, array in enumerate(audio)
        ]
        spec = TargetsSpec(targets.name, targets.rate_hz, targets.num_codes)
        identity = f"{corpus.hash} {spec} {json.dumps(targets.record, sort_keys=True)}"
        named = f"targets/{targets.name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.lance"
        write_windows(
            f"{uri}/{named}",
            codes,
            targets.num_streams,
            frames,
            identity,
            commit_bytes=commit_bytes,
            progress=said(t * len(audio)),
        )
        listed.append(LanceTargets(spec, frames, named, targets.record))
    at = dict(zip((array.key for array in audio), places, strict=True))
    entries = [
        replace(e, file=0, start=at[e.content_hash].start) if e.status == "stored" else e
        for e in corpus.recordings.with_status("stored", "duplicate", "left out", "failed")
    ]
    header = replace(corpus.header, form="lance", window_samples=window, windows=windows)
    table = table_of(entries)
    index = {array.key: i for i, array in enumerate(audio)}
    for targets in opened:
        lengths = [targets.num_frames(index[e.content_hash]) if e.status == "stored" else 0 for e in entries]
        table = table.append_column(frames_column(targets.name), pa.array(lengths, pa.int64()))
    noted = json.dumps([targets.to_values() for targets in listed])
    table = table.replace_schema_metadata({METADATA_KEY: header.to_json(), TARGETS_KEY: noted})
    is_first = try_table(f"{uri}/{TABLE_NAME}") is None
    before = set() if is_first else Corpus(uri).lance_tables
    lance.write_dataset(table, f"{uri}/{TABLE_NAME}", mode="create" if is_first else "overwrite")
    written = Corpus(uri)
    for old in sorted((before | _tables_below(_local(uri))) - written.lance_tables):
        lance.LanceDataset.drop(f"{uri}/{old}")
    return written


def _local(uri: str) -> Path | None:
    """The folder that a place is; None: it is in object storage."""
    path = uri.removeprefix("file://")
    return None if "://" in path else Path(path)


def _tables_below(folder: Path | None) -> set[str]:
    """Tables of samples and codes, also those of copies that were begun and never finished."""
    if folder is None:
        return set()
    found = (
        path.relative_to(folder).as_posix()
        for path in [*folder.glob("*.lance"), *folder.glob("targets/*.lance")]
    )
    return {name for name in found if _OWN_TABLE.fullmatch(name) and (folder / name / "_versions").is_dir()}


def _codes(targets: StoredTargets, recording: int) -> np.ndarray:
    whole = targets.read(recording, 0, targets.num_frames(recording))
    return whole.T.numpy().astype(ITEM)
