"""The choices of a pre-training run beyond those of any training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from audiation.training_config import TrainConfig


@dataclass(frozen=True)
class PretrainConfig(TrainConfig):
    """How a backbone is pre-trained; `TrainConfig` has the rest. There is no validation: the last state is kept.

    schedule: besides those of `TrainConfig`, "linear" falls from learning_rate to min_learning_rate over the steps
        after the warm-up (MERT, HuBERT); "tri-stage" holds learning_rate after the warm-up and falls exponentially to
        min_learning_rate over the last decay_fraction of the steps (data2vec).
    betas, eps: of Adam.
    decoupled_weight_decay: AdamW's form, as in the recipes of MERT, HuBERT and data2vec.
    decay_fraction: of "tri-stage".
    """

    schedule: Literal["constant", "cosine", "plateau", "linear", "tri-stage"] = "constant"  # type: ignore[assignment]
    keep: Literal["best", "last"] = "last"
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    decoupled_weight_decay: bool = True
    decay_fraction: float = 0.07

    schedules: ClassVar[tuple[str, ...]] = ("constant", "cosine", "plateau", "linear", "tri-stage")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas are two numbers from 0 to below 1, got {self.betas}")
        if not 0.0 < self.eps < 1.0:
            raise ValueError(f"eps must be between 0 and 1, got {self.eps}")
        if not 0.0 < self.decay_fraction < 1.0:
            raise ValueError(f"decay_fraction must be between 0 and 1, got {self.decay_fraction}")
        if self.schedule == "tri-stage" and self.min_learning_rate == 0.0:
            raise ValueError("schedule='tri-stage' falls exponentially. Set min_learning_rate above 0.")

    def learning_rate_at(
        self, step: int, base_learning_rate: float | None = None, num_reductions: int = 0
    ) -> float:
        if self.schedule not in ("linear", "tri-stage") or step < self.warmup_steps:
            return super().learning_rate_at(step, base_learning_rate, num_reductions)
        base = self.learning_rate if base_learning_rate is None else base_learning_rate
        floor = self.min_learning_rate * (base / self.learning_rate)
        if self.schedule == "linear":
            fraction = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
            return base + (floor - base) * min(1.0, fraction)
        decay_steps = max(1, round(self.decay_fraction * self.steps))
        fraction = min(1.0, max(0.0, (step - (self.steps - decay_steps)) / decay_steps))
        return base * (floor / base) ** fraction

    def make_adam(self, groups: list[dict[str, object]]) -> torch.optim.Adam:
        kind = torch.optim.AdamW if self.decoupled_weight_decay else torch.optim.Adam
        return kind(groups, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=True)  # type: ignore[arg-type]
