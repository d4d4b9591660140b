"""SSF: scale and shift the output of frozen linear maps (Lian et al. 2022; PETL paper, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from audiation.backbones import Backbone
from audiation.backbones.encoder import Encoder, Linear
from audiation.methods.base import ALL, METHODS, sockets_of, with_roles


@METHODS.register("ssf")
@dataclass(frozen=True)
class SSF:
    """A scale and a shift per output of the linear maps; starts near the identity, can be merged.

    init_std: deviation of the initial scale around 1 and of the shift around 0, so it is not exactly an identity.
    roles: linear maps that get them, joined by "+": query, key, value, output, ffn_up, ffn_down, pointwise. "all".
    shift_without_bias: a shift also for maps without bias (the conformer's pointwise convolutions). The published
        code gives those a scale only; with a shift they cannot be merged.
    """

    trains_backbone: ClassVar[bool] = True
    trains_stem: ClassVar[bool] = False

    init_std: float = 0.02
    roles: str = ALL
    shift_without_bias: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.init_std < float("inf"):
            raise ValueError(f"ssf: init_std must be a finite number >= 0, got {self.init_std}")

    def inject(self, backbone: Backbone, generator: torch.Generator) -> None:
        linears = self._linears(sockets_of(backbone, "ssf"))
        if not linears:
            raise ValueError(f"ssf: roles={self.roles} leaves no linear map to adapt")
        changes = [
            ScaleAndShift(
                linear, self.init_std, linear.bias is not None or self.shift_without_bias, generator
            )
            for linear in linears
        ]
        for linear, change in zip(linears, changes, strict=True):
            linear.adaptation = change

    def merge(self, encoder: Encoder) -> None:
        linears = self._linears(encoder)
        for linear in linears:
            change = linear.adaptation
            assert isinstance(change, ScaleAndShift)
            if change.shift is not None and linear.bias is None:
                raise ValueError("ssf: a shift cannot be merged into a map without bias (shift_without_bias)")
        for linear in linears:
            change = linear.adaptation
            assert isinstance(change, ScaleAndShift)
            linear.weight.mul_(change.scale[:, None])
            if linear.bias is not None:
                assert change.shift is not None
                linear.bias.mul_(change.scale).add_(change.shift)
            linear.adaptation = None

    def _linears(self, encoder: Encoder) -> list[Linear]:
        every = encoder.blocks[0].linears()  # type: ignore[operator]
        pairs = with_roles(encoder, self.roles, every, "linears", "ssf: roles")
        return [linear for block, role in pairs for linear in block.linears()[role]]


class ScaleAndShift(nn.Module):
    """`scale y + shift` per output; `shift` may be None. Drawn from N(1, std^2) and N(0, std^2)."""

    def __init__(self, linear: nn.Linear, std: float, with_shift: bool, generator: torch.Generator) -> None:
        super().__init__()
        device = linear.weight.device
        scale = torch.empty(linear.out_features).normal_(1.0, std, generator=generator)
        self.scale = nn.Parameter(scale.to(device))
        self.shift: nn.Parameter | None = None
        if with_shift:
            shift = torch.empty(linear.out_features).normal_(0.0, std, generator=generator)
            self.shift = nn.Parameter(shift.to(device))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scale = self.scale.to(y.dtype)
        return y * scale if self.shift is None else torch.addcmul(self.shift.to(y.dtype), y, scale)
