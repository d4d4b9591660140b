"""Validation scores, and what follows from them: the best state, the plateau schedule, early stopping."""

from __future__ import annotations

from dataclasses import dataclass

from audiation.training_config import TrainConfig


@dataclass(frozen=True)
class Validation:
    """score: higher is better. step: number of optimiser steps done by then."""

    step: int
    score: float


class Selection:
    """The validations of a run. It follows from them alone, so a resumed run adds them again.

    best: the first of the highest scores. num_reductions: of the learning rate, by the plateau schedule.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.validations: list[Validation] = []
        self.best: Validation | None = None
        self.num_reductions = 0
        self._since_best = self._since_reduction = 0

    def add(self, validation: Validation) -> bool:
        """Whether it is the best so far."""
        self.validations.append(validation)
        if self.best is None or validation.score > self.best.score:
            self.best, self._since_best, self._since_reduction = validation, 0, 0
            return True
        self._since_best += 1
        self._since_reduction += 1
        if self.config.schedule == "plateau" and self._since_reduction == self.config.plateau_patience:
            self.num_reductions, self._since_reduction = self.num_reductions + 1, 0
        return False

    @property
    def out_of_patience(self) -> bool:
        return self.config.patience is not None and self._since_best >= self.config.patience
