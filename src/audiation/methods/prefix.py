"""Prefix tuning: learned keys and values in front (Li & Liang 2021; PETL paper, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from audiation.backbones import Backbone
from audiation.backbones.attention import Attention
from audiation.heads import fresh_linear
from audiation.methods.base import METHODS, sockets_of


@METHODS.register("prefix")
@dataclass(frozen=True)
class Prefix:
    """Learned keys and values in front of the projected ones, from a small network per block.

    num_tokens: P. The paper's table 1 says 32, which its MusicFM count in table 3 fits; its MERT count needs
        `prefix:num_tokens=64` (D36).
    hidden_size: width between the two maps of the network.
    order: which half of the network's output are the keys: no implementation was published that says so.

    Queries and the length of the output stay as they are. Prefix keys carry no position: MusicFM rotates the hidden
    state before the projection that they join behind.
    """

    trains_backbone: ClassVar[bool] = True
    trains_stem: ClassVar[bool] = False

    num_tokens: int = 32
    hidden_size: int = 512
    order: Literal["key-value", "value-key"] = "key-value"

    def __post_init__(self) -> None:
        if min(self.num_tokens, self.hidden_size) < 1:
            raise ValueError(
                f"prefix: num_tokens and hidden_size must be at least 1, got {self.num_tokens} and {self.hidden_size}"
            )
        if self.order not in ("key-value", "value-key"):
            raise ValueError(f"prefix: order is 'key-value' or 'value-key', got {self.order!r}")

    def inject(self, backbone: Backbone, generator: torch.Generator) -> None:
        blocks = sockets_of(backbone, "prefix").blocks
        networks = [PrefixNetwork(backbone.dim, self, generator) for _ in blocks]
        for block, network in zip(blocks, networks, strict=True):
            attention = block.attention
            assert isinstance(attention, Attention)
            attention.prefix = network.to(attention.query.weight.device)


class PrefixNetwork(nn.Module):
    """-> keys and values, each `(P, D)`: `Linear(tanh(Linear(tokens)))`, torch's default initialisation."""

    def __init__(self, dim: int, method: Prefix, generator: torch.Generator) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(method.num_tokens, dim).normal_(generator=generator))
        self.hidden = fresh_linear(dim, method.hidden_size, generator)
        self.output = fresh_linear(method.hidden_size, 2 * dim, generator)
        self.keys_first = method.order == "key-value"

    def forward(self) -> tuple[Tensor, Tensor]:
        first, second = self.output(torch.tanh(self.hidden(self.tokens))).chunk(2, dim=-1)
        return (first, second) if self.keys_first else (second, first)
