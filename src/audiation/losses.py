"""What a step of training is given to go down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Loss:
    """sum: scalar with gradient; count: how many terms it sums; parts: named means of these terms for the log, as
    numbers or scalar tensors (for which the host does not wait), or as a `(2,)` tensor of a sum and its own count."""

    sum: Tensor
    count: Tensor
    parts: Mapping[str, float | Tensor] = field(default_factory=dict)

    @property
    def mean(self) -> Tensor:
        return self.sum / self.count.clamp(min=1)


ComputeLoss = Callable[[nn.Module, Any, torch.Generator], Loss]
"""`(module, micro_batch, generator) -> Loss`."""
