"""Prompt tuning: learned positions in front of the sequence (Lester et al. 2021; PETL paper, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from audiation.backbones import Backbone
from audiation.methods.base import METHODS, sockets_of


@METHODS.register("prompt")
@dataclass(frozen=True)
class Prompt:
    """Learned positions in front of what enters the first block; they stay in the stream.

    No code was published for this method, so what the paper's text leaves open is a field.

    num_tokens: P.
    position: where they enter. "after_embedding": behind positional convolution and the norm in front (MERT), so
        that frozen convolution never sees them. "before_embedding": ahead of it. MusicFM's embedding does nothing.
    pooled: whether their positions count in the mean over time. Heads for single frames never see them.
    init_std: deviation of the initial values around 0.

    In MusicFM they take the first rotary positions, shift the audio by P, and reach its first 15 frames per block
    through the convolution over time.
    """

    trains_backbone: ClassVar[bool] = True
    trains_stem: ClassVar[bool] = False

    num_tokens: int = 64
    position: Literal["after_embedding", "before_embedding"] = "after_embedding"
    pooled: bool = False
    init_std: float = 0.02

    def __post_init__(self) -> None:
        if self.num_tokens < 1:
            raise ValueError(f"prompt: num_tokens must be at least 1, got {self.num_tokens}")
        if not 0 <= self.init_std < float("inf"):
            raise ValueError(f"prompt: init_std must be a finite number >= 0, got {self.init_std}")
        if self.position not in ("after_embedding", "before_embedding"):
            raise ValueError(
                f"prompt: position is 'after_embedding' or 'before_embedding', got {self.position!r}"
            )

    def inject(self, backbone: Backbone, generator: torch.Generator) -> None:
        encoder = sockets_of(backbone, "prompt")
        device = next(encoder.parameters()).device
        encoder.prompts = PromptTable(backbone.dim, self, generator).to(device)


class PromptTable(nn.Module):
    """-> `(P, D)` learned positions; `backbones.encoder.Prompts`."""

    def __init__(self, dim: int, method: Prompt, generator: torch.Generator) -> None:
        super().__init__()
        start = torch.empty(method.num_tokens, dim).normal_(0.0, method.init_std, generator=generator)
        self.tokens = nn.Parameter(start)
        self.before_embedding = method.position == "before_embedding"
        self.pooled = method.pooled

    def forward(self) -> Tensor:
        return self.tokens
