"""Waveform -> codes: the encoder of Jukebox's top level, and the codebook whose nearest entry is the code.

Of the published VQ-VAE only this is needed: two finer levels, all decoders and the other codebooks are never read.

Dhariwal et al. 2020, "Jukebox: A Generative Model for Music"; baselines spec, section 8.2. Shape letters: `B` batch,
`S` samples, `C` channels, `T` codes, `K` entries of the codebook.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 32
LATENT_DIM = 64
HALVINGS = (3, 2, 2)  # of every stage
DILATIONS = (1, 3, 9, 27)
HOP_SAMPLES = 2 ** sum(HALVINGS)
OFFICIAL_ENCODER = "encoders.2.level_blocks"  # levels are counted from the finest
OFFICIAL_CODEBOOK = "bottleneck.level_blocks.2.k"


class CodeEncoder(nn.Module):
    """`(B, S)` -> codes `(B, T)` int64, one per 128 samples (344.53 per second at 44,100 Hz).

    num_codes: K.
    """

    def __init__(self, num_codes: int) -> None:
        super().__init__()
        widths = (1, *[LATENT_DIM] * len(HALVINGS))
        self.stages = nn.ModuleList(Stage(c, halvings) for c, halvings in zip(widths, HALVINGS, strict=False))
        self.codebook = nn.Parameter(torch.empty(num_codes, LATENT_DIM))

    def forward(self, waveform: Tensor) -> Tensor:
        # A code is a decision, so the same clip has to give the same latents everywhere: clip by clip, and without the
        # 10-bit products that cuDNN takes for convolutions unless it is told otherwise.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return torch.cat([self.nearest(self.latents(clip)) for clip in waveform.split(1)])

    def latents(self, waveform: Tensor) -> Tensor:
        """`(B, S)` -> `(B, 64, T)`: what is to be coded."""
        x_BCT = waveform.unsqueeze(1)
        for stage in self.stages:
            x_BCT = stage(x_BCT)
        return x_BCT

    def nearest(self, latents_BCT: Tensor) -> Tensor:
        """`(B, 64, T)` -> `(B, T)`: by squared distance, of which the latent's own square is left away."""
        scores_BTK = latents_BCT.transpose(1, 2) @ self.codebook.t()
        return (self.codebook.square().sum(1) - 2 * scores_BTK).argmin(-1)


class Stage(nn.Module):
    """Halvings of the rate, then a convolution to the width between stages: `(B, C, T)` -> `(B, 64, T / 2^n)`."""

    def __init__(self, in_channels: int, halvings: int) -> None:
        super().__init__()
        widths = [in_channels, *[CHANNELS] * (halvings - 1)]
        self.halvings = nn.ModuleList(Halving(c) for c in widths)
        self.output = nn.Conv1d(CHANNELS, LATENT_DIM, 3, padding=1)

    def forward(self, x_BCT: Tensor) -> Tensor:
        for halving in self.halvings:
            x_BCT = halving(x_BCT)
        return self.output(x_BCT)


class Halving(nn.Module):
    """A convolution with stride 2 and residual units of growing reach: `(B, C, T)` -> `(B, 32, T / 2)`."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, CHANNELS, 4, stride=2, padding=1)
        self.units = nn.ModuleList(ResidualUnit(dilation) for dilation in DILATIONS)

    def forward(self, x_BCT: Tensor) -> Tensor:
        x_BCT = self.conv(x_BCT)
        for unit in self.units:
            x_BCT = unit(x_BCT)
        return x_BCT


class ResidualUnit(nn.Module):
    """x + pointwise(relu(dilated(relu(x)))), `(B, 32, T)`."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.dilated = nn.Conv1d(CHANNELS, CHANNELS, 3, padding=dilation, dilation=dilation)
        self.pointwise = nn.Conv1d(CHANNELS, CHANNELS, 1)

    def forward(self, x_BCT: Tensor) -> Tensor:
        return x_BCT + self.pointwise(F.relu(self.dilated(F.relu(x_BCT))))


def draw(encoder: CodeEncoder, generator: torch.Generator) -> None:
    """Fresh values: Kaiming's for the convolutions, without biases, and a codebook as wide as what comes out."""
    for module in encoder.modules():
        if isinstance(module, nn.Conv1d):
            nn.init.normal_(module.weight, std=math.sqrt(2 / module.weight[0].numel()), generator=generator)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    nn.init.normal_(encoder.codebook, generator=generator)


def official_names(encoder: CodeEncoder) -> Iterator[tuple[str, str]]:
    """Pairs (official, own) of parameter names."""
    for s, stage in enumerate(encoder.stages):
        for i, halving in enumerate(stage.halvings):  # type: ignore[arg-type]
            there, here = f"{OFFICIAL_ENCODER}.{s}.model.{i}", f"stages.{s}.halvings.{i}"
            yield from _both(f"{there}.0", f"{here}.conv")
            for r in range(len(halving.units)):
                yield from _both(f"{there}.1.model.{r}.model.1", f"{here}.units.{r}.dilated")
                yield from _both(f"{there}.1.model.{r}.model.3", f"{here}.units.{r}.pointwise")
        yield from _both(f"{OFFICIAL_ENCODER}.{s}.model.{HALVINGS[s]}", f"stages.{s}.output")
    yield OFFICIAL_CODEBOOK, "codebook"


def _both(official: str, own: str) -> Iterator[tuple[str, str]]:
    for leaf in ("weight", "bias"):
        yield f"{official}.{leaf}", f"{own}.{leaf}"
