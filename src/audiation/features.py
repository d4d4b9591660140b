"""Spectral front ends as modules that know their frame rate.

Shape letters: `B` batch, `S` samples, `F` frequency bins, `M` mel bands, `T` frames.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEL_BREAK_HZ = 700.0  # HTK mel: 2595 log10(1 + f / 700)
MEL_SCALE = 2595.0
POWER_FLOOR = 1e-10  # -100 dB


class LogMel(nn.Module):
    """Mel power spectrum in decibels: `(B, S)` -> `(B, M, T)` float32 with T = floor(S / hop).

    Centred STFT (reflect padding, periodic Hann window over the whole FFT), HTK mel bands without area norm from
    0 Hz to half the sample rate, `10 log10(max(power, 1e-10))` without a ceiling on the range. Frame `t` is centred
    on sample `t * hop_samples`; the frame centred on the very end is dropped.

    Always computed in float32: rounding the filters to 16 bits costs up to 0.09 dB, a bfloat16 product 0.2 dB.
    So neither autocast nor a cast of the surrounding module reaches it.
    """

    keep_float32 = True

    window: Tensor
    filters: Tensor

    def __init__(self, sample_rate_hz: int, fft_samples: int, hop_samples: int, num_bands: int) -> None:
        super().__init__()
        self.sample_rate_hz, self.fft_samples = sample_rate_hz, fft_samples
        self.hop_samples, self.num_bands = hop_samples, num_bands
        window, filters = self._tables()
        self.register_buffer("window", window, persistent=False)  # (fft_samples,)
        self.register_buffer("filters", filters, persistent=False)  # (F, M)

    @property
    def frame_rate_hz(self) -> float:
        return self.sample_rate_hz / self.hop_samples

    @property
    def min_samples(self) -> int:
        """The shortest input that can be continued by reflection."""
        return self.fft_samples // 2 + 1

    def num_frames(self, num_samples: int) -> int:
        return num_samples // self.hop_samples

    def forward(self, waveform: Tensor) -> Tensor:
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = torch.stft(
                waveform.float(),
                self.fft_samples,
                self.hop_samples,
                window=self.window,
                center=True,
                pad_mode="reflect",
                return_complex=True,
            )[..., : self.num_frames(waveform.shape[-1])]
            power = spectrum.real.square() + spectrum.imag.square()
            mel = self.filters.t() @ power
            return mel.clamp_(min=POWER_FLOOR).log10_().mul_(10.0)

    def _tables(self) -> tuple[Tensor, Tensor]:
        """Window and filters on the CPU, whatever the default device."""
        with torch.device("cpu"):
            window = torch.hann_window(self.fft_samples, periodic=True)
            return window, mel_filters(self.sample_rate_hz, self.fft_samples // 2 + 1, self.num_bands)

    def _apply(self, fn, recurse=True):  # .to(), .half(), .cuda()
        super()._apply(fn, recurse)
        if self.window.dtype != torch.float32:
            device = self.window.device
            self.window, self.filters = (table.to(device) for table in self._tables())
        return self


def mel_filters(sample_rate_hz: int, num_bins: int, num_bands: int) -> Tensor:
    """`(F, M)` float32: triangles of height 1, equally wide on the HTK mel scale from 0 Hz to Nyquist."""
    nyquist_hz = sample_rate_hz / 2
    bins_hz = torch.linspace(0, sample_rate_hz // 2, num_bins)
    top_mel = MEL_SCALE * math.log10(1.0 + nyquist_hz / MEL_BREAK_HZ)
    edges_mel = torch.linspace(0.0, top_mel, num_bands + 2)
    edges_hz = MEL_BREAK_HZ * (10.0 ** (edges_mel / MEL_SCALE) - 1.0)
    width_hz = edges_hz[1:] - edges_hz[:-1]
    distance_hz = edges_hz.unsqueeze(0) - bins_hz.unsqueeze(1)  # (F, M + 2)
    rising = -distance_hz[:, :-2] / width_hz[:-1]
    falling = distance_hz[:, 2:] / width_hz[1:]
    return F.relu(torch.minimum(rising, falling))
