"""What an objective is, what it is given, and its short form on the command line: `name:field=value,field=value`.

Shape letters: `B` batch, `S` samples, `T` frames, `D` model width, `K` masked frames, `Q` codebooks, `C` codes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from audiation.backbones import Backbone
from audiation.choices import parse_choices
from audiation.registry import Registry
from audiation.training import Loss


@dataclass(frozen=True)
class PretrainBatch:
    """A micro-batch of crops of equal length, at the backbone's rate.

    waveform: `(B, S)` float32, as it is in the corpus.
    names: of the recordings, for messages.
    targets: name of a teacher -> its stored output for these crops, `(B, Q, N)` int64 codes at the teacher's own rate;
        empty where targets are computed from the waveform.
    """

    waveform: Tensor
    names: tuple[str, ...] = ()
    targets: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> PretrainBatch:
        targets = {name: t.to(device, non_blocking=True) for name, t in self.targets.items()}
        return dataclasses.replace(
            self, waveform=self.waveform.to(device, non_blocking=True), targets=targets
        )


class Objective(nn.Module):
    """Heads, codebooks and teacher of one objective, for one backbone.

    What it holds is saved in every checkpoint of a run: parameters that are trained, and all of its buffers and frozen
    parameters (codebooks, an averaged teacher), which no gradient moves.
    """

    kept_in_checkpoints: ClassVar[bool] = True

    def check_crops(self, crop_seconds: float, sample_rate_hz: int) -> None:
        """Raises ValueError where crops of this length can never be asked about."""

    def prepare(self, backbone: Backbone, crops: Iterable[Tensor]) -> None:
        """Fit what is fitted to the corpus before the first step, like a quantiser; crops are `(B, S)`."""

    def forward(self, backbone: Backbone, batch: PretrainBatch, generator: torch.Generator) -> Loss:
        """Loss of a micro-batch: a sum over its masked frames (count), and means over these for the log (parts), or
        shares of something else (`share_of`), of the same names for every micro-batch. Where nothing is masked, sum and
        count are 0, and so are the means.

        generator: of masks and noise, on the device of the batch.

        Raises:
            ValueError: crops that are too short, or stored targets that are missing or do not fit.
        """
        raise NotImplementedError

    def after_step(self, backbone: Backbone, step: int) -> None:
        """Called on every rank after optimiser step `step` (the first is 0) has changed the parameters."""


class ObjectiveSettings(Protocol):
    """A frozen dataclass: the choices of an objective; the defaults are those of the published recipe.

    targets: names of the teachers whose output has to be stored beside the corpus.
    """

    @property
    def targets(self) -> tuple[str, ...]: ...

    def build(self, backbone: Backbone, generator: torch.Generator | None = None) -> Objective:
        """The objective for this backbone, with fresh heads drawn from the generator (None: one with seed 0).

        Raises:
            ValueError: a backbone that it cannot train, and why.
        """
        ...


OBJECTIVES: Registry[type[Any]] = Registry("objective", "audiation.objectives")


def parse_objective(text: str) -> ObjectiveSettings:
    """'best_rq:codebook_size=8192' -> the settings; fields that are not named keep their defaults.

    Raises:
        UnknownNameError: no objective has that name.
        ValueError: a field the objective does not have, one named twice, or a value of another type.
    """
    name, _, choices = text.strip().partition(":")
    kind = OBJECTIVES[name.strip()]
    return kind(**parse_choices(kind, choices, f"objective '{name}'"))


def format_objective(settings: ObjectiveSettings) -> str:
    """The short form: the name and the fields that differ from the defaults."""
    name = next(n for n in OBJECTIVES if OBJECTIVES[n] is type(settings))
    given = [
        f"{f.name}={getattr(settings, f.name)}"
        for f in dataclasses.fields(settings)  # type: ignore[arg-type]
        if getattr(settings, f.name) != f.default
    ]
    return name + (":" + ",".join(given) if given else "")


# For objectives --------------------------------------------------------------------------------------------


def encode(backbone: Backbone, projected_BTD: Tensor, layer_drop: float = 0.0) -> Tensor:
    """What leaves the encoder, `(B, T, D)` of the last block, with its final norm where it has one.

    layer_drop: as in `Encoder.layers`.
    """
    if backbone.encoder is None:
        raise ValueError(
            f"'{backbone.name}' has no encoder apart from its stem, so nothing can be masked before it"
        )
    x_BTD = projected_BTD
    for x_BTD in backbone.encoder.layers(projected_BTD, layer_drop=layer_drop):  # noqa: B007
        pass
    return x_BTD


def fresh_linear(num_inputs: int, num_outputs: int, generator: torch.Generator) -> nn.Linear:
    """With torch's default values, drawn from the generator."""
    linear = nn.utils.skip_init(nn.Linear, num_inputs, num_outputs)  # which would draw from the global stream
    bound = num_inputs**-0.5
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return linear


def share_of(chosen: Tensor) -> Tensor:
    """`(...)` bool -> `(2,)`: how many are true, and how many there are. As a part of a loss it is averaged over micro-
    batches by the latter: means over masked frames would count those with many masked frames more."""
    return torch.stack([chosen.sum(), chosen.new_tensor(chosen.numel(), dtype=torch.int64)]).float()


def code_statistics(tokens: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """Of the codes in `(K,)` int64: their perplexity (how many, if all were as frequent), and the share of `num_codes`
    that occurs. Both scalars; 0 without codes."""
    counts = torch.bincount(tokens.reshape(-1), minlength=num_codes).float()
    total = counts.sum()
    p = counts / total.clamp(min=1)
    entropy = -(p * p.clamp(min=torch.finfo(p.dtype).tiny).log()).sum()
    perplexity = torch.where(total > 0, entropy.exp(), torch.zeros_like(entropy))
    return perplexity, (counts > 0).float().mean()
