"""Heads: pooled hidden states -> outputs of a task.

Shape letters: `D` model width, `C` outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ProbeHead(nn.Module):
    """The probe of jukemir: dropout on the input, then a linear map, or a hidden layer with ReLU and dropout.

    `(..., D)` pooled vectors -> `(..., C)` logits (Castellon, Donahue & Liang 2021; their linear probe
    too has dropout on its input).

    Args:
        dim: D.
        num_outputs: C.
        hidden_size: width of the one hidden layer; None: linear.
        dropout: probability of setting a value to zero while training.
        input_dropout: whether the input is dropped as well.
        generator: source of the initial weights (those of `nn.Linear`: uniform in 1 / sqrt(inputs)). None:
            torch's global stream.
    """

    def __init__(
        self,
        dim: int,
        num_outputs: int,
        hidden_size: int | None = None,
        dropout: float = 0.0,
        input_dropout: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout is a probability in [0, 1), got {dropout}")
        if min(dim, num_outputs, 1 if hidden_size is None else hidden_size) < 1:
            raise ValueError(f"sizes must be positive, got {dim} -> {hidden_size} -> {num_outputs}")
        self.dim, self.num_outputs, self.dropout, self.input_dropout = (
            dim,
            num_outputs,
            dropout,
            input_dropout,
        )
        self.hidden = None if hidden_size is None else fresh_linear(dim, hidden_size, generator)
        self.output = fresh_linear(dim if hidden_size is None else hidden_size, num_outputs, generator)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """`(..., D)` -> `(..., C)`. `generator` draws the dropout masks in training (None: global stream)."""
        if self.input_dropout:
            x = self._drop(x, generator)
        if self.hidden is not None:
            x = self._drop(torch.relu(self.hidden(x)), generator)
        return self.output(x)

    def _drop(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        # F.dropout cannot take a generator, and a run must not depend on who else uses the global stream.
        if not self.training or self.dropout == 0.0:
            return x
        uniform = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return x * uniform.ge_(self.dropout).mul_(1.0 / (1.0 - self.dropout))


def fresh_linear(num_inputs: int, num_outputs: int, generator: torch.Generator | None) -> nn.Linear:
    """A linear map with torch's default initialisation, drawn from `generator` (None: torch's global stream)."""
    layer: nn.Linear = torch.nn.utils.skip_init(nn.Linear, num_inputs, num_outputs)
    bound = num_inputs**-0.5
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer
