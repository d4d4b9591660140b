"""What the small convolutional networks have in common: a fixed spectrum, convolutions, one vector per clip.

They are trained from scratch (method "finetune", protocol "scratch"). Their dense layers are the head of the adapted
model: one hidden layer, dropout, outputs.

Shape letters: `B` batch, `S` samples, `F` frequency bins, `T` frames, `D` width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from audiation.backbones.base import (
    BACKBONES,
    Backbone,
    BackboneSpec,
    HiddenStates,
    Normalisation,
    check_one_layer,
)


class FrontEnd(Protocol):
    """Waveform `(B, S)` -> spectrum `(B, F, T)` float32; a module without parameters."""

    sample_rate_hz: int
    hop_samples: int

    def num_frames(self, num_samples: int) -> int: ...

    def __call__(self, waveform: Tensor) -> Tensor: ...


class ClipCNN(Backbone):
    """Spectrum, convolutions, one vector per clip: layer 0 alone, `(B, 1, D)` float32.

    The vector is what is left of time and frequency behind the last convolution, pooled. Clips of a batch have one
    length, for a shorter one would be pooled with its padding. In training mode batch norms follow the batch.

    Args:
        name: registry name.
        front_end: a module, of which nothing is trained.
        network: `(B, 1, F, T)` -> `(B, D)`.
        dim: D.
        trained_samples: S of the clips it is trained on; longer tracks are cut into windows of these.
        min_frames: fewest frames that the convolutions take.
        normalisation: what is done to the level of the input.
    """

    def __init__(
        self,
        name: str,
        front_end: FrontEnd,
        network: nn.Module,
        *,
        dim: int,
        trained_samples: int,
        min_frames: int,
        normalisation: Normalisation,
    ) -> None:
        super().__init__()
        self.name, self.sample_rate_hz = name, front_end.sample_rate_hz
        self.front_end, self.network = front_end, network
        self.frame_rate_hz = self.hop_samples = None
        self.num_layers, self.dim = 0, dim
        self.min_samples = min_frames * front_end.hop_samples
        self.max_seconds = trained_samples / front_end.sample_rate_hz
        self.normalisation, self.accepts_padding = normalisation, False

    def forward(
        self,
        waveform: Tensor,
        num_samples: Tensor | None = None,
        layers: Iterable[int] | None = None,
        last_layer: int | None = None,
        reduce: Literal["mean"] | None = None,
    ) -> HiddenStates:
        """Layer 0, `(B, 1, D)`; `reduce` changes nothing about one vector. Raises ValueError as every backbone."""
        self.check_input(waveform, num_samples)
        self.resolve_layers(layers, last_layer)
        if reduce not in (None, "mean"):
            raise ValueError(f"reduce is 'mean' or None, got {reduce!r}")
        vector_BD = self.network(self.front_end(waveform).unsqueeze(1))
        valid = torch.ones(len(waveform), 1, dtype=torch.bool, device=waveform.device)
        return HiddenStates({0: vector_BD.float().unsqueeze(1)}, valid, None, 0.0)

    def num_frames(self, num_samples: int) -> int:
        return 1


@torch.inference_mode(mode=False)  # weights made in inference mode could not be trained, nor seen to change
def fresh(make: Callable[[], ClipCNN], generator: torch.Generator | None = None) -> ClipCNN:
    """What `make` gives, with torch's default initialisation drawn from the generator; None: one with seed 0."""
    backbone = _without_values(make)
    generator = generator or torch.Generator().manual_seed(0)
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            for parameter in module.parameters(recurse=False):
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        else:
            assert not list(module.parameters(recurse=False)), f"no rule for the weights of {module}"
    return backbone


def register(name: str, summary: str, make: Callable[[], ClipCNN], notes: tuple[str, ...]) -> None:
    """Add a network to the backbones. There are no weights of it but fresh ones, and those of the user's own file."""

    def build(num_layers: int | None = None, generator: torch.Generator | None = None) -> Backbone:
        check_one_layer(name, num_layers)
        return fresh(make, generator)

    @torch.inference_mode(mode=False)
    def from_published(
        tensors: Mapping[str, Tensor], config: Mapping[str, Any], num_layers: int | None = None
    ) -> Backbone:
        """Tensors under the names of this package (`backbone.state_dict()`): nothing is published in another form."""
        check_one_layer(name, num_layers)
        backbone = _without_values(make)
        backbone.load_state_dict(tensors)
        return backbone

    def outline() -> Backbone:
        with torch.device("meta"):
            return make()

    spec = BackboneSpec(
        name,
        summary,
        build,
        from_published,
        recommended_layer=0,
        has_encoder=False,
        notes=notes,
        outline=outline,
    )
    BACKBONES.add(name, spec)


def _without_values(make: Callable[[], ClipCNN]) -> ClipCNN:
    """A backbone whose parameters have storage but no values yet: no random number is drawn."""
    with torch.device("meta"):
        backbone = make()
    for module in backbone.modules():
        if any(p.is_meta for p in module.parameters(recurse=False)):
            module.to_empty(device="cpu", recurse=False)
    return backbone
