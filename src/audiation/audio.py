"""Audio file -> mono float32 waveform at the asked rate: whole, a window by seconds, or a stream of windows.

WAV, FLAC, OGG (Vorbis, Opus, FLAC) and MP3, recognised by content. libsndfile decodes, soxr resamples; what
the containers declare is checked in `containers.py`, because libsndfile reads cut files silently short.

Conventions: mono is the mean over channels. A file of N samples at rate f becomes floor(N * r / f + 1/2)
samples at rate r. A window begins at sample round(start_seconds * r) and equals that stretch of the whole
resampled file.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from audiation.containers import (
    AudioError,
    AudioWindowError,
    BadSamplesError,
    ContainerReader,
    EmptyAudioError,
    MissingAudioError,
    NotAFileError,
    NotAudioError,
    TooShortAudioError,
    TruncatedAudioError,
    UnreadableAudioError,
    check_container,
)

__all__ = [
    "AudioError",
    "AudioInfo",
    "AudioWindowError",
    "BadSamplesError",
    "EmptyAudioError",
    "MissingAudioError",
    "NotAFileError",
    "NotAudioError",
    "TooShortAudioError",
    "TruncatedAudioError",
    "UnreadableAudioError",
    "Waveform",
    "audio_info",
    "content_hash",
    "load_audio",
    "stream_audio",
]

QUALITY = "HQ"  # soxr's 20-bit setting: pass band to 0.91 of the lower Nyquist rate
CONTEXT_SAMPLES = 512  # of the lower rate, read on both sides of a window: longer than soxr's filter reaches
BLOCK_VALUES = 1 << 17  # samples x channels decoded at a time
UNKNOWN_FRAMES = 1 << 60  # libsndfile answers about 2**63 where a header does not say
MIN_SOURCE_RATE_HZ, MAX_SOURCE_RATE_HZ = 1_000, 1_000_000  # outside, a header is damaged

Path_ = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class Waveform:
    """A stretch of one recording.

    samples: `(S,)` float32 mono.
    source_channels: channels of the file, before the mean over them.
    source_peak: largest |x| of the whole file's mono mix at its own rate; None where the file was not decoded
        as a whole (a window or a stream).
    start_seconds: where in the file the stretch begins.
    """

    samples: Tensor
    sample_rate_hz: int
    source_channels: int
    source_peak: float | None
    start_seconds: float = 0.0

    @property
    def duration_seconds(self) -> float:
        return self.samples.shape[0] / self.sample_rate_hz


@dataclass(frozen=True)
class AudioInfo:
    """What a file holds, without the samples. `num_frames`: samples per channel at the file's own rate."""

    duration_seconds: float
    sample_rate_hz: int
    channels: int
    num_frames: int
    format: str


def load_audio(
    path: Path_,
    sample_rate_hz: int,
    *,
    start_seconds: float = 0.0,
    duration_seconds: float | None = None,
    min_seconds: float = 0.0,
    with_source_peak: bool = False,
) -> Waveform:
    """Decode a file, or a window of it, to mono at `sample_rate_hz`.

    Args:
        start_seconds, duration_seconds: the window; a duration of None or beyond the end reads to the end.
        min_seconds: refuse what comes out shorter than this.
        with_source_peak: decode the whole file for `source_peak` even when only a window is asked for.

    Raises:
        AudioError: one of its subclasses, naming the file and the reason.
        ValueError: a sample rate or minimum that makes no sense.
    """
    _check_request(path, sample_rate_hz, start_seconds, duration_seconds, min_seconds)
    start = round(start_seconds * sample_rate_hz)
    stop = None if duration_seconds is None else start + round(duration_seconds * sample_rate_hz)
    with _open(path) as source:
        samples = _concatenate(_resampled(source, sample_rate_hz, start, stop))
        channels, peak = source.channels, source.peak_of_whole
        length = source.position_frames / source.sample_rate_hz
    if samples.size == 0 and start > 0:
        raise AudioWindowError(path, f"lasts {length:.3f} s; no window can start at {start_seconds} s.")
    _check_length(path, samples.size, sample_rate_hz, min_seconds)
    if with_source_peak and peak is None:
        peak = source_peak(path)
    return Waveform(torch.from_numpy(samples), sample_rate_hz, channels, peak, start / sample_rate_hz)


def stream_audio(
    path: Path_,
    sample_rate_hz: int,
    *,
    window_seconds: float,
    hop_seconds: float | None = None,
    min_seconds: float = 0.0,
) -> Iterator[Waveform]:
    """The whole file as windows, decoded once in bounded memory whatever its length.

    Window i is samples [i * hop, i * hop + window) of the whole resampled file, with both lengths rounded to
    samples. The last window is the first one that reaches the end of the file, and may be shorter.

    Args:
        hop_seconds: from window to window; None: the window's own length, so neither gap nor overlap.
        min_seconds: refuse a whole file shorter than this (not a short last window).

    Raises:
        AudioError, ValueError: as `load_audio`. A cut file raises before the first window; damage inside
            it is only found when the stream gets there, and the windows before it are to be dropped then.
    """
    _check_request(path, sample_rate_hz, 0.0, None, min_seconds)
    window = round(window_seconds * sample_rate_hz) if math.isfinite(window_seconds) else 0
    hop_seconds = window_seconds if hop_seconds is None else hop_seconds
    hop = round(hop_seconds * sample_rate_hz) if math.isfinite(hop_seconds) else 0
    if window < 1 or hop < 1:
        raise ValueError(
            "window_seconds and hop_seconds must be at least one sample, "
            f"got {window_seconds} and {hop_seconds}"
        )
    return _windows(path, sample_rate_hz, window, hop, min_seconds)


def audio_info(path: Path_) -> AudioInfo:
    """Length, rate, channels and format from the headers. Raises `AudioError` as `load_audio` does.

    Only where the file does not declare its length is it decoded to count.
    """
    with _open(path) as source:
        num_frames = source.num_frames
        if num_frames is None:
            num_frames = sum(len(block) for block in source.mono_blocks())
        rate = source.sample_rate_hz
        return AudioInfo(num_frames / rate, rate, source.channels, num_frames, source.format)


def content_hash(path: Path_) -> str:
    """SHA-256 of the file's bytes, as hex. Raises `AudioError` when it cannot be read."""
    with _open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _windows(path: Path_, rate: int, window: int, hop: int, min_seconds: float) -> Iterator[Waveform]:
    with _open(path) as source:
        held, start, end = np.zeros(0, np.float32), 0, 0  # held: samples [end - held.size, end) of the file
        for block in _resampled(source, rate, 0, None):
            held, end = np.concatenate([held[max(0, start - (end - held.size)) :], block]), end + block.size
            while end > start + window:  # strictly: a window that ends with the file is the last one
                at = start - (end - held.size)
                yield _waveform(held[at : at + window], rate, source, start)
                start += hop
        _check_length(path, end, rate, min_seconds)
        if start < end:
            yield _waveform(held[start - (end - held.size) :][:window], rate, source, start)


def _waveform(samples: np.ndarray, rate: int, source: _Source, start: int) -> Waveform:
    return Waveform(torch.from_numpy(samples.copy()), rate, source.channels, None, start / rate)


def source_peak(path: Path_) -> float | None:
    """Largest |x| of a whole file's mono mix at its own rate, decoded for that. Raises AudioError as `load_audio`."""
    with _open(path) as source:
        for _ in source.mono_blocks():
            pass
        return source.peak_of_whole


def _resampled(source: _Source, rate: int, start: int, stop: int | None) -> Iterator[np.ndarray]:
    """Samples [start, stop) of the whole file at `rate`, in blocks. Ends early where the file ends."""
    common = math.gcd(source.sample_rate_hz, rate)
    step_in, step_out = source.sample_rate_hz // common, rate // common  # this many samples last equally long
    context = CONTEXT_SAMPLES * step_in // min(step_in, step_out)
    # Decoding begins where samples of both rates coincide: the window lies on the grid of the whole file.
    steps = max(0, start * step_in // step_out - context) // step_in
    last_in = None if stop is None else -(-stop * step_in // step_out) + context
    blocks = source.mono_blocks(steps * step_in, last_in)
    if step_in != step_out:
        blocks = _stream_through_soxr(blocks, source.sample_rate_hz, rate)
    at = steps * step_out
    for block in blocks:
        first = max(0, start - at)
        last = block.size if stop is None else min(block.size, stop - at)
        at += block.size
        if first < last:
            if not np.isfinite(block[first:last]).all():
                raise BadSamplesError(source.path, "holds samples too large to resample. Export it again.")
            yield block[first:last]


def _stream_through_soxr(blocks: Iterable[np.ndarray], rate_in: int, rate_out: int) -> Iterator[np.ndarray]:
    stream = soxr.ResampleStream(rate_in, rate_out, 1, dtype="float32", quality=QUALITY)
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


class _Sound(soundfile.SoundFile):
    """A sound file read strictly forward, so that a block begins exactly where the last one ended.

    soundfile seeks after every read, which spoils MP3 (decoding restarts without the bits of earlier frames)
    and fails in FLAC of unknown length. It leaves that out where a file says that it cannot seek.
    """

    def seekable(self) -> bool:
        return False

    @property
    def can_seek(self) -> bool:
        return super().seekable()


class _Source:
    """An open, checked file that is decoded block by block."""

    def __init__(self, path: Path, sound: _Sound, format: str) -> None:
        self.path, self.format = path, format
        self.sample_rate_hz, self.channels = sound.samplerate, sound.channels
        self.num_frames = sound.frames if sound.frames < UNKNOWN_FRAMES else None
        self.position_frames = 0  # how far has been decoded
        self.peak_of_whole: float | None = None
        self._sound = sound
        if not MIN_SOURCE_RATE_HZ <= self.sample_rate_hz <= MAX_SOURCE_RATE_HZ:
            raise NotAudioError(path, f"its header says {self.sample_rate_hz} Hz. Export it again.")
        if self.num_frames == 0:
            raise EmptyAudioError(path, f"is a {format} file that holds no audio. Record or export it again.")
        if format == "FLAC" and self.num_frames is not None:
            self._check_last_sample(self.num_frames)

    def mono_blocks(self, first: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Mono float32 blocks of frames [first, stop) at the file's own rate; less where the file ends."""
        # libsndfile's seek is exact for WAV, FLAC and Opus. An MP3 frame needs bits of those before it; on the last
        # page of a Vorbis file a seek lands up to a block beside its target (libsndfile issue 885); and some codecs in
        # WAV (GSM, G.721) cannot seek. Those are decoded from their start.
        exact = self.format != "MP3" and self._sound.subtype != "VORBIS"
        if exact and self.num_frames is not None and self._sound.can_seek:
            first = min(first, self.num_frames)
            if first:
                self._seek(first)
        begin, peak = self.position_frames, 0.0
        while stop is None or self.position_frames < stop:
            block = self._read(stop)
            if len(block) == 0:
                self._check_complete()
                break
            at = self.position_frames - len(block)
            if self.position_frames <= first:
                continue
            with np.errstate(over="ignore", invalid="ignore"):
                mono = block.mean(axis=1, dtype=np.float32)[max(0, first - at) :]
            if not np.isfinite(mono).all():
                raise self._bad_samples(mono, max(at, first))
            peak = max(peak, float(np.abs(mono).max()))
            yield mono
        reached_end = self.position_frames == self.num_frames or stop is None or self.position_frames < stop
        if begin == first == 0 and reached_end:
            self.peak_of_whole = peak

    def _read(self, stop: int | None) -> np.ndarray:
        """The next block `(frames, channels)`, empty at the end of the file."""
        ends = [
            end for end in (stop, self.num_frames) if end is not None
        ]  # never into bytes behind the audio
        count = min([max(1, BLOCK_VALUES // self.channels), *(end - self.position_frames for end in ends)])
        try:
            block = self._sound.read(count, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise self._broke_off(f"decoding fails ({error})") from error
        self.position_frames += len(block)
        return block

    def _seek(self, frame: int) -> None:
        try:
            self.position_frames = self._sound.seek(frame)
        except soundfile.SoundFileError as error:
            raise self._broke_off(f"seeking fails ({error})") from error

    def _check_last_sample(self, num_frames: int) -> None:
        """FLAC declares samples, not bytes: the last one can only be there if it can be decoded."""
        try:
            self.position_frames = self._sound.seek(num_frames - 1)
        except soundfile.SoundFileError as error:
            raise TruncatedAudioError(
                self.path,
                f"is cut short or damaged: it declares {num_frames} samples per channel, and the last one cannot "
                "be reached. Copy or download it again.",
            ) from error
        self._read(None)
        self._check_complete()
        self._seek(0)

    def _check_complete(self) -> None:
        if self.num_frames is not None and self.position_frames < self.num_frames:
            raise self._broke_off(f"it declares {self.num_frames} samples per channel")

    def _broke_off(self, detail: str) -> TruncatedAudioError:
        return TruncatedAudioError(
            self.path,
            f"is cut short or damaged at {self.position_frames / self.sample_rate_hz:.3f} s: {detail}. "
            "Copy or download it again.",
        )

    def _bad_samples(self, mono: np.ndarray, at: int) -> BadSamplesError:
        bad = int(np.flatnonzero(~np.isfinite(mono))[0]) + at
        return BadSamplesError(
            self.path,
            f"holds a NaN or infinite sample at {bad / self.sample_rate_hz:.3f} s. Export it again.",
        )


@contextmanager
def _open(path: Path_) -> Iterator[_Source]:
    with _open_file(path) as file:
        path = Path(path)
        container = check_container(file, path)
        try:
            sound = _Sound(ContainerReader(file, container))
        except (soundfile.SoundFileError, TypeError) as error:
            reason = getattr(error, "error_string", error)
            raise NotAudioError(
                path, f"is no {container.format} file that can be decoded ({reason}). Export it again."
            ) from error
        with sound:
            yield _Source(path, sound, container.format)


@contextmanager
def _open_file(path: Path_) -> Iterator[BufferedReader]:
    """A regular file, open for reading; whatever the operating system answers becomes an `AudioError`."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for a writer
            raise NotAFileError(
                path, "is a directory, pipe or device, not a file. Name the audio file itself."
            )
        with open(path, "rb") as file:
            yield file
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingAudioError(path, "does not exist. Check the path.") from error
    except PermissionError as error:
        raise UnreadableAudioError(path, "may not be read by this user. Change its permissions.") from error
    except OSError as error:
        raise UnreadableAudioError(path, f"cannot be read ({error.strerror}). Check the disk.") from error


def _concatenate(blocks: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *blocks])


def _check_length(path: Path_, num_samples: int, rate: int, min_seconds: float) -> None:
    if num_samples == 0 or num_samples < round(min_seconds * rate):
        raise TooShortAudioError(
            path,
            f"gives {num_samples / rate:.3f} s at {rate} Hz, "
            f"at least {max(min_seconds, 1 / rate):.3f} s are needed. Leave it out, or ask for less.",
        )


def _check_request(
    path: Path_, rate: int, start_seconds: float, duration_seconds: float | None, min_seconds: float
) -> None:
    if not isinstance(rate, int) or rate < 1:
        raise ValueError(f"sample_rate_hz must be a whole number of at least 1, got {rate!r}")
    if not (math.isfinite(min_seconds) and min_seconds >= 0):
        raise ValueError(f"min_seconds must be 0 or more, got {min_seconds}")
    if not (math.isfinite(start_seconds) and start_seconds >= 0):
        raise AudioWindowError(path, f"start_seconds must be 0 or more, got {start_seconds}.")
    if duration_seconds is not None and not (
        math.isfinite(duration_seconds) and duration_seconds * rate >= 0.5
    ):
        raise AudioWindowError(
            path,
            f"duration_seconds must be at least one sample (or None: to the end), got {duration_seconds}.",
        )
