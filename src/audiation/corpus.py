"""A corpus: recordings as 16-bit mono at one rate, of which random crops are read without decoding.

`Corpus` reads what `corpus_build.build_corpus` made, packed (a folder of large files, mapped into memory) or as a Lance
table (a folder, or a place like `s3://bucket/corpus`). `CropBatches` draws crops from it. docs/corpus.md.

Shape letters: `R` recordings, `B` batch, `S` samples, `Q` codebooks, `N` frames of targets.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from audiation.corpus_lance import LanceArrays, open_table, row_places
from audiation.corpus_packed import CorpusError, PackedArrays, Piece
from audiation.corpus_statistics import to_float32
from audiation.corpus_table import AUDIO_STEM, METADATA_KEY, CorpusHeader, FileTable, Recording, read_packed
from audiation.corpus_targets import LanceTargets, StoredTargets, list_packed_targets, open_packed_targets
from audiation.objectives.base import PretrainBatch

__all__ = ["Corpus", "CorpusError", "Crop", "CropBatches", "Recording", "StoredTargets"]

TABLE_NAME = "files.lance"
TARGETS_KEY = b"audiation.targets"
Short = Literal["leave-out", "repeat"]


class Corpus:
    """A finished corpus, to read; may be used by several threads.

    name, sample_rate_hz, hours, hash: as in `CorpusHeader`; every run that uses it records them.
    recordings: in order of name, without exact duplicates. num_samples: `(R,)` int64, their lengths.
    location: folder or URI. form: "packed" or "lance".
    """

    def __init__(self, directory: str | Path) -> None:
        """CorpusError where there is none, or it is damaged."""
        self.location = str(directory)
        self.directory = None if "://" in self.location else Path(directory)
        self._arrays: PackedArrays | LanceArrays
        if self.directory is not None and not (self.directory / TABLE_NAME).exists():
            self.header, self.recordings = read_packed(self.directory)
            self._arrays = PackedArrays(self.directory, AUDIO_STEM, 1)
        else:
            self.header, self.recordings = self._read_lance()
            self._arrays = LanceArrays(self._inside(self.header.windows), 1, self.header.window_samples)
        self.name, self.sample_rate_hz = self.header.name, self.header.sample_rate_hz
        self.hours, self.hash, self.form = self.header.hours, self.header.hash, self.header.form
        self.num_samples = self.recordings.num_samples

    def read(self, recording: int, start_sample: int, num_samples: int) -> Tensor:
        """`(S,)` float32 in [-1, 1) of recording number `recording`. ValueError where it reaches beyond its end."""
        return self.read_many([Crop(recording, start_sample)], num_samples)[0]

    def read_many(self, crops: Sequence[Crop], num_samples: int) -> list[Tensor]:
        """The same for several crops of one length, in one request."""
        places = [self.recordings.place(crop.recording) for crop in crops]
        pieces = [Piece(p, crop.start_sample, num_samples) for p, crop in zip(places, crops, strict=True)]
        return [torch.from_numpy(to_float32(items[:, 0])) for items in self._arrays.read(pieces)]

    def read_int16(self, recording: int) -> np.ndarray:
        """All of a recording as it is stored: `(S, 1)` int16."""
        place = self.recordings.place(recording)
        return self._arrays.read([Piece(place, 0, place.length)])[0]

    @property
    def targets(self) -> list[str]:
        """Names of the stored targets, in order."""
        held = set(self._lance_targets)
        return sorted(held | set(list_packed_targets(self.directory) if self.directory else ()))

    def open_targets(self, name: str) -> StoredTargets:
        """Codes of a teacher. CorpusError where they are not there, or not for every recording."""
        if name not in self.targets:
            known = ", ".join(self.targets) or "none"
            raise CorpusError(
                f"corpus '{self.name}' has no targets '{name}'; it has: {known}. Compute them first "
                "(docs/corpus.md)."
            )
        if name in self._lance_targets:
            held = self._lance_targets[name]
            arrays = LanceArrays(self._inside(held.table), len(held.spec.num_codes), held.window_frames)
            lengths = self.recordings.numbers(frames_column(name)).tolist()
            return StoredTargets(held.spec, arrays, row_places(lengths, held.window_frames), held.record)
        assert self.directory is not None
        return open_packed_targets(self.directory, name, self.recordings)

    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[str]:
        """Names of recordings whose samples are not those that were stored. Reads everything.

        progress: (recordings checked, all recordings).
        """
        differing = []
        for i, key in enumerate(self.recordings.content_hashes()):
            if hashlib.sha256(np.ascontiguousarray(self.read_int16(i)).data).hexdigest() != key:
                differing.append(self.recordings[i].name)
            if progress is not None:
                progress(i + 1, len(self.recordings))
        return differing

    def _read_lance(self) -> tuple[CorpusHeader, FileTable]:
        dataset = open_table(self._inside(TABLE_NAME))
        metadata = dataset.schema.metadata or {}
        if METADATA_KEY not in metadata:
            raise CorpusError(f"{self.location} is a Lance table, but no corpus")
        return CorpusHeader.from_json(metadata[METADATA_KEY], self.location), FileTable(
            dataset.to_table(scan_in_order=True)
        )

    @property
    def lance_tables(self) -> set[str]:
        """Of the Lance form: the tables of samples and codes, below `location`."""
        return {self.header.windows, *(targets.table for targets in self._lance_targets.values())}

    @functools.cached_property
    def _lance_targets(self) -> dict[str, LanceTargets]:
        if self.form != "lance":
            return {}
        listed = (open_table(self._inside(TABLE_NAME)).schema.metadata or {}).get(TARGETS_KEY, b"[]")
        try:
            return {t.spec.name: t for t in map(LanceTargets.from_values, json.loads(listed))}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorpusError(
                f"{self._inside(TABLE_NAME)} does not say which targets there are ({type(error).__name__}: {error}). "
                "Copy the corpus again."
            ) from error

    def _inside(self, name: str) -> str:
        return f"{self.location.rstrip('/')}/{name}"


def frames_column(name: str) -> str:
    """Of the table of the Lance form: how many frames of targets `name` a recording has."""
    return f"{name} frames"


# Crops ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crop:
    """Where a crop begins, in recording number `recording` of the corpus."""

    recording: int
    start_sample: int


class CropBatches:
    """Random crops as micro-batches (`micro_batches.Batches`): a pure function of step and index, so that a run goes on
    anywhere, also within an epoch, and which process reads a micro-batch changes nothing.

    An epoch takes floor(length / crop) crops of every recording, so that each second is heard about once, in an order
    that is a permutation of them drawn from (seed, epoch); the start of each is uniform over all whole samples at which
    a crop fits. The next epoch follows without a gap, also within a micro-batch. Nothing is precomputed per crop: the
    permutation is a small cipher over their numbers, so that 100 million crops cost no memory.

    crops_per_epoch; num_left_out, left_out_hours: recordings shorter than a crop, which are not heard.
    """

    def __init__(
        self,
        corpus: Corpus,
        crop_seconds: float,
        micro_batch_size: int,
        num_micro_batches: int,
        seed: int,
        targets: Sequence[str] = (),
        short: Short = "leave-out",
    ) -> None:
        """
        Args:
            crop_seconds: rounded to samples.
            num_micro_batches: of an optimiser step, over all processes.
            targets: names of stored targets that the batches have.
            short: what becomes of recordings shorter than a crop; "repeat": one crop an epoch, in which they are
                repeated from their start until it is full.

        Raises:
            ValueError: sizes below 1, no recording that is long enough, or "repeat" with stored targets, which would
                not fit at the seams.
            CorpusError: targets that are not there.
        """
        longest_samples = int(corpus.num_samples.max(initial=0))
        # compared before it is rounded: a float may be larger than any whole number that fits
        num_samples = round(min(crop_seconds * corpus.sample_rate_hz, longest_samples + 1.0))
        for what, value in (
            ("crop_seconds * rate", num_samples),
            ("micro_batch_size", micro_batch_size),
            ("num_micro_batches", num_micro_batches),
        ):
            if value < 1:
                raise ValueError(f"{what} must be at least 1, got {value}")
        if short == "repeat" and targets:
            raise ValueError("short='repeat' does not go with stored targets. Use short='leave-out'.")
        self.corpus, self.num_samples, self.seed = corpus, num_samples, seed
        self.micro_batch_size, self.num_micro_batches = micro_batch_size, num_micro_batches
        self._targets = [corpus.open_targets(name) for name in targets]
        is_short = corpus.num_samples < num_samples
        self.num_left_out = 0 if short == "repeat" else int(is_short.sum())
        self.left_out_hours = 0.0
        counts = corpus.num_samples // num_samples
        if short == "repeat":
            counts = np.maximum(counts, 1)
        else:
            self.left_out_hours = float(corpus.num_samples[is_short].sum()) / corpus.sample_rate_hz / 3600
        self._ends = np.cumsum(counts)
        self.crops_per_epoch = int(self._ends[-1]) if len(self._ends) else 0
        if not self.crops_per_epoch:
            longest = int(corpus.num_samples.max(initial=0)) / corpus.sample_rate_hz
            raise ValueError(
                f"no recording of corpus '{corpus.name}' is as long as a crop of {crop_seconds:g} s; the longest of "
                f"{len(corpus.recordings)} has {longest:.2f} s. Take shorter crops."
            )

    def micro_batch(self, step: int, index: int) -> PretrainBatch:
        """Micro-batch `index` of optimiser step `step`: waveform `(B, S)`, codes `(B, Q, N)` of each teacher.

        Codes are cropped from round(start * rate / sample rate), round(S * rate / sample rate) of them (MERT spec,
        section 3.1); where a teacher gave fewer frames at the end of a recording, the whole batch has fewer.
        """
        crops = self.crops(step, index)
        batch = self._read(crops)
        names = tuple(self.corpus.recordings.name(crop.recording) for crop in crops)
        rate_hz = self.corpus.sample_rate_hz
        codes = {}
        for targets in self._targets:
            starts = [(c.recording, round(c.start_sample * targets.rate_hz / rate_hz)) for c in crops]
            count = round(self.num_samples * targets.rate_hz / rate_hz)
            read = targets.read_many(starts, count)
            shortest = min(item.shape[1] for item in read)
            codes[targets.name] = torch.stack([item[:, :shortest] for item in read])
        return PretrainBatch(batch, names, codes)

    def crops(self, step: int, index: int) -> list[Crop]:
        """Where the crops of a micro-batch begin."""
        if not 0 <= index < self.num_micro_batches or step < 0:
            raise ValueError(
                f"steps begin at 0 and have micro-batches 0 to {self.num_micro_batches - 1}, got {step}, {index}"
            )
        first = (step * self.num_micro_batches + index) * self.micro_batch_size
        return [self._crop(number) for number in range(first, first + self.micro_batch_size)]

    def _crop(self, number: int) -> Crop:
        epoch, position = divmod(number, self.crops_per_epoch)
        item = _permuted(position, self.crops_per_epoch, self.seed, epoch)
        recording = int(np.searchsorted(self._ends, item, side="right"))
        num_starts = max(0, int(self.corpus.num_samples[recording]) - self.num_samples) + 1
        return Crop(recording, _draw("start", self.seed, epoch, item) % num_starts)

    def _read(self, crops: Sequence[Crop]) -> Tensor:
        lengths = [int(self.corpus.num_samples[crop.recording]) for crop in crops]
        batch = torch.empty(len(crops), self.num_samples)
        whole = [i for i, length in enumerate(lengths) if length >= self.num_samples]
        for i, samples in zip(
            whole, self.corpus.read_many([crops[i] for i in whole], self.num_samples), strict=True
        ):
            batch[i] = samples
        for i in sorted(set(range(len(crops))) - set(whole)):
            samples = self.corpus.read(crops[i].recording, 0, lengths[i])
            batch[i] = samples.repeat(-(-self.num_samples // lengths[i]))[: self.num_samples]
        return batch


def _permuted(position: int, size: int, *key: object) -> int:
    """Where a permutation of range(size), drawn from `key`, sends `position`.

    A Feistel cipher of four rounds permutes the numbers of an even count of bits; it is applied again until the number
    is below `size` (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002), less than four times on average.
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    while True:
        left, right = position >> half_bits, position & mask
        for turn in range(4):
            left, right = right, left ^ (_draw("order", *key, turn, right) & mask)
        position = left << half_bits | right
        if position < size:
            return position


def _draw(*key: object) -> int:
    """64 random bits that depend on the key alone, on every machine."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little")
