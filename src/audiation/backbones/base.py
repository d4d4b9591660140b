"""The two types everything downstream may know about a model: `Backbone` and `HiddenStates`.

Shape letters: `B` batch, `S` samples, `T` frames, `D` model width, `L` blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiation.backbones.encoder import Encoder
from audiation.features import LogMel
from audiation.registry import Registry


@dataclass(frozen=True)
class HiddenStates:
    """What a backbone gives.

    layers: the asked-for subset of 0..L, each `(B, T, D)`; [0] enters block 1, [i] leaves block i.
    valid: `(B, T)` bool, False where a frame lies on padding, and at learned positions that are not to be pooled.
    frame_rate_hz: frames per second, or None when the clip is one vector (T = 1).
    first_frame_seconds: time of the centre of frame 0 within the clip.
    num_prompts: leading learned positions still in the stream, part of T; heads for single frames drop them.
    """

    layers: Mapping[int, Tensor]
    valid: Tensor
    frame_rate_hz: float | None
    first_frame_seconds: float
    num_prompts: int = 0

    @property
    def times_seconds(self) -> Tensor:
        """Centres of the frames, `(T,)` float64. Raises ValueError for clip-level states."""
        if self.frame_rate_hz is None:
            raise ValueError("these hidden states hold one vector per clip, which has no frame times")
        frames = torch.arange(self.valid.shape[1] - self.num_prompts, dtype=torch.float64)
        return self.first_frame_seconds + frames / self.frame_rate_hz

    def mean(self) -> HiddenStates:
        """Average over the valid frames: each layer becomes `(B, 1, D)`."""
        weight = self.valid.unsqueeze(-1)
        count = weight.sum(1, keepdim=True).clamp(min=1)
        pooled = {}
        if bool(self.valid.all()):  # no copy
            pooled = {i: x.mean(1, keepdim=True, dtype=torch.float32) for i, x in self.layers.items()}
            return HiddenStates(pooled, self.valid[:, :1], None, 0.0)
        for i, x in self.layers.items():
            summed = x.masked_fill(~weight, 0).sum(1, keepdim=True, dtype=torch.float32)
            pooled[i] = summed / count
        valid = self.valid.any(1, keepdim=True)
        return HiddenStates(pooled, valid, None, 0.0, 0)


Normalisation = Literal["none", "clip-peak", "clip-unit-variance", "corpus-statistics", "file-peak"]


@dataclass(frozen=True)
class LocalStem:
    """A stem whose frames see only their surroundings, so that its output for a clip can be cropped.

    step_samples: crops must begin at multiples of it, which is where frames of clip and crop coincide.
    edge_frames: so many frames at either end of a crop see its end, and are not those of the clip.
    """

    step_samples: int
    edge_frames: int


class OfficialModule(NamedTuple):
    """Where a linear map is in the published implementation.

    path: dotted, from the root of the published model.
    is_convolution: it is a convolution over one frame there, with weights `(out, in, 1)`.
    """

    path: str
    is_convolution: bool = False


class Backbone(nn.Module):
    """Base of every backbone. Subclasses set the attributes, and either implement `project` or override `forward`.

    Attributes:
        name: registry name.
        sample_rate_hz: the rate `forward` expects; wrong rates are refused where files are read.
        frame_rate_hz: output frames per second, None for one vector per clip.
        hop_samples: samples between output frames, None for one vector per clip.
        num_layers: L; layers 0..L exist.
        dim: D.
        min_samples: shortest input.
        max_seconds: length the model was trained for; longer audio is cut into chunks of this length.
            None: any length at once.
        normalisation: what `forward` does to the level of its input, stored with features.
        hears_samples: what lies behind so many samples of a clip is never looked at; None: everything is.
        mixes_batch: True: what `forward` gives for a clip depends on the other clips of its batch.
        accepts_padding: False: `forward` refuses unequal lengths in a batch (group norm, whole-clip statistics).
        first_frame_seconds: centre of frame 0.
        stem: waveform -> projected frames, or None.
        local_stem: how the stem's output may be cropped; None where every frame sees the whole clip.
        encoder: the blocks with their sockets, or None (then no PETL).
        adapted_with: the method that was injected, or None.
        unused_parameters: parameters that the published model counts, in the blocks that are here and their
            surroundings, but no forward pass reads; they are not registered.
        weights_hash: identifies the weights (a version string where there are none); stored with features.
        convention: how clips are cut and normalised, one of `conventions`, which its spec has too.
        precision: "fp32" or "bf16", what `forward` computes in; stored with features.
        arithmetic: what the device multiplies in; float32 for bf16 where it has no such instructions.
    """

    name: str
    sample_rate_hz: int
    frame_rate_hz: float | None
    hop_samples: int | None
    num_layers: int
    dim: int
    min_samples: int
    max_seconds: float | None
    normalisation: Normalisation
    accepts_padding: bool
    hears_samples: int | None = None
    mixes_batch: bool = False
    first_frame_seconds: float = 0.0
    stem: nn.Module | None
    local_stem: LocalStem | None = None
    encoder: Encoder | None
    adapted_with: Any = None
    unused_parameters: int = 0
    weights_hash: str = "none"
    weights_source: str = "none needed"
    convention: str = "default"
    conventions: tuple[str, ...] = ("default",)
    precision: str = "fp32"
    arithmetic: str = "fp32"

    def __init__(self) -> None:
        super().__init__()
        self.stem = self.encoder = None  # on the instance: a class attribute would hide the submodule

    def forward(
        self,
        waveform: Tensor,
        num_samples: Tensor | None = None,
        layers: Iterable[int] | None = None,
        last_layer: int | None = None,
        reduce: Literal["mean"] | None = None,
    ) -> HiddenStates:
        """Hidden states of a batch of clips.

        Args:
            waveform: `(B, S)` float32 mono at `sample_rate_hz`.
            num_samples: `(B,)` true lengths when clips are right-padded; None: all of length S.
            layers: which of 0..L to return; None: all up to `last_layer`.
            last_layer: stop after this block (default: the last one asked for, else L).
            reduce: "mean" averages over valid frames while running, so that frames are never all kept.

        Raises:
            ValueError: wrong shape or dtype, too short, unequal lengths where padding is not accepted,
                a layer that does not exist.
        """
        lengths = self.check_input(waveform, num_samples)
        wanted, stop = self.resolve_layers(layers, last_layer)
        projected_BTD = self.project(waveform, lengths)
        frames = torch.tensor([self.num_frames(n) for n in lengths.tolist()], device=waveform.device)
        valid_BT = torch.arange(projected_BTD.shape[1], device=waveform.device) < frames[:, None]
        return self._encode(projected_BTD, valid_BT, wanted, stop, reduce)

    def project(self, waveform: Tensor, num_samples: Tensor | None = None) -> Tensor:
        """What the stem hands to the encoder: `(B, S)` (and true lengths `(B,)`) -> `(B, T, D)`."""
        raise NotImplementedError

    def encode(
        self,
        projected_BTD: Tensor,
        layers: Iterable[int] | None = None,
        last_layer: int | None = None,
        reduce: Literal["mean"] | None = None,
    ) -> HiddenStates:
        """What `forward` gives, from the output of `project` for clips of equal length.

        Raises:
            ValueError: a layer that does not exist, or a backbone without encoder.
        """
        if self.encoder is None:
            raise ValueError(f"'{self.name}' has no encoder apart from its stem. Call it on a waveform.")
        wanted, stop = self.resolve_layers(layers, last_layer)
        valid_BT = torch.ones(projected_BTD.shape[:2], dtype=torch.bool, device=projected_BTD.device)
        return self._encode(projected_BTD, valid_BT, wanted, stop, reduce)

    def _encode(
        self,
        projected_BTD: Tensor,
        valid_BT: Tensor,
        wanted: set[int],
        stop: int,
        reduce: Literal["mean"] | None,
    ) -> HiddenStates:
        if reduce not in (None, "mean"):
            raise ValueError(f"reduce is 'mean' or None, got {reduce!r}")
        assert self.encoder is not None
        seen = None if bool(valid_BT.all()) else valid_BT
        kept: dict[int, Tensor] = {}
        for index, x_BTD in enumerate(self.encoder.layers(projected_BTD, seen, stop)):
            if index not in wanted:
                continue
            num_prompts = x_BTD.shape[1] - projected_BTD.shape[1]
            pooled = num_prompts > 0 and bool(self.encoder.prompts.pooled)  # type: ignore[union-attr]
            valid = F.pad(valid_BT, (num_prompts, 0), value=pooled) if num_prompts else valid_BT
            states = HiddenStates(
                {index: x_BTD.float()}, valid, self.frame_rate_hz, self.first_frame_seconds, num_prompts
            )
            if reduce == "mean":
                states = states.mean()
            kept.update(states.layers)
        return replace(states, layers=kept)

    def use_convention(self, convention: str) -> None:
        """Cut and normalise clips as another convention does; before the first clip. Backbones that have several
        extend it. Raises ValueError for one that there is not."""
        if convention not in self.conventions:
            raise ValueError(
                f"'{self.name}' has the conventions {', '.join(self.conventions)}, got '{convention}'"
            )
        self.convention = convention

    def num_frames(self, num_samples: int) -> int:
        """Output frames for a clip of `num_samples`."""
        raise NotImplementedError

    def official_module(self, own: str) -> OfficialModule:
        """Where a linear map of the encoder, under its own dotted name, is in the published implementation.

        Raises:
            ValueError: there is none whose modules are known.
        """
        raise ValueError(f"no published implementation of '{self.name}' is known by the names of its modules")

    def check_input(self, waveform: Tensor, num_samples: Tensor | None) -> Tensor:
        """Validate the arguments of `forward`; returns lengths `(B,)`."""
        if waveform.ndim != 2 or not waveform.is_floating_point():
            raise ValueError(
                f"{self.name} takes a float waveform (batch, samples), "
                f"got {tuple(waveform.shape)} {waveform.dtype}"
            )
        batch, total = waveform.shape
        if batch == 0:
            raise ValueError(f"{self.name} got an empty batch")
        if num_samples is None:
            lengths = torch.full((batch,), total, device=waveform.device)
        else:
            lengths = num_samples.to(waveform.device)
            if lengths.shape != (batch,) or int(lengths.max()) > total:
                raise ValueError(f"num_samples must be ({batch},) with values <= {total}")
            if not self.accepts_padding and bool((lengths != total).any()):
                raise ValueError(
                    f"{self.name} cannot be padded: its normalisation runs over the whole clip, so padding would "
                    "change every frame. Give clips of equal length, or one clip at a time."
                )
        shortest = int(lengths.min())
        if shortest < self.min_samples:
            raise ValueError(
                f"{self.name} needs at least {self.min_samples} samples "
                f"({self.min_samples / self.sample_rate_hz:.3f} s), got {shortest}"
            )
        return lengths

    def resolve_layers(self, layers: Iterable[int] | None, last_layer: int | None) -> tuple[set[int], int]:
        """Which layers to return and after which block to stop."""
        for i in [*(layers or []), *([] if last_layer is None else [last_layer])]:
            if not 0 <= i <= self.num_layers:
                raise ValueError(f"{self.name} has layers 0..{self.num_layers}, got {i}")
        wanted = set(layers) if layers is not None else None
        if wanted is not None and not wanted:
            raise ValueError("layers must name at least one layer")
        if wanted is not None and last_layer is not None and max(wanted) > last_layer:
            raise ValueError(
                f"layer {max(wanted)} was asked for, but last_layer={last_layer} stops before it"
            )
        stop = last_layer if last_layer is not None else (max(wanted) if wanted else self.num_layers)
        return (wanted if wanted is not None else set(range(stop + 1))), stop


@runtime_checkable
class SpectrumStem(Protocol):
    """A stem that makes a normalised spectrum on its way, which can be masked before it goes on.

    features: waveform `(B, S)` -> `(B, M, T of the spectrum)` float32. project: that -> `(B, T, D)`.
    """

    mel: LogMel

    def features(self, waveform: Tensor) -> Tensor: ...

    def project(self, mel_BMT: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Pretraining:
    """What the official weights were trained on, before any task of the benchmark.

    data: for people: which music; behind the first semicolon what else is to be said, like where sources disagree.
    datasets: ids of the data sets that it is made of, as `cards.check_datasets` knows them; () where nobody published
        which recordings they are.
    hours: of audio; None: not known.
    """

    data: str
    datasets: tuple[str, ...] = ()
    hours: float | None = None


@dataclass(frozen=True)
class BackboneSpec:
    """A registry entry: how to make a backbone, and what a person should know before using it.

    build: `build(num_layers=None, generator=None) -> Backbone` with fresh weights drawn from the generator.
    from_published: `from_published(tensors, config, num_layers=None) -> Backbone`, tensors under their official
        names; None where there are no weights (hand-crafted).
    weights: where official weights live (`weights.OfficialWeights`), or None.
    conventions: how clips may be cut and normalised: "default" is ours, others are called after the protocol that had
        them.
    has_encoder: whether it has blocks with sockets, so that it takes every method.
    has_blocks: whether it has blocks, of which the first can be kept, although without sockets.
    published_names: systems in the published results that are this representation, as printed there.
    pretraining: of the official weights; None where there are none, or nothing was learnt.
    paper: where the model was published; "" where the notes or nobody says.
    outline: `outline() -> Backbone`, of full size but on the meta device, whose attributes are the model's sizes;
        None: `build()` costs no more.
    """

    name: str
    summary: str
    build: Callable[..., Backbone]
    from_published: Callable[..., Backbone] | None = None
    weights: Any = None
    code_licence: str = "Apache-2.0 (ours)"
    weights_licence: str = "none needed"
    commercial_use: bool = True
    published_parameters: int | None = None
    recommended_layer: int | None = None
    has_encoder: bool = True
    has_blocks: bool = False
    conventions: tuple[str, ...] = ("default",)
    published_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
    pretraining: Pretraining | None = None
    paper: str = ""
    outline: Callable[[], Backbone] | None = None

    @property
    def can_be_cut(self) -> bool:
        """Whether `num_layers` may be less than all."""
        return self.has_encoder or self.has_blocks


def check_one_layer(name: str, num_layers: int | None) -> None:
    """ValueError where a backbone that has layer 0 alone is to be cut."""
    if num_layers not in (None, 0):
        raise ValueError(f"{name} has layer 0 only, so it cannot be cut to num_layers={num_layers}")


BACKBONES: Registry[BackboneSpec] = Registry("backbone", "audiation.backbones")
