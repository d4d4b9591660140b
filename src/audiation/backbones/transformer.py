"""Transformer blocks as HuBERT, data2vec and MERT stack them, positions by convolution.

Shape letters: `B` batch, `T` frames, `D` width, `L` blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiation.backbones.attention import Attention
from audiation.backbones.derived import DerivesWeights
from audiation.backbones.encoder import Block, Encoder, Linear


class TransformerBlock(Block):
    """Self-attention and a feed-forward network, each with a skip branch and a layer norm.

    Post-norm (HuBERT base, MERT-95M):  `a = norm1(s x + attention(x))`, `y = norm2(s a + ffn(a))`.
    Pre-norm (HuBERT large, MERT-330M): `a = x + attention(norm1(x))`,   `y = a + ffn(norm2(a))`.

    Sockets: `after_attention` and `after_ffn` take the residual sums; in a post-norm block the norm
    comes after the socket.

    Args:
        pre_norm: where the norms are.
        skip_scale: s, what DeepNorm multiplies the skip branches with; 1 elsewhere. Post-norm only.
        dropout, attention_dropout, activation_dropout: active in training mode, as published.
    """

    attention: Attention

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        *,
        pre_norm: bool = False,
        skip_scale: float = 1.0,
        eps: float = 1e-5,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if pre_norm and skip_scale != 1.0:
            raise ValueError(f"DeepNorm scales the skip branches of post-norm blocks only, got {skip_scale=}")
        self.pre_norm, self.skip_scale = pre_norm, skip_scale
        self.attention = Attention(dim, num_heads, attention_dropout)
        self.attention_norm = nn.LayerNorm(dim, eps)
        self.ffn_up, self.ffn_down = Linear(dim, ffn_dim), Linear(ffn_dim, dim)
        self.ffn_norm = nn.LayerNorm(dim, eps)
        self.dropout, self.activation_dropout = nn.Dropout(dropout), nn.Dropout(activation_dropout)
        self.sockets = nn.ModuleDict({"after_attention": nn.Identity(), "after_ffn": nn.Identity()})

    def forward(self, x_BTD: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        after_attention, after_ffn = self.sockets["after_attention"], self.sockets["after_ffn"]
        if self.pre_norm:
            mixed = self.dropout(self.attention(self.attention_norm(x_BTD), valid_BT=valid_BT))
            x_BTD = after_attention(x_BTD + mixed)
            return after_ffn(x_BTD + self.feed_forward(self.ffn_norm(x_BTD)))
        mixed = self.dropout(self.attention(x_BTD, valid_BT=valid_BT))
        x_BTD = self.attention_norm(after_attention(torch.add(mixed, x_BTD, alpha=self.skip_scale)))
        changed = self.feed_forward(x_BTD)
        return self.ffn_norm(after_ffn(torch.add(changed, x_BTD, alpha=self.skip_scale)))

    def feed_forward(self, x_BTD: Tensor) -> Tensor:
        """What is added to the skip branch, `(B, T, D)`."""
        return self.dropout(self.ffn_down(self.activation_dropout(gelu(self.ffn_up(x_BTD)))))

    def linears(self) -> dict[str, list[Linear]]:
        attention = self.attention
        return {
            "query": [attention.query],
            "key": [attention.key],
            "value": [attention.value],
            "output": [attention.output],
            "ffn_up": [self.ffn_up],
            "ffn_down": [self.ffn_down],
        }

    def norms(self) -> dict[str, list[nn.Module]]:
        return {"attention": [self.attention_norm], "ffn": [self.ffn_norm]}


class TransformerEncoder(Encoder):
    """Positions, then L blocks; one more layer norm in front (post-norm) or after the last block (pre-norm).

    `front_norm` or `final_norm` is None accordingly. In a pre-norm encoder layers 1..L-1 are raw residual
    streams while layer L has passed `final_norm`, which is the published convention.

    Args:
        positions: `(B, T, D)` -> what is added to it before the first block.
        make_block: gives a new block at every call.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int,
        positions: nn.Module,
        make_block: Callable[[], TransformerBlock],
        *,
        pre_norm: bool,
        eps: float = 1e-5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.positions = positions
        self.blocks = nn.ModuleList(make_block() for _ in range(num_layers))
        self.front_norm = None if pre_norm else nn.LayerNorm(dim, eps)
        self.final_norm = nn.LayerNorm(dim, eps) if pre_norm else None
        self.dropout = nn.Dropout(dropout)

    def embed(self, x_BTD: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        if valid_BT is not None:  # the convolution must not see what lies on padding
            x_BTD = x_BTD.masked_fill(~valid_BT.unsqueeze(-1), 0.0)
        x_BTD = x_BTD + self.positions(x_BTD)
        return self.dropout(x_BTD if self.front_norm is None else self.front_norm(x_BTD))


class PositionalConv(DerivesWeights):
    """Grouped, weight-normed convolution over time, then GELU: `(B, T, D)` -> `(B, T, D)`.

    One gain per tap: `w[:, :, k] = gain[k] v[:, :, k] / ||v[:, :, k]||`. Padding is half the kernel on both
    sides; an even kernel gives one frame too many, of which the last is dropped.

    It is computed by FFT, in float32, in overlapping blocks of twice the kernel: as a direct convolution, 128
    taps over 48 channels per group cost more than ten times the arithmetic. The spectrum of the kernel is a
    derived weight, kept between calls in eval mode only.

    Parameters: `gain` `(1, 1, kernel)`, `direction` `(D, D / groups, kernel)`, `bias` `(D,)`.
    """

    def __init__(self, dim: int, kernel_size: int, num_groups: int) -> None:
        super().__init__()
        if dim % num_groups:
            raise ValueError(f"width {dim} is not divisible by {num_groups} groups")
        self.num_groups, self.kernel_size = num_groups, kernel_size
        self.gain = nn.Parameter(torch.ones(1, 1, kernel_size))
        self.direction = nn.Parameter(torch.ones(dim, dim // num_groups, kernel_size))
        self.bias = nn.Parameter(torch.zeros(dim))

    def weight(self) -> Tensor:
        """The kernel, `(D, D / groups, kernel)` float32."""
        v = self.direction.float()
        return v * (self.gain.float() / v.norm(dim=(0, 1), keepdim=True))

    def forward(self, x_BTD: Tensor) -> Tensor:
        batch, frames, dim = x_BTD.shape
        fft_size = 2 * self.kernel_size
        step = fft_size - self.kernel_size + 1  # positions of a block that no wrap-around reaches
        num_blocks = -(-frames // step)
        before = self.kernel_size // 2
        after = num_blocks * step + self.kernel_size - 1 - before - frames
        blocks = F.pad(x_BTD.float(), (0, 0, before, after)).unfold(1, fft_size, step)  # (B, N, D, fft)
        spectrum = torch.fft.rfft(blocks).unflatten(2, (self.num_groups, -1))  # (B, N, G, I, F)
        spectrum = spectrum.permute(4, 2, 0, 1, 3).flatten(
            2, 3
        )  # (F, G, B N, I): one small GEMM per bin and group
        (kernel,) = self.derived() or self.derive()
        mixed = (spectrum.contiguous() @ kernel).unflatten(2, (batch, num_blocks))
        out = torch.fft.irfft(mixed.permute(2, 3, 1, 4, 0), n=fft_size)[..., :step]  # (B, N, G, O, step)
        out_BTD = out.permute(0, 1, 4, 2, 3).reshape(batch, num_blocks * step, dim)[:, :frames]
        return gelu(out_BTD + self.bias.float()).to(x_BTD.dtype)

    def derive(self) -> tuple[Tensor]:
        """Spectrum of the kernel, `(F, G, I, O)`; conjugate, because a convolution layer correlates."""
        spectrum = torch.fft.rfft(self.weight(), n=2 * self.kernel_size).conj().resolve_conj()
        return (spectrum.unflatten(0, (self.num_groups, -1)).permute(3, 0, 2, 1).contiguous(),)


def gelu(x: Tensor) -> Tensor:
    """Exact GELU of a tensor that nothing else reads: it is overwritten unless a gradient will need it.

    Large fresh tensors cost a page fault per 4 KiB: in place, the encoder of MERT-95M is 5 % faster.
    """
    return F.gelu(x) if x.requires_grad else torch.ops.aten.gelu_(x)
