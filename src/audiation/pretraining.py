"""Backbone + objective + corpus -> a pre-trained backbone.

`Pretraining` is the root module: what several processes wrap, what a checkpoint holds. Its forward gives a `Loss`.
"""

from __future__ import annotations

import torch
from torch import nn

from audiation.backbones import Backbone
from audiation.objectives import Objective, PretrainBatch
from audiation.training import Loss


class Pretraining(nn.Module):
    """A backbone and the objective it is trained with, in training mode.

    Everything that is trained requires gradients: the whole backbone, and what the objective trains.
    """

    def __init__(self, backbone: Backbone, objective: Objective) -> None:
        super().__init__()
        self.backbone, self.objective = backbone, objective

    def forward(self, batch: PretrainBatch, generator: torch.Generator) -> Loss:
        return self.objective(self.backbone, batch, generator)

    def after_step(self, step: int) -> None:
        """After optimiser step `step` (the first is 0): what no gradient moves, like the average of a teacher."""
        self.objective.after_step(self.backbone, step)
