"""Positions as data2vec-audio computes them: several convolutions over time, one after the other.

Baevski et al. 2022, "data2vec: A General Framework for Self-supervised Learning in Speech, Vision and Language".

Shape letters: `B` batch, `T` frames, `D` width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from audiation.backbones.transformer import TransformerEncoder, gelu


class PositionalStack(nn.Module):
    """Convolutions over time, a layer norm without parameters and a GELU after each: `(B, T, D)` -> `(B, T, D)`.

    Padding is half the kernel on both sides; an even kernel gives one frame too many, of which the last is dropped.
    """

    def __init__(self, dim: int, num_convs: int, kernel_size: int, num_groups: int) -> None:
        super().__init__()
        if dim % num_groups:
            raise ValueError(f"width {dim} is not divisible by {num_groups} groups")
        self.convs = nn.ModuleList(
            nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=num_groups)
            for _ in range(num_convs)
        )

    def forward(self, x_BTD: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        """What is to be added to `x_BTD`.

        With `valid_BT`, every convolution sees zeros beyond the end of a clip, as where the clip is alone. The
        published code puts zeros there for the first only, so that padding reaches back into the clip.
        """
        frames = x_BTD.shape[1]
        for conv in self.convs:
            if valid_BT is not None:
                x_BTD = x_BTD.masked_fill(~valid_BT.unsqueeze(-1), 0.0)
            x_BTD = conv(x_BTD.transpose(1, 2)).transpose(1, 2)[:, :frames]
            x_BTD = gelu(F.layer_norm(x_BTD, x_BTD.shape[-1:]))
        return x_BTD


class StackedPositionsEncoder(TransformerEncoder):
    """A post-norm encoder whose positions are a `PositionalStack`."""

    positions: PositionalStack

    def embed(self, x_BTD: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        assert self.front_norm is not None
        return self.dropout(self.front_norm(x_BTD + self.positions(x_BTD, valid_BT)))
