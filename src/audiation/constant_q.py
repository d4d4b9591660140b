"""The constant-Q transform as a module that knows its frame rate: fixed filters, one matrix product per octave.

Shape letters: `B` batch, `S` samples, `F` frequency bins, `T` frames, `N` samples of a filter.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConstantQ(nn.Module):
    """Constant-Q magnitudes: `(B, S)` -> `(B, F, T)` float32 with T = floor(S / hop).

    Bin k lies `k` steps of `1 / bins_per_octave` octave above `lowest_hz`. Its filter is a Hann window over Q periods
    of that frequency times a complex exponential, with Q = (r^2 + 1) / (r^2 - 1) for the ratio r of neighbouring bins.
    A sine of amplitude A on a bin gives A / 2 times the square root of the window's length in samples, as in
    `librosa.cqt(scale=True)`. That one rounds the length of a window to whole samples of a rate that it halves octave
    by octave; here every filter is as long as it should be and hears the waveform as it is. Away from the ends both
    agree within 1 % of the largest magnitude (`tests/test_constant_q.py`).

    Frame t is centred on sample `t * hop_samples`; the ends are continued by reflection, and the frame centred on the
    very end is dropped (as in `features.LogMel`). Filters shorter than the hop leave gaps between frames unheard.

    Always computed in float32: neither autocast nor a cast of the surrounding module reaches it.

    Raises:
        ValueError: sizes that are not positive, or filters that reach beyond half the sample rate.
    """

    keep_float32 = True

    def __init__(
        self, sample_rate_hz: int, hop_samples: int, lowest_hz: float, num_bins: int, bins_per_octave: int
    ) -> None:
        super().__init__()
        if min(sample_rate_hz, hop_samples, lowest_hz, num_bins, bins_per_octave) <= 0:
            raise ValueError(
                "sample_rate_hz, hop_samples, lowest_hz, num_bins and bins_per_octave must be positive, got "
                f"{sample_rate_hz}, {hop_samples}, {lowest_hz}, {num_bins} and {bins_per_octave}"
            )
        self.sample_rate_hz, self.hop_samples = sample_rate_hz, hop_samples
        self.lowest_hz, self.num_bins, self.bins_per_octave = lowest_hz, num_bins, bins_per_octave
        highest_hz = lowest_hz * 2 ** ((num_bins - 1) / bins_per_octave)
        # The main lobe of a Hann window over Q periods is 4 / Q of the frequency wide.
        edge_hz = highest_hz * (1 + 2 / self.quality)
        if edge_hz > sample_rate_hz / 2:
            raise ValueError(
                f"the highest of {num_bins} bins hears up to {edge_hz:.0f} Hz, more than half of {sample_rate_hz} Hz. "
                "Use fewer bins, a lower lowest_hz, or a higher sample rate."
            )
        for octave, filters in enumerate(self._tables()):
            self.register_buffer(f"octave{octave}", filters, persistent=False)  # (N, 2 F of the octave)

    @property
    def frame_rate_hz(self) -> float:
        return self.sample_rate_hz / self.hop_samples

    @property
    def quality(self) -> float:
        """Q: length of every filter in periods of its frequency."""
        ratio_squared = 2.0 ** (2 / self.bins_per_octave)
        return (ratio_squared + 1) / (ratio_squared - 1)

    @property
    def frequencies_hz(self) -> Tensor:
        """Of the bins, `(F,)` float64, ascending."""
        steps = torch.arange(self.num_bins, dtype=torch.float64, device="cpu")
        return self.lowest_hz * 2 ** (steps / self.bins_per_octave)

    @property
    def min_samples(self) -> int:
        """The shortest input that the longest filter can continue by reflection."""
        return self._half_samples(self.lowest_hz) + 1

    def num_frames(self, num_samples: int) -> int:
        return num_samples // self.hop_samples

    def forward(self, waveform: Tensor) -> Tensor:
        """Raises ValueError for a waveform that is not `(B, S)`, or shorter than `min_samples`."""
        if waveform.ndim != 2 or waveform.shape[1] < self.min_samples:
            raise ValueError(
                f"this constant-Q transform takes (batch, samples) of at least {self.min_samples} samples "
                f"({self.min_samples / self.sample_rate_hz:.3f} s), got {tuple(waveform.shape)}"
            )
        num_frames = self.num_frames(waveform.shape[1])
        with torch.autocast(waveform.device.type, enabled=False):
            longest = self.min_samples - 1
            padded = F.pad(waveform.float(), (longest, longest), mode="reflect")
            octaves = []
            for filters in self.buffers():
                num_samples = filters.shape[0]
                begins_at = longest - num_samples // 2  # the middle of a filter is on the frame's centre
                frames = padded[:, begins_at:].unfold(-1, num_samples, self.hop_samples)[:, :num_frames]
                real, imaginary = (frames @ filters).chunk(2, dim=-1)
                octaves.append(torch.hypot(real, imaginary))
            return torch.cat(octaves, dim=-1).transpose(1, 2)

    def _half_samples(self, hz: float) -> int:
        return math.ceil(self.quality * self.sample_rate_hz / hz / 2)

    def _tables(self) -> list[Tensor]:
        """Filters of each octave, all as long as its longest: less than half of them are zeros. On the CPU, whatever
        the default device."""
        return [self._filters(hz) for hz in self.frequencies_hz.split(self.bins_per_octave)]

    def _filters(self, hz: Tensor) -> Tensor:
        """`(N, 2 F)` float32: real parts, then imaginary ones."""
        half = self._half_samples(float(hz[0]))
        offsets = torch.arange(-half, half, dtype=torch.float64, device="cpu").unsqueeze(1)
        lengths = self.quality * self.sample_rate_hz / hz
        window = 0.5 + 0.5 * torch.cos(2 * math.pi * offsets / lengths)
        window = torch.where(offsets.abs() < lengths / 2, window, torch.zeros_like(window))
        window = window / window.sum(0) * lengths.sqrt()
        phase = 2 * math.pi * offsets * hz / self.sample_rate_hz
        return torch.cat([window * phase.cos(), -window * phase.sin()], dim=1).float()

    def _apply(self, fn, recurse=True):  # .to(), .half(), .cuda()
        super()._apply(fn, recurse)
        for octave, filters in enumerate(list(self.buffers())):
            if filters.dtype != torch.float32:
                setattr(self, f"octave{octave}", self._tables()[octave].to(filters.device))
        return self
