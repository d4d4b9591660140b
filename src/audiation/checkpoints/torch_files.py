"""Files that torch.save wrote, of both ages, without torch.load.

Since torch 1.6 a file is a zip archive: `NAME/data.pkl`, and a record `NAME/data/KEY` for every storage. Before, it was
a stream of five pickles (a magic number, the protocol, facts of the system, the object, the keys of the storages in the
order of the file) and then, for every key, the count of elements (int64) and their bytes (baselines spec, section
8.4).
"""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from audiation.checkpoints.pickle_machine import MAX_PICKLE_BYTES
from audiation.checkpoints.pickle_records import Inert, OtherTensor, Storage, StoredTensor
from audiation.checkpoints.pickles import read_pickle
from audiation.checkpoints.tensors import (
    ByteRange,
    CheckpointTensors,
    DamagedError,
    TensorInfo,
    UnsupportedError,
    WeightsError,
)

LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
WRAPPERS = ("state_dict", "model")
# Dictionaries that training code keeps among the tensors of a model.
NO_WEIGHTS = {"_ema": "the teacher of data2vec's training, a moving average of the weights"}
LOCAL_HEADER_BYTES = 30


def read_zip(path: Path) -> CheckpointTensors:
    """A torch file since 1.6. Its storages are mapped into memory; every record is compared with its checksum first.

    Raises: as `read_legacy`.
    """
    data = ByteRange(path)
    with zipfile.ZipFile(path) as archive:
        places = _records(archive, data)
        if damaged := archive.testzip():
            raise DamagedError(f"the checksum of {damaged} differs")
    pickles = [name for name in places if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(pickles) != 1:
        raise DamagedError("it is a zip archive, but none that torch.save wrote (no data.pkl)")
    folder = pickles[0].removesuffix("data.pkl")
    order = places.get(folder + "byteorder")
    if order is not None and data.read(order.offset, min(order.num_bytes, 8)) != b"little":
        raise UnsupportedError("it was written on a big-endian machine")
    place = places[pickles[0]]
    if place.num_bytes > MAX_PICKLE_BYTES:
        raise DamagedError("its pickle is too large")
    content = read_pickle(ByteRange(path, place.offset, place.num_bytes)).value
    stored, left_out = plain_tensors(path, content)
    for name, tensor in stored.items():
        record = places.get(f"{folder}data/{tensor.storage.key}")
        needed = tensor.storage.num_stored * tensor.storage.dtype.itemsize
        if record is None or record.num_bytes < needed:
            raise DamagedError(f"the data of '{name}' is missing or too short")
    # Copy on write: nobody can change the file through a tensor.
    whole = torch.UntypedStorage.from_file(str(path), False, data.num_bytes)

    def read(name: str) -> Tensor:
        tensor = stored[name]
        size, record = tensor.storage.dtype.itemsize, places[f"{folder}data/{tensor.storage.key}"]
        if record.offset % size or tensor.storage.dtype is torch.bool:  # bytes of bools are made 0 and 1
            return _read_strided(data, record.offset, tensor)
        first = record.offset + (tensor.storage.start + tensor.offset) * size
        part = whole[first : first + tensor.span * size]
        empty = torch.empty(0, dtype=tensor.storage.dtype)
        return empty.set_(part, 0, tensor.shape, tensor.stride)  # type: ignore[call-overload]

    return CheckpointTensors(path, {name: tensor.info for name, tensor in stored.items()}, read, left_out)


def read_legacy(path: Path) -> CheckpointTensors:
    """A torch file before 1.6, read tensor by tensor. It has no checksums: changed bytes of data go unnoticed.

    Raises:
        UnsafePickleError: its pickle wants more than tensors and plain containers.
        DamagedError: truncated, or not what torch wrote.
        WeightsError: other things than tensors where tensors should be.
    """
    data = ByteRange(path)
    magic = read_pickle(data)
    if magic.value != LEGACY_MAGIC or type(magic.value) is not int:
        raise DamagedError("it is a pickle, but none that torch.save wrote")
    protocol = read_pickle(data, magic.end)
    if protocol.value != LEGACY_PROTOCOL:
        # Containers are not shown: a few bytes can say one whose text fills the memory.
        shown = str(protocol.value)[:20] if type(protocol.value) is int else f"a {_kind(protocol.value)}"
        raise DamagedError(f"it has protocol {shown}, known is {LEGACY_PROTOCOL}")
    system = read_pickle(data, protocol.end)
    if not isinstance(system.value, dict) or system.value.get("little_endian") is not True:
        raise DamagedError("it was written on a big-endian machine, or says nothing of its byte order")
    content = read_pickle(data, system.end)
    keys = read_pickle(data, content.end)
    stored, left_out = plain_tensors(path, content.value)
    places = _legacy_places(data, keys.value, keys.end, content.storages)
    for name, tensor in stored.items():
        if tensor.storage.key not in places:
            raise DamagedError(f"the data of '{name}' is missing")

    def read(name: str) -> Tensor:
        return _read_strided(data, places[stored[name].storage.key], stored[name])

    return CheckpointTensors(path, {name: tensor.info for name, tensor in stored.items()}, read, left_out)


class PlainTensors(NamedTuple):
    """A state dict, and why parts of it are none."""

    tensors: dict[str, StoredTensor]
    left_out: dict[str, str]


def plain_tensors(path: Path, content: Any) -> PlainTensors:
    """The state dict in what a file holds: itself, or what lies below `state_dict` or `model`.

    Raises WeightsError for other things than dense real tensors.
    """
    where = "top level"
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content, where = content[wrapper], f"'{wrapper}'"
            break
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {_kind(content)}, expected a dictionary of tensors")
    if not content:
        raise WeightsError(f"{path} holds no tensors (its {where} is empty)")
    left_out = {name: why for name, why in NO_WEIGHTS.items() if isinstance(content.get(name), Mapping)}
    content = {name: value for name, value in content.items() if name not in left_out}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, (StoredTensor, OtherTensor)):
            shown = repr(name) if isinstance(name, (str, int)) else "a key"
            raise WeightsError(
                f"{path} is no plain checkpoint: {shown[:200]} in its {where} is a {_kind(value)}, "
                "expected a tensor (tensors may also lie below 'state_dict' or 'model')"
            )
        if isinstance(value, OtherTensor):
            raise WeightsError(
                f"{path}: '{name}' is sparse, quantised, complex or without data; dense real tensors are read"
            )
    return PlainTensors(content, left_out)


def _kind(value: Any) -> str:
    if isinstance(value, (StoredTensor, OtherTensor)):
        return "Tensor"
    return value.name if isinstance(value, Inert) else type(value).__name__


class _Record(NamedTuple):
    """Bytes of a file."""

    offset: int
    num_bytes: int


def _records(archive: zipfile.ZipFile, data: ByteRange) -> dict[str, _Record]:
    """Where the members lie. torch compresses none, and two that share bytes would be a trick."""
    places: dict[str, _Record] = {}
    starts_and_ends: list[tuple[int, int]] = []
    for info in archive.infolist():
        if (
            info.compress_type != zipfile.ZIP_STORED
            or info.file_size != info.compress_size
            or info.flag_bits & 1
        ):
            raise UnsupportedError(
                f"its record {info.filename[:100]!r} is compressed, which torch never does"
            )
        header = data.read(info.header_offset, LOCAL_HEADER_BYTES)
        names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        record = _Record(info.header_offset + LOCAL_HEADER_BYTES + names, info.file_size)
        if record.offset + record.num_bytes > data.num_bytes or info.filename in places:
            raise DamagedError(
                f"its record {info.filename[:100]!r} reaches beyond the file, or is there twice"
            )
        places[info.filename] = record
        starts_and_ends.append((info.header_offset, record.offset + record.num_bytes))
    starts_and_ends.sort()
    if any(end > start for (_, end), (start, _) in itertools.pairwise(starts_and_ends)):
        raise DamagedError("its records overlap")
    return places


def _legacy_places(
    data: ByteRange, keys: Any, offset: int, storages: Mapping[str, Storage]
) -> dict[str, int]:
    """Storage key -> where its first element lies."""
    if not isinstance(keys, list):
        raise DamagedError("it lists no storages")
    places: dict[str, int] = {}
    for key in keys:
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None or key in places:
            raise DamagedError("it lists a storage that no tensor uses, or one twice")
        count = int.from_bytes(data.read(offset, 8), "little", signed=True)
        if count != storage.num_stored:
            raise DamagedError(f"a storage has {count} elements, its tensors say {storage.num_stored}")
        places[key] = offset + 8
        offset += 8 + count * storage.dtype.itemsize
        if offset > data.num_bytes:
            raise DamagedError(
                f"it is truncated: it has {data.num_bytes:,} bytes, and needs {offset:,} or more"
            )
    return places


def _read_strided(data: ByteRange, place: int, tensor: StoredTensor) -> Tensor:
    first = place + (tensor.storage.start + tensor.offset) * tensor.storage.dtype.itemsize
    if tensor.is_contiguous:
        return data.tensor(first, tensor.info)
    span = data.tensor(first, TensorInfo(tensor.storage.dtype, (tensor.span,)))
    return span.as_strided(tensor.shape, tensor.stride).contiguous()
