"""Full fine-tuning: everything is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from audiation.backbones import Backbone
from audiation.methods.base import METHODS


@METHODS.register("finetune")
@dataclass(frozen=True)
class FineTune:
    """Train every parameter, stem included ("FT" in the PETL paper). Needs no sockets, only parameters.

    The backbone is in train mode: its dropout is active, and batch norms follow the batch.
    """

    trains_backbone: ClassVar[bool] = True
    trains_stem: ClassVar[bool] = True

    def inject(self, backbone: Backbone, generator: torch.Generator) -> None:
        if not any(True for _ in backbone.parameters()):
            raise ValueError(f"'{backbone.name}' has no parameters to fine-tune. Use method 'probe'.")
        backbone.requires_grad_(True)
