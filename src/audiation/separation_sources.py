"""Where stereo mixtures and their stems come from: files, tracks with stems, tensors; read forward in blocks.

Conventions: stereo `(2, S)` float32; a mono file is put on both channels. A recording of N samples at rate f has
floor(N r / f + 1/2) samples at rate r, as in `audio.py`.

Shape letters: `S` samples, `N` stems.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from audiation.audio import (
    QUALITY,
    AudioError,
    BadSamplesError,
    NotAudioError,
    TruncatedAudioError,
    audio_info,
)
from audiation.containers import ContainerReader, check_container

CHANNELS = 2
BLOCK_SECONDS = 10.0  # read at a time


class Stems(Protocol):
    """The stems of one track and their mixture, as stereo `(2, S)`; raises `AudioError` where they cannot be read.

    A duration of None, or beyond the end, reads to the end.
    """

    @property
    def duration_seconds(self) -> float: ...

    def load(
        self, sample_rate_hz: int, start_seconds: float = 0.0, duration_seconds: float | None = None
    ) -> dict[str, Tensor]: ...

    def mixture(
        self, sample_rate_hz: int, start_seconds: float = 0.0, duration_seconds: float | None = None
    ) -> Tensor: ...


class StemTrack(Protocol):
    """A track that is there as a mixture and as stems: `datasets.musdb18`, or any object like it."""

    @property
    def track_id(self) -> str: ...

    @property
    def stems(self) -> Stems: ...


class Mixture(Protocol):
    """A stereo recording that can be read from its beginning, as often as one likes, at any rate."""

    def num_samples(self, sample_rate_hz: int) -> int: ...

    def blocks(self, sample_rate_hz: int) -> Iterator[Tensor]: ...


def mixture_of(source: str | os.PathLike[str] | Tensor | StemTrack, tensor_rate_hz: int) -> Mixture:
    """What to separate. tensor_rate_hz: the rate of a tensor.

    Raises:
        ValueError: a tensor that is no stereo waveform.
        AudioError: a file that cannot be read.
    """
    if isinstance(source, Tensor):
        return TensorMixture(source, tensor_rate_hz)
    if isinstance(source, str | os.PathLike):
        return FileMixture(Path(source))
    return TrackMixture(source)


class TensorMixture:
    """A waveform `(2, S)` at `sample_rate_hz`."""

    def __init__(self, samples: Tensor, sample_rate_hz: int) -> None:
        if samples.ndim != 2 or samples.shape[0] != CHANNELS or not samples.is_floating_point():
            raise ValueError(
                f"a mixture is a stereo waveform (2, samples) of floats, got {tuple(samples.shape)} {samples.dtype}. "
                "Put mono on both channels: samples.expand(2, -1)."
            )
        self._samples, self._rate = samples.detach().float().cpu(), sample_rate_hz

    def num_samples(self, sample_rate_hz: int) -> int:
        return _resampled_length(self._samples.shape[1], self._rate, sample_rate_hz)

    def blocks(self, sample_rate_hz: int) -> Iterator[Tensor]:
        return _at_rate(iter([self._samples]), self._rate, sample_rate_hz, self.num_samples(sample_rate_hz))


class TrackMixture:
    """The mixture of a track with stems, from its beginning.

    max_seconds: how much of it; None: all.
    """

    def __init__(self, track: StemTrack, max_seconds: float | None = None) -> None:
        self._stems = track.stems
        self.duration_seconds = shortest(track.stems.duration_seconds, max_seconds)

    def num_samples(self, sample_rate_hz: int) -> int:
        return _length(self.duration_seconds, sample_rate_hz)

    def blocks(self, sample_rate_hz: int) -> Iterator[Tensor]:
        read = (
            self._stems.mixture(sample_rate_hz, *s) for s in _stretches(self.duration_seconds, sample_rate_hz)
        )
        return _exactly(read, self.num_samples(sample_rate_hz), sample_rate_hz)


def stem_blocks(
    track: StemTrack, names: tuple[str, ...], sample_rate_hz: int, max_seconds: float | None = None
) -> Iterator[Tensor]:
    """The true stems of a track, blocks `(N, 2, S)`. KeyError for a stem that it does not have."""

    def read(start: float, seconds: float) -> Tensor:
        stems = track.stems.load(sample_rate_hz, start, seconds)
        return torch.stack([stem_of(stems, name, track) for name in names])

    duration = shortest(track.stems.duration_seconds, max_seconds)
    blocks = (read(*stretch) for stretch in _stretches(duration, sample_rate_hz))
    return _exactly(blocks, _length(duration, sample_rate_hz), sample_rate_hz)


def stem_of(stems: dict[str, Tensor], name: str, track: StemTrack) -> Tensor:
    """KeyError that says what there is."""
    if name not in stems:
        raise KeyError(f"{track.track_id} has no stem '{name}'; it has {', '.join(stems)}")
    return stems[name]


def shortest(duration_seconds: float, max_seconds: float | None) -> float:
    return duration_seconds if max_seconds is None else min(duration_seconds, max_seconds)


class FileMixture:
    """A WAV, FLAC, OGG or MP3 file with one or two channels."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._info = audio_info(path)
        if self._info.channels > CHANNELS:
            raise NotAudioError(
                path,
                f"has {self._info.channels} channels; separation takes mono or stereo. Mix it down first.",
            )

    def num_samples(self, sample_rate_hz: int) -> int:
        return _resampled_length(self._info.num_frames, self._info.sample_rate_hz, sample_rate_hz)

    def blocks(self, sample_rate_hz: int) -> Iterator[Tensor]:
        source = self._decoded()
        return _at_rate(source, self._info.sample_rate_hz, sample_rate_hz, self.num_samples(sample_rate_hz))

    def _decoded(self) -> Iterator[Tensor]:
        done, total = 0, self._info.num_frames
        with self.path.open("rb") as file:
            try:
                with _Sound(ContainerReader(file, check_container(file, self.path))) as sound:
                    while done < total:
                        count = min(total - done, round(BLOCK_SECONDS * self._info.sample_rate_hz))
                        block = sound.read(count, dtype="float32", always_2d=True)
                        if not len(block):
                            break
                        if not np.isfinite(block).all():
                            raise BadSamplesError(
                                self.path, "holds NaN or infinite samples. Export it again."
                            )
                        done += len(block)
                        yield torch.from_numpy(block.T.copy()).expand(CHANNELS, -1)
            except soundfile.SoundFileError as error:
                raise self._broke_off(done, f"decoding fails ({error})") from error
        if done < total:
            raise self._broke_off(done, f"it declares {total} samples per channel")

    def _broke_off(self, done: int, detail: str) -> AudioError:
        return TruncatedAudioError(
            self.path,
            f"is cut short or damaged at {done / self._info.sample_rate_hz:.3f} s: {detail}. "
            "Copy or download it again.",
        )


class ForwardReader:
    """Stretches of a recording that arrives in blocks `(..., S)`; they may overlap, and begin later and later.

    margin_samples: a stretch may begin so much earlier than the one before it.
    """

    def __init__(self, blocks: Iterable[Tensor], margin_samples: int = 0) -> None:
        self._blocks, self._margin = iter(blocks), margin_samples
        self._held: Tensor | None = None
        self._start = 0  # which sample of the recording the first held one is

    def read(self, start: int, stop: int) -> Tensor:
        """Samples `[start, stop)`; fewer where the recording ends."""
        pieces = [] if self._held is None else [self._held]
        end = self._start + sum(piece.shape[-1] for piece in pieces)
        while end < stop and (block := next(self._blocks, None)) is not None:
            pieces.append(block)
            end += block.shape[-1]
        assert pieces and start >= self._start
        held = torch.cat(pieces, dim=-1) if len(pieces) > 1 else pieces[0]
        found = held[..., start - self._start : stop - self._start]
        drop = min(max(0, start - self._margin - self._start), held.shape[-1])
        # A copy: a view would keep the whole of what it is a part of.
        self._held, self._start = held[..., drop:].clone(), self._start + drop
        return found


@dataclass
class StreamedResampler:
    """Resamples `(..., S)` blocks that follow one another; what comes out is late by the length of the filter."""

    source_rate_hz: int
    target_rate_hz: int
    num_channels: int

    def __post_init__(self) -> None:
        self._stream = None
        if self.source_rate_hz != self.target_rate_hz:
            self._stream = soxr.ResampleStream(
                self.source_rate_hz, self.target_rate_hz, self.num_channels, dtype="float32", quality=QUALITY
            )

    def add(self, block: Tensor, last: bool = False) -> Tensor:
        """A block at the first rate, possibly empty -> what is finished at the second. last: no more follows."""
        if self._stream is None:
            return block
        flat = block.reshape(self.num_channels, -1).T
        out = self._stream.resample_chunk(np.ascontiguousarray(flat.numpy()), last=last)
        return torch.from_numpy(out.reshape(-1, self.num_channels).T.copy()).reshape(*block.shape[:-1], -1)


def resample(samples: Tensor, source_rate_hz: int, target_rate_hz: int) -> Tensor:
    """`(S,)` -> `(S',)` at another rate."""
    if source_rate_hz == target_rate_hz:
        return samples
    out = soxr.resample(samples.numpy(), source_rate_hz, target_rate_hz, quality=QUALITY)
    return torch.from_numpy(np.ascontiguousarray(out))


def _at_rate(
    blocks: Iterator[Tensor], source_rate: int, target_rate: int, num_samples: int
) -> Iterator[Tensor]:
    """Blocks `(2, S)` at another rate, `num_samples` in all."""
    resampler = StreamedResampler(source_rate, target_rate, CHANNELS)
    resampled = (resampler.add(b, last=b.shape[-1] == 0) for b in chain(blocks, [torch.zeros(CHANNELS, 0)]))
    return _exactly(resampled, num_samples, target_rate)


def _exactly(blocks: Iterator[Tensor], num_samples: int, rate: int) -> Iterator[Tensor]:
    """Blocks `(..., S)` of `num_samples` in all: what rounding adds or lacks is cut off, or zeros.

    Raises ValueError where more is lacking than rounding explains.
    """
    left, shape = num_samples, torch.Size()
    for block in blocks:
        block = block[..., :left]
        left, shape = left - block.shape[-1], block.shape[:-1]
        yield block
    if left > max(2, rate // 1000):
        raise ValueError(
            f"a recording that should have {num_samples} samples at {rate} Hz ends {left} samples earlier. Check its "
            "files; stems and mixture must last equally long."
        )
    if left:
        yield torch.zeros(*shape, left)


def _stretches(duration_seconds: float, rate: int) -> Iterator[tuple[float, float]]:
    """(start, length) in whole seconds but for the last: they begin at samples of every rate."""
    for number in range(max(1, math.ceil(duration_seconds / BLOCK_SECONDS))):
        start = number * BLOCK_SECONDS
        if start * rate < _length(duration_seconds, rate):  # or what is left rounds to nothing
            yield start, min(BLOCK_SECONDS, duration_seconds - start)


def _length(seconds: float, rate: int) -> int:
    return math.floor(seconds * rate + 0.5)


def _resampled_length(num_samples: int, source_rate: int, target_rate: int) -> int:
    return (2 * num_samples * target_rate + source_rate) // (2 * source_rate)


class _Sound(soundfile.SoundFile):
    """Read strictly forward: soundfile seeks after every read, which spoils MP3 (see `audio.py`)."""

    def seekable(self) -> bool:
        return False
