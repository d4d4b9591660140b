"""Faster weights that follow from a module's own, for inference."""

from __future__ import annotations

import itertools
from typing import Any, Self

import torch
from torch import Tensor, nn


class DerivesWeights(nn.Module):
    """A module that computes with other, faster weights when it only infers (batch norms folded into convolutions).

    The derived weights exist in eval mode only. They are in no state dict, pickle or copy, and are dropped by
    `train()`, `eval()`, `.to()` and its kin, loading, and any change in place of what they came from (seen by
    torch's version counters; only a change through `.data` stays unseen, so call `eval()` after one).

    rounds_to_bf16: bfloat16 by float32 arithmetic. What enters is rounded by `precision.py`; what is derived, and
        what goes from one derived weight to the next, by the subclass, with `rounded`.
    """

    rounds_to_bf16 = False

    _derived: tuple[Tensor, ...] | None = None
    _derived_from: list[tuple[int, int]] | None = None

    def derive(self) -> tuple[Tensor, ...]:
        """The derived weights, from the present values of this module's parameters and buffers."""
        raise NotImplementedError

    def derived(self) -> tuple[Tensor, ...] | None:
        """The derived weights; None where they must not stand in: training, or a gradient to the originals."""
        if any(m.training for m in self.modules()):
            return None
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()):
            return None
        sources = list(itertools.chain(self.parameters(), self.buffers()))
        if any(t.is_inference() for t in sources):  # they have no version counter
            return None
        state = [(t.data_ptr(), t._version) for t in sources]
        if self._derived is None or self._derived_from != state:
            # An inference tensor could not take part in a later call that records gradients to the input.
            with torch.inference_mode(False), torch.no_grad():
                self._derived, self._derived_from = self.derive(), state
        return self._derived

    def rounded(self, tensor: Tensor) -> Tensor:
        """A float32 tensor to the nearest bfloat16 values where bfloat16 is emulated; else as it is."""
        return tensor.bfloat16().to(tensor.dtype) if self.rounds_to_bf16 else tensor

    def drop_derived(self) -> None:
        self._derived = self._derived_from = None

    def train(self, mode: bool = True) -> Self:
        self.drop_derived()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self.drop_derived()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.drop_derived()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_derived", "_derived_from")}


def fold_batch_norm(
    conv: nn.Conv1d | nn.Conv2d, norm: nn.BatchNorm1d | nn.BatchNorm2d
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that equals `norm(conv(x))` with running statistics.

    Folded in the precision of the batch norm, given in that of the convolution.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    weight = conv.weight.to(scale.dtype) * scale.view(-1, *[1] * (conv.weight.ndim - 1))
    offset = -norm.running_mean if conv.bias is None else conv.bias.to(scale.dtype) - norm.running_mean
    return weight.to(conv.weight.dtype), (norm.bias + offset * scale).to(conv.weight.dtype)
