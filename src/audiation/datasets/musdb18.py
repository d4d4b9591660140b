"""MUSDB18 and MUSDB18-HQ: 150 songs as mixture, vocals, drums, bass and other, in stereo at 44.1 kHz.

Source: Rafii, Liutkus, Stoeter, Mimilakis & Bittner 2017, 2019. 100 songs for training and 50 for the test as released;
of the 100, validation has the 14 titles of the musdb package: 86 / 14 / 50.

Shape letters: `S` samples.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from audiation.audio import CONTEXT_SAMPLES, QUALITY, AudioInfo, audio_info
from audiation.containers import (
    AudioWindowError,
    BadSamplesError,
    ContainerReader,
    NotAudioError,
    TruncatedAudioError,
    UnreadableAudioError,
    check_container,
)
from audiation.datasets.base import (
    DATASETS,
    SPLITS,
    Dataset,
    DatasetInfo,
    Download,
    Skipped,
    Track,
    warn_of_skipped,
)

STEMS = ("vocals", "drums", "bass", "other")
MIXTURE = "mixture"
STREAMS = (MIXTURE, "drums", "bass", "other", "vocals")
"""Order of the audio streams in a .stem.mp4."""

VALIDATION_TITLES = (
    "ANiMAL - Rockshow",
    "Actions - One Minute Smile",
    "Alexander Ross - Goodbye Bolero",
    "Clara Berry And Wooldog - Waltz For My Victims",
    "Fergessen - Nos Palpitants",
    "James May - On The Line",
    "Johnny Lokke - Promises & Lies",
    "Leaf - Summerghost",
    "Meaxic - Take A Step",
    "Patrick Talbot - A Reason To Leave",
    "Skelpolu - Human Mistakes",
    "Traffic Experiment - Sirens",
    "Triviul - Angelsaint",
    "Young Griffo - Pennies",
)
OFFICIAL_COUNTS = {"train": 86, "valid": 14, "test": 50}

CHANNELS = 2
MP4_SUFFIX = ".stem.mp4"
AAC_FRAME_SAMPLES = 1024


@dataclass(frozen=True)
class MusdbTrack(Track):
    """One song. track_id: its title, 'ANiMAL - Rockshow'. audio_path: `mixture.wav`, or the .stem.mp4."""

    @cached_property
    def stems(self) -> Stems:
        if self.audio_path.name == f"{MIXTURE}.wav":
            return Stems(WavStems(self.audio_path.parent))
        return Stems(Mp4Stems(self.audio_path))

    def load(
        self, sample_rate_hz: int, start_seconds: float = 0.0, duration_seconds: float | None = None
    ) -> Tensor:
        """The mixture, mono `(S,)`: the mean of its two channels."""
        return self.stems.mixture(sample_rate_hz, start_seconds, duration_seconds).mean(dim=0)


class Stems:
    """The four stems of a song and their mixture, as stereo `(2, S)` float32.

    Conventions of windows and resampling as in `audio`: N samples at rate f are floor(N * r / f + 1/2) at rate r, and a
    window equals that stretch of the whole resampled file. A duration of None, or beyond the end, reads to the end.
    """

    def __init__(self, source: StemSource) -> None:
        self._source = source

    @property
    def duration_seconds(self) -> float:
        return self._source.length.num_frames / self._source.length.sample_rate_hz

    def load(
        self, sample_rate_hz: int, start_seconds: float = 0.0, duration_seconds: float | None = None
    ) -> dict[str, Tensor]:
        """Name of each of `STEMS` -> `(2, S)`; raises `AudioError` naming the file."""
        return self._window(STEMS, sample_rate_hz, start_seconds, duration_seconds)

    def mixture(
        self, sample_rate_hz: int, start_seconds: float = 0.0, duration_seconds: float | None = None
    ) -> Tensor:
        """`(2, S)`, as released: in a .stem.mp4 it is coded for itself and differs a little from the sum."""
        return self._window((MIXTURE,), sample_rate_hz, start_seconds, duration_seconds)[MIXTURE]

    def _window(
        self, names: Sequence[str], rate: int, start_seconds: float, duration_seconds: float | None
    ) -> dict[str, Tensor]:
        length = self._source.length
        start, stop = self._samples(rate, start_seconds, duration_seconds)
        common = math.gcd(length.sample_rate_hz, rate)
        step_in, step_out = length.sample_rate_hz // common, rate // common  # samples that last equally long
        context = CONTEXT_SAMPLES * step_in // min(step_in, step_out)
        # Reading begins where samples of both rates coincide: the window lies on the grid of the whole file.
        steps = max(0, start * step_in // step_out - context) // step_in
        last = min(length.num_frames, -(-stop * step_in // step_out) + context)
        offset = start - steps * step_out
        found = {}
        for name, samples in self._source.read(names, steps * step_in, last).items():
            if step_in != step_out:
                samples = soxr.resample(samples, length.sample_rate_hz, rate, quality=QUALITY)
            window = np.zeros((stop - start, CHANNELS), np.float32)
            piece = samples[offset : offset + stop - start]
            window[: len(piece)] = piece  # rounding may make the last sample of a file differ by one
            found[name] = torch.from_numpy(np.ascontiguousarray(window.T))
        return found

    def _samples(self, rate: int, start_seconds: float, duration_seconds: float | None) -> tuple[int, int]:
        """First sample, and the one behind the last, at `rate`."""
        if rate < 1:
            raise ValueError(f"sample_rate_hz must be positive, got {rate}")
        length, path = self._source.length, self._source.path
        total = (2 * length.num_frames * rate + length.sample_rate_hz) // (2 * length.sample_rate_hz)
        if not (math.isfinite(start_seconds) and start_seconds >= 0):
            raise AudioWindowError(path, f"a window starts at 0 s or later, got {start_seconds}.")
        if duration_seconds is not None and not (math.isfinite(duration_seconds) and duration_seconds > 0):
            raise AudioWindowError(path, f"a window lasts more than 0 s, got {duration_seconds}.")
        start = round(start_seconds * rate)
        if start >= total:
            raise AudioWindowError(
                path, f"lasts {self.duration_seconds:.3f} s; no window can start at {start_seconds} s."
            )
        stop = total if duration_seconds is None else min(total, start + round(duration_seconds * rate))
        return start, stop


@DATASETS.register("musdb18")
class Musdb18(Dataset):
    """MUSDB18-HQ, `{train,test}/<title>/{mixture,vocals,drums,bass,other}.wav`, or `{train,test}/<title>.stem.mp4`.

    The 14 titles of validation are looked for in `train/` and in `valid/`, where MARBLE wants them moved. A .stem.mp4
    is read with PyAV (`pip install av`); without it, and where no WAV version is there, the song is skipped.

    Args:
        root: the folder with `train` and `test`.
        metadata_root: not used.

    Raises:
        FileNotFoundError: no such folder, or none of its songs can be read.
        ValueError: a title in two folders, or one in `valid/` that is not of validation.

    Warns:
        UserWarning: songs that lack a file, or that cannot be decoded here; `skipped` has each of them.
    """

    name = "musdb18"
    folders = ("musdb18hq", "MUSDB18-HQ", "MUSDB18")
    info = DatasetInfo(
        title="MUSDB18-HQ: 150 songs with four stems",
        where="zenodo.org/records/3338373 (WAV), or zenodo.org/records/1117372 (.stem.mp4)",
        size="22.7 GB (WAV) or 4.4 GB (.stem.mp4), about 10 hours",
        licence="for education and research; many songs CC BY-NC-SA",
        commercial_use=False,
        citation="Z. Rafii, A. Liutkus, F.-R. Stoeter, S. I. Mimilakis, R. Bittner: MUSDB18-HQ - an uncompressed "
        "version of MUSDB18, 2019, doi 10.5281/zenodo.3338373",
        downloads=(
            Download(
                "https://zenodo.org/records/3338373/files/musdb18hq.zip",
                "musdb18hq.zip",
                num_bytes=22_656_664_047,
                checksum="md5:12d4f2ecd55245a4688754dd76363103",
                unpack=True,
            ),
        ),
    )

    def __init__(self, root: str | Path, *, metadata_root: str | Path | None = None) -> None:
        places = {name: Path(root) / name for name in SPLITS if (Path(root) / name).is_dir()}
        if "train" not in places and "test" not in places:
            raise FileNotFoundError(
                f"musdb18 not found at {root} (looked for train/ and test/ with a folder or a .stem.mp4 per song). "
                "docs/datasets/musdb18.md says where to get it."
            )
        tracks: list[Track] = []
        skipped: list[Skipped] = []
        seen: dict[str, str] = {}
        for place, folder in places.items():
            for title in _titles(folder):
                if title in seen:
                    raise ValueError(f"{self.name}: '{title}' is in {seen[title]}/ and {place}/. Keep one.")
                seen[title] = place
                split = _split(place, title)
                path = folder / title / f"{MIXTURE}.wav"
                if (folder / title).is_dir():
                    reason = _missing_stems(folder / title)
                else:
                    path = folder / f"{title}{MP4_SUFFIX}"
                    reason = _undecodable(path)
                if reason:
                    skipped.append(Skipped(title, reason, split))
                else:
                    tracks.append(MusdbTrack(title, path, split))
        if not tracks:
            first = f", the first: {skipped[0].track_id}: {skipped[0].reason}" if skipped else ""
            raise FileNotFoundError(f"none of the {len(skipped)} musdb18 songs at {root} can be read{first}")
        self.tracks, self.skipped = tuple(tracks), tuple(skipped)
        warn_of_skipped(self.name, len(seen), skipped)

    def verify(self) -> list[str]:
        lines = super().verify()
        for split, official in OFFICIAL_COUNTS.items():
            found = [t.track_id for t in self.tracks if t.split == split]
            found += [s.track_id for s in self.skipped if s.split == split]
            if len(found) != official:
                lines.append(f"{split} has {len(found)} songs, the official split {official}")
            if split == "valid":
                lines += [f"{title}: not there" for title in VALIDATION_TITLES if title not in found]
        return lines


def _titles(folder: Path) -> list[str]:
    """Folders and .stem.mp4 files, without what an archive leaves behind (names that begin with a dot)."""
    found = set()
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            found.add(path.name)
        elif path.name.endswith(MP4_SUFFIX):
            found.add(path.name.removesuffix(MP4_SUFFIX))
    return sorted(found)


def _split(place: str, title: str) -> str:
    if place == "test":
        return "test"
    if title in VALIDATION_TITLES:
        return "valid"
    if place == "valid":
        raise ValueError(
            f"musdb18: valid/ has '{title}', which is not one of the 14 titles of validation. Move it to train/."
        )
    return "train"


def _missing_stems(folder: Path) -> str:
    """Why a folder cannot be used; "" where it can."""
    for name in STREAMS:
        path = folder / f"{name}.wav"
        if not path.is_file():
            return f"{path} is missing"
        if not path.stat().st_size:
            return f"{path} is an empty file"
    return ""


def _undecodable(path: Path) -> str:
    if not path.stat().st_size:
        return f"{path} is an empty file"
    if importlib.util.find_spec("av") is None:
        return f"{path} needs PyAV to be decoded (pip install av), or get the WAV version, MUSDB18-HQ"
    return ""


# Files -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StemLength:
    """Of the mixture and of each stem. num_frames: samples per channel."""

    sample_rate_hz: int
    num_frames: int


class StemSource(Protocol):
    """Where stems are read from, at their own rate."""

    @property
    def path(self) -> Path: ...

    @property
    def length(self) -> StemLength: ...

    def read(self, names: Sequence[str], first: int, stop: int) -> dict[str, np.ndarray]:
        """Of each name the samples `[first, stop)`, `(S, 2)` float32."""
        ...


@dataclass(frozen=True)
class WavStems:
    """path: a folder with `mixture.wav` and a file per stem."""

    path: Path

    @cached_property
    def length(self) -> StemLength:
        """Raises AudioError where a file cannot be read, has more than two channels, or lasts longer than another."""
        infos: dict[str, AudioInfo] = {}
        for name in STREAMS:
            path = self.path / f"{name}.wav"
            infos[name] = info = audio_info(path)
            if info.format not in ("WAV", "FLAC"):
                raise NotAudioError(path, f"holds {info.format}; stems are WAV. Convert it.")
            if info.channels > CHANNELS:
                raise NotAudioError(path, f"has {info.channels} channels; stems are stereo. Mix it down.")
            mixture = infos[MIXTURE]
            if (info.num_frames, info.sample_rate_hz) != (mixture.num_frames, mixture.sample_rate_hz):
                raise NotAudioError(
                    path,
                    f"has {info.num_frames} samples at {info.sample_rate_hz} Hz, mixture.wav {mixture.num_frames} at "
                    f"{mixture.sample_rate_hz} Hz; they must last equally long. Copy or download the song again.",
                )
        return StemLength(infos[MIXTURE].sample_rate_hz, infos[MIXTURE].num_frames)

    def read(self, names: Sequence[str], first: int, stop: int) -> dict[str, np.ndarray]:
        assert 0 <= first < stop <= self.length.num_frames
        return {name: _read_wav(self.path / f"{name}.wav", first, stop) for name in names}


def _read_wav(path: Path, first: int, stop: int) -> np.ndarray:
    """Samples `[first, stop)` of a file, `(S, 2)`; mono is put on both channels."""
    try:
        with path.open("rb") as file:
            with soundfile.SoundFile(ContainerReader(file, check_container(file, path))) as sound:
                sound.seek(first)
                samples = sound.read(stop - first, dtype="float32", always_2d=True)
    except OSError as error:
        raise UnreadableAudioError(path, f"cannot be read: {error.strerror or error}.") from error
    except soundfile.SoundFileError as error:
        raise _broke_off(path, f"decoding fails ({error})") from error
    if len(samples) < stop - first:
        raise _broke_off(path, f"{stop} samples per channel were expected")
    _check_finite(path, samples)
    return np.broadcast_to(samples, (len(samples), CHANNELS))


@dataclass(frozen=True)
class Mp4Stems:
    """path: a .stem.mp4 with five stereo streams in the order of `STREAMS`."""

    path: Path

    @cached_property
    def length(self) -> StemLength:
        """The shortest stream's. Raises AudioError where the file is not one of five stereo streams of one rate."""
        with self._open() as container:
            streams = container.streams.audio
            rates = {stream.rate for stream in streams}
            if (
                len(streams) != len(STREAMS)
                or len(rates) != 1
                or any(s.channels != CHANNELS for s in streams)
            ):
                raise NotAudioError(
                    self.path,
                    f"has {len(streams)} audio streams; a .stem.mp4 has five stereo ones of one sample rate "
                    f"({', '.join(STREAMS)}). Download it again.",
                )
            (rate,) = rates
            lasts = [int(s.duration * s.time_base * rate) for s in streams if s.duration]
            if len(lasts) < len(STREAMS) or not min(lasts):
                raise NotAudioError(self.path, "does not say how long its streams are. Download it again.")
            return StemLength(rate, min(lasts))

    def read(self, names: Sequence[str], first: int, stop: int) -> dict[str, np.ndarray]:
        rate = self.length.sample_rate_hz
        found = {name: np.zeros((stop - first, CHANNELS), np.float32) for name in names}
        reached = dict.fromkeys(names, 0)
        av = _av()
        with self._open() as container:
            streams = {container.streams.audio[STREAMS.index(name)].index: name for name in names}
            wanted = [container.streams[index] for index in streams]
            # A frame overlaps the one before it, so that decoding must begin some frames earlier.
            early = max(0, first - 4 * AAC_FRAME_SAMPLES)
            if early:
                container.seek(int(early / rate / wanted[0].time_base), stream=wanted[0])
            try:
                for packet in container.demux(wanted):
                    name = streams[packet.stream.index]
                    if reached[name] >= stop:
                        if min(reached.values()) >= stop:
                            break
                        continue
                    for frame in packet.decode():
                        at = round(float(frame.pts * frame.time_base) * rate)
                        samples = frame.to_ndarray().T  # AAC is decoded to float, channel by channel
                        if samples.dtype != np.float32 or samples.shape[1] != CHANNELS:
                            raise NotAudioError(self.path, "does not hold AAC. Download it again.")
                        begin, end = max(at, first), min(at + len(samples), stop)
                        if begin < end:
                            found[name][begin - first : end - first] = samples[begin - at : end - at]
                        reached[name] = max(reached[name], at + len(samples))
            except av.error.FFmpegError as error:
                raise _broke_off(self.path, f"decoding fails ({error})") from error
        for name, samples in found.items():
            if reached[name] < stop - 2 * AAC_FRAME_SAMPLES:  # an encoder may leave out less than that
                raise _broke_off(self.path, f"{name} ends at {reached[name] / rate:.3f} s")
            _check_finite(self.path, samples)
        return found

    def _open(self) -> Any:
        av = _av()
        try:
            return av.open(str(self.path))
        except (av.error.FFmpegError, OSError) as error:
            raise NotAudioError(self.path, f"cannot be opened ({error}). Download it again.") from error


def _av() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError:
        raise ModuleNotFoundError("a .stem.mp4 is read with PyAV: pip install av") from None


def _check_finite(path: Path, samples: np.ndarray) -> None:
    if not np.isfinite(samples).all():
        raise BadSamplesError(path, "holds NaN or infinite samples. Download it again.")


def _broke_off(path: Path, detail: str) -> TruncatedAudioError:
    return TruncatedAudioError(path, f"is cut short or damaged: {detail}. Copy or download it again.")
