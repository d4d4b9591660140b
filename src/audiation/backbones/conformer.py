"""Conformer encoder of MusicFM: the Wav2Vec2-Conformer layer with rotary positions.

Two things differ from most conformers. Positions are rotated into the *hidden state before* the query and key
projections, not into queries and keys; and every block ends with its own layer norm.

Shape letters: `B` batch, `T` frames, `D` width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiation.backbones.attention import Attention
from audiation.backbones.derived import DerivesWeights, fold_batch_norm
from audiation.backbones.encoder import Block, Encoder, Linear

ROTARY_BASE = 10000.0


@dataclass(frozen=True)
class ConformerConfig:
    """Sizes; the defaults are those of the published MusicFM.

    dropout: one rate, in training only, for the input, attention weights, activations, and the outputs of attention,
        convolution and feed-forward modules (all 0.1 in the published model, which drops no layers).
    """

    dim: int = 1024
    num_heads: int = 16
    ffn_dim: int = 4096
    num_layers: int = 12
    conv_kernel: int = 31
    dropout: float = 0.1


class ConformerEncoder(Encoder):
    """`(B, T, D)` -> layers 0..L. The final norm belongs to the last block that is there.

    So a model cut to 6 blocks ends with the norm that 12 blocks were trained with, which is what the PETL paper
    uses, whereas `last=6` on the whole model gives layer 6 without it.
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.config = config
        rotary = Rotary(config.dim // config.num_heads)
        self.blocks = nn.ModuleList(ConformerBlock(config, rotary) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def embed(self, x_BTD: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        return self.dropout(x_BTD)


class ConformerBlock(Block):
    """Half feed-forward, attention, convolution, half feed-forward, layer norm; each on its own normed input.

    Sockets: after_ffn1, after_attention, after_conv, after_ffn2, each on the stream after a residual sum; the last
    one before the block's final norm.
    """

    attention: Attention

    def __init__(self, config: ConformerConfig, rotary: Rotary) -> None:
        super().__init__()
        self.ffn1 = FeedForward(config.dim, config.ffn_dim, config.dropout)
        self.attention_norm = nn.LayerNorm(config.dim)
        self.attention = Attention(config.dim, config.num_heads, config.dropout)
        self.conv = ConvModule(config.dim, config.conv_kernel, config.dropout)
        self.ffn2 = FeedForward(config.dim, config.ffn_dim, config.dropout)
        self.final_norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.rotary = rotary
        points = ("after_ffn1", "after_attention", "after_conv", "after_ffn2")
        self.sockets = nn.ModuleDict({point: nn.Identity() for point in points})

    def forward(self, x_BTD: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        x = self.sockets["after_ffn1"](torch.add(x_BTD, self.ffn1(x_BTD), alpha=0.5))
        h = self.attention_norm(x)
        attended = self.attention(h, qk_input_BTD=self.rotary(h), valid_BT=valid_BT)
        x = self.sockets["after_attention"](x + self.dropout(attended))
        x = self.sockets["after_conv"](x + self.conv(x, valid_BT))
        x = self.sockets["after_ffn2"](torch.add(x, self.ffn2(x), alpha=0.5))
        return self.final_norm(x)

    def linears(self) -> dict[str, list[Linear]]:
        return {
            "query": [self.attention.query],
            "key": [self.attention.key],
            "value": [self.attention.value],
            "output": [self.attention.output],
            "ffn_up": [self.ffn1.up, self.ffn2.up],
            "ffn_down": [self.ffn1.down, self.ffn2.down],
            "pointwise": [self.conv.pointwise1, self.conv.pointwise2],
        }

    def norms(self) -> dict[str, list[nn.Module]]:
        return {
            "attention": [self.attention_norm],
            "ffn": [self.ffn1.norm, self.ffn2.norm],
            "conv": [self.conv.norm],
            "conv_batch": [self.conv.depthwise.norm],
            "final": [self.final_norm],
        }


class FeedForward(nn.Module):
    """Layer norm, widen, SiLU, narrow."""

    def __init__(self, dim: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up, self.down = Linear(dim, ffn_dim), Linear(ffn_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.dropout(self.down(self.dropout(F.silu(self.up(self.norm(x_BTD))))))


class ConvModule(nn.Module):
    """Layer norm, pointwise to a gated linear unit, depthwise over time, batch norm, SiLU, pointwise."""

    def __init__(self, dim: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.pointwise1 = Linear(dim, 2 * dim, bias=False)
        self.depthwise = DepthwiseConv(dim, kernel)
        self.pointwise2 = Linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        x = F.glu(self.pointwise1(self.norm(x_BTD)), dim=-1)
        if valid_BT is not None:
            x = x.masked_fill(~valid_BT.unsqueeze(-1), 0)  # what a shorter clip would find beyond its end
        return self.dropout(self.pointwise2(F.silu(self.depthwise(x))))


class DepthwiseConv(DerivesWeights):
    """Depthwise convolution over time and batch norm, `(B, T, D)` -> `(B, T, D)`; one convolution in inference."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=False)
        self.norm = nn.BatchNorm1d(dim)

    def derive(self) -> tuple[Tensor, ...]:
        weight, bias = fold_batch_norm(self.conv, self.norm)
        return self.rounded(weight).unsqueeze(2), bias

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BDT = x_BTD.transpose(1, 2)
        if (derived := self.derived()) is None:
            return self.norm(self.conv(x_BDT)).transpose(1, 2)
        weight, bias = derived
        # As an image of height 1 the transpose is already channels-last: no copy, and 50 times faster than conv1d.
        padding = (0, self.conv.kernel_size[0] // 2)
        y = F.conv2d(x_BDT.unsqueeze(2), weight, bias, padding=padding, groups=len(weight))
        return y.squeeze(2).transpose(1, 2)


class Rotary(nn.Module):
    """Rotates pairs of features by an angle that grows with the frame: `(B, T, D)` -> `(B, T, D)`.

    Within each head of size d, feature i is paired with i + d/2 and turned by `t * base^(-2i/d)`. Stateless; the
    blocks share one, so that the tables of the last length are computed once.
    """

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"rotary positions need an even head size, got {head_dim}")
        self.head_dim = head_dim
        self._latest: tuple[tuple[int, torch.dtype, torch.device], tuple[Tensor, Tensor]] | None = None

    def forward(self, x_BTD: Tensor) -> Tensor:
        cos, signed_sin = self.tables(x_BTD.shape[1], x_BTD.dtype, x_BTD.device)
        x = x_BTD.unflatten(-1, (-1, 2, self.head_dim // 2))  # (B, T, heads, 2, d/2)
        return torch.addcmul(x * cos, x.flip(-2), signed_sin).flatten(2)

    def tables(self, num_frames: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosine `(T, 1, 1, d/2)` and sine `(T, 1, 2, d/2)`, negative for the first half of a head."""
        key = (num_frames, dtype, device)
        if self._latest is None or self._latest[0] != key:
            # Made in inference mode they could not be used where gradients are recorded later.
            with torch.inference_mode(False), torch.no_grad():
                frames = torch.arange(num_frames, dtype=torch.float32)
                angles = frames.outer(rotary_frequencies(self.head_dim)).to(device)[:, None, None]
                sin = torch.cat([-angles.sin(), angles.sin()], dim=2)
                self._latest = key, (angles.cos().to(dtype), sin.to(dtype))
        return self._latest[1]


def rotary_frequencies(head_dim: int) -> Tensor:
    """`(d/2,)` float32, radians per frame."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    return 1.0 / ROTARY_BASE**exponents
