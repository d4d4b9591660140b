"""The constant-Q transform that MERT reconstructs: nnAudio's numbers, by FFT (MERT spec 3.2).

Shape letters: `B` batch, `S` samples, `T` frames, `K` bins, `M` frames of a block, `H` samples of a hop, `R` rows of a
block's spectrum, each `M` frequencies wide, `N` samples of a filter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOWEST_HZ = 32.7
NUM_BINS, BINS_PER_OCTAVE = 336, 48
# Blocks are so many times longer than the longest filter that a crop of 5.12 s is one of them.
BLOCK_PER_FILTER = 3.45
# What of a filter's spectrum is less than this share of its peak is left out.
LEAST_RESPONSE = 3e-6


class CqtTarget(nn.Module):
    """Constant-Q magnitudes, `(B, S)` -> `(B, T, K)` float32 with T = floor(S / hop) + 1. Nothing here is trained.

    Bin k lies at `lowest_hz * 2^(k / bins_per_octave)`, f. Its filter is a periodic Hann window of
    `N = ceil(Q rate / f)` samples, `Q = 1 / (2^(1 / bins_per_octave) - 1)`, times a complex exponential, divided by the
    sum of its magnitudes; the output is multiplied with sqrt(N). Frame t is centred on sample `t * hop_samples`; beyond
    its ends the waveform is zero. No logarithm, no normalisation.

    It is not `constant_q.ConstantQ`, the transform of the hand-crafted features, whose windows and ends differ.

    The published code multiplies every frame with filters in time, all padded to the longest: at 24 kHz, 336 bins are
    176 MB and 6.6 GFLOP per second of audio. Here a block of the waveform goes through one FFT. A filter hears a narrow
    band of that, and its output is needed at every H-th sample only, which folds the band onto M frequencies: one small
    product per octave, and an inverse FFT of length M. Blocks overlap by the longest filter. It differs from the
    published numbers by less than 1e-5 of the largest (`tests/test_cqt_target.py`).

    Always in float32: neither autocast nor a cast of the surrounding module reaches it.

    Raises:
        ValueError: sizes that are not positive, or bins that reach beyond half the sample rate.
    """

    keep_float32 = True

    def __init__(
        self,
        sample_rate_hz: int,
        hop_samples: int,
        num_bins: int = NUM_BINS,
        bins_per_octave: int = BINS_PER_OCTAVE,
        lowest_hz: float = LOWEST_HZ,
    ) -> None:
        super().__init__()
        if min(sample_rate_hz, hop_samples, num_bins, bins_per_octave, lowest_hz) <= 0:
            raise ValueError(
                "sample_rate_hz, hop_samples, num_bins, bins_per_octave and lowest_hz must be positive, got "
                f"{sample_rate_hz}, {hop_samples}, {num_bins}, {bins_per_octave} and {lowest_hz}"
            )
        self.sample_rate_hz, self.hop_samples = sample_rate_hz, hop_samples
        self.num_bins, self.bins_per_octave, self.lowest_hz = num_bins, bins_per_octave, lowest_hz
        highest_hz = float(self.frequencies_hz[-1])
        if highest_hz > sample_rate_hz / 2:
            raise ValueError(
                f"the highest of {num_bins} bins, {bins_per_octave} per octave, lies at {highest_hz:.0f} Hz, above "
                f"half of {sample_rate_hz} Hz. Take fewer bins, or more per octave."
            )
        longest = int(self.lengths_samples[0])
        # Frames of a block whose filters reach beyond its ends: they belong to the blocks before and after.
        self.edge_frames = -(-(longest + 1) // 2 // hop_samples)
        self.block_frames = _fast_length(math.ceil(BLOCK_PER_FILTER * (2 * self.edge_frames + 1)))
        self._rows: list[
            tuple[int, int]
        ] = []  # of each octave: the first row it hears, and the one behind the last
        for octave, table in enumerate(self._tables()):
            self._rows.append((table.first_row, table.first_row + table.response.shape[1]))
            self.register_buffer(
                f"octave{octave}", table.response, persistent=False
            )  # (M, R, K of the octave, 2)

    @property
    def frequencies_hz(self) -> Tensor:
        """Of the bins, `(K,)` float64, ascending."""
        steps = torch.arange(self.num_bins, dtype=torch.float64, device="cpu")
        return self.lowest_hz * 2 ** (steps / self.bins_per_octave)

    @property
    def lengths_samples(self) -> Tensor:
        """Of the filters, `(K,)` int64, descending."""
        quality = 1 / (2 ** (1 / self.bins_per_octave) - 1)
        return (quality * self.sample_rate_hz / self.frequencies_hz).ceil().long()

    def num_frames(self, num_samples: int) -> int:
        return num_samples // self.hop_samples + 1

    @torch.no_grad()
    def forward(self, waveform: Tensor) -> Tensor:
        """Raises ValueError for a waveform that is not `(B, S)`."""
        if waveform.ndim != 2:
            raise ValueError(f"the CQT takes (batch, samples), got {tuple(waveform.shape)}")
        num_frames, hop = self.num_frames(waveform.shape[1]), self.hop_samples
        new_frames = self.block_frames - 2 * self.edge_frames
        num_blocks = -(-num_frames // new_frames)
        before = self.edge_frames * hop
        total = (num_blocks * new_frames + 2 * self.edge_frames) * hop
        with torch.autocast(waveform.device.type, enabled=False):
            padded = F.pad(waveform.float(), (before, total - before - waveform.shape[1]))
            blocks = padded.unfold(1, self.block_frames * hop, new_frames * hop).flatten(0, 1)
            spectrum_BHM = torch.fft.fft(blocks).unflatten(1, (hop, self.block_frames))
            magnitudes = [
                self._octave(spectrum_BHM, *place) for place in zip(self.buffers(), self._rows, strict=True)
            ]
            inner = torch.cat(magnitudes, dim=-1)[:, self.edge_frames : self.edge_frames + new_frames]
            return inner.unflatten(0, (len(waveform), num_blocks)).flatten(1, 2)[:, :num_frames]

    def _octave(self, spectrum_BHM: Tensor, response: Tensor, rows: tuple[int, int]) -> Tensor:
        """`(B, M, K of the octave)`. Row r of the spectrum holds the frequencies from r M on; a negative one is a
        negative frequency."""
        indices = torch.arange(*rows, device=spectrum_BHM.device) % self.hop_samples
        heard_MBR = spectrum_BHM[:, indices].permute(2, 0, 1)
        folded_MBK = heard_MBR @ torch.view_as_complex(response)
        return torch.fft.ifft(folded_MBK, dim=0).abs().transpose(0, 1)

    def _tables(self) -> list[_Table]:
        """Responses of each octave's filters. On the CPU, whatever the default device."""
        bins = torch.arange(self.num_bins, device="cpu").split(self.bins_per_octave)
        return [self._table(octave) for octave in bins]

    def _table(self, bins_K: Tensor) -> _Table:
        """The rows in which some filter's response is at least LEAST_RESPONSE of its peak, as it falls with the third
        power of the distance."""
        hop, row_hz = self.hop_samples, self.sample_rate_hz / self.hop_samples
        reach_hz = (math.pi * LEAST_RESPONSE) ** (-1 / 3) * self.sample_rate_hz / self.lengths_samples[bins_K]
        first_row = math.floor(float((self.frequencies_hz[bins_K] - reach_hz).min()) / row_hz)
        end_row = math.floor(float((self.frequencies_hz[bins_K] + reach_hz).max()) / row_hz) + 1
        if end_row - first_row > hop:
            first_row, end_row = -(hop // 2), hop - hop // 2  # all there are
        frequencies = torch.arange(first_row * self.block_frames, end_row * self.block_frames, device="cpu")
        omega = 2 * math.pi * frequencies.double() / (hop * self.block_frames)
        response_KF = torch.stack([self._response(int(k), omega) for k in bins_K])
        # The fold leaves the sum over `hop` rows, which the inverse transform of M frequencies does not divide by.
        response_MRK = response_KF.div_(hop).unflatten(1, (-1, self.block_frames)).permute(2, 1, 0)
        return _Table(first_row, torch.view_as_real(response_MRK.to(torch.complex64)).contiguous())

    def _response(self, k: int, omega: Tensor) -> Tensor:
        """What filter k makes of frequencies `(F,)`, in radians per sample: complex128, in closed form."""
        length, hz = int(self.lengths_samples[k]), float(self.frequencies_hz[k])
        phi = omega - 2 * math.pi * hz / self.sample_rate_hz
        step = 2 * math.pi / length
        # A Hann window is three exponentials; the sum of its values is half its length.
        window = 0.5 * _sum_of_exponentials(phi, length)
        window -= 0.25 * _sum_of_exponentials(phi + step, length)
        window -= 0.25 * _sum_of_exponentials(phi - step, length)
        # The filter lies around the frame's centre; one of odd length is a sample earlier than its middle.
        begins_at = -((length + 1) // 2)
        return window * torch.polar(torch.full_like(omega, 2 / math.sqrt(length)), omega * begins_at)

    def _apply(self, fn, recurse=True):  # .to(), .half(), .cuda()
        super()._apply(fn, recurse)
        for octave, response in enumerate(list(self.buffers())):
            if response.dtype != torch.float32:
                setattr(self, f"octave{octave}", self._tables()[octave].response.to(response.device))
        return self


@dataclass(frozen=True)
class _Table:
    """first_row: of those that some filter hears. response: `(M, R, K, 2)` float32, real and imaginary parts."""

    first_row: int
    response: Tensor


def _sum_of_exponentials(phi: Tensor, length: int) -> Tensor:
    """`sum of exp(i phi n)` over n = 0..length - 1, complex128."""
    half = torch.remainder(phi + math.pi, 2 * math.pi).sub_(math.pi).div_(2)
    sine = half.sin()
    ratio = torch.where(sine.abs() < 1e-13, float(length), (length * half).sin() / sine)
    return torch.polar(torch.ones_like(half), (length - 1) * half) * ratio


def _fast_length(least: int) -> int:
    """The next number whose prime factors are at most 5."""
    n = least
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1
