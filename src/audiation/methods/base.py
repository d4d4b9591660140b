"""What a method is, how it is put into a backbone and folded out of it, and its short form on the command line.

Short form: `name:field=value,field=value`.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import torch
from torch import nn

from audiation.backbones import Backbone
from audiation.backbones.attention import Attention
from audiation.backbones.encoder import Block, Encoder
from audiation.choices import parse_choices
from audiation.registry import Registry
from audiation.weights import tensors_hash

FrozenMode = Literal["eval", "published"]
ALL, PAPER, NONE = "all", "paper", "none"  # what a field that names roles may say instead


class Method(Protocol):
    """A frozen dataclass whose fields are the choices of the method; the defaults are those of the PETL paper.

    A method acts through sockets and roles only (`backbones/encoder.py`): it never sees what family a block is of.

    trains_backbone: False where only a head is trained.
    trains_stem: True where the stem is trained too, so that its output cannot be kept.
    """

    trains_backbone: ClassVar[bool]
    trains_stem: ClassVar[bool]

    def inject(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Put what is trained into a frozen backbone, and unfreeze it.

        Raises:
            ValueError: there is no place for it.
        """
        ...


class MergeableMethod(Method, Protocol):
    """A method whose parameters can become part of the weights they stand beside."""

    def merge(self, encoder: Encoder) -> None:
        """Fold, in place, and take the method's own modules out."""
        ...


METHODS: Registry[type[Any]] = Registry("method", "audiation.methods")


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of an adapted backbone. Heads are never counted (PETL paper, table 3).

    trainable: what the method trains.
    added: how many of these the plain backbone does not have.
    registered: parameters of the plain backbone, as it is here.
    published_layout: what the method trains where the backbone is laid out as published. It differs from `trainable`
        for full fine-tuning of a model with parameters that no forward pass reads (MusicFM's positional convolution).
    """

    trainable: int
    added: int
    registered: int
    published_layout: int


@torch.inference_mode(mode=False)  # what is made in inference mode could not be trained
def inject(
    backbone: Backbone, method: Method | str, generator: torch.Generator | None = None
) -> ParameterCount:
    """Freeze a backbone and put a method into it, in place.

    The backbone is in eval mode afterwards, and every parameter that does not belong to the method is frozen.
    `set_modes` says what training does to the frozen part.

    Args:
        method: a method, or its short form, like "lora:rank=4".
        generator: of the initial values; None: one with seed 0.

    Raises:
        UnknownNameError: no such method.
        ValueError: the backbone is adapted already, is rounded to bf16, was made in inference mode, or has no place
            for the method. It is left as it was then.
    """
    method = parse_method(method) if isinstance(method, str) else method
    if backbone.adapted_with is not None:
        raise ValueError(
            f"{backbone.name} is adapted with '{format_method(backbone.adapted_with)}' already. Load it again, or "
            "continue from what `audiation.merge` gives."
        )
    if backbone.precision != "fp32" and method.trains_backbone:
        raise ValueError(
            f"{backbone.name} has been rounded to {backbone.precision}; adapt it in fp32 and train with "
            'precision="bf16" (autocast), or merge before rounding'
        )
    if method.trains_backbone and any(p.is_inference() for p in backbone.parameters()):
        raise ValueError(
            f"{backbone.name} was made in inference mode, and nothing in it can be trained. Load it outside of "
            "`torch.inference_mode()`."
        )
    before = {name: p.requires_grad for name, p in backbone.named_parameters()}
    registered = sum(p.numel() for p in backbone.parameters())
    backbone.requires_grad_(False)
    try:
        method.inject(backbone, generator or torch.Generator().manual_seed(0))
    except BaseException:
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(before.get(name, False))
        raise
    trained = {name: p.numel() for name, p in backbone.named_parameters() if p.requires_grad}
    assert bool(trained) == method.trains_backbone, f"{method} trains {len(trained)} tensors"
    backbone.adapted_with = method
    backbone.eval()  # also drops derived weights
    trainable = sum(trained.values())
    return ParameterCount(
        trainable=trainable,
        added=sum(count for name, count in trained.items() if name not in before),
        registered=registered,
        published_layout=trainable + (backbone.unused_parameters if method.trains_stem else 0),
    )


@torch.inference_mode(mode=False)  # as in `inject`: the copy may be adapted again
def merge(backbone: Backbone) -> Backbone:
    """A copy of an adapted backbone with the method folded into its weights: same outputs, same operations, and
    the names and shapes of the plain backbone.

    The copy is a plain backbone in eval mode, with a weights hash of its own. The original keeps its method.

    Raises:
        ValueError: not adapted, with a method that cannot be folded, or rounded to bf16.
    """
    method = backbone.adapted_with
    if method is None:
        raise ValueError(f"{backbone.name} is not adapted, so there is nothing to merge")
    if not hasattr(method, "merge"):
        able = ", ".join(name for name in METHODS if hasattr(METHODS[name], "merge"))
        raise ValueError(
            f"'{format_method(method)}' cannot be folded into the weights. Methods that can: {able}."
        )
    if backbone.precision != "fp32":
        raise ValueError(
            f"{backbone.name} has been rounded to {backbone.precision}, and folding would round the weights once more. "
            "Merge first, then round."
        )
    merged = copy.deepcopy(backbone)
    assert merged.encoder is not None
    with torch.no_grad():
        method.merge(merged.encoder)
    merged.adapted_with = None
    merged.requires_grad_(True).eval()
    merged.weights_hash = tensors_hash(merged.state_dict())
    merged.weights_source = f"{backbone.weights_source} + {format_method(method)}"
    return merged


def set_modes(backbone: Backbone, frozen_mode: FrozenMode = "eval", dropout: bool | None = None) -> None:
    """Bring an adapted backbone into the mode in which it is trained. No method's own modules have modes.

    frozen_mode: "eval": what is frozen stays as it is: no dropout, batch norms keep their statistics.
        "published": train mode, as in the code of the PETL paper: dropout is active and the statistics of frozen
        batch norms move. A backbone that is trained as a whole is in train mode either way.
    dropout: None: as the mode has it; else whether the backbone's dropout is active.
    """
    if frozen_mode not in typing.get_args(FrozenMode):
        raise ValueError(f"frozen_mode is 'eval' or 'published', got {frozen_mode!r}")
    method = backbone.adapted_with
    backbone.train(frozen_mode == "published" or (method is not None and method.trains_stem))
    if dropout is not None:
        for module in backbone.modules():
            if isinstance(module, (nn.Dropout, Attention)):
                module.training = dropout


# For methods ---------------------------------------------------------------------------------------------


def sockets_of(backbone: Backbone, method: str) -> Encoder:
    """The encoder of a backbone that can be adapted. ValueError where there is none."""
    if backbone.encoder is None:
        from audiation.backbones import BACKBONES

        able = ", ".join(name for name in BACKBONES if BACKBONES[name].has_encoder)
        raise ValueError(
            f"'{backbone.name}' has no encoder to adapt with '{method}'. Use method 'probe', or a backbone "
            f"from: {able}."
        )
    return backbone.encoder


T = TypeVar("T")


def with_roles(
    encoder: Encoder, roles: str, default: Iterable[str], what: str, of: str
) -> Iterator[tuple[Block, str]]:
    """Pairs (block, role) for the roles that a field of a method names.

    roles: names joined by "+"; "all" that the blocks have; "paper" for `default` (of which a block family may lack
        some); or "none".
    what: "linears", "norms" or "sockets": which vocabulary of the blocks.
    of: the method and field, for messages.

    Raises:
        ValueError: a role that no block has, or that is named twice.
    """
    named = [] if roles in (ALL, PAPER, NONE) else [role.strip() for role in roles.split("+")]
    known = list(dict.fromkeys(role for block in encoder.blocks for role in _vocabulary(block, what)))  # type: ignore[arg-type]
    chosen = {ALL: known, PAPER: list(default), NONE: []}.get(roles, named)
    for role in named:
        if named.count(role) > 1:
            raise ValueError(f"{of}: '{role}' is named twice in {roles}")
        if role not in known:
            near = difflib.get_close_matches(role, known, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(
                f"{of}: these blocks have no {what} '{role}'.{hint} There are: {', '.join(sorted(known))}."
            )
    for block in encoder.blocks:
        assert isinstance(block, Block)
        for role in chosen:
            if role in _vocabulary(block, what):
                yield block, role


def _vocabulary(block: Block, what: str) -> Iterable[str]:
    if what == "sockets":
        return dict.fromkeys(name.removeprefix("after_").rstrip("0123456789") for name in block.sockets)
    return block.linears() if what == "linears" else block.norms()


# Short form ----------------------------------------------------------------------------------------------


def format_method(method: Any) -> str:
    """The short form that `parse_method` reads; fields at their defaults are left out."""
    name = next(name for name in METHODS if METHODS[name] is type(method))
    fields = (f for f in dataclasses.fields(method) if getattr(method, f.name) != f.default)
    choices = ",".join(f"{f.name}={_text(getattr(method, f.name))}" for f in fields)
    return f"{name}:{choices}" if choices else name


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse_method(text: str) -> Any:
    """'lora:rank=2,alpha=8' -> the method with these fields; fields that are not named keep their defaults.

    Raises:
        UnknownNameError: no method has that name.
        ValueError: a field the method does not have, one named twice, or a value of another type.
    """
    name, _, choices = text.strip().partition(":")
    method = METHODS[name.strip()]
    return method(**parse_choices(method, choices, f"method '{name}'"))
