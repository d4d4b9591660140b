"""The short-chunk residual CNN for tagging (Won, Ferraro, Bogdanov & Serra, SMC 2020), to be trained from scratch.

Shape letters: `B` batch, `C` channels, `F` mel bands, `T` frames, `D` width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from audiation.backbones.clip_cnn import ClipCNN, register
from audiation.backbones.musicfm import ResidualBlock
from audiation.features import LogMel

SAMPLE_RATE_HZ = 16_000
FFT_SAMPLES = 512
HOP_SAMPLES = 256
NUM_MEL_BANDS = 128
CHANNELS = 128
WIDENINGS = (1, 1, 2, 2, 2, 2, 4)  # channels of the seven stages, in units of the first one's
TRAINED_SAMPLES = 59_049  # 3.69 s
STRIDE = 2  # of every stage, in time and frequency


def short_chunk_cnn(channels: int = CHANNELS) -> ClipCNN:
    """Log-mel (128 bands to 8 kHz, in decibels, batch norm over the whole), seven residual stages of 3x3 convolutions
    that each halve time and frequency, and the maximum over what is left of time.

    Published: 16 kHz, 512-point spectra, hop 256, 128 channels, then 256 and 512, clips of 3.69 s whose outputs are
    averaged over a track. The dense layers behind (512 to 512, batch norm, ReLU, dropout 0.5, outputs) are the head
    here, without the batch norm. The last spectrum, centred on the end of a clip, is left out, as everywhere in this
    package. Two steps of time have to be left behind the last stage (2.1 s), for its batch norm needs more than one
    value per channel.

    channels: of the first stage. The paper has one size; others are ours, for tests.
    """
    return ClipCNN(
        "short-chunk-cnn",
        LogMel(SAMPLE_RATE_HZ, FFT_SAMPLES, HOP_SAMPLES, NUM_MEL_BANDS),
        ResidualStages(channels),
        dim=channels * WIDENINGS[-1],
        trained_samples=TRAINED_SAMPLES,
        min_frames=STRIDE ** len(WIDENINGS) + 1,
        normalisation="none",
    )


class ResidualStages(nn.Module):
    """`(B, 1, F, T)` -> `(B, D)` with D the channels of the last stage."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        sizes = [1, *(channels * widening for widening in WIDENINGS)]
        self.norm = nn.BatchNorm2d(1)
        self.stages = nn.ModuleList(ResidualBlock(sizes[i], sizes[i + 1]) for i in range(len(WIDENINGS)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        for stage in self.stages:
            x = stage(x)  # (B, C, F / 2^i, T / 2^i)
        return torch.amax(x, dim=(2, 3))


register(
    "short-chunk-cnn",
    "short-chunk residual CNN for tagging, one 512-d vector per clip of 3.7 s; untrained, to be trained from scratch",
    short_chunk_cnn,
    ("Won et al. 2020; 'DL baseline' of the PETL paper for tagging.",),
)
