"""Random mixes for training separation: stems of different songs, in micro-batches that are a function of their place.

Shape letters: `B` clips, `S` samples, `N` stems.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from audiation.audio import AudioError
from audiation.metrics_separation import STEMS
from audiation.separation_sources import StemTrack, resample, stem_of
from audiation.training import TrainConfig

# MARBLE's released code (benchmark, section 6).
SEGMENT_SECONDS = 6.0
SAMPLES_PER_TRACK = 64
GAIN_RANGE = (0.25, 1.25)
SWAP_PROBABILITY = 0.5

SUBSTITUTES = 16  # tries to find a readable segment in place of one that is not


@dataclass(frozen=True)
class UnusedTrack:
    """A track that could not be read, and why."""

    track_id: str
    split: str
    reason: str


@dataclass(frozen=True, eq=False)
class MixBatch:
    """A micro-batch of mixes.

    waveform: `(B, S')` mono mixture at the backbone's rate.
    mixture: `(B, 2, S)` at the rate of the spectrogram.
    stems: `(B, N, 2, S)` of that mixture, those that the model has.
    names: of the tracks in it, each once.
    """

    waveform: Tensor
    mixture: Tensor
    stems: Tensor
    names: tuple[str, ...]


class RandomMixes:
    """Every micro-batch as a function of its place.

    Each of the four stems of a mix is a random stretch of a random track, at a random gain, and with its channels
    swapped in half of the cases; their sum is the mixture. The draws come from a hash of seed and place, so that a run
    goes on anywhere and on any number of processes.

    Args:
        tracks: that can be read (`readable_tracks`).
        stems: those that are wanted; all four are always in the mixture.
        config: seed and batch sizes.
        backbone_rate_hz: of `MixBatch.waveform`.
        sample_rate_hz: of the stems.
        segment_seconds: length of a mix; shorter tracks are followed by silence.
        unused: where tracks that break off while they are read are reported.
    """

    def __init__(
        self,
        tracks: Sequence[StemTrack],
        stems: Sequence[str],
        config: TrainConfig,
        *,
        backbone_rate_hz: int,
        sample_rate_hz: int,
        segment_seconds: float = SEGMENT_SECONDS,
        unused: list[UnusedTrack] | None = None,
    ) -> None:
        if not tracks:
            raise ValueError("random mixes need at least one track")
        if unknown := [name for name in stems if name not in STEMS]:
            raise ValueError(f"a mix has the stems {', '.join(STEMS)}, not {', '.join(unknown)}")
        self.tracks, self.stems, self.config = list(tracks), tuple(stems), config
        self.backbone_rate_hz, self.sample_rate_hz = backbone_rate_hz, sample_rate_hz
        self.segment_samples = round(segment_seconds * sample_rate_hz)
        self._unused: list[UnusedTrack] = [] if unused is None else unused
        self._broken = set[str]()

    def micro_batch(self, step: int, index: int) -> MixBatch:
        size = self.config.micro_batch_size or self.config.batch_size
        first = step * self.config.batch_size + index * size
        mixes = [self._mix(position) for position in range(first, first + size)]
        names = dict.fromkeys(segment.track_id for mix in mixes for segment in mix)
        stems = torch.stack([torch.stack([segment.samples for segment in mix]) for mix in mixes])
        mixture = stems.sum(1)
        wanted = [STEMS.index(name) for name in self.stems]
        mono = [resample(m, self.sample_rate_hz, self.backbone_rate_hz) for m in mixture.mean(1)]
        return MixBatch(torch.stack(mono), mixture, stems[:, wanted], tuple(names))

    def _mix(self, position: int) -> list[_Segment]:
        """The four stems of the mix at a place in the endless row of mixes."""
        draw = random.Random(_number(self.config.seed, "mix", position))
        return [self._segment(stem, draw) for stem in STEMS]

    def _segment(self, stem: str, draw: random.Random) -> _Segment:
        for _ in range(SUBSTITUTES):
            track = self.tracks[draw.randrange(len(self.tracks))]
            place, gain, swap = draw.random(), draw.uniform(*GAIN_RANGE), draw.random() < SWAP_PROBABILITY
            try:
                samples = self._stretch(track, stem, place)
            except AudioError as error:
                self._report(track, error)
                continue
            return _Segment(track.track_id, gain * (samples.flip(0) if swap else samples))
        raise ValueError(
            f"{len(self._broken)} tracks break off while they are read, the last {track.track_id}. Check the files, or "
            "leave them out."
        )

    def _stretch(self, track: StemTrack, stem: str, place: float) -> Tensor:
        """`(2, S)`. place: from 0 to 1, where in the track it begins."""
        num_samples = int(track.stems.duration_seconds * self.sample_rate_hz)
        start = int(place * (max(0, num_samples - self.segment_samples) + 1))
        seconds = self.segment_samples / self.sample_rate_hz
        samples = stem_of(
            track.stems.load(self.sample_rate_hz, start / self.sample_rate_hz, seconds), stem, track
        )
        return F.pad(samples[:, : self.segment_samples], (0, max(0, self.segment_samples - samples.shape[1])))

    def _report(self, track: StemTrack, error: AudioError) -> None:
        if track.track_id not in self._broken:
            self._broken.add(track.track_id)
            self._unused.append(UnusedTrack(track.track_id, "train", str(error)))


def readable_tracks(
    tracks: Sequence[StemTrack], split: str, min_seconds: float, unused: list[UnusedTrack]
) -> list[StemTrack]:
    """Those whose length can be told and that are long enough; the others are reported in `unused`."""
    found = []
    for track in tracks:
        try:
            seconds = track.stems.duration_seconds
        except AudioError as error:
            unused.append(UnusedTrack(track.track_id, split, str(error)))
            continue
        if seconds < min_seconds:
            unused.append(
                UnusedTrack(track.track_id, split, f"lasts {seconds:.3f} s, needs {min_seconds:.3f} s")
            )
            continue
        found.append(track)
    return found


def epoch_steps(num_tracks: int, batch_size: int, samples_per_track: int = SAMPLES_PER_TRACK) -> int:
    """Optimiser steps in which every track gives that many mixes on average."""
    return max(1, -(-num_tracks * samples_per_track // batch_size))


@dataclass(frozen=True, eq=False)
class _Segment:
    """samples: `(2, S)`, at its gain."""

    track_id: str
    samples: Tensor


def _number(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")
