"""What an adapter directory holds: tensors and a JSON record, written, read and checked. Never a pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from audiation.adapted import AdaptedModel, HeadConfig
from audiation.backbones import Backbone
from audiation.methods import format_method, parse_method
from audiation.target_files import target_from_json, target_to_json
from audiation.targets import Target
from audiation.weights import check_tensors
from audiation.windows import window_policy

FORMAT = 2
MAX_HEAD_SIZE = 1 << 16
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
    windows: name of the policy by which tracks are cut for their answer.
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
    windows: str
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
    content = content_of(model, moved_statistics)
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


# What a directory holds -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AdapterContent:
    """What a directory holds, or would hold; `source` says whose it is. Tensors lie on the CPU."""

    record: AdapterRecord
    tensors: Mapping[str, Tensor]
    head: Mapping[str, Tensor]
    source: str


def content_of(model: AdaptedModel, moved_statistics: bool) -> AdapterContent:
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
        model.policy.name,
    )
    tensors, head = (
        {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in held.items()}
        for held in (adapter_tensors(backbone, moved_statistics), dict(model.head.named_parameters()))
    )
    return AdapterContent(record, tensors, head, f"the model with '{format_method(method)}'")


def read_content(directory: Path, record: AdapterRecord) -> AdapterContent:
    held = {name: _read_tensors(directory / name, sha256) for name, sha256 in record.files.items()}
    return AdapterContent(record, held.get(TENSORS, {}), held[HEAD], str(directory))


def check_sizes(content: AdapterContent) -> None:
    """Refuse sizes that no tensor shows, before anything is allocated for them."""
    largest = max((size for tensor in content.tensors.values() for size in tensor.shape), default=0)
    for one in dataclasses.fields(content.record.method):
        value = getattr(content.record.method, one.name)
        if type(value) is int and value > largest:
            raise ValueError(f"its method has {one.name}={value}, but no tensor in {TENSORS} is that large")


def check_adapter_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str) -> None:
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
    "windows": (str,),
    "files": (dict,),
    "info": (dict,),
    "checksum": (str,),
}
_HEAD_TYPES: dict[str, tuple[type[Any], ...]] = {
    "hidden": (bool,),
    "dropout": (float, int),
    "size": (int, type(None)),
}


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
        "windows": record.windows,
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
    if (size := fields["head"]["size"]) is not None and not 1 <= size <= MAX_HEAD_SIZE:
        raise ValueError(
            f"the size of the head is from 1 to {MAX_HEAD_SIZE}, or null, got {size}. {_GET_AGAIN}"
        )
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
        HeadConfig(fields["head"]["hidden"], float(fields["head"]["dropout"]), fields["head"]["size"]),
        target_from_json(fields["target"]),
        None if crop_seconds is None else float(crop_seconds),
        window_policy(fields["windows"]).name,
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


def adapter_tensors(backbone: Backbone, moved_statistics: bool) -> dict[str, Tensor]:
    """What belongs into adapter.safetensors: the tensors themselves."""
    trained: dict[str, Tensor] = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    return trained | (batch_statistics(backbone) if moved_statistics else {})


def batch_statistics(backbone: Backbone) -> dict[str, Tensor]:
    """Running statistics of all batch norms."""
    return {
        f"{path}.{name}": buffer
        for path, module in backbone.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for name, buffer in module.named_buffers(recurse=False)
    }
