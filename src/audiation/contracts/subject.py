"""The backbone that is asked, and what all contracts need.

Shape letters: `B` batch, `S` samples, `T` frames, `D` model width, `L` blocks.
"""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from audiation.backbones import Backbone, BackboneSpec, HiddenStates
from audiation.backbones.base import Normalisation

CLIP_SECONDS = 0.5
CHECKED_LAYERS = 2  # of models that can be cut: their first blocks, at full width


class ContractError(Exception):
    """A contract does not hold. The message is for the author of the backbone."""


class NotAskedError(Exception):
    """A contract does not apply. The message says why."""


@dataclass(frozen=True, eq=False)
class Subject:
    """The backbone in eval mode, two noisy tones `(2, S)`, and all layers of them."""

    spec: BackboneSpec
    backbone: Backbone
    clips: Tensor
    states: HiddenStates


def build_small(spec: BackboneSpec, seed: int = 0, num_layers: int | None = None) -> Backbone:
    """With fresh weights from the seed, and the first blocks only where it can be cut. Not in eval mode yet."""
    if spec.from_published is None:
        return spec.build()
    generator = torch.Generator().manual_seed(seed)
    if not spec.can_be_cut:
        return spec.build(num_layers=None, generator=generator)
    if num_layers is None:
        whole = spec.outline() if spec.outline is not None else spec.build(generator=torch.Generator())
        num_layers = min(CHECKED_LAYERS, whole.num_layers)
    return spec.build(num_layers=num_layers, generator=generator)


Contract = Callable[[Subject], str | None]
CONTRACTS: dict[str, Contract] = {}


def contract(title: str) -> Callable[[Contract], Contract]:
    def keep(contract: Contract) -> Contract:
        CONTRACTS[title] = contract
        return contract

    return keep


# For contracts -----------------------------------------------------------------------------------------


def require(condition: bool, problem: str) -> None:
    if not condition:
        raise ContractError(problem)


def run(backbone: Backbone, waveform: Tensor, *args: Any, **options: Any) -> HiddenStates:
    """A forward pass on a copy of the waveform, so that writing into it spoils no other contract."""
    with torch.inference_mode():
        return backbone(waveform.clone(), *args, **options)


def differ(ours: Tensor, theirs: Tensor, tolerance: float) -> str:
    """ "" where two tensors agree to `tolerance` of the largest magnitude, else by how much they do not."""
    if ours.shape != theirs.shape:
        return f"shapes {tuple(ours.shape)} and {tuple(theirs.shape)}"
    worst = float((ours - theirs).abs().max())
    scale = max(float(theirs.abs().max()), 1e-12)
    return "" if worst <= tolerance * scale else f"up to {worst:.2g}, where values reach {scale:.2g}"


def refuses(what: str, question: Callable[[], Any]) -> None:
    """ValueError is what users of a model are told; anything else looks like a fault of ours."""
    try:
        question()
    except ValueError:
        return
    except Exception as error:
        raise ContractError(
            f"{what} is refused with {type(error).__name__}, and has to be refused with a ValueError that says what is "
            "allowed. `self.check_input(waveform, num_samples)` and `self.resolve_layers(layers, last_layer)` "
            "at the start of `forward` do that."
        ) from error
    raise ContractError(
        f"{what} is not refused. `self.check_input(waveform, num_samples)` and `self.resolve_layers(layers, "
        "last_layer)` at the start of `forward` do that."
    )


def place(error: BaseException) -> str:
    """The last line of the traceback outside of torch and of contracts, for the author to look at."""
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if f"{os.sep}contracts{os.sep}" not in f.filename and f"{os.sep}torch{os.sep}" not in f.filename
    ]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


# First: can it be built and run? -----------------------------------------------------------------------


def _builds(name: str, spec: BackboneSpec) -> Backbone:
    try:
        backbone = build_small(spec)
    except TypeError as error:
        raise ContractError(
            f"`build` could not be called: {error}{place(error)}. It is `build(num_layers=None, generator=None) -> "
            "Backbone`."
        ) from error
    require(
        isinstance(backbone, Backbone),
        f"`build` gives a {type(backbone).__name__}. Let your class inherit from `audiation.backbones.Backbone`, and "
        "call `super().__init__()` first.",
    )
    backbone.name = name
    return backbone.eval()


_ATTRIBUTES: dict[str, tuple[type, ...]] = {
    "sample_rate_hz": (int,),
    "frame_rate_hz": (int, float, type(None)),
    "hop_samples": (int, type(None)),
    "num_layers": (int,),
    "dim": (int,),
    "min_samples": (int,),
    "max_seconds": (int, float, type(None)),
    "normalisation": (str,),
    "accepts_padding": (bool,),
    "first_frame_seconds": (int, float),
}


def _declares(name: str, spec: BackboneSpec) -> None:
    backbone = _builds(name, spec)
    for attribute, types in _ATTRIBUTES.items():
        require(hasattr(backbone, attribute), f"it has no attribute `{attribute}`; `__init__` has to set it.")
        value = getattr(backbone, attribute)
        kinds = " or ".join("None" if t is type(None) else t.__name__ for t in types)
        wrong = not isinstance(value, types) or (isinstance(value, bool) and bool not in types)
        require(not wrong, f"`{attribute}` is {value!r}; it is {kinds}.")
    for attribute, least in (("sample_rate_hz", 1), ("num_layers", 0), ("dim", 1), ("min_samples", 1)):
        value = getattr(backbone, attribute)
        require(value >= least, f"`{attribute}` is {value}, and has to be at least {least}.")
    allowed = get_args(Normalisation)
    require(
        backbone.normalisation in allowed,
        f"`normalisation` is {backbone.normalisation!r}; it says what `forward` does to the level of its input, one of "
        f"{', '.join(allowed)}.",
    )
    frames, hop = backbone.frame_rate_hz, backbone.hop_samples
    require(
        (frames is None) == (hop is None),
        f"`frame_rate_hz` is {frames} and `hop_samples` is {hop}: both are None (one vector per clip), or neither.",
    )
    if hop is not None and frames is not None:
        expected = backbone.sample_rate_hz / hop
        require(
            math.isclose(frames, expected, rel_tol=1e-9),
            f"`frame_rate_hz` is {frames:g}, but {backbone.sample_rate_hz} Hz / {hop} samples (`hop_samples`) are "
            f"{expected:g} frames per second. Write `self.frame_rate_hz = self.sample_rate_hz / self.hop_samples`.",
        )
    if backbone.max_seconds is not None:
        shortest = backbone.min_samples / backbone.sample_rate_hz
        require(
            backbone.max_seconds >= shortest,
            f"`max_seconds` is {backbone.max_seconds:g}, shorter than `min_samples` ({shortest:.3f} s).",
        )
    require(
        spec.has_encoder == (backbone.encoder is not None),
        f"the BackboneSpec says has_encoder={spec.has_encoder}, but `self.encoder` is "
        f"{'None' if backbone.encoder is None else 'there'}.",
    )


def _runs(name: str, spec: BackboneSpec) -> Subject:
    backbone = _builds(name, spec)
    clips = tones(backbone)
    states = run(backbone, clips)
    require(
        isinstance(states, HiddenStates),
        f"`forward` gives a {type(states).__name__}. It returns `HiddenStates(layers, valid, frame_rate_hz, "
        "first_frame_seconds)`.",
    )
    return Subject(spec, backbone, clips, states)


def tones(backbone: Backbone) -> Tensor:
    """`(2, S)`, at least a few frames."""
    hop = backbone.hop_samples or 0
    num_samples = max(round(CLIP_SECONDS * backbone.sample_rate_hz), backbone.min_samples + 4 * hop)
    generator = np.random.default_rng(0)
    seconds = np.arange(num_samples) / backbone.sample_rate_hz
    waves = [np.sin(2 * np.pi * hz * seconds) + 0.1 * generator.normal(size=num_samples) for hz in (220, 523)]
    return torch.from_numpy(0.3 * np.stack(waves)).float()


OPENINGS: dict[str, Callable[[str, BackboneSpec], Any]] = {
    "it can be built": _builds,
    "it says what it is": _declares,
    "it runs on two clips": _runs,
}
