"""A corpus and its stored targets -> a copy in the Lance form, on a disk or in object storage."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa

from audiation.corpus import TABLE_NAME, TARGETS_KEY, WINDOWS_NAME, Corpus, frames_column
from audiation.corpus_lance import COMMIT_BYTES, KeyedArray, try_table, write_windows
from audiation.corpus_packed import ITEM, CorpusError
from audiation.corpus_table import METADATA_KEY, table_of
from audiation.corpus_targets import StoredTargets

WINDOW_SECONDS = 5.0  # of a row: a crop of 5 s needs two of them


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
    targets that it lacks.

    Raises:
        CorpusError: another corpus is there, or targets are not complete.
    """
    uri = uri.rstrip("/")
    place = Path(uri.removeprefix("file://"))
    if corpus.directory is not None and place.resolve() == corpus.directory.resolve():
        raise CorpusError(f"{uri} is where the corpus itself lies. Name another place for the copy.")
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


def _codes(targets: StoredTargets, recording: int) -> np.ndarray:
    whole = targets.read(recording, 0, targets.num_frames(recording))
    return whole.T.numpy().astype(ITEM)
