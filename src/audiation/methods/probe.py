"""Probing: the backbone stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from audiation.backbones import Backbone
from audiation.methods.base import METHODS


@METHODS.register("probe")
@dataclass(frozen=True)
class Probe:
    """Train nothing in the backbone; only a head on its hidden states. Works for every backbone."""

    trains_backbone: ClassVar[bool] = False
    trains_stem: ClassVar[bool] = False

    def inject(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Nothing to do, so that a backbone without encoder is as good as any."""
