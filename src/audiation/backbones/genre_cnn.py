"""The CNN for GTZAN genres of the tutorial "Music Classification: Beyond Supervised Learning, Towards Real-world
Applications" (Won, Spijkervet & Choi, ISMIR 2021), to be trained from scratch.

Shape letters: `B` batch, `C` channels, `F` mel bands, `T` frames, `D` width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn

from audiation.backbones.clip_cnn import ClipCNN, register
from audiation.features import LogMel

SAMPLE_RATE_HZ = 22_050
FFT_SAMPLES = 1024
HOP_SAMPLES = 512
NUM_MEL_BANDS = 128
CHANNELS = 16
TRAINED_SECONDS = 29
DROPOUT = 0.1


class Stage(NamedTuple):
    """widening: channels, in units of the first stage's. pool_bands, pool_frames: mel bands and frames that become
    one."""

    widening: int
    pool_bands: int
    pool_frames: int


STAGES = (Stage(1, 2, 3), Stage(1, 3, 4), Stage(2, 2, 5), Stage(2, 3, 3), Stage(4, 3, 4))


def genre_cnn() -> ClipCNN:
    """Log-mel (128 bands to 11 kHz, in decibels, batch norm over the whole), five 3x3 convolutions with batch norm,
    ReLU, maximum over a rectangle and dropout 0.1; one vector of 64.

    Published: 22.05 kHz, 1024-point spectra, hop 512, clips of 29 s, of which one step of time and one band are left.
    Of shorter clips there is one from 16.7 s on; of clips beyond 33.4 s there are more, whose mean is ours. The dense
    layers behind (64 to 64, batch norm, ReLU, dropout 0.5, outputs) are the head here, without the batch norm. The
    last spectrum, centred on the end of a clip, is left out, as everywhere in this package.
    """
    return ClipCNN(
        "genre-cnn",
        LogMel(SAMPLE_RATE_HZ, FFT_SAMPLES, HOP_SAMPLES, NUM_MEL_BANDS),
        PooledConvolutions(),
        dim=CHANNELS * STAGES[-1].widening,
        trained_samples=TRAINED_SECONDS * SAMPLE_RATE_HZ,
        min_frames=math.prod(stage.pool_frames for stage in STAGES),
        normalisation="none",
    )


class PooledConvolutions(nn.Module):
    """`(B, 1, F, T)` -> `(B, D)`."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.BatchNorm2d(1)]
        channels_in = 1
        for stage in STAGES:
            channels = CHANNELS * stage.widening
            layers += [
                nn.Conv2d(channels_in, channels, 3, padding=1),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.MaxPool2d((stage.pool_bands, stage.pool_frames)),
                nn.Dropout(DROPOUT),
            ]
            channels_in = channels
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean(dim=(2, 3))


register(
    "genre-cnn",
    "small mel CNN for genres, one 64-d vector per clip of 29 s; untrained, to be trained from scratch",
    genre_cnn,
    ("Won, Spijkervet & Choi 2021; 'DL baseline' of the PETL paper for GTZAN genres.",),
)
