"""Adapters: what training changed in a backbone, and a head, as a directory; and several of them on one trunk.

    adapter.json          which backbone, method, layer, head and target; hashes; notes for people
    adapter.safetensors   the tensors of the backbone that were trained, under its own names; absent for probes
    head.safetensors      the head

A directory is data from strangers: nothing in it is executed, it names no paths, and whatever is wrong with it is an
`AdapterError` that names the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import safetensors.torch
import torch
from torch import Tensor, nn

from audiation.adapted import AdaptedModel, HeadConfig
from audiation.backbones import BACKBONES, Backbone
from audiation.loading import check_device, load_backbone
from audiation.methods import format_method, inject, parse_method
from audiation.methods import merge as merge_method
from audiation.registry import UnknownNameError
from audiation.targets import Target, target_from_json, target_to_json
from audiation.weights import WeightsError, check_tensors

FORMAT = 1
RECORD, TENSORS, HEAD = "adapter.json", "adapter.safetensors", "head.safetensors"
MAX_RECORD_BYTES = 1 << 20
TRAINING = "training"  # folder in which `audiation adapt` keeps log and checkpoints


class AdapterError(ValueError):
    """An adapter that cannot be written, read, or put on this backbone. Names the file and what to do next."""


@dataclass(frozen=True)
class AdapterRecord:
    """What adapter.json says.

    backbone, num_layers, trunk_hash, weights_source: the plain backbone that was adapted; the hash decides.
    layer: which hidden states the head reads.
    method: as `methods.parse_method` gives it.
    moved_statistics: whether running statistics of batch norms are among the tensors.
    crop_seconds: length of the windows it was trained on; None: whole tracks.
    files: name -> SHA-256.
    info: metrics, data, versions: what JSON can hold.
    """

    backbone: str
    num_layers: int
    trunk_hash: str
    weights_source: str
    layer: int
    method: Any
    moved_statistics: bool
    head: HeadConfig
    target: Target
    crop_seconds: float | None
    files: Mapping[str, str] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)


def save_adapter(
    model: AdaptedModel,
    directory: str | os.PathLike[str],
    *,
    info: Mapping[str, Any] | None = None,
    moved_statistics: bool = False,
) -> Path:
    """Write what was trained, and nothing else, into a directory. An adapter that is there is replaced.

    Killed while it writes, it leaves the old adapter, or one that `load_adapter` refuses.

    Args:
        model: its backbone as `methods.inject` made it; what was trained requires gradients still.
        info: kept for people: anything that JSON can hold.
        moved_statistics: the running statistics of batch norms moved in training (`frozen_mode="published"`) and
            belong to what is written. They always do where the stem is trained.

    Raises:
        AdapterError: nothing is adapted, the plain backbone has no hash, a tensor is not finite, `info` is no JSON,
            or the directory holds something else.
    """
    directory = Path(directory)
    content = _content_of(model, moved_statistics)
    parts = {TENSORS: content.tensors, HEAD: content.head}
    for tensors in parts.values():
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise AdapterError(
                    f"not written to {directory}: '{name}' holds numbers that are not finite. The training went "
                    "wrong; take an earlier state of it."
                )
    files = {name: safetensors.torch.save(dict(tensors)) for name, tensors in parts.items() if tensors}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    record = dataclasses.replace(content.record, files=hashes, info=_as_json(info or {}))
    text = json.dumps(_fields_of(record), indent=1) + "\n"
    if len(text) > MAX_RECORD_BYTES:
        raise AdapterError(f"{RECORD} would have {len(text):,} bytes of {MAX_RECORD_BYTES:,}. Shorten info.")
    check_place(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        _write(directory / name, data)
    _write(directory / RECORD, text.encode())
    if TENSORS not in files:
        (directory / TENSORS).unlink(missing_ok=True)  # of an adapter that is replaced by a probe
    return directory


def check_place(directory: Path) -> None:
    """Refuse a directory in which `save_adapter` would not write. It may hold an adapter, and the log of its training.

    Raises:
        AdapterError: it holds something else, or is no directory.
    """
    if not directory.is_dir():
        if directory.exists() or directory.is_symlink():
            raise AdapterError(f"{directory} is no directory. Name a new one, or an adapter to replace.")
        return
    if _holds_record(directory):
        return
    own = {TRAINING, TENSORS, HEAD} | {f"{name}.part" for name in (RECORD, TENSORS, HEAD)}
    if others := sorted({path.name for path in directory.iterdir()} - own):
        raise AdapterError(
            f"{directory} holds {', '.join(others[:3])}{', ...' if len(others) > 3 else ''} and is no adapter. Name a "
            "new directory, or an adapter to replace."
        )


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
    prepared = _prepare(backbone, _read_content(directory, record))
    backbone.requires_grad_(False)
    prepared.change.attach(backbone)
    if merge:
        prepared.model.backbone = merge_method(backbone)
    return prepared.model.eval()


def read_adapter_record(directory: str | os.PathLike[str]) -> AdapterRecord:
    """Read and check adapter.json; no other file is opened. Raises AdapterError."""
    path = Path(directory) / RECORD
    data = _read(path, MAX_RECORD_BYTES)
    try:
        fields = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise AdapterError(
            f"cannot read {path}: it is damaged, or no JSON ({error}). {_GET_AGAIN}"
        ) from error
    try:
        return _parse(fields)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"cannot use {path}: {error}") from error


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
            plain, theirs = _statistics(self._trunk), _statistics(source.backbone)
            moved = any(
                name in plain and not torch.equal(plain[name].cpu(), t.cpu()) for name, t in theirs.items()
            )
            content = _content_of(source, moved)
        else:
            content = _read_content(Path(source), read_adapter_record(source))
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


def _prepare(backbone: Backbone, content: _Content) -> _Prepared:
    """Raises AdapterError. The backbone is plain before and afterwards."""
    record = content.record
    _check_trunk(backbone, record, content.source)
    try:
        model = AdaptedModel(
            backbone, record.target, layer=record.layer, head=record.head, crop_seconds=record.crop_seconds
        )
        _check_tensors(content.head, dict(model.head.named_parameters()), HEAD)
        model.head.load_state_dict(content.head)
        return _Prepared(_change(backbone, content), model)
    except ValueError as error:
        raise AdapterError(f"cannot use {content.source}: {error}") from error


def _change(backbone: Backbone, content: _Content) -> _Change:
    """Inject, fill, see what is different, and take it out again. ValueError for tensors that do not fit."""
    held = [(owner, dict(owner)) for owner in _owners(backbone)]
    flags = [(parameter, parameter.requires_grad) for parameter in backbone.parameters()]
    plain = {id(value) for _, entries in held for value in entries.values()}
    fresh: dict[int, Tensor] = {}  # by what they stand in for, whose values are still needed
    slots = []
    _check_sizes(content)
    try:
        inject(backbone, content.record.method)
        places = _adapter_tensors(backbone, content.record.moved_statistics)
        _check_tensors(content.tensors, places, TENSORS)
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


def _adapter_tensors(backbone: Backbone, moved_statistics: bool) -> dict[str, Tensor]:
    """What belongs into adapter.safetensors: the tensors themselves."""
    trained: dict[str, Tensor] = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    return trained | (_statistics(backbone) if moved_statistics else {})


def _statistics(backbone: Backbone) -> dict[str, Tensor]:
    """Running statistics of all batch norms."""
    return {
        f"{path}.{name}": buffer
        for path, module in backbone.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for name, buffer in module.named_buffers(recurse=False)
    }


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


# What a directory holds -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Content:
    """What a directory holds, or would hold; `source` says whose it is. Tensors lie on the CPU."""

    record: AdapterRecord
    tensors: Mapping[str, Tensor]
    head: Mapping[str, Tensor]
    source: str


def _content_of(model: AdaptedModel, moved_statistics: bool) -> _Content:
    """Raises AdapterError where there is nothing that could be told from the plain backbone."""
    backbone = model.backbone
    method = backbone.adapted_with
    if method is None:
        raise AdapterError(
            f"{backbone.name} is not adapted: `audiation.inject(backbone, method)` comes first, and merging takes the "
            "method out again, so write the adapter before."
        )
    if backbone.weights_hash == "none":
        raise AdapterError(
            f"this {backbone.name} has no weights_hash, so nothing would say what the adapter belongs to. Make "
            "backbones with `audiation.load_backbone`."
        )
    if method.trains_backbone and not any(p.requires_grad for p in backbone.parameters()):
        raise AdapterError(
            f"nothing of {backbone.name} requires gradients any more, so what '{format_method(method)}' trained cannot "
            "be told from the rest. Write the adapter before you freeze it."
        )
    moved_statistics = moved_statistics or method.trains_stem
    record = AdapterRecord(
        backbone.name,
        backbone.num_layers,
        backbone.weights_hash,
        backbone.weights_source,
        model.layer,
        method,
        moved_statistics,
        model.head_config,
        model.target,
        model.crop_seconds,
    )
    tensors, head = (
        {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in held.items()}
        for held in (_adapter_tensors(backbone, moved_statistics), dict(model.head.named_parameters()))
    )
    return _Content(record, tensors, head, f"the model with '{format_method(method)}'")


def _read_content(directory: Path, record: AdapterRecord) -> _Content:
    held = {name: _read_tensors(directory / name, sha256) for name, sha256 in record.files.items()}
    return _Content(record, held.get(TENSORS, {}), held[HEAD], str(directory))


def _check_sizes(content: _Content) -> None:
    """Refuse sizes that no tensor shows, before anything is allocated for them."""
    largest = max((size for tensor in content.tensors.values() for size in tensor.shape), default=0)
    for one in dataclasses.fields(content.record.method):
        value = getattr(content.record.method, one.name)
        if type(value) is int and value > largest:
            raise ValueError(f"its method has {one.name}={value}, but no tensor in {TENSORS} is that large")


def _check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str) -> None:
    """ValueError for tensors that do not go into their places as they are."""
    check_tensors(tensors, expected, f"what {name} has to hold for this method, target and backbone")
    for key, tensor in tensors.items():
        if tensor.dtype != expected[key].dtype:
            raise ValueError(f"'{key}' in {name} is {tensor.dtype}, expected {expected[key].dtype}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"'{key}' in {name} holds numbers that are not finite")


# adapter.json -----------------------------------------------------------------------------------------------

_GET_AGAIN = "Get the adapter again from where it was made, or write it again with `save_adapter`."
_TYPES: dict[str, tuple[type[Any], ...]] = {
    "format": (int,),
    "backbone": (str,),
    "num_layers": (int,),
    "trunk_hash": (str,),
    "weights_source": (str,),
    "layer": (int,),
    "method": (str,),
    "moved_statistics": (bool,),
    "head": (dict,),
    "target": (dict,),
    "crop_seconds": (float, int, type(None)),
    "files": (dict,),
    "info": (dict,),
    "checksum": (str,),
}
_HEAD_TYPES: dict[str, tuple[type[Any], ...]] = {"hidden": (bool,), "dropout": (float, int)}


def _fields_of(record: AdapterRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "format": FORMAT,
        "backbone": record.backbone,
        "num_layers": record.num_layers,
        "trunk_hash": record.trunk_hash,
        "weights_source": record.weights_source,
        "layer": record.layer,
        "method": format_method(record.method),
        "moved_statistics": record.moved_statistics,
        "head": dataclasses.asdict(record.head),
        "target": target_to_json(record.target),
        "crop_seconds": record.crop_seconds,
        "files": record.files,
        "info": record.info,
    }
    return fields | {"checksum": _checksum(fields)}


def _parse(fields: Any) -> AdapterRecord:
    """Inverse of `_fields_of`. ValueError for anything that it does not give."""
    if not isinstance(fields, dict):
        raise ValueError(f"it is a {type(fields).__name__}, expected an object. {_GET_AGAIN}")
    if type(fields.get("format")) is int and fields["format"] != FORMAT:
        raise ValueError(
            f"it has format {fields['format']}, this version reads {FORMAT}. Update audiation, or write it again."
        )
    _check_fields(fields, _TYPES)
    if fields["checksum"] != _checksum({name: v for name, v in fields.items() if name != "checksum"}):
        raise ValueError(
            "it was edited after it was written, or is damaged: its checksum differs. Take the original; to change an "
            "adapter, load it and write it again with `save_adapter`."
        )
    _check_fields(fields["head"], _HEAD_TYPES)
    files, crop_seconds = fields["files"], fields["crop_seconds"]
    if not {HEAD} <= files.keys() <= {HEAD, TENSORS} or not all(type(h) is str for h in files.values()):
        raise ValueError(f"files has hashes of {HEAD} and, it may be, {TENSORS}; got {files}. {_GET_AGAIN}")
    if crop_seconds is not None and not 0 < crop_seconds < math.inf:
        raise ValueError(f"crop_seconds is a positive number or null, got {crop_seconds}. {_GET_AGAIN}")
    return AdapterRecord(
        fields["backbone"],
        fields["num_layers"],
        fields["trunk_hash"],
        fields["weights_source"],
        fields["layer"],
        parse_method(fields["method"]),
        fields["moved_statistics"],
        HeadConfig(fields["head"]["hidden"], float(fields["head"]["dropout"])),
        target_from_json(fields["target"]),
        None if crop_seconds is None else float(crop_seconds),
        files,
        fields["info"],
    )


def _check_fields(fields: dict[str, Any], types: Mapping[str, tuple[type[Any], ...]]) -> None:
    for problem, names in (
        ("lacks", types.keys() - fields.keys()),
        ("has an unknown", fields.keys() - types.keys()),
    ):
        if names:
            raise ValueError(f"it {problem} field '{min(names)}'. {_GET_AGAIN}")
    for name, allowed in types.items():
        if type(fields[name]) not in allowed:
            raise ValueError(
                f"'{name}' is {fields[name]!r:.80}, of type {type(fields[name]).__name__}. {_GET_AGAIN}"
            )


def _checksum(fields: Mapping[str, Any]) -> str:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _as_json(info: Mapping[str, Any]) -> Any:
    """As it will be read: tuples are lists, keys are text."""
    try:
        return json.loads(json.dumps(dict(info), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise AdapterError(
            f"info holds something that JSON cannot ({error}). Give finite numbers, text, lists and dictionaries."
        ) from error


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number in JSON")


# Files ------------------------------------------------------------------------------------------------------


def _read_tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    """From bytes that are read once, so that what is used is what was checked."""
    data = _read(path)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise AdapterError(
            f"{path} is not the file that {RECORD} describes: damaged, truncated, exchanged, or not written to the "
            f"end. {_GET_AGAIN}"
        )
    try:
        return safetensors.torch.load(data)
    # Bytes from strangers: whatever goes wrong in decoding them is the file's fault.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise AdapterError(
            f"cannot read {path}: it is no safetensors file ({reason}). {_GET_AGAIN}"
        ) from error


def _read(path: Path, most_bytes: int | None = None) -> bytes:
    try:
        if not path.is_file():  # nor at the end of a link
            raise AdapterError(
                f"{path.parent} is no adapter, or only a part of one: there is no file {path.name}. Name a directory "
                "that `save_adapter` or `audiation adapt` wrote."
            )
        num_bytes = path.stat().st_size
        if most_bytes is not None and num_bytes > most_bytes:
            raise AdapterError(
                f"{path} has {num_bytes:,} bytes; {most_bytes:,} are read at most. {_GET_AGAIN}"
            )
        return path.read_bytes()
    except OSError as error:
        raise AdapterError(f"cannot read {path}: {error.strerror or error}") from error


def _write(path: Path, data: bytes) -> None:
    """All or nothing."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, path)


def _holds_record(directory: Path) -> bool:
    """Whether there is an adapter of any version, damaged or not."""
    try:
        return b'"trunk_hash"' in _read(directory / RECORD, MAX_RECORD_BYTES)
    except AdapterError:
        return False
