"""Log-mel spectrum and chroma: what MERT-v0's two teachers cluster (MERT spec, section 3.1).

Published are the widths, 229 and 264, and the clusters, 300 and 200. Size and hop of the transform, mel range,
logarithm, kind of chroma and what happens at the ends are not; those here are ours, so the codes are not those of
MERT-v0.

Shape letters: `S` samples, `N` frames, `M` mel bands, `F` features.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from audiation.features import LogMel
from audiation.teachers.base import TEACHERS, Recorded, TeacherKind, TeacherRequest

HOP_SAMPLES = 320  # that of MERT: 50 Hz at 16 kHz, 75 Hz at 24 kHz
NUM_MEL_BANDS, MEL_FFT_SAMPLES = 229, 2048
NUM_CHROMA, CHROMA_FFT_SAMPLES = 264, 4096
BLOCK_FRAMES = 100


class Spectrum(Protocol):
    """A module `(B, S)` -> `(B, F, N)` with a centred frame every hop, N = floor(S / hop)."""

    fft_samples: int
    num_features: int

    def __call__(self, waveform: Tensor) -> Tensor: ...


class LogMelBands(LogMel):
    """229 bands on the HTK scale from 0 Hz to half the rate, in decibels above -100 dB; a window of 2,048 samples."""

    num_features = NUM_MEL_BANDS

    def __init__(self, sample_rate_hz: int) -> None:
        super().__init__(sample_rate_hz, MEL_FFT_SAMPLES, HOP_SAMPLES, NUM_MEL_BANDS)


class FineChroma(nn.Module):
    """264 pitch classes, 22 to a semitone: power of a window of 4,096 samples, spread over the classes near each bin as
    librosa's chroma filters do (A at 440 Hz, octaves around 1 kHz weigh most), every frame divided by its largest
    value. Silence is 0."""

    num_features, fft_samples = NUM_CHROMA, CHROMA_FFT_SAMPLES

    filters: Tensor
    window: Tensor

    def __init__(self, sample_rate_hz: int) -> None:
        super().__init__()
        import librosa

        filters = librosa.filters.chroma(sr=sample_rate_hz, n_fft=CHROMA_FFT_SAMPLES, n_chroma=NUM_CHROMA)
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(CHROMA_FFT_SAMPLES), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        spectrum = torch.stft(
            waveform.float(), CHROMA_FFT_SAMPLES, HOP_SAMPLES, window=self.window, return_complex=True
        )[..., : waveform.shape[-1] // HOP_SAMPLES]
        chroma = self.filters @ spectrum.abs().square()
        largest = chroma.amax(dim=1, keepdim=True)
        return chroma / torch.where(largest > torch.finfo(chroma.dtype).tiny, largest, 1.0)


class SpectrumFeatures:
    """Frames of a spectrum, see `FrameFeatures`; frame t is centred on sample 320 t, with silence around the recording.

    N = floor(S / 320), at least 1.
    """

    def __init__(self, name: str, sample_rate_hz: int, spectrum: Spectrum, device: str = "cpu") -> None:
        self.sample_rate_hz, self.rate_hz = sample_rate_hz, sample_rate_hz / HOP_SAMPLES
        self.num_features, self.block_frames = spectrum.num_features, BLOCK_FRAMES
        self._name, self._spectrum, self._device = name, spectrum, device
        # Frames at either end of a piece that see what is not in it.
        self._edge_frames = -(-spectrum.fft_samples // 2 // HOP_SAMPLES) + 1

    def num_frames(self, num_samples: int) -> int:
        return max(1, num_samples // HOP_SAMPLES)

    @torch.no_grad()
    def frames(self, recording: Recorded, first: int, count: int) -> Tensor:
        edge = self._edge_frames
        samples = recording.between((first - edge) * HOP_SAMPLES, (first + count + edge) * HOP_SAMPLES)
        spectrum = self._spectrum(samples.to(self._device).unsqueeze(0))[0]
        return spectrum[:, edge : edge + count].t().contiguous().cpu()

    def record(self) -> dict[str, Any]:
        return {"features": self._name, "rate_hz": self.rate_hz, "num_features": self.num_features}


def _logmel(request: TeacherRequest) -> SpectrumFeatures:
    request.refuse("logmel", "backbone", "weights", "number")
    spectrum = LogMelBands(request.sample_rate_hz).to(request.device)
    return SpectrumFeatures("logmel", request.sample_rate_hz, spectrum, request.device)


def _chroma(request: TeacherRequest) -> SpectrumFeatures:
    request.refuse("chroma", "backbone", "weights", "number")
    spectrum = FineChroma(request.sample_rate_hz).to(request.device)
    return SpectrumFeatures("chroma", request.sample_rate_hz, spectrum, request.device)


TEACHERS.add(
    "logmel", TeacherKind("log-mel spectrum of 229 bands (MERT-v0)", features=_logmel, clusters=(300,))
)
TEACHERS.add(
    "chroma", TeacherKind("chroma of 264 pitch classes (MERT-v0)", features=_chroma, clusters=(200,))
)
