"""MFCC as Kaldi makes them, with differences over time: what MusicHuBERT's first clusters are of.

MERT spec, section 4. That 60 numbers are 20 coefficients with everything else equal is a reading of the thesis, which
gives the number alone.

Shape letters: `S` samples, `N` frames, `W` samples of a frame, `M` mel bands, `C` coefficients, `F` features.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiation.teachers.base import TEACHERS, Recorded, TeacherKind, TeacherRequest

FRAME_SECONDS, SHIFT_SECONDS = 0.025, 0.010
NUM_MEL_BANDS = 23
LOWEST_HZ = 20.0
PREEMPHASIS = 0.97
LIFTER = 22.0
POVEY_POWER = 0.85
MEL_SCALE, MEL_BREAK_HZ = 1127.0, 700.0  # of the natural logarithm
DELTA_FRAMES = 2  # to either side
ENERGY_FLOOR = torch.finfo(torch.float32).eps
BLOCK_FRAMES = 100  # 1 s


class Mfcc(nn.Module):
    """`(S,)` -> cepstra `(N, C)` float32 with N = 1 + floor((S - frame) / shift).

    Frames of 25 ms every 10 ms, only such as lie inside; each without its mean, pre-emphasised, under a Povey window;
    23 triangular bands on the mel scale from 20 Hz to half the rate; natural logarithm, orthonormal cosine transform,
    lifter. No dither, and the first coefficient is no energy. Samples are in [-1, 1], not in 16-bit units, and the
    energy of a band is raised to 1.2e-7 at least, so quiet bands of quiet music are lost, as in the published features.
    """

    window: Tensor
    bands: Tensor
    cosines: Tensor

    def __init__(self, sample_rate_hz: int, num_coefficients: int) -> None:
        super().__init__()
        if not 1 <= num_coefficients <= NUM_MEL_BANDS:
            raise ValueError(f"MFCC have from 1 to {NUM_MEL_BANDS} coefficients, got {num_coefficients}")
        self.frame_samples = int(sample_rate_hz * FRAME_SECONDS)
        self.hop_samples = int(sample_rate_hz * SHIFT_SECONDS)
        self.fft_samples = 2 ** math.ceil(math.log2(self.frame_samples))
        window_W = torch.hann_window(self.frame_samples, periodic=False, dtype=torch.float64) ** POVEY_POWER
        self.register_buffer("window", window_W.float(), persistent=False)
        self.register_buffer("bands", _mel_bands(sample_rate_hz, self.fft_samples).float(), persistent=False)
        self.register_buffer("cosines", _lifted_cosines(num_coefficients).float(), persistent=False)

    def num_frames(self, num_samples: int) -> int:
        return max(0, 1 + (num_samples - self.frame_samples) // self.hop_samples)

    def forward(self, waveform: Tensor) -> Tensor:
        frames_NW = waveform.float().unfold(0, self.frame_samples, self.hop_samples)
        frames_NW = frames_NW - frames_NW.mean(1, keepdim=True)
        before_NW = F.pad(frames_NW.unsqueeze(0), (1, 0), mode="replicate")[0, :, :-1]
        frames_NW = (frames_NW - PREEMPHASIS * before_NW) * self.window
        power = torch.fft.rfft(frames_NW, self.fft_samples).abs().square()
        return (power @ self.bands).clamp(min=ENERGY_FLOOR).log() @ self.cosines


class MfccFeatures:
    """Cepstra, their first and their second difference, see `FrameFeatures`: F = 3 C, 100 frames per second.

    A recording shorter than a frame is continued by silence up to one.
    """

    def __init__(self, sample_rate_hz: int, num_coefficients: int, device: str = "cpu") -> None:
        self.sample_rate_hz, self.num_features = sample_rate_hz, 3 * num_coefficients
        self.block_frames = BLOCK_FRAMES
        self._mfcc = Mfcc(sample_rate_hz, num_coefficients).to(device)
        self.rate_hz = sample_rate_hz / self._mfcc.hop_samples
        self._device = device

    def num_frames(self, num_samples: int) -> int:
        return max(1, self._mfcc.num_frames(num_samples))

    @torch.no_grad()
    def frames(self, recording: Recorded, first: int, count: int) -> Tensor:
        # Differences of differences see so many frames to either side. At the ends of the recording each step
        # repeats what it is given there; elsewhere what the cut has changed is dropped.
        reach, hop = 2 * DELTA_FRAMES, self._mfcc.hop_samples
        begin = max(0, first - reach)
        end = min(self.num_frames(recording.num_samples), first + count + reach)
        samples = recording.between(begin * hop, (end - 1) * hop + self._mfcc.frame_samples)
        cepstra = self._mfcc(samples.to(self._device))
        once = differences(cepstra)
        stacked = torch.cat([cepstra, once, differences(once)], dim=1)
        return stacked[first - begin : first - begin + count].cpu()

    def record(self) -> dict[str, Any]:
        return {
            "features": "mfcc",
            "sample_rate_hz": self.sample_rate_hz,
            "rate_hz": self.rate_hz,
            "num_features": self.num_features,
        }


def differences(x_NC: Tensor) -> Tensor:
    """Slope over two frames to either side, `(N, C)`; the first and the last frame are repeated beyond the ends."""
    offsets = range(-DELTA_FRAMES, DELTA_FRAMES + 1)
    padded = F.pad(x_NC.t().unsqueeze(0), (DELTA_FRAMES, DELTA_FRAMES), mode="replicate")[0].t()
    summed = torch.zeros_like(x_NC)
    for i, offset in enumerate(offsets):
        summed = summed + offset * padded[i : i + len(x_NC)]
    return summed / sum(offset**2 for offset in offsets)


def _mel_bands(sample_rate_hz: int, fft_samples: int) -> Tensor:
    """`(bins, M)` float64: triangles that are straight on the mel scale; the bin at half the rate has none."""

    def mel(hz: Tensor) -> Tensor:
        return MEL_SCALE * torch.log1p(hz / MEL_BREAK_HZ)

    ends = mel(torch.tensor([LOWEST_HZ, sample_rate_hz / 2], dtype=torch.float64))
    edges = torch.linspace(float(ends[0]), float(ends[1]), NUM_MEL_BANDS + 2, dtype=torch.float64)
    bins = mel(torch.arange(fft_samples // 2, dtype=torch.float64) * sample_rate_hz / fft_samples)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return F.pad(torch.minimum(rising, falling).clamp(min=0), (0, 0, 0, 1))


def _lifted_cosines(num_coefficients: int) -> Tensor:
    """`(M, C)` float64: the orthonormal cosine transform, and the lifter on top."""
    k = torch.arange(num_coefficients, dtype=torch.float64)
    centres = torch.arange(NUM_MEL_BANDS, dtype=torch.float64)[:, None] + 0.5
    cosines = torch.cos(math.pi / NUM_MEL_BANDS * centres * k) * math.sqrt(2 / NUM_MEL_BANDS)
    cosines[:, 0] = math.sqrt(1 / NUM_MEL_BANDS)
    return cosines * (1 + LIFTER / 2 * torch.sin(math.pi * k / LIFTER))


def _features(num_coefficients: int, request: TeacherRequest) -> MfccFeatures:
    request.refuse(f"mfcc{3 * num_coefficients}", "backbone", "weights")
    return MfccFeatures(request.sample_rate_hz, num_coefficients, request.device)


def _features39(request: TeacherRequest) -> MfccFeatures:
    return _features(13, request)


def _features60(request: TeacherRequest) -> MfccFeatures:
    return _features(20, request)


TEACHERS.add(
    "mfcc39",
    TeacherKind(
        "13 MFCC and two differences, 100 Hz (MusicHuBERT)", features=_features39, clusters=(500, 2000)
    ),
)
TEACHERS.add(
    "mfcc60",
    TeacherKind("20 MFCC and two differences, 100 Hz (MusicHuBERT)", features=_features60, clusters=(500,)),
)
