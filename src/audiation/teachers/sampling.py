"""Recordings and frames of a corpus for teachers: one recording, and a random sample of the frames of all.

Shape letters: `R` frames of the sample, `F` features.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audiation.corpus import Corpus
from audiation.json_lines import append_line, read_lines
from audiation.teachers.base import FrameFeatures, Recorded
from audiation.workers import WorkerDied, available_cores, serve

SAMPLE_FILE, JOURNAL_FILE = "sample.f32", "sample.jsonl"
COMMIT_SECONDS = 10.0  # what a kill may cost


def recorded(corpus: Corpus, recording: int) -> Recorded:
    """Recording number `recording`, to be read piece by piece."""
    return Recorded(int(corpus.num_samples[recording]), functools.partial(corpus.read, recording))


def threads_of(workers: int) -> int:
    """Of each of so many processes."""
    return max(1, available_cores() // max(1, workers))


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
        ChildProcessError: a worker was killed.
    """
    shape = (sum(blocks.num_frames for blocks in sample), features.num_features)
    path, journal = directory / SAMPLE_FILE, directory / JOURNAL_FILE
    directory.mkdir(parents=True, exist_ok=True)
    lines = read_lines(journal, counted_by="commit")
    done = {recording for line in lines for recording in line.values["recordings"]}
    end_byte = lines[-1].end_byte if lines else 0
    rows_RF = np.memmap(path, np.float32, "r+" if lines else "w+", shape=shape)
    pending: list[int] = []
    num_commits, last_commit = len(lines), time.monotonic()

    def commit() -> None:
        nonlocal pending, num_commits, last_commit, end_byte
        if pending:
            rows_RF.flush()
            append_line(journal, {"commit": num_commits, "recordings": pending}, end_byte)
            pending, num_commits, end_byte = [], num_commits + 1, journal.stat().st_size
        last_commit = time.monotonic()

    jobs = (blocks for blocks in sample if blocks.recording not in done)
    answers = serve(jobs, _Rows(corpus.location, features), workers, threads_of(workers))
    num_done = len(done)
    try:
        for answer in answers:
            blocks = answer.job
            if isinstance(answer.message, WorkerDied):
                raise ChildProcessError(
                    f"a worker ended with exit code {answer.message.exit_code} at recording "
                    f"'{corpus.recordings[blocks.recording].name}'. Call again to go on, with fewer workers where "
                    "memory is short."
                )
            if not np.isfinite(answer.message).all():
                raise ValueError(
                    f"features of recording '{corpus.recordings[blocks.recording].name}' are not finite"
                )
            rows_RF[blocks.row : blocks.row + blocks.num_frames] = answer.message
            pending.append(blocks.recording)
            if time.monotonic() - last_commit >= COMMIT_SECONDS:
                commit()
            num_done += 1
            progress(num_done, len(sample))
    finally:
        answers.close()
        commit()
    return rows_RF


@dataclass(frozen=True)
class _Rows:
    """In a worker: sampled blocks -> their features."""

    location: str
    features: FrameFeatures

    def __call__(self, sampled: SampledBlocks) -> Iterator[np.ndarray]:
        recording = recorded(self._corpus, sampled.recording)
        parts = [self.features.frames(recording, first, count).numpy() for first, count in sampled.blocks]
        yield np.concatenate(parts)

    @functools.cached_property
    def _corpus(self) -> Corpus:
        return Corpus(self.location)
