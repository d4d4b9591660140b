"""The spectrogram that sources are separated in, and the output space of source separation: a magnitude per stem.

Shape letters: `B` clips, `S` samples, `T` frames, `F` frequency bins, `N` stems.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from audiation.frames import FrameGrid
from audiation.metrics_separation import STEMS
from audiation.separation_filter import Filtering, filtered
from audiation.targets import ClipContext
from audiation.training import Loss


@dataclass(frozen=True)
class Spectrogram:
    """The short-time spectrum that masks are laid on: Hann window, frames centred on multiples of the hop, the ends
    continued by reflection. MARBLE's: 75 frames per second, which is MERT-v1's rate."""

    sample_rate_hz: int = 24_000
    fft_samples: int = 2048
    hop_samples: int = 320

    @property
    def num_bins(self) -> int:
        return self.fft_samples // 2 + 1

    @property
    def frame_rate_hz(self) -> float:
        return self.sample_rate_hz / self.hop_samples

    @property
    def edge_samples(self) -> int:
        """How far a frame reaches to either side of its centre; a recording must be longer."""
        return self.fft_samples // 2

    def num_frames(self, num_samples: int) -> int:
        return 1 + num_samples // self.hop_samples

    def window(self, device: torch.device | None = None) -> Tensor:
        return torch.hann_window(self.fft_samples, device=device)

    def transform(self, samples: Tensor) -> Tensor:
        """`(..., S)` -> complex `(..., F, T)`. ValueError where S is too short to be reflected."""
        if samples.shape[-1] <= self.edge_samples:
            raise ValueError(
                f"a spectrum needs more than {self.edge_samples} samples "
                f"({self.edge_samples / self.sample_rate_hz:.3f} s), got {samples.shape[-1]}"
            )
        flat = samples.reshape(-1, samples.shape[-1])
        spectrum = torch.stft(
            flat, self.fft_samples, self.hop_samples, window=self.window(samples.device), return_complex=True
        )
        return spectrum.reshape(*samples.shape[:-1], *spectrum.shape[-2:])

    def inverse(self, spectrum: Tensor, num_samples: int) -> Tensor:
        """Complex `(..., F, T)` -> `(..., num_samples)`."""
        flat = spectrum.reshape(-1, *spectrum.shape[-2:])
        samples = torch.istft(
            flat, self.fft_samples, self.hop_samples, window=self.window(spectrum.device), length=num_samples
        )
        return samples.reshape(*spectrum.shape[:-2], num_samples)

    def magnitude(self, samples: Tensor) -> Tensor:
        """`(..., 2, S)` -> `(..., F, T)`: the mean of the channels' magnitudes, as in the released code."""
        return self.transform(samples).abs().mean(-3)


SPECTROGRAM = Spectrogram()


FILTERING = Filtering()


@dataclass(frozen=True)
class MagnitudeTarget:
    """Linear magnitudes of the stems of a mixture, frame by frame: what masks times the mixture's come to.

    An annotation is the stems themselves, name -> `(2, S)` at the rate of the spectrogram.
    """

    stems: tuple[str, ...] = STEMS
    spectrogram: Spectrogram = SPECTROGRAM
    filtering: Filtering = FILTERING
    per_frame = True

    @property
    def frame_rate_hz(self) -> float:
        return self.spectrogram.frame_rate_hz

    @property
    def num_outputs(self) -> int:
        return len(self.stems) * self.spectrogram.num_bins

    def encode(self, annotation: Mapping[str, Tensor], grid: FrameGrid | None = None) -> Tensor:
        """-> `(N, F, T)` float32, the mean of the channels. ValueError for other stems."""
        if set(annotation) != set(self.stems):
            raise ValueError(f"the stems {', '.join(self.stems)} are asked for, got {', '.join(annotation)}")
        return self.spectrogram.magnitude(torch.stack([annotation[stem] for stem in self.stems]))

    def loss(self, logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Loss:
        """Squared error of magnitudes `(..., F, T)`; every stem, bin and frame is a term. valid: `(..., T)`."""
        if logits.shape != targets.shape:
            raise ValueError(
                f"outputs {tuple(logits.shape)} and targets {tuple(targets.shape)} differ in shape"
            )
        errors = (logits - targets).square()
        if valid is None:
            return Loss(errors.sum(), torch.tensor(float(errors.numel()), device=errors.device))
        keep = valid[..., None, :].expand_as(errors)
        return Loss(errors[keep].sum(), keep.sum())

    def decode(self, logits: Tensor, context: ClipContext | None = None) -> dict[str, Tensor]:
        """Magnitudes `(N, F, T)` and `context.mixture` `(2, S)` -> name -> `(2, S)`, after the Wiener filter.

        One window; `separation_inference` does songs of any length.
        """
        if context is None or context.mixture is None:
            raise ValueError(
                "magnitudes become signals with the phases of the mixture: give context.mixture, (2, S)"
            )
        mixture = context.mixture
        spectra = filtered(logits[:, None].clamp(min=0), self.spectrogram.transform(mixture), self.filtering)
        signals = self.spectrogram.inverse(spectra, mixture.shape[-1])
        return dict(zip(self.stems, signals, strict=True))
