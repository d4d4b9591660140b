"""The part of a backbone that can be adapted: positions, blocks, final norm.

Shape letters: `B` batch, `T` frames, `D` width, `L` blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn


class Block(nn.Module):
    """One encoder block. Subclasses fill `sockets` and answer `linears` and `norms`.

    sockets: stateless `nn.Identity` at the named points where a method may put a module. They hold no state, so
        published checkpoints load unchanged.
    attention: the block's `Attention`.
    """

    sockets: nn.ModuleDict
    attention: nn.Module

    def linears(self) -> dict[str, list[nn.Module]]:
        """Role -> the linear maps (or kernel-1 convolutions) that play it."""
        raise NotImplementedError

    def norms(self) -> dict[str, nn.Module]:
        """Role -> normalisation layer."""
        raise NotImplementedError

    def forward(self, x_BTD: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        raise NotImplementedError


class Encoder(nn.Module):
    """Embeds projected frames, then runs the blocks, yielding every layer as it is ready.

    embed: adds positions (masking for pre-training happens before it); subclasses override.
    final_norm: applied to the output of the last block only, where the published model does so; None elsewhere.
    """

    blocks: nn.ModuleList
    final_norm: nn.Module | None

    def embed(self, x_BTD: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        return x_BTD

    def layers(
        self, x_BTD: Tensor, valid_BT: Tensor | None = None, last: int | None = None
    ) -> Iterator[Tensor]:
        """Yield layer 0, 1, ..., `last` (default: all), each `(B, T, D)`; stopping early costs nothing more."""
        depth = len(self.blocks)
        stop = depth if last is None else last
        x = self.embed(x_BTD, valid_BT)
        yield x
        for i, block in enumerate(self.blocks[:stop], start=1):
            x = block(x, valid_BT)
            yield self.final_norm(x) if i == depth and self.final_norm is not None else x
