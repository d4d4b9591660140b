"""Adapter: small bottleneck networks on the stream (Houlsby et al. 2019; PETL paper, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiation.backbones import Backbone
from audiation.heads import fresh_linear
from audiation.methods.base import METHODS, PAPER, sockets_of, with_roles


@METHODS.register("adapter")
@dataclass(frozen=True)
class Adapter:
    """Bottleneck networks `x + Up(GELU(Down(x)))` after attention and feed-forward modules; identity at the start.

    bottleneck: width between the two maps.
    sockets: roles of the modules after which they stand, joined by "+". "paper": attention and every feed-forward
        module (3 per conformer block, none after its convolution; 2 per transformer block, before the norms); "all".
    norms: roles of the block's norms that are trained as well, weight and bias. "paper": all but those of the
        convolution module; "all"; "none".
    """

    trains_backbone: ClassVar[bool] = True
    trains_stem: ClassVar[bool] = False

    bottleneck: int = 16
    sockets: str = PAPER
    norms: str = PAPER

    def __post_init__(self) -> None:
        if self.bottleneck < 1:
            raise ValueError(f"adapter: bottleneck must be at least 1, got {self.bottleneck}")

    def inject(self, backbone: Backbone, generator: torch.Generator) -> None:
        encoder = sockets_of(backbone, "adapter")
        places = [
            (block, name)
            for block, role in with_roles(
                encoder, self.sockets, ("attention", "ffn"), "sockets", "adapter: sockets"
            )
            for name in block.sockets_after(role)
        ]
        norms = [
            norm
            for block, role in with_roles(
                encoder, self.norms, ("attention", "ffn", "final"), "norms", "adapter: norms"
            )
            for norm in block.norms()[role]
        ]
        if not places:
            raise ValueError(f"adapter: sockets={self.sockets} leaves no place for an adapter")
        adapters = [
            Bottleneck(backbone.dim, self.bottleneck, generator).to(next(block.parameters()).device)
            for block, _ in places
        ]
        for (block, name), adapter in zip(places, adapters, strict=True):
            block.sockets[name] = adapter
        for norm in norms:
            norm.requires_grad_(True)


class Bottleneck(nn.Module):
    """`x + Up(GELU(Down(x)))`, `(B, T, D)` -> `(B, T, D)`; Up and both biases are zero at the start."""

    def __init__(self, dim: int, bottleneck: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down = fresh_linear(dim, bottleneck, generator)
        self.up = fresh_linear(bottleneck, dim, generator)
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def forward(self, x_BTD: Tensor) -> Tensor:
        narrow = F.gelu(self.down(x_BTD)).flatten(0, -2)
        # Contiguous as in LowRankUpdate. The stream is added apart: autocast would round it inside the product.
        update = torch.addmm(self.up.bias, narrow, self.up.weight.t().contiguous())
        return x_BTD + update.view_as(x_BTD)
