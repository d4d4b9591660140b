"""Recordings and frames of a corpus for teachers: one recording, many in several processes, and a random sample of the
frames of all.

Shape letters: `R` frames of the sample, `F` features.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from audiation.corpus import Corpus, CorpusError
from audiation.corpus_commits import Commits
from audiation.teachers.base import FrameFeatures, Recorded
from audiation.workers import WorkerDied, available_cores, serve

SAMPLE_FILE, JOURNAL_FILE = "sample.f32", "sample.jsonl"

M = TypeVar("M")


def recorded(corpus: Corpus, recording: int) -> Recorded:
    """Recording number `recording`, to be read piece by piece."""
    return Recorded(int(corpus.num_samples[recording]), functools.partial(corpus.read, recording))


@dataclass(frozen=True)
class Computed(Generic[M]):
    """result: of recording number `recording`."""

    recording: int
    result: M


def compute_each(
    corpus: Corpus, recordings: Sequence[int], compute: Callable[[Corpus, int], M], workers: int
) -> Generator[Computed[M]]:
    """Results for recordings of a corpus, in any order. Close the iterator to stop the workers.

    Args:
        compute: (corpus, number of a recording) -> result; picklable where there are workers.
        workers: processes, which open the corpus again; 0: everything happens in this one.

    Raises:
        CorpusError: what a worker opened is not the corpus any more.
        ChildProcessError: a worker was killed.
    """
    answer: Callable[[int], Iterator[M | CorpusError]] = _Reopened(corpus.location, corpus.hash, compute)
    if workers == 0:
        answer = functools.partial(_once, corpus, compute)
    threads = max(1, available_cores() // max(1, workers))
    with closing(serve(recordings, answer, workers, threads)) as answers:
        for given in answers:
            message = given.message
            if isinstance(message, WorkerDied):
                raise ChildProcessError(
                    f"a worker ended with exit code {message.exit_code} at recording "
                    f"'{corpus.recordings.name(given.job)}'. Call again to go on, with fewer workers where memory is "
                    "short."
                )
            if isinstance(message, CorpusError):
                raise message
            yield Computed(given.job, message)


@dataclass(frozen=True)
class SampledBlocks:
    """The frames that are taken of one recording.

    row: where the first of them lies in the sample. blocks: (first frame, number of frames), in order.
    """

    recording: int
    row: int
    blocks: tuple[tuple[int, int], ...]

    @property
    def num_frames(self) -> int:
        return sum(count for _, count in self.blocks)


def draw_sample(
    corpus: Corpus, features: FrameFeatures, share: float, seed: int, max_frames: int
) -> list[SampledBlocks]:
    """Which frames are looked at: blocks of `features.block_frames`, so many of every recording that they are about
    `share` of all frames, and not much more than `max_frames`. Depends on lengths and seed alone."""
    totals = np.array([features.num_frames(int(n)) for n in corpus.num_samples], dtype=np.int64)
    share = min(share, max_frames / max(1, int(totals.sum())))
    rng = np.random.default_rng(seed)
    # Rounded at random, so that short recordings, of which a block is too much, are taken now and then.
    num_blocks = -(-totals // features.block_frames)
    counts = np.floor(share * num_blocks + rng.random(len(totals))).astype(np.int64)
    sample, row = [], 0
    for recording in np.flatnonzero(counts):
        total = int(totals[recording])
        chosen = np.sort(rng.choice(int(num_blocks[recording]), int(counts[recording]), replace=False))
        firsts = (int(i) * features.block_frames for i in chosen)
        blocks = tuple((first, min(features.block_frames, total - first)) for first in firsts)
        sample.append(SampledBlocks(int(recording), row, blocks))
        row += sample[-1].num_frames
    return sample


def gather_sample(
    corpus: Corpus,
    features: FrameFeatures,
    sample: list[SampledBlocks],
    directory: Path,
    workers: int,
    progress: Callable[[int, int], None],
) -> np.ndarray:
    """Features of the sampled frames, `(R, F)` float32, a file that is mapped into memory; goes on after a kill.

    Raises:
        ValueError: features that are not finite; names the recording.
        CorpusError, ChildProcessError: as `compute_each`.
    """
    shape = (sum(blocks.num_frames for blocks in sample), features.num_features)
    path, journal = directory / SAMPLE_FILE, directory / JOURNAL_FILE
    directory.mkdir(parents=True, exist_ok=True)
    commits = Commits(journal, "recordings", int)
    done = set(commits.entries)
    rows_RF = _rows_file(path, shape, is_begun=bool(done))

    of_recording = {blocks.recording: blocks for blocks in sample}
    missing = [recording for recording in of_recording if recording not in done]
    num_done = len(done)
    compute = functools.partial(_rows_of, features, {r: of_recording[r].blocks for r in missing})
    try:
        with closing(compute_each(corpus, missing, compute, workers)) as answers:
            for answer in answers:
                if not np.isfinite(answer.result).all():
                    raise ValueError(
                        f"features of recording '{corpus.recordings.name(answer.recording)}' are not finite"
                    )
                blocks = of_recording[answer.recording]
                rows_RF[blocks.row : blocks.row + blocks.num_frames] = answer.result
                commits.add(answer.recording)
                if commits.is_due:
                    commits.commit(rows_RF.flush)
                num_done += 1
                progress(num_done, len(sample))
    finally:
        commits.commit(rows_RF.flush)
    return rows_RF


def _rows_file(path: Path, shape: tuple[int, int], is_begun: bool) -> np.memmap:
    num_bytes = 4 * shape[0] * shape[1]
    if (
        is_begun and (held := path.stat().st_size if path.exists() else 0) != num_bytes
    ):  # numpy would make it longer, with zeros
        raise ValueError(
            f"{path}, the begun sample of a fit, cannot be read: it has {held} bytes, not {num_bytes}. Delete "
            "its folder to fit anew."
        )
    return np.memmap(path, np.float32, "r+" if is_begun else "w+", shape=shape)


def _rows_of(
    features: FrameFeatures, blocks: dict[int, tuple[tuple[int, int], ...]], corpus: Corpus, recording: int
) -> np.ndarray:
    """Features of the sampled blocks of one recording."""
    whole = recorded(corpus, recording)
    parts = [features.frames(whole, first, count).numpy() for first, count in blocks[recording]]
    return np.concatenate(parts)


def _once(corpus: Corpus, compute: Callable[[Corpus, int], M], recording: int) -> Iterator[M]:
    yield compute(corpus, recording)


@dataclass(frozen=True)
class _Reopened(Generic[M]):
    """In a worker: number of a recording -> what is computed of it, if the corpus still has that hash; another one has
    other recordings under the same numbers."""

    location: str
    hash: str
    compute: Callable[[Corpus, int], M]

    def __call__(self, recording: int) -> Iterator[M | CorpusError]:
        if self._corpus.hash == self.hash:
            yield self.compute(self._corpus, recording)
        else:
            yield CorpusError(
                f"{self.location} was built anew meanwhile. Call again: what is computed stays."
            )

    @functools.cached_property
    def _corpus(self) -> Corpus:
        return Corpus(self.location)
