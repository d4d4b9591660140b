"""Waveform -> projected frames, as HuBERT, data2vec and MERT do it: seven strided convolutions, a norm, a linear map.

Shape letters: `B` batch, `S` samples, `T` frames, `C` channels, `K` taps, `D` model width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiation.backbones.hubert_config import HubertConfig
from audiation.backbones.transformer import gelu

NORMALISE_EPS = 1e-7
STEM_NORM_EPS = 1e-5
# The stem runs in blocks of so many output frames. Its first activations have 64 times as many; on a CPU they
# stay in the cache.
BLOCK_FRAMES_CPU = 128
BLOCK_FRAMES_OTHER = 4096


class StemOutput(NamedTuple):
    """projected: `(B, T, D)`, what the encoder takes. features: `(B, T, C)`, of the convolutions."""

    projected: Tensor
    features: Tensor


class Stem(nn.Module):
    """Waveform -> projected frames: level, seven convolutions, layer norm, linear map."""

    def __init__(self, config: HubertConfig, normalise: bool) -> None:
        super().__init__()
        self.normalise = normalise
        self.convs = ConvStack(config)
        self.norm = nn.LayerNorm(config.conv_dim[-1], config.layer_norm_eps)
        self.projection = nn.Linear(config.conv_dim[-1], config.hidden_size)
        self.dropout = nn.Dropout(config.feat_proj_dropout)

    def forward(self, waveform: Tensor, num_samples: Tensor | None = None) -> StemOutput:
        """`(B, S)` and true lengths `(B,)` -> StemOutput."""
        features = self.features(waveform, num_samples)
        return StemOutput(self.project(features), features)

    def features(self, waveform: Tensor, num_samples: Tensor | None = None) -> Tensor:
        """What the convolutions make of `(B, S)`: `(B, T, C)`."""
        if self.normalise:
            waveform = unit_variance(waveform, num_samples)
        return self.convs(waveform)

    def project(self, features: Tensor) -> Tensor:
        """`(B, T, C)` -> `(B, T, D)`, with the dropout that pre-training calls that of the encoder's input."""
        return self.dropout(self.projection(self.norm(features)))


class ConvStack(nn.Module):
    """Seven strided convolutions over the waveform, GELU after each: `(B, S)` -> `(B, T, C)`.

    With feat_extract_norm "group" the first output is normalised per channel over the whole clip, with
    "layer" every output over its channels.

    The group norm costs no pass over what it normalises, the largest tensor of the model: mean and variance
    of `w . window` follow from mean and covariance of the windows, k and k x k numbers, and become part of
    the first kernel. So every convolution is local, and the stack runs in blocks that fit the cache.
    """

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.config = config
        channels = [1, *config.conv_dim]
        sizes = zip(channels, channels[1:], config.conv_kernel, config.conv_stride, strict=False)
        self.layers = nn.ModuleList(FramesConv(i, o, k, s, bias=config.conv_bias) for i, o, k, s in sizes)
        self.group_norm: nn.GroupNorm | None = None
        self.layer_norms: nn.ModuleList | None = None
        if config.feat_extract_norm == "group":
            self.group_norm = nn.GroupNorm(channels[1], channels[1], STEM_NORM_EPS)
        else:
            self.layer_norms = nn.ModuleList(nn.LayerNorm(c, STEM_NORM_EPS) for c in config.conv_dim)

    def forward(self, waveform: Tensor) -> Tensor:
        kernel_BKC, shift_BC = self._first_kernel(waveform)
        batch, samples = waveform.shape
        frames, hop = frames_of(samples, self.config), math.prod(self.config.conv_stride)
        budget = BLOCK_FRAMES_CPU if waveform.device.type == "cpu" else BLOCK_FRAMES_OTHER
        step = max(8, budget // batch)
        blocks = []
        for start in range(0, frames, step):
            needed = samples_needed(min(step, frames - start), self.config)
            segment = waveform[:, start * hop : start * hop + needed]
            blocks.append(self._block(segment, kernel_BKC, shift_BC))
        return torch.cat(blocks, dim=1)

    def _block(self, segment_BS: Tensor, kernel_BKC: Tensor, shift_BC: Tensor) -> Tensor:
        windows = segment_BS.unfold(1, self.config.conv_kernel[0], self.config.conv_stride[0])
        with torch.autocast(segment_BS.device.type, enabled=False):  # the waveform is not to be rounded
            x = torch.baddbmm(shift_BC[:, None], windows, kernel_BKC).to(self.first.weight.dtype)
        x = gelu(x if self.layer_norms is None else self.layer_norms[0](x))
        for i, conv in enumerate(self.layers[1:], start=1):
            x = conv(x)
            x = gelu(x if self.layer_norms is None else self.layer_norms[i](x))
        return x

    @property
    def first(self) -> FramesConv:
        conv = self.layers[0]
        assert isinstance(conv, FramesConv)
        return conv

    def _first_kernel(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """First convolution and the group norm after it as one affine map per clip, `(B, K, C)`, `(B, C)`."""
        first, norm = self.first, self.group_norm
        weight_CK = first.weight[:, 0].float()
        if norm is None:
            bias = first.bias.float() if first.bias is not None else weight_CK.new_zeros(len(weight_CK))
            return weight_CK.t().expand(len(waveform), -1, -1), bias.expand(len(waveform), -1)
        # A bias of this convolution would vanish in the norm. Double, because the covariance is a difference.
        windows = waveform.unfold(1, weight_CK.shape[1], self.config.conv_stride[0]).double()
        mean_B1K = windows.mean(1, keepdim=True)
        second_BKK = windows.transpose(1, 2) @ windows / windows.shape[1]
        covariance_BKK = second_BKK - mean_B1K.transpose(1, 2) @ mean_B1K
        weight = weight_CK.double()
        variance_BC = ((weight @ covariance_BKK) * weight).sum(-1).clamp(min=0)
        gain_BC = norm.weight.double() * torch.rsqrt(variance_BC + norm.eps)
        shift_BC = norm.bias.double() - gain_BC * (mean_B1K @ weight.t())[:, 0]
        kernel_BKC = weight.t() * gain_BC[:, None]
        return kernel_BKC.float(), shift_BC.float()


class FramesConv(nn.Conv1d):
    """A convolution over time of `(B, T, C)`, the layout in which it needs no transposition."""

    def __init__(self, in_dim: int, out_dim: int, kernel_size: int, stride: int, bias: bool) -> None:
        super().__init__(in_dim, out_dim, kernel_size, stride, bias=bias)

    def forward(self, x_BTC: Tensor) -> Tensor:
        image = x_BTC.unsqueeze(1).permute(0, 3, 1, 2)  # (B, C, 1, T) in channels-last memory
        out = F.conv2d(image, self.weight.unsqueeze(2), self.bias, stride=(1, self.stride[0]))
        return out.permute(0, 2, 3, 1).squeeze(1)


def unit_variance(waveform: Tensor, num_samples: Tensor | None = None) -> Tensor:
    """Each clip of `(B, S)` to zero mean and unit population variance over its valid samples; padding 0."""
    total = waveform.shape[1]
    lengths = torch.full((len(waveform),), total) if num_samples is None else num_samples
    count = lengths.to(waveform.device)[:, None]
    valid = torch.arange(total, device=waveform.device) < count
    mean = (waveform * valid).sum(1, keepdim=True, dtype=torch.float64) / count
    centred = (waveform - mean.to(waveform.dtype)) * valid
    variance = centred.square().sum(1, keepdim=True, dtype=torch.float64) / count
    return centred * torch.rsqrt(variance + NORMALISE_EPS).to(waveform.dtype)


def frames_of(num_samples: int, config: HubertConfig) -> int:
    """`floor((n - k) / s) + 1` through all convolutions; 0 for clips that are too short."""
    n = num_samples
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        n = (n - kernel) // stride + 1 if n >= kernel else 0
    return n


def samples_needed(num_frames: int, config: HubertConfig) -> int:
    """The shortest input that gives `num_frames`."""
    n = num_frames
    for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
        n = (n - 1) * stride + kernel
    return n
