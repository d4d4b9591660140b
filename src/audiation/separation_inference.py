"""Separate whole songs in bounded memory: features in chunks, masks, filter, and overlap-add, one after another.

Nothing but the stems themselves grows with the song, and `separate_file` writes these to disk as they come.

Shape letters: `S` samples, `T` frames of the spectrogram, `D` model width, `H` hidden width, `F` frequency bins, `N`
stems.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from audiation.inference import Chunk, ChunkPolicy
from audiation.magnitudes import Spectrogram
from audiation.separation import LstmState, SeparationModel
from audiation.separation_filter import CHANNELS, Filtering, filtered
from audiation.separation_sources import ForwardReader, Mixture, StemTrack, mixture_of

FEATURE_CHUNK_SECONDS = 90.0  # of MARBLE's released code


@dataclass(frozen=True)
class Chunking:
    """How a song was cut, which belongs to the result: features depend on how much the backbone hears at a time.

    feature_chunk_seconds: None: the whole song at once.
    num_chunks: of features.
    lstm_state: "carried" from chunk to chunk; "restarted" in each, where the LSTM runs backwards as well.
    filter_window_frames: as in `Filtering`.
    """

    feature_chunk_seconds: float | None
    num_chunks: int
    lstm_state: Literal["carried", "restarted"]
    filter_window_frames: int


@dataclass(frozen=True, eq=False)
class SeparatedBlock:
    """A stretch of all stems, `(N, 2, S)` at the rate of the spectrogram, on the CPU."""

    start_sample: int
    stems: Tensor


@dataclass(frozen=True, eq=False)
class Separated:
    """A song taken apart. stems: name -> `(2, S)`, as long as the mixture."""

    stems: dict[str, Tensor]
    sample_rate_hz: int
    chunking: Chunking


@dataclass(frozen=True)
class SeparatedFiles:
    """paths: one stereo WAV (32-bit float) per stem, in the order of the model's stems."""

    paths: list[Path]
    sample_rate_hz: int
    chunking: Chunking


class Separation:
    """One song going through a model. Iterate once over `blocks()`; `chunking` says how it is cut.

    Args:
        model: in eval mode.
        mixture: what to separate.
        feature_chunk_seconds: how much the backbone hears at a time; None: everything at once, which needs memory for
            the attention over the whole song.
        precision: "bf16" runs backbone and masks under autocast.

    Raises:
        ValueError: a model in training mode, a song too short for the backbone or the spectrogram.
    """

    def __init__(
        self,
        model: SeparationModel,
        mixture: Mixture,
        filtering: Filtering | None = None,
        *,
        feature_chunk_seconds: float | None = FEATURE_CHUNK_SECONDS,
        precision: str = "fp32",
    ) -> None:
        if any(mask.training for mask in model.mask_models) or model.backbone.training:
            raise ValueError("separation needs a model in eval mode: call model.eval() first")
        self.model, self.mixture, self.filtering = model, mixture, filtering or Filtering()
        self.spectrogram, self.precision = model.spectrogram, precision
        self.num_samples = mixture.num_samples(self.spectrogram.sample_rate_hz)
        if self.num_samples <= self.spectrogram.edge_samples:
            raise ValueError(
                f"separation needs more than {self.spectrogram.edge_samples} samples at "
                f"{self.spectrogram.sample_rate_hz} Hz, got {self.num_samples}"
            )
        backbone = model.backbone
        self._chunks: list[Chunk] = ChunkPolicy(feature_chunk_seconds).chunks(
            backbone, mixture.num_samples(backbone.sample_rate_hz)
        )
        self.chunking = Chunking(
            feature_chunk_seconds,
            len(self._chunks),
            "carried" if model.direction == "forward" else "restarted",
            self.filtering.window_frames,
        )

    @torch.inference_mode()
    def blocks(self) -> Iterator[SeparatedBlock]:
        """The stems, in order and without gaps. Raises AudioError where the song breaks off."""
        rate = self.spectrogram.sample_rate_hz
        stereo = _ReflectedReader(self.mixture.blocks(rate), self.num_samples, self.spectrogram)
        overlap = _OverlapAdd(self.spectrogram, self.num_samples, self.model.device)
        first = 0
        for hidden in _in_windows(self._hidden(), self.filtering.window_frames):
            num_frames = hidden.shape[1]
            spectrum = stereo.spectrum(first, first + num_frames, self.model.device)
            first += num_frames
            stems = filtered(self._magnitudes(hidden, spectrum), spectrum, self.filtering)
            if (block := overlap.add(stems)) is not None:
                yield block
        yield overlap.rest()

    def _hidden(self) -> Iterator[Tensor]:
        """What the masks are read from, `(N, T, 2 H)`, chunk by chunk."""
        model, backbone = self.model, self.model.backbone
        mono = ForwardReader(
            (block.mean(0) for block in self.mixture.blocks(backbone.sample_rate_hz)),
            margin_samples=self._chunks[0].num_samples,
        )
        num_frames = self.spectrogram.num_frames(self.num_samples)
        index = model.frame_index(num_frames, sum(chunk.num_kept_frames for chunk in self._chunks))
        states: list[LstmState | None] = [None] * len(model.stems)
        first_state = 0
        for chunk in self._chunks:
            waveform = mono.read(chunk.start_sample, chunk.start_sample + chunk.num_samples)
            last_state = first_state + chunk.num_kept_frames
            mine = index[(index >= first_state) & (index < last_state)] - first_state
            first_state = last_state
            if not len(mine):
                continue  # a last chunk of frames behind the spectrogram's end
            with torch.autocast(model.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                layers = model.features(waveform[None].to(model.device))
                kept = [x[:, chunk.first_kept_frame :] for x in layers]
                frames = []
                for number, mask in enumerate(model.mask_models):
                    out, state = mask.encode(kept, mine.to(model.device), states[number])
                    frames.append(out[0])
                    states[number] = state if model.direction == "forward" else None
            yield torch.stack(frames)

    def _magnitudes(self, hidden: Tensor, spectrum: Tensor) -> Tensor:
        """`(N, 1 or 2, F, T)`. One stem's mask at a time."""
        mixed = spectrum.abs()
        if self.filtering.stereo == "mean":
            mixed = mixed.mean(0, keepdim=True)
        magnitudes = []
        for mask, frames in zip(self.model.mask_models, hidden, strict=True):
            with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                gains = mask.mask(frames[None])
            magnitudes.append(gains.float() * mixed)
        return torch.stack(magnitudes)


def separate(
    model: SeparationModel,
    source: str | os.PathLike[str] | Tensor | StemTrack,
    filtering: Filtering | None = None,
    *,
    feature_chunk_seconds: float | None = FEATURE_CHUNK_SECONDS,
    precision: str = "fp32",
) -> Separated:
    """The stems of a song, in memory.

    Args:
        source: an audio file; a waveform `(2, S)` at the rate of the spectrogram (24 kHz); or a track with stems, of
            which only the mixture is read.
        filtering, feature_chunk_seconds, precision: see `Separation`.

    Raises:
        AudioError: a file that cannot be read, or with more than two channels.
        ValueError: as `Separation`.
    """
    song = Separation(
        model,
        mixture_of(source, model.spectrogram.sample_rate_hz),
        filtering,
        feature_chunk_seconds=feature_chunk_seconds,
        precision=precision,
    )
    stems = torch.cat([block.stems for block in song.blocks()], dim=-1)
    return Separated(
        dict(zip(model.stems, stems, strict=True)), model.spectrogram.sample_rate_hz, song.chunking
    )


def separate_file(
    model: SeparationModel,
    path: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    filtering: Filtering | None = None,
    *,
    feature_chunk_seconds: float | None = FEATURE_CHUNK_SECONDS,
    precision: str = "fp32",
) -> SeparatedFiles:
    """The stems of a file as `out_dir/vocals.wav` and so on, written as they are computed: memory does not grow with
    the song. A file has its name only when it is complete.

    Raises:
        FileExistsError: one of them is there already.
        AudioError, ValueError: as `separate`; no file is left behind.
    """
    song = Separation(
        model,
        mixture_of(path, model.spectrogram.sample_rate_hz),
        filtering,
        feature_chunk_seconds=feature_chunk_seconds,
        precision=precision,
    )
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}.wav" for stem in model.stems]
    for existing in paths:
        if existing.exists():
            raise FileExistsError(f"{existing} is there already. Move it away, or name another folder.")
    rate = model.spectrogram.sample_rate_hz
    partial = [p.with_name(p.name + ".part") for p in paths]
    try:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(_wav_writer(p, rate)) for p in partial]
            for block in song.blocks():
                for file, stem in zip(files, block.stems, strict=True):
                    file.write(stem.T.numpy())
        for unfinished, finished in zip(partial, paths, strict=True):
            unfinished.replace(finished)
    finally:
        for unfinished in partial:
            unfinished.unlink(missing_ok=True)
    return SeparatedFiles(paths, rate, song.chunking)


def _wav_writer(path: Path, rate: int) -> soundfile.SoundFile:
    return soundfile.SoundFile(path, "w", rate, CHANNELS, subtype="FLOAT", format="WAV")


# Parts of the stream --------------------------------------------------------------------------------------


def _in_windows(pieces: Iterator[Tensor], window_frames: int) -> Iterator[Tensor]:
    """`(N, T, C)` pieces of any length -> pieces of `window_frames`, the last one shorter."""
    held: Tensor | None = None
    for piece in pieces:
        held = piece if held is None else torch.cat([held, piece], dim=1)
        while held.shape[1] >= window_frames:
            yield held[:, :window_frames]
            held = held[:, window_frames:]
    if held is not None and held.shape[1]:
        yield held


class _ReflectedReader:
    """Frames of the spectrum of a song that is read forward, with its ends continued by reflection."""

    def __init__(self, blocks: Iterator[Tensor], num_samples: int, spectrogram: Spectrogram) -> None:
        self._reader = ForwardReader(blocks, margin_samples=2 * spectrogram.fft_samples)
        self._num_samples, self._spectrogram = num_samples, spectrogram

    def spectrum(self, first_frame: int, stop_frame: int, device: torch.device) -> Tensor:
        """Frames `[first_frame, stop_frame)`, complex `(2, F, T)`."""
        shape = self._spectrogram
        start = first_frame * shape.hop_samples - shape.edge_samples
        stop = (stop_frame - 1) * shape.hop_samples + shape.edge_samples
        places = torch.arange(start, stop).abs()
        end = self._num_samples - 1
        places = torch.where(places > end, 2 * end - places, places)
        begin = int(places.min())
        samples = self._reader.read(begin, int(places.max()) + 1)[:, places - begin].to(device)
        window = shape.window(device)
        return torch.stft(
            samples, shape.fft_samples, shape.hop_samples, window=window, center=False, return_complex=True
        )


class _OverlapAdd:
    """Inverse of the spectrum, frames in, finished samples out; equals `Spectrogram.inverse` of all frames."""

    def __init__(self, spectrogram: Spectrogram, num_samples: int, device: torch.device) -> None:
        self._spectrogram, self._num_samples = spectrogram, num_samples
        self._window = spectrogram.window(device)
        self._sum: Tensor | None = None  # of frames that reach beyond what is finished, (N * 2, fft - hop)
        self._weight = torch.zeros(1, spectrogram.fft_samples - spectrogram.hop_samples, device=device)
        self._start = -spectrogram.edge_samples  # which sample of the song the first held one is
        self._shape = torch.Size()

    def add(self, spectrum: Tensor) -> SeparatedBlock | None:
        """`(N, 2, F, T)` -> what no later frame reaches; None where that lies in front of the song."""
        hop, size = self._spectrogram.hop_samples, self._spectrogram.fft_samples
        num_frames = spectrum.shape[-1]
        self._shape = spectrum.shape[:2]
        frames = torch.fft.irfft(spectrum.flatten(0, 1), n=size, dim=1) * self._window[:, None]
        total = _folded(frames, hop)
        weight = _folded(self._window.square()[None, :, None].expand(1, -1, num_frames), hop)
        if self._sum is not None:
            total[:, : size - hop] += self._sum
        weight[:, : size - hop] += self._weight
        done = num_frames * hop
        self._sum, self._weight = total[:, done:].clone(), weight[:, done:].clone()
        return self._block(total[:, :done], weight[:, :done])

    def rest(self) -> SeparatedBlock:
        """What is left behind the last frame."""
        assert self._sum is not None
        block = self._block(self._sum, self._weight)
        if block is None:  # the song has ended before
            block = SeparatedBlock(self._num_samples, torch.zeros(*self._shape, 0))
        return block

    def _block(self, total: Tensor, weight: Tensor) -> SeparatedBlock | None:
        start, stop = self._start, min(self._start + total.shape[-1], self._num_samples)
        self._start += total.shape[-1]
        skip = max(0, -start)
        if stop - start <= skip:
            return None
        samples = total[:, skip : stop - start] / weight[:, skip : stop - start]
        return SeparatedBlock(start + skip, samples.unflatten(0, self._shape).cpu())


def _folded(frames: Tensor, hop: int) -> Tensor:
    """`(C, size, T)` frames, laid one hop after another and added -> `(C, (T - 1) * hop + size)`."""
    channels, size, num_frames = frames.shape
    length = (num_frames - 1) * hop + size
    return F.fold(frames, (1, length), (1, size), stride=(1, hop)).reshape(channels, length)
