"""MULE: a SlowFast network without norms on log-mel slices of 3 s (McCallum et al. 2022, "SF-NFNet-F0").

Every slice gives one vector; a clip is the mean over its slices. What goes in:

* Level. The published reader divides 16-bit integers by 65,536 and adds the channels up. So a mono file comes at half
  its amplitude, and a stereo file as the mean of its channels. A backbone hears the mean over channels and is not told
  how many there were, so one rule has to do: `forward` halves what it is given. This is the published input for mono
  files, which the benchmarks mostly have; of a stereo file, the published model hears twice as much (6 dB): give
  `2 * waveform` to have that. Slices are standardised, so little depends on it but how far quiet sounds stand out.
* Slices. Of 300 frames around frames 200, 400, ... as long as these exist (every 2 s; frame 0 is none of them), moved
  inwards where they would reach over the end. The published code works on 8,000 frames at a time and thereby leaves out
  the slice at every multiple of 80 s, stops after 30 min and starts anew after 15; that is not imitated.

A clip shorter than one slice (2.99 s) is refused, for the published code says nothing about it. Written from baselines
spec, section 9; nothing is dropped at random, in training mode neither.

Shape letters: `B` batch, `S` samples, `N` slices, `M` mel bands, `T` frames, `C` channels, `D` width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiation.backbones.base import (
    BACKBONES,
    Backbone,
    BackboneSpec,
    HiddenStates,
    Pretraining,
    check_one_layer,
)
from audiation.backbones.mule_network import FAST_WIDTHS, SLOW_WIDTHS, SlowFast, as_official, official_names
from audiation.features import MEL_BREAK_HZ, MEL_SCALE
from audiation.weights import OfficialFile, OfficialWeights, check_tensors

SAMPLE_RATE_HZ = 16_000
INPUT_GAIN = 0.5
FFT_SAMPLES = 2048
WINDOW_SAMPLES = 400
HOP_SAMPLES = 160
NUM_MEL_BANDS = 96
COMPRESSION = 10_000.0
FRAMES_AT_ONCE = 4096  # of a spectrum: those of half an hour would take 3 GB
SLICE_FRAMES = 300
SLICE_HOP_FRAMES = 200
SMALLEST_DEVIATION = 0.01
SLICES_AT_ONCE = 16  # at inference
PUBLISHED_PARAMETERS = 62_345_742
PAPER = (
    "McCallum et al.: Supervised and unsupervised learning of audio representations for music understanding, "
    "ISMIR 2022"
)


class Mule(Backbone):
    """Waveform at 16 kHz -> layer 0 alone, `(B, N, 1728)`: one vector per slice, whose mean is the published one.

    Slice i is centred on second 2 (i + 1), but the last one where the clip ends within 1.5 s of that: it is moved
    inwards as far as it has to be, which `times_seconds` does not tell.
    """

    sample_rate_hz = SAMPLE_RATE_HZ
    hop_samples = SLICE_HOP_FRAMES * HOP_SAMPLES
    frame_rate_hz = sample_rate_hz / hop_samples
    first_frame_seconds = 1.0 / frame_rate_hz
    num_layers, dim = 0, SLOW_WIDTHS[-1] + FAST_WIDTHS[-1]
    min_samples = (SLICE_FRAMES - 1) * HOP_SAMPLES
    max_seconds = None
    normalisation = "none"
    accepts_padding = False  # the spectrum is continued by reflection behind the end of a clip

    def __init__(self) -> None:
        super().__init__()
        self.name = "mule"
        self.mel = CompressedMel()
        self.network = SlowFast()

    def forward(
        self,
        waveform: Tensor,
        num_samples: Tensor | None = None,
        layers: Iterable[int] | None = None,
        last_layer: int | None = None,
        reduce: Literal["mean"] | None = None,
    ) -> HiddenStates:
        """Layer 0, `(B, N, 1728)`, or its mean over slices. Raises ValueError as every backbone."""
        self.check_input(waveform, num_samples)
        self.resolve_layers(layers, last_layer)
        if reduce not in (None, "mean"):
            raise ValueError(f"reduce is 'mean' or None, got {reduce!r}")
        slices_BNMT = slices_of(self.mel(INPUT_GAIN * waveform))
        vectors = self.vectors(slices_BNMT.flatten(0, 1))
        hidden_BND = vectors.unflatten(0, slices_BNMT.shape[:2])
        valid = torch.ones(hidden_BND.shape[:2], dtype=torch.bool, device=waveform.device)
        states = HiddenStates({0: hidden_BND}, valid, self.frame_rate_hz, self.first_frame_seconds)
        return states.mean() if reduce == "mean" else states

    def vectors(self, slices: Tensor) -> Tensor:
        """`(N, 96, 300)` -> `(N, 1728)` float32."""
        at_once = len(slices) if torch.is_grad_enabled() else SLICES_AT_ONCE
        return torch.cat([self.network(part.unsqueeze(1)) for part in slices.split(at_once)]).float()

    def num_frames(self, num_samples: int) -> int:
        """Slices of a clip of `num_samples`."""
        return num_samples // self.hop_samples


# Front end -------------------------------------------------------------------------------------------


class CompressedMel(nn.Module):
    """`log10(10000 x + 1)` of the power x in 96 mel bands: `(B, S)` -> `(B, 96, 1 + S // 160)` float32.

    HTK bands from 0 to 8 kHz, each of unit L2 norm; 2048-point spectra of 400 samples under a periodic Hann window,
    centred on every 160th sample, continued by reflection.
    """

    keep_float32 = True

    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        with torch.device("cpu"):
            self.register_buffer("filters", unit_filters(), persistent=False)  # (F, M)

    def forward(self, waveform: Tensor) -> Tensor:
        with torch.autocast(waveform.device.type, enabled=False):
            padded = F.pad(waveform.float().unsqueeze(1), (FFT_SAMPLES // 2,) * 2, mode="reflect").squeeze(1)
            frames = 1 + waveform.shape[1] // HOP_SAMPLES
            return torch.cat(
                [self._frames(padded, first, frames) for first in range(0, frames, FRAMES_AT_ONCE)], 2
            )

    def _frames(self, padded: Tensor, first: int, frames: int) -> Tensor:
        """Frames `first` ... of `frames`, `FRAMES_AT_ONCE` at most."""
        count = min(FRAMES_AT_ONCE, frames - first)
        part = padded[:, first * HOP_SAMPLES : (first + count - 1) * HOP_SAMPLES + FFT_SAMPLES]
        # In float64 where there is: in float32, window or spectrum, the lowest bands are off by 2e-5.
        dtype = torch.float32 if part.device.type == "mps" else torch.float64
        window = torch.hann_window(WINDOW_SAMPLES, dtype=dtype, device=part.device)
        spectrum = torch.stft(
            part.to(dtype),
            FFT_SAMPLES,
            HOP_SAMPLES,
            WINDOW_SAMPLES,
            window,
            center=False,
            return_complex=True,
        )
        power = spectrum.real.square() + spectrum.imag.square()
        return torch.log10(COMPRESSION * (self.filters.t() @ power.float()) + 1.0)


def unit_filters() -> Tensor:
    """`(1025, 96)` float32: triangles of L2 norm 1, equally wide on the HTK mel scale from 0 Hz to 8 kHz.

    Made in float64, for in float32 they are off by 3e-6.
    """
    highest_hz = SAMPLE_RATE_HZ / 2
    highest_mel = MEL_SCALE * math.log10(1.0 + highest_hz / MEL_BREAK_HZ)
    mels = torch.linspace(0.0, highest_mel, NUM_MEL_BANDS + 2, dtype=torch.float64)
    edges_hz = MEL_BREAK_HZ * (10.0 ** (mels / MEL_SCALE) - 1.0)
    bins_hz = torch.linspace(0.0, highest_hz, FFT_SAMPLES // 2 + 1, dtype=torch.float64)
    distance_hz = edges_hz - bins_hz[:, None]  # (F, M + 2)
    width_hz = edges_hz.diff()
    triangles = torch.minimum(-distance_hz[:, :-2] / width_hz[:-1], distance_hz[:, 2:] / width_hz[1:])
    return F.normalize(triangles.clamp(min=0.0), dim=0).float()


def slices_of(logmel: Tensor) -> Tensor:
    """`(B, M, T)`, T >= 300 -> `(B, N, M, 300)`: slices every 200 frames, each of mean 0 and deviation 1.

    A deviation below 0.01 counts as 0.01, so that silence stays silence.
    """
    frames = logmel.shape[2]
    centres = torch.arange(SLICE_HOP_FRAMES, frames, SLICE_HOP_FRAMES, device=logmel.device)
    starts = centres.clamp(max=frames - SLICE_FRAMES // 2) - SLICE_FRAMES // 2
    index = starts[:, None] + torch.arange(SLICE_FRAMES, device=logmel.device)
    slices = logmel[:, :, index].transpose(1, 2)  # (B, N, M, 300)
    centred = slices - slices.mean(dim=(2, 3), keepdim=True)
    return centred / centred.square().mean(dim=(2, 3), keepdim=True).sqrt().clamp(min=SMALLEST_DEVIATION)


# Making one ------------------------------------------------------------------------------------------


@torch.inference_mode(mode=False)  # weights made in inference mode could not be trained, nor seen to change
def build(num_layers: int | None = None, generator: torch.Generator | None = None) -> Mule:
    """Fresh weights from the generator (None: one with seed 0): normal kernels, gains and skip gains 1, biases 0.

    No source says how the published ones began. With skip gains of 1, blocks have the variance that beta assumes.
    """
    check_one_layer("mule", num_layers)
    backbone = _without_values()
    generator = generator or torch.Generator().manual_seed(0)
    for name, parameter in backbone.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=1 / math.sqrt(parameter[0].numel()), generator=generator)
        else:
            nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
    return backbone


@torch.inference_mode(mode=False)
def from_published(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], num_layers: int | None = None
) -> Mule:
    """A Mule from the tensors of the published Keras model (`model.weights.h5` in `model.keras`).

    Args:
        tensors: under their paths in that file, kernels as (frequency, time, in, out), dense ones as (in, out).
        config: nothing in it is needed; not read.

    Raises:
        ValueError: tensors missing, unknown or of a wrong shape, or `num_layers` other than 0.
    """
    check_one_layer("mule", num_layers)
    backbone = _without_values()
    names = official_names()
    found = {path: tensors[path].float() for path in tensors}
    own = {path: as_official(backbone.network.get_parameter(ours)) for ours, path in names.items()}
    check_tensors(found, own, "the weights of mule")
    for ours, path in names.items():
        parameter = backbone.network.get_parameter(ours)
        with torch.no_grad():
            as_official(parameter).copy_(found.pop(path))
    return backbone


def outline() -> Mule:
    """A backbone whose parameters are on the meta device: nothing is drawn, nothing is stored."""
    with torch.device("meta"):
        return Mule()


def _without_values() -> Mule:
    """A backbone whose parameters have storage but no values yet: no random number is drawn."""
    backbone = outline()
    backbone.network.to_empty(device="cpu")
    return backbone


BACKBONES.add(
    "mule",
    BackboneSpec(
        "mule",
        "SlowFast network on log-mel, trained by contrast, one 1,728-d vector per 3 s, every 2 s",
        build,
        from_published,
        weights=OfficialWeights(
            checkpoint=OfficialFile(
                repo_id="",
                filename="model.keras",
                size_bytes=251_054_764,
                sha256="1da111d619bac0d422e41f153cbfb903f7ec3c5d3b2768f5d68f04452ed18180",
                mismatch_hint="A file of some hundred bytes is the Git LFS pointer to it.",
                url="https://media.githubusercontent.com/media/PandoraMedia/music-audio-representations/main/"
                "supporting_data/model/model.keras",
            ),
            config=None,
            licence="CC-BY-NC-4.0",
            licence_note="See https://github.com/PandoraMedia/music-audio-representations.",
        ),
        weights_licence="CC-BY-NC-4.0",
        commercial_use=False,
        published_parameters=PUBLISHED_PARAMETERS,
        recommended_layer=0,
        has_encoder=False,
        published_names=("MULE",),
        notes=(
            "Clips need 2.99 s. Slices of 3 s around every second one after the start; the last is moved inwards.",
            "Hears a mono file as the published model does; a stereo file 6 dB softer than it.",
            "Names in the file are those of a copy of the graph; a file whose names or shapes differ is refused.",
            "The published code is under GPL-3.0; none of it is here.",
        ),
        # Hours: table 6.1 of the thesis.
        pretraining=Pretraining("MusicSet, a private collection of music", (), 117_500),
        paper=PAPER,
        outline=outline,
    ),
)
