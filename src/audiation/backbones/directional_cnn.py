"""CNNs whose filters look along one axis: frequency for keys (DeepSpec), time for tempi (DeepTemp), to be trained from
scratch (Schreiber & Müller, "Musical Tempo and Key Estimation using Convolutional Neural Networks with Directional
Filters", SMC 2019).

Shape letters: `B` batch, `S` samples, `C` channels, `F` frequency bins, `T` frames, `D` width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from audiation.backbones.clip_cnn import ClipCNN, FrontEnd, register
from audiation.constant_q import ConstantQ

WIDENINGS = (1, 2, 4, 4, 8, 8)  # channels of the six blocks, in units of the first one's
FILTER_LENGTHS = (5, 3)  # of the two convolutions of a block
# Channels of the first block. The paper tries 2 to 24; 16 is what its authors' programs mean by "deeptemp".
CHANNELS = 16
# Behind every block. The paper tries 0.1, 0.3 and 0.5; here the head has a dropout of its own, and a few hundred
# recordings are hardly learned with 0.3.
DROPOUT = 0.1

KEY_SAMPLE_RATE_HZ = 22_050
KEY_HOP_SAMPLES = 4096
KEY_LOWEST_HZ = 440.0 * 2 ** (-41 / 12)  # E1
KEY_NUM_BINS = 168  # seven octaves
KEY_BINS_PER_OCTAVE = 24
KEY_TRAINED_FRAMES = 60

TEMPO_SAMPLE_RATE_HZ = 11_025
TEMPO_FFT_SAMPLES = 1024
TEMPO_HOP_SAMPLES = 512
TEMPO_NUM_BANDS = 40
TEMPO_RANGE_HZ = (20.0, 5000.0)
TEMPO_TRAINED_FRAMES = 256


def key_cnn() -> ClipCNN:
    """DeepSpec: constant-Q magnitudes (E1 to E8, two bins per semitone, 5.4 frames per second, 11.1 s at a time), and
    filters of 5 or 3 bins by one frame. One vector of 128."""
    return _directional(
        "key-cnn",
        ConstantQ(KEY_SAMPLE_RATE_HZ, KEY_HOP_SAMPLES, KEY_LOWEST_HZ, KEY_NUM_BINS, KEY_BINS_PER_OCTAVE),
        "frequency",
        num_bins=KEY_NUM_BINS,
        trained_frames=KEY_TRAINED_FRAMES,
    )


def tempo_cnn() -> ClipCNN:
    """DeepTemp: mel magnitudes (40 bands, 20 to 5000 Hz, 21.5 frames per second, 11.9 s at a time), and filters of one
    band by 5 or 3 frames. One vector of 128."""
    return _directional(
        "tempo-cnn",
        MelMagnitude(),
        "time",
        num_bins=TEMPO_NUM_BANDS,
        trained_frames=TEMPO_TRAINED_FRAMES,
    )


class MelMagnitude(nn.Module):
    """Magnitudes (not power) in mel bands: `(B, S)` -> `(B, F, T)` float32 with T = floor(S / hop).

    As `librosa.feature.melspectrogram(power=1)`: periodic Hann window, Slaney's mel scale and areas of the bands, ends
    continued by reflection. Frame t is centred on sample `512 t`; the frame centred on the very end is dropped.
    """

    keep_float32 = True

    window: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.sample_rate_hz, self.hop_samples = TEMPO_SAMPLE_RATE_HZ, TEMPO_HOP_SAMPLES
        window, filters = self._tables()
        self.register_buffer("window", window, persistent=False)  # (fft_samples,)
        self.register_buffer("filters", filters, persistent=False)  # (F, fft_samples / 2 + 1)

    def num_frames(self, num_samples: int) -> int:
        return num_samples // self.hop_samples

    def forward(self, waveform: Tensor) -> Tensor:
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = torch.stft(
                waveform.float(),
                TEMPO_FFT_SAMPLES,
                self.hop_samples,
                window=self.window,
                center=True,
                pad_mode="reflect",
                return_complex=True,
            )[..., : self.num_frames(waveform.shape[-1])]
            return self.filters @ spectrum.abs()

    def _tables(self) -> tuple[Tensor, Tensor]:
        """Window and filters on the CPU, whatever the default device."""
        import librosa

        low_hz, high_hz = TEMPO_RANGE_HZ
        filters = librosa.filters.mel(
            sr=TEMPO_SAMPLE_RATE_HZ,
            n_fft=TEMPO_FFT_SAMPLES,
            n_mels=TEMPO_NUM_BANDS,
            fmin=low_hz,
            fmax=high_hz,
        )
        with torch.device("cpu"):
            return torch.hann_window(TEMPO_FFT_SAMPLES, periodic=True), torch.from_numpy(filters).float()

    def _apply(self, fn, recurse=True):  # .to(), .half(), .cuda()
        super()._apply(fn, recurse)
        if self.window.dtype != torch.float32:
            device = self.window.device
            self.window, self.filters = (table.to(device) for table in self._tables())
        return self


class DirectionalBlocks(nn.Module):
    """`(B, 1, F, T)` -> `(B, D)`: six blocks of two convolutions, each with ReLU and then batch norm; the maximum over
    two by two, along an axis for as long as it is that long; dropout. What is left is averaged.

    The published models have a linear map to the classes with ReLU in front of the average. Here the head is behind
    it. What enters is brought to mean 0 and deviation 1, clip by clip, as published; silence becomes zeros.

    Args:
        direction: the axis along which the filters lie.
        num_bins, trained_frames: F and T of what it is trained on; they decide how often an axis is halved.
    """

    def __init__(self, direction: Literal["frequency", "time"], num_bins: int, trained_frames: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels_in = 1
        for block, widening in enumerate(WIDENINGS, start=1):
            channels = CHANNELS * widening
            for length in FILTER_LENGTHS:
                shape = (length, 1) if direction == "frequency" else (1, length)
                layers += [
                    nn.Conv2d(channels_in, channels, shape, padding="same"),
                    nn.ReLU(),
                    nn.BatchNorm2d(channels),
                ]
                channels_in = channels
            pool = (2 if 2**block <= num_bins else 1, 2 if 2**block <= trained_frames else 1)
            layers += [nn.MaxPool2d(pool), nn.Dropout(DROPOUT)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=(1, 2, 3), keepdim=True)
        deviation = centred.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        x = centred / torch.where(deviation > 0, deviation, 1.0)
        return self.layers(x).mean(dim=(2, 3))


def _directional(
    name: str,
    front_end: FrontEnd,
    direction: Literal["frequency", "time"],
    num_bins: int,
    trained_frames: int,
) -> ClipCNN:
    return ClipCNN(
        name,
        front_end,
        DirectionalBlocks(direction, num_bins, trained_frames),
        dim=CHANNELS * WIDENINGS[-1],
        trained_samples=trained_frames * front_end.hop_samples,
        min_frames=2 ** sum(2**block <= trained_frames for block in range(1, len(WIDENINGS) + 1)),
        normalisation="clip-unit-variance",
    )


register(
    "key-cnn",
    "CNN along frequency for keys, one 128-d vector per clip of 11.1 s; untrained, to be trained from scratch",
    key_cnn,
    ("DeepSpec of Schreiber & Müller 2019; 'DL baseline' of the PETL paper for keys.",),
)
register(
    "tempo-cnn",
    "CNN along time for tempi, one 128-d vector per clip of 11.9 s; untrained, to be trained from scratch",
    tempo_cnn,
    ("DeepTemp of Schreiber & Müller 2019; 'DL baseline' of the PETL paper for tempi.",),
)
