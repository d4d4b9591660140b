"""Probing: the backbone stays as it is."""

from __future__ import annotations

from dataclasses import dataclass

from audiation.backbones.encoder import Encoder
from audiation.methods.base import METHODS


@METHODS.register("probe")
@dataclass(frozen=True)
class Probe:
    """Train nothing in the backbone; only a head on its stored hidden states. Works for every backbone."""

    def inject(self, encoder: Encoder | None) -> None:
        """Nothing to do, so that a backbone without encoder (None) is as good as any."""
