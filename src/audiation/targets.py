"""Annotation <-> training tensor, and the loss: one class per output space.

A `Target` owns encode, loss and decode, so that a label map exists in one place and nobody applies a softmax
twice. `decode(encode(a)) == a` is a property every target is tested for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from audiation.annotations import Key, Label
from audiation.training import Loss


@dataclass(frozen=True)
class FrameGrid:
    """Where output frames lie in time: frame `t` is centred on `first_frame_seconds + t / frame_rate_hz`."""

    num_frames: int
    frame_rate_hz: float
    first_frame_seconds: float


@dataclass(frozen=True)
class ClipContext:
    """What decoding may need beside the logits."""

    grid: FrameGrid | None = None


class Target(Protocol):
    """Output space of a task: `num_outputs` logits, per clip or per frame."""

    @property
    def num_outputs(self) -> int: ...

    @property
    def per_frame(self) -> bool: ...

    def encode(self, annotation: Any, grid: FrameGrid | None = None) -> Tensor: ...

    def loss(self, logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Loss: ...

    def decode(self, logits: Tensor, context: ClipContext | None = None) -> Any: ...


def _cross_entropy(logits: Tensor, targets: Tensor, valid: Tensor | None) -> Loss:
    """Summed cross-entropy of `(B, C)` logits and `(B,)` classes over the valid clips `(B,)`."""
    losses = F.cross_entropy(logits, targets, reduction="none")
    keep = torch.ones_like(losses, dtype=torch.bool) if valid is None else valid
    return Loss(losses[keep].sum(), keep.sum())


@dataclass(frozen=True)
class ClassTarget:
    """One label out of a closed list, per clip."""

    classes: tuple[str, ...]
    per_frame = False

    @property
    def num_outputs(self) -> int:
        return len(self.classes)

    def encode(self, annotation: Label, grid: FrameGrid | None = None) -> Tensor:
        """-> int64 scalar tensor; ValueError for a label outside the list."""
        if annotation.name not in self.classes:
            raise ValueError(f"label '{annotation.name}' is not one of {', '.join(self.classes)}")
        return torch.tensor(self.classes.index(annotation.name))

    def loss(self, logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Loss:
        return _cross_entropy(logits, targets, valid)

    def decode(self, logits: Tensor, context: ClipContext | None = None) -> Label:
        """`(C,)` logits -> Label. A tie goes to the first class in the list."""
        return Label(self.classes[int(logits.argmax())])


@dataclass(frozen=True)
class KeyTarget:
    """24 keys per clip: major on C, Db, ..., B, then minor (benchmark: MIREX key label space)."""

    num_outputs = 24
    per_frame = False

    def encode(self, annotation: Key, grid: FrameGrid | None = None) -> Tensor:
        return torch.tensor(annotation.index)

    def loss(self, logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Loss:
        return _cross_entropy(logits, targets, valid)

    def decode(self, logits: Tensor, context: ClipContext | None = None) -> Key:
        return Key.from_index(int(logits.argmax()))
