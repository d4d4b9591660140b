"""The part of a backbone that can be adapted: positions, blocks, final norm.

Shape letters: `B` batch, `T` frames, `D` width, `L` blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Linear(nn.Linear):
    """A linear map with a socket: `adaptation(x, y)` gives the output in place of `y = W x + b`.

    The socket is None in a plain backbone, and holds no state then.
    """

    adaptation: nn.Module | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.register_module("adaptation", None)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        return y if self.adaptation is None else self.adaptation(x, y)


class Prompts(Protocol):
    """What `Encoder.prompts` holds: a module that gives `(P, D)` learned positions, and how they are treated."""

    before_embedding: bool
    pooled: bool

    def __call__(self) -> Tensor: ...


class Block(nn.Module):
    """One encoder block. Subclasses fill `sockets` and answer `linears` and `norms`.

    Block families share one vocabulary of roles, so that a method never asks which family a block is of.

    sockets: stateless `nn.Identity` on the stream, named `after_<role>` for the module whose residual sum they take
        (attention, ffn, conv), with a number where a block has several. They hold no state, so published
        checkpoints load unchanged.
    attention: the block's `Attention`.
    """

    sockets: nn.ModuleDict
    attention: nn.Module

    def linears(self) -> dict[str, list[Linear]]:
        """Role (query, key, value, output, ffn_up, ffn_down, pointwise) -> the linear maps that play it."""
        raise NotImplementedError

    def norms(self) -> dict[str, list[nn.Module]]:
        """Role (attention, ffn, conv, conv_batch, final) -> the normalisation layers that play it."""
        raise NotImplementedError

    def sockets_after(self, role: str) -> list[str]:
        """Names of the sockets that follow the modules of a role."""
        return [name for name in self.sockets if name.removeprefix("after_").rstrip("0123456789") == role]

    def forward(self, x_BTD: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        raise NotImplementedError


class Encoder(nn.Module):
    """Embeds projected frames, then runs the blocks, yielding every layer as it is ready.

    embed: adds positions (masking for pre-training happens before it); subclasses override.
    final_norm: applied to the output of the last block only, where the published model does so; None elsewhere.
    prompts: learned positions in front of the sequence, None in a plain backbone. They stay in the stream.
    recompute_blocks: gradient checkpointing: keep only what enters a block, and run it again for the gradient.
    """

    blocks: nn.ModuleList
    final_norm: nn.Module | None
    prompts: nn.Module | None
    recompute_blocks: bool

    def __init__(self) -> None:
        super().__init__()
        self.register_module("prompts", None)
        self.recompute_blocks = False

    def embed(self, x_BTD: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        return x_BTD

    def layers(
        self,
        x_BTD: Tensor,
        valid_BT: Tensor | None = None,
        last: int | None = None,
        layer_drop: float = 0.0,
    ) -> Iterator[Tensor]:
        """Yield layer 0, 1, ..., `last` (default: all), each `(B, T, D)`; stopping early costs nothing more.

        With P prompts there are P + T positions, the prompts first. `valid_BT` covers the T frames.

        layer_drop: probability with which a block is left out, in training mode only: the stream passes it as it is,
            for the whole batch. The coins are of torch's global stream on the CPU. A block that is left out runs all
            the same and gets a gradient of zero, so that processes that drop other blocks still meet in it.
        """
        depth = len(self.blocks)
        stop = depth if last is None else last
        x = x_BTD
        prompts: Prompts | None = self.prompts  # type: ignore[assignment]
        if prompts is not None and prompts.before_embedding:
            x, valid_BT = _prepended(prompts(), x, valid_BT)
        x = self.embed(x, valid_BT)
        if prompts is not None and not prompts.before_embedding:
            x, valid_BT = _prepended(prompts(), x, valid_BT)
        yield x
        dropping = self.training and layer_drop > 0.0
        for i, block in enumerate(self.blocks[:stop], start=1):
            dropped = dropping and bool(torch.rand((), device="cpu") < layer_drop)
            before = x
            if self.recompute_blocks and torch.is_grad_enabled():
                contexts = partial(_contexts_of, block)
                x = checkpoint(block, x, valid_BT, use_reentrant=False, context_fn=contexts)
            else:
                x = block(x, valid_BT)
            if dropped:
                x = _LeftOut.apply(before, x)
            yield self.final_norm(x) if i == depth and self.final_norm is not None else x


class _LeftOut(torch.autograd.Function):
    """The first of two tensors of one shape, and zeros as the gradient of the second."""

    @staticmethod
    def forward(ctx: Any, kept: Tensor, left_out: Tensor) -> Tensor:
        return kept.view_as(kept)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = gradients
        return gradient, torch.zeros_like(gradient)


def _contexts_of(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """In which a block runs, and in which it runs again for its gradient."""
    return nullcontext(), _StatisticsStay(block)


class _StatisticsStay(AbstractContextManager[None]):
    """Batch norms in training mode update copies of their statistics: those that count have moved already."""

    def __init__(self, block: nn.Module) -> None:
        self.norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.kept: list[tuple[nn.Module, dict[str, Tensor | None]]] = []

    def __enter__(self) -> None:
        self.kept = [(norm, dict(norm._buffers)) for norm in self.norms if norm.training]
        for norm, buffers in self.kept:
            norm._buffers.update({k: None if b is None else b.clone() for k, b in buffers.items()})

    def __exit__(self, *error: object) -> None:
        for norm, buffers in self.kept:
            norm._buffers.update(buffers)


def _prepended(prompts_PD: Tensor, x_BTD: Tensor, valid_BT: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if valid_BT is not None:
        valid_BT = F.pad(valid_BT, (len(prompts_PD), 0), value=True)
    return torch.cat([prompts_PD.to(x_BTD.dtype).expand(len(x_BTD), -1, -1), x_BTD], dim=1), valid_BT
