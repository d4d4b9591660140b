"""Loss as a sum with its count, so that ranks and accumulation can be added before dividing."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """sum: scalar with gradient; count: how many terms it sums; parts: named scalars for the log."""

    sum: Tensor
    count: Tensor
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def mean(self) -> Tensor:
        return self.sum / self.count.clamp(min=1)
