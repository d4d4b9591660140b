"""LoRA: low-rank updates of frozen linear maps (Hu et al. 2022; PETL paper, section 3.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiation.backbones import Backbone
from audiation.backbones.encoder import Encoder, Linear
from audiation.methods.base import ALL, METHODS, sockets_of, with_roles


@METHODS.register("lora")
@dataclass(frozen=True)
class LoRA:
    """Low-rank updates `W x + scale B (A x)` of the linear maps; identity at the start, can be merged.

    `A` `(rank, in)` and `B` `(out, rank)` are named as in the LoRA paper. The PETL paper writes `W + A B` and means
    the same with the letters changed over: its `A` is our `B`, its `B` our `A`.

    rank: r.
    scale: what the update is multiplied with: 1, as in the PETL code, and not `alpha / r`.
    roles: linear maps that get one, joined by "+": query, key, value, output, ffn_up, ffn_down, pointwise. "all".
    """

    trains_backbone: ClassVar[bool] = True
    trains_stem: ClassVar[bool] = False

    rank: int = 2
    scale: float = 1.0
    roles: str = ALL

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora: rank must be at least 1, got {self.rank}")
        if not (math.isfinite(self.scale) and self.scale != 0):
            raise ValueError(f"lora: scale must be a finite number other than 0, got {self.scale}")

    def inject(self, backbone: Backbone, generator: torch.Generator) -> None:
        linears = self.linears(sockets_of(backbone, "lora"))
        if not linears:
            raise ValueError(f"lora: roles={self.roles} leaves no linear map to adapt")
        updates = [LowRankUpdate(linear, self.rank, self.scale, generator) for linear in linears]
        for linear, update in zip(linears, updates, strict=True):
            linear.adaptation = update

    def merge(self, encoder: Encoder) -> None:
        for linear in self.linears(encoder):
            update = linear.adaptation
            assert isinstance(update, LowRankUpdate)
            linear.weight.add_(update.B @ update.A, alpha=self.scale)
            linear.adaptation = None

    def linears(self, encoder: Encoder) -> list[Linear]:
        """The linear maps with an update, in order."""
        every = encoder.blocks[0].linears()  # type: ignore[operator]
        pairs = with_roles(encoder, self.roles, every, "linears", "lora: roles")
        return [linear for block, role in pairs for linear in block.linears()[role]]


class LowRankUpdate(nn.Module):
    """`y + scale B (A x)`. `A` `(rank, in)` is Kaiming-uniform (a = sqrt 5), `B` `(out, rank)` zero at the start."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        bound = linear.in_features**-0.5
        start = torch.empty(rank, linear.in_features).uniform_(-bound, bound, generator=generator)
        self.A = nn.Parameter(start.to(linear.weight.device))
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank, device=linear.weight.device))
        self.scale = scale

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        low = F.linear(x, self.A)
        # One pass over y instead of three. Contiguous, because the gradient of a transposed factor is computed by a
        # product with a long and thin result, 30 times slower on a CPU.
        factor = self.B.t().contiguous()
        updated = torch.addmm(y.flatten(0, -2), low.flatten(0, -2), factor, alpha=self.scale)
        return updated.view_as(y)
