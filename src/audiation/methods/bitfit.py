"""BitFit: train the biases (Ben Zaken et al. 2022; PETL paper, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from audiation.backbones import Backbone
from audiation.backbones.encoder import Encoder
from audiation.methods.base import ALL, METHODS, PAPER, sockets_of, with_roles


@METHODS.register("bitfit")
@dataclass(frozen=True)
class BitFit:
    """Train the biases of the blocks, and nothing else; nothing is added, so merging only takes the label off.

    roles: linear maps whose biases are trained, joined by "+". "all": all that have one; "none".
    norms: norms whose biases are trained. "paper": all but the layer norm of the conformer's convolution module,
        with its batch norm: what the count of table 3 needs and the code does. (The paper's text speaks of layer
        norms; for these alone, norms=attention+ffn+final.) "all"; "none".
    """

    trains_backbone: ClassVar[bool] = True
    trains_stem: ClassVar[bool] = False

    roles: str = ALL
    norms: str = PAPER

    def inject(self, backbone: Backbone, generator: torch.Generator) -> None:
        encoder = sockets_of(backbone, "bitfit")
        every = encoder.blocks[0].linears()  # type: ignore[operator]
        modules: list[nn.Module] = []
        for block, role in with_roles(encoder, self.roles, every, "linears", "bitfit: roles"):
            biased = [linear for linear in block.linears()[role] if linear.bias is not None]
            if not biased and self.roles not in (ALL, PAPER):
                raise ValueError(f"bitfit: roles: the linear maps '{role}' have no bias here")
            modules += biased
        default = ("attention", "ffn", "final", "conv_batch")
        for block, role in with_roles(encoder, self.norms, default, "norms", "bitfit: norms"):
            modules += block.norms()[role]
        if not modules:
            raise ValueError(f"bitfit: roles={self.roles} and norms={self.norms} leave no bias to train")
        for module in modules:
            bias = module.bias
            assert isinstance(bias, nn.Parameter)
            bias.requires_grad_(True)

    def merge(self, encoder: Encoder) -> None:
        """The biases are where they belong already."""
