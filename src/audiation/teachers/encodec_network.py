"""The encoder of EnCodec: `(B, S)` at 24 kHz -> residual codes at 75 Hz. Names are those of the Hugging Face layout.

Défossez et al. 2022, "High Fidelity Neural Audio Compression".

Shape letters: `B` batch, `S` samples, `C` channels, `T` frames of a layer, `D` width of a code, `Q` codebooks,
`N` frames of codes, `K` entries of a codebook.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_CODEBOOKS = 8  # 6 kbps; the published checkpoint has 32, for 24 kbps
KERNEL, LAST_KERNEL = 7, 7


@dataclass(frozen=True)
class EncodecConfig:
    """Sizes; the defaults are those of the published 24 kHz model at 6 kbps.

    num_filters: channels at the sample rate; they double with every ratio.
    ratios: by which the layers divide the rate, the first one first.
    dim: D.
    """

    num_filters: int = 32
    ratios: tuple[int, ...] = (2, 4, 5, 8)
    dim: int = 128
    num_lstm_layers: int = 2
    num_codebooks: int = NUM_CODEBOOKS
    codebook_size: int = 1024

    @property
    def hop_samples(self) -> int:
        return math.prod(self.ratios)


class Stream:
    """What layers remember between the pieces of one recording; a new one at its beginning."""

    def __init__(self) -> None:
        self.kept: dict[nn.Module, Any] = {}


class Encodec(nn.Module):
    """`(B, S)` at 24 kHz, as it is -> codes `(B, Q, N)` int64 with N = ceil(S / 320). Names are the published ones.

    Causal: a frame hears nothing behind its own 320 samples. The ends are continued by reflection, as published.
    Always in float32, also where the device would round products to ten bits.
    """

    def __init__(self, config: EncodecConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(_layers(config))
        self.quantizer = nn.Module()
        self.quantizer.layers = nn.ModuleList(
            _Quantiser(config.codebook_size, config.dim) for _ in range(config.num_codebooks)
        )

    @torch.no_grad()
    def forward(self, waveform: Tensor) -> Tensor:
        return self.quantise(self.embed(waveform))

    @torch.no_grad()
    def embed(self, waveform: Tensor, stream: Stream | None = None, is_last: bool = True) -> Tensor:
        """`(B, S)` -> `(B, D, N)`, what is quantised.

        stream: of the pieces before this one, which all are multiples of 320 samples long; it is changed.
        is_last: nothing follows, so a last frame that is not full is continued by reflection.
        """
        hop = self.config.hop_samples
        if waveform.ndim != 2 or waveform.shape[1] < 1 or (not is_last and waveform.shape[1] % hop):
            raise ValueError(
                f"EnCodec takes (batch, samples) of at least one sample, in multiples of {hop} where more follows, got "
                f"{tuple(waveform.shape)}"
            )
        stream = stream or Stream()
        x_BCT = waveform.float().unsqueeze(1)
        # Codes are decisions, so ten-bit products will not do.
        with (
            torch.autocast(waveform.device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        ):
            for layer in self.encoder.layers:  # type: ignore[union-attr]
                x_BCT = layer(x_BCT) if isinstance(layer, nn.ELU) else layer(x_BCT, stream, is_last)
        return x_BCT

    @torch.no_grad()
    def quantise(self, x_BDN: Tensor) -> Tensor:
        """`(B, D, N)` -> `(B, Q, N)`: each codebook takes the nearest to what those before it left over."""
        residual_BND = x_BDN.transpose(1, 2)
        codes = []
        for quantiser in self.quantizer.layers:  # type: ignore[union-attr]
            codes.append(quantiser(residual_BND))
            residual_BND = residual_BND - quantiser.codebook.embed[codes[-1]]
        return torch.stack(codes, dim=1)


def fresh(config: EncodecConfig, generator: torch.Generator) -> Encodec:
    """With values drawn from the generator, like an untrained one: the cost is that of the published model."""
    model = empty(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or ".lstm." in name:
                bound = parameter.shape[0] ** -0.5 if ".lstm." in name else 0.0
                parameter.uniform_(-bound, bound, generator=generator)
            else:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
        for quantiser in model.quantizer.layers:  # type: ignore[union-attr]
            quantiser.codebook.embed.normal_(generator=generator)
    return model.eval()


def empty(config: EncodecConfig) -> Encodec:
    """Without values: whatever is in memory. Nothing is drawn."""
    with torch.device("meta"):
        model = Encodec(config)
    return model.to_empty(device="cpu")


# Layers ---------------------------------------------------------------------------------------------------


class _Conv(nn.Module):
    """Convolution that hears only what came before: `(B, C, T)` -> `(B, C', ceil(T / stride))`."""

    def __init__(self, num_inputs: int, num_outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(num_inputs, num_outputs, kernel, stride)
        self.before = kernel - stride

    def forward(self, x_BCT: Tensor, stream: Stream, is_last: bool) -> Tensor:
        missing = -x_BCT.shape[-1] % self.conv.stride[0]
        assert is_last or not missing
        known = stream.kept.get(self)
        padded = _reflected(x_BCT, 0 if known is not None else self.before, missing, known)
        if self.before and not is_last:
            assert padded.shape[-1] >= self.before
            stream.kept[self] = padded[..., -self.before :]
        return self.conv(padded)


class _ResidualUnit(nn.Module):
    """shortcut(x) + conv1(elu(conv3(elu(x)))), `(B, C, T)`. Numbers are those of the published names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            [
                nn.ELU(),
                _Conv(channels, channels // 2, 3),
                nn.ELU(inplace=True),
                _Conv(channels // 2, channels, 1),
            ]
        )
        self.shortcut = _Conv(channels, channels, 1)

    def forward(self, x_BCT: Tensor, stream: Stream, is_last: bool) -> Tensor:
        y_BCT = x_BCT
        for layer in self.block:
            y_BCT = layer(y_BCT) if isinstance(layer, nn.ELU) else layer(y_BCT, stream, is_last)
        return y_BCT.add_(self.shortcut(x_BCT, stream, is_last))


class _Lstm(nn.Module):
    """x + lstm(x), `(B, C, T)`."""

    def __init__(self, channels: int, num_layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, num_layers)

    def forward(self, x_BCT: Tensor, stream: Stream, is_last: bool) -> Tensor:
        x_TBC = x_BCT.permute(2, 0, 1)
        y_TBC, stream.kept[self] = self.lstm(x_TBC, stream.kept.get(self))
        return (y_TBC + x_TBC).permute(1, 2, 0)


class _Codebook(nn.Module):
    embed: Tensor

    def __init__(self, num_codes: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("embed", torch.empty(num_codes, dim))


class _Quantiser(nn.Module):
    """`(..., D)` -> `(...)` int64: the nearest row of the codebook."""

    def __init__(self, num_codes: int, dim: int) -> None:
        super().__init__()
        self.codebook = _Codebook(num_codes, dim)

    def forward(self, x: Tensor) -> Tensor:
        embed_KD = self.codebook.embed
        # In the published order of operations, so that near ties fall alike.
        own = x.square().sum(-1, keepdim=True)
        return (-(own - 2 * x @ embed_KD.t() + embed_KD.square().sum(1))).argmax(-1)


def _layers(config: EncodecConfig) -> Iterator[nn.Module]:
    channels = config.num_filters
    yield _Conv(1, channels, KERNEL)
    for ratio in config.ratios:
        yield from (
            _ResidualUnit(channels),
            nn.ELU(inplace=True),
            _Conv(channels, 2 * channels, 2 * ratio, ratio),
        )
        channels *= 2
    yield from (_Lstm(channels, config.num_lstm_layers), nn.ELU(), _Conv(channels, config.dim, LAST_KERNEL))


def _reflected(x_BCT: Tensor, before: int, behind: int, known: Tensor | None) -> Tensor:
    """With `known` in front, and continued at both ends. What is too short to be reflected is reflected as if zeros
    followed it, which are cut off again (as published)."""
    if known is not None:
        x_BCT = torch.cat([known, x_BCT], dim=-1)
    if not before and not behind:
        return x_BCT
    zeros = max(0, max(before, behind) + 1 - x_BCT.shape[-1])
    padded = F.pad(F.pad(x_BCT, (0, zeros)) if zeros else x_BCT, (before, behind), mode="reflect")
    return padded[..., : padded.shape[-1] - zeros]
