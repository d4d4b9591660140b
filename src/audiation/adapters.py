"""Adapters: what training changed in a backbone, and a head, as a directory; and several of them on one trunk.

    adapter.json          which backbone, method, layer, head and target; hashes; notes for people
    adapter.safetensors   the tensors of the backbone that were trained, under its own names; absent for probes
    head.safetensors      the head

A directory is data from strangers: nothing in it is executed, it names no paths, and whatever is wrong with it is an
`AdapterError` that names the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from audiation.adapted import AdaptedModel
from audiation.adapter_files import (
    HEAD,
    RECORD,
    TENSORS,
    AdapterContent,
    AdapterError,
    AdapterRecord,
    adapter_tensors,
    batch_statistics,
    check_adapter_tensors,
    check_place,
    check_sizes,
    content_of,
    read_adapter_record,
    read_content,
    save_adapter,
)
from audiation.backbones import BACKBONES, Backbone
from audiation.loading import check_device, convention_of, load_backbone
from audiation.methods import format_method, inject
from audiation.methods import merge as merge_method
from audiation.registry import UnknownNameError
from audiation.weights import WeightsError
from audiation.windows import window_policy

__all__ = [
    "AdapterBank",
    "AdapterError",
    "AdapterRecord",
    "check_place",
    "load_adapter",
    "read_adapter_record",
    "save_adapter",
]


@torch.inference_mode(mode=False)  # parameters made in inference mode could not be trained, nor folded
def load_adapter(
    directory: str | os.PathLike[str],
    backbone: Backbone | None = None,
    *,
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
    merge: bool = False,
) -> AdaptedModel:
    """The model of which `save_adapter` wrote the directory, in eval mode.

    Args:
        backbone: put the adapter into this plain backbone, in place; where that fails, it stays plain. None: load the
            one that the adapter names.
        weights: of the backbone to load, as in `load_backbone`. None: the official ones, or the random ones that the
            adapter was made on.
        device: of the backbone to load; None: the CPU.
        merge: fold the method into the weights of a copy (`methods.merge`), so that it costs nothing any more.

    Raises:
        AdapterError: no adapter, a damaged or edited one, one of a newer version, or one for another backbone.
        WeightsError: weights that are missing or damaged.
        ValueError: a backbone that is adapted already, arguments that do not go together, or a method that cannot be
            folded.
    """
    directory = Path(directory)
    record = read_adapter_record(directory)
    if backbone is None:
        backbone = _load_trunk(record, directory, weights, device)
    elif weights is not None or device is not None:
        raise ValueError("weights and device are those of the backbone that is given. Leave them away.")
    elif backbone.adapted_with is not None:
        raise ValueError(
            f"{backbone.name} is adapted with '{format_method(backbone.adapted_with)}' already. Give a plain one; "
            "for several adapters on one trunk there is AdapterBank."
        )
    prepared = _prepare(backbone, read_content(directory, record))
    backbone.requires_grad_(False)
    prepared.change.attach(backbone)
    if merge:
        prepared.model.backbone = merge_method(backbone)
    return prepared.model.eval()


# Several adapters on one trunk ------------------------------------------------------------------------------


class AdapterBank:
    """Several adapters on one trunk in memory, of which one is at work.

    To bring in another, the modules and parameters in which they differ change places; no weights are copied, and the
    plain trunk comes back to the bit. The trunk belongs to the bank: it is frozen and in eval mode, and must not be
    injected into, rounded, or moved to another device.

    Args:
        backbone: a plain one.

    Raises:
        ValueError: an adapted backbone.
    """

    def __init__(self, backbone: Backbone) -> None:
        if backbone.adapted_with is not None:
            raise ValueError(
                f"{backbone.name} is adapted with '{format_method(backbone.adapted_with)}'. A bank begins with a "
                "plain backbone: load it again, and add the adapter to the bank."
            )
        self._trunk = backbone.requires_grad_(False).eval()
        self._members: dict[str, _Prepared] = {}
        self._active: str | None = None

    @classmethod
    @torch.inference_mode(mode=False)
    def load(
        cls,
        directories: Mapping[str, str | os.PathLike[str]],
        *,
        weights: str | Path | None = None,
        device: str | torch.device | None = None,
    ) -> AdapterBank:
        """A bank of the adapters in these directories (name -> directory), on the trunk of the first.

        Args:
            weights, device: as in `load_adapter`.

        Raises:
            AdapterError, WeightsError: as `load_adapter`.
            ValueError: no directory, or one that `add` refuses.
        """
        if not directories:
            raise ValueError("name at least one adapter directory")
        first = Path(next(iter(directories.values())))
        bank = cls(_load_trunk(read_adapter_record(first), first, weights, device))
        for name, directory in directories.items():
            bank.add(name, directory)
        return bank

    @property
    def names(self) -> tuple[str, ...]:
        """Of the adapters, in the order in which they were added."""
        return tuple(self._members)

    @property
    def active(self) -> str | None:
        """The adapter at work; None: the trunk is plain."""
        return self._active

    @torch.inference_mode(mode=False)
    def add(self, name: str, source: str | os.PathLike[str] | AdaptedModel) -> None:
        """Take in an adapter: of a directory, or of a model on another copy of this trunk, whose values are copied.

        Which one is at work stays as it is.

        Raises:
            AdapterError: as `load_adapter`.
            ValueError: a name that is taken, a model of this bank, or a method that trains the whole trunk.
        """
        if name in self._members:
            raise ValueError(f"there is an adapter '{name}' in this bank. Remove it, or take another name.")
        if isinstance(source, AdaptedModel) and source.backbone is self._trunk:
            raise ValueError("this model is on the bank's own trunk. Add the directory that it came from.")
        before = self._active
        self._bring(None)
        try:
            prepared = self._prepared(source)
        finally:
            self._bring(before)
        prepared.model.eval().register_forward_pre_hook(lambda model, _: self._check_at_work(name, model))
        self._members[name] = prepared

    @overload
    def use(self, name: str) -> AdaptedModel: ...

    @overload
    def use(self, name: None) -> Backbone: ...

    def use(self, name: str | None) -> AdaptedModel | Backbone:
        """Bring an adapter in and give its model, or give the plain trunk for None; in eval mode.

        A model that was given for another name refuses to run until it is brought in again.

        Raises:
            UnknownNameError: no such adapter.
            ValueError: somebody else changed the trunk meanwhile.
        """
        self._bring(name)
        given = self._trunk if name is None else self._members[name].model
        # Not in vain, because eval() drops all derived weights.
        if any(module.training for module in given.modules()):
            given.eval()
        return given

    def remove(self, name: str) -> None:
        """Forget an adapter; the trunk is plain afterwards if it was at work. UnknownNameError if there is none."""
        self._member(name)
        if self._active == name:
            self._bring(None)
        del self._members[name]

    def _bring(self, name: str | None) -> None:
        wanted = None if name is None else self._member(name)
        if name == self._active:
            return
        if self._active is not None:
            self._members[self._active].change.detach(self._trunk)
            self._active = None
        if wanted is not None:
            wanted.change.attach(self._trunk)
            self._active = name

    def _member(self, name: str) -> _Prepared:
        if name not in self._members:
            known = ", ".join(self._members) or "none yet"
            raise UnknownNameError(f"no adapter '{name}' in this bank. There are: {known}.")
        return self._members[name]

    def _check_at_work(self, name: str, model: nn.Module) -> None:
        if self._active is None or self._members[self._active].model is not model:
            now = "is plain" if self._active is None else f"has '{self._active}'"
            raise ValueError(
                f"adapter '{name}' is not at work: the trunk {now}. Take the model that `bank.use` gives."
            )

    def _prepared(self, source: str | os.PathLike[str] | AdaptedModel) -> _Prepared:
        if isinstance(source, AdaptedModel):
            plain, theirs = batch_statistics(self._trunk), batch_statistics(source.backbone)
            moved = any(
                name in plain and not torch.equal(plain[name].cpu(), t.cpu()) for name, t in theirs.items()
            )
            content = content_of(source, moved)
        else:
            content = read_content(Path(source), read_adapter_record(source))
        if content.record.method.trains_stem:
            raise ValueError(
                f"'{format_method(content.record.method)}' trains the whole trunk, so nothing of it could be shared. "
                "Load it alone, with `audiation.load_adapter`."
            )
        return _prepare(self._trunk, content)


# What a method changes in a trunk ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Slot:
    """An entry of a module's modules, parameters or buffers: in the plain trunk, and in the adapted one."""

    owner: dict[str, Any]
    key: str
    plain: Any
    adapted: Any


@dataclass(frozen=True, eq=False)
class _Change:
    """A trained method as the places in which an adapted trunk differs from the plain one.

    Derived weights (`backbones/derived.py`) notice an exchange by themselves: they know what they came from by address
    and version, and all that may be exchanged is alive. What is new may get the address of what was removed, but is
    injected first, which drops them.
    """

    method: Any
    slots: tuple[_Slot, ...]

    def attach(self, backbone: Backbone) -> None:
        self._check(backbone, None, [slot.plain for slot in self.slots])
        for slot in self.slots:
            slot.owner[slot.key] = slot.adapted
        backbone.adapted_with = self.method

    def detach(self, backbone: Backbone) -> None:
        self._check(backbone, self.method, [slot.adapted for slot in self.slots])
        for slot in self.slots:
            slot.owner[slot.key] = slot.plain
        backbone.adapted_with = None

    def _check(self, backbone: Backbone, method: Any, expected: list[Any]) -> None:
        pairs = zip(self.slots, expected, strict=True)
        if backbone.adapted_with is not method or any(s.owner[s.key] is not value for s, value in pairs):
            raise ValueError(
                f"this {backbone.name} was adapted, rounded or moved by somebody else meanwhile, so adapters cannot "
                "change places in it any more. Make a bank on a plain backbone of its own."
            )


@dataclass(frozen=True, eq=False)
class _Prepared:
    """An adapter that fits a trunk, and is not on it yet."""

    change: _Change
    model: AdaptedModel


def _prepare(backbone: Backbone, content: AdapterContent) -> _Prepared:
    """Raises AdapterError. The backbone is plain before and afterwards."""
    record = content.record
    _check_trunk(backbone, record, content.source)
    try:
        model = AdaptedModel(
            backbone,
            record.target,
            layer=record.layer,
            head=record.head,
            crop_seconds=record.crop_seconds,
            policy=window_policy(record.windows),
        )
        check_adapter_tensors(content.head, dict(model.head.named_parameters()), HEAD)
        model.head.load_state_dict(content.head)
        return _Prepared(_change(backbone, content), model)
    except ValueError as error:
        raise AdapterError(f"cannot use {content.source}: {error}") from error


def _change(backbone: Backbone, content: AdapterContent) -> _Change:
    """Inject, fill, see what is different, and take it out again. ValueError for tensors that do not fit."""
    held = [(owner, dict(owner)) for owner in _owners(backbone)]
    flags = [(parameter, parameter.requires_grad) for parameter in backbone.parameters()]
    plain = {id(value) for _, entries in held for value in entries.values()}
    fresh: dict[int, Tensor] = {}  # by what they stand in for, whose values are still needed
    slots = []
    check_sizes(content)
    try:
        inject(backbone, content.record.method)
        places = adapter_tensors(backbone, content.record.moved_statistics)
        check_adapter_tensors(content.tensors, places, TENSORS)
        for name, place in places.items():
            value = content.tensors[name].to(place.device)
            if id(place) in plain:
                fresh[id(place)] = nn.Parameter(value) if isinstance(place, nn.Parameter) else value
            else:
                with torch.no_grad():
                    place.copy_(value)
        for owner, entries in held:
            assert owner.keys() == entries.keys(), "a method fills places that are there"
            for key, before in entries.items():
                after = fresh.get(id(owner[key]), owner[key])
                if after is not before:
                    slots.append(_Slot(owner, key, before, after))
    finally:
        for owner, entries in held:
            owner.clear()
            owner.update(entries)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        backbone.adapted_with = None
    return _Change(content.record.method, tuple(slots))


def _owners(module: nn.Module) -> Iterator[dict[str, Any]]:
    """Where modules keep what a method may exchange."""
    for part in module.modules():
        yield from (part._parameters, part._buffers, part._modules)


# Which trunk ------------------------------------------------------------------------------------------------


def _load_trunk(
    record: AdapterRecord, directory: Path, weights: str | Path | None, device: str | torch.device | None
) -> Backbone:
    """The plain backbone that a record names."""
    check_device(device or "cpu")
    seed = re.fullmatch(r"random:seed=(-?\d{1,18})", record.weights_source)
    if weights is None and seed is not None:
        weights = "random"
    try:
        by_formula = BACKBONES[record.backbone].from_published is None
        return load_backbone(
            record.backbone,
            weights,
            num_layers=None if by_formula else record.num_layers,
            seed=0 if seed is None else int(seed[1]),
            device=device or "cpu",
            convention=convention_of(record.trunk_hash),
        )
    except WeightsError:
        raise
    except ValueError as error:  # an unknown name is one too
        raise AdapterError(f"cannot load the backbone of {directory / RECORD}: {error}") from error


def _check_trunk(backbone: Backbone, record: AdapterRecord, source: str) -> None:
    """Refuse a backbone that is not the one that was adapted."""
    if record.backbone != backbone.name:
        raise AdapterError(
            f"{source} was made for {record.backbone}, not for {backbone.name}. Load '{record.backbone}'."
        )
    if record.num_layers != backbone.num_layers:
        raise AdapterError(
            f"{source} was made for {backbone.name} with {record.num_layers} layers, this one has "
            f"{backbone.num_layers}. Load it with num_layers={record.num_layers}."
        )
    if record.trunk_hash != backbone.weights_hash:
        raise AdapterError(
            f"{source} was made on other weights of {backbone.name} ({record.weights_source}, hash "
            f"{_shown(record.trunk_hash)}) than these ({backbone.weights_source}, hash "
            f"{_shown(backbone.weights_hash)}). Give those it was made on (weights=..., --weights ...)."
        )


def _shown(weights_hash: str) -> str:
    return f"{weights_hash[:12]}..." if re.fullmatch(r"[0-9a-f]{64}", weights_hash) else weights_hash
