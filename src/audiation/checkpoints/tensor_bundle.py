"""TensorFlow 1 checkpoints ("tensor bundles"): PREFIX.index and PREFIX.data-SSSSS-of-NNNNN, without TensorFlow.

The index is a table as LevelDB writes it, its values are small protocol buffers; the data files hold nothing but
little-endian numbers. Everything is compared with its masked CRC32C. (baselines spec, section 6.4)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from audiation.checkpoints.crc32c import crc32c, masked
from audiation.checkpoints.tensors import (
    ByteRange,
    CheckpointTensors,
    DamagedError,
    TensorInfo,
    UnsupportedError,
    WeightsError,
    tensor_of,
)

INDEX_SUFFIX = ".index"
FOOTER_BYTES, TRAILER_BYTES = 48, 5  # a trailer: compression and checksum of a block
MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
MAX_INDEX_BYTES, MAX_KEY_BYTES, MAX_SHARDS, MAX_DIMENSIONS = 1 << 26, 1 << 12, 4096, 64
DTYPES = {
    1: torch.float32, 2: torch.float64, 3: torch.int32, 4: torch.uint8, 5: torch.int16, 6: torch.int8, 9: torch.int64,
    10: torch.bool, 14: torch.bfloat16, 19: torch.float16,
}  # fmt: skip
STRING = 7


def index_of(path: Path) -> Path | None:
    """The index file that a path means: itself, `PREFIX.index` of a prefix, or the only one in a directory.

    None: no checkpoint of this kind. Raises WeightsError where a directory holds several.
    """
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.name.endswith(INDEX_SUFFIX) and p.is_file())
        if len(found) > 1:
            raise WeightsError(
                f"{path} holds several TensorFlow checkpoints ({', '.join(p.name for p in found[:4])}). Give the path "
                "of one of these files."
            )
        return found[0] if found else None
    if path.is_file():
        return path if path.name.endswith(INDEX_SUFFIX) else None
    beside = path.with_name(path.name + INDEX_SUFFIX)
    return beside if beside.is_file() else None


def data_files(index: Path, num_shards: int) -> list[Path]:
    prefix = index.name.removesuffix(INDEX_SUFFIX)
    return [index.with_name(f"{prefix}.data-{i:05d}-of-{num_shards:05d}") for i in range(num_shards)]


def bundle_files(index: Path) -> list[Path]:
    """All files of a checkpoint, the index first."""
    return [index, *data_files(index, _read_index(index).num_shards)]


def read_bundle(index: Path) -> CheckpointTensors:
    """The tensors of a checkpoint, by its index file. A tensor's checksum is compared when it is read.

    Raises DamagedError: truncated, changed, compressed, or with parts that this reader does not know.
    """
    content = _read_index(index)
    shards = []
    for path in data_files(index, content.num_shards):
        if not path.is_file():
            raise DamagedError(f"its data file {path.name} is not beside it")
        shards.append(ByteRange(path))
    infos, left_out = {}, {}
    for name, entry in content.entries.items():
        if entry.dtype == STRING:
            left_out[name] = "text"
            continue
        if entry.dtype not in DTYPES or entry.is_sliced:
            raise UnsupportedError(
                f"'{name}' has type {entry.dtype}, which is not read, or is cut into slices"
            )
        info = TensorInfo(DTYPES[entry.dtype], entry.shape)
        if entry.shard >= len(shards) or info.num_bytes != entry.num_bytes:
            raise DamagedError(
                f"'{name}' of shape {entry.shape} has {entry.num_bytes} bytes in part {entry.shard}"
            )
        if entry.offset + entry.num_bytes > shards[entry.shard].num_bytes:
            raise DamagedError(
                f"{shards[entry.shard].path.name} is truncated: it has {shards[entry.shard].num_bytes:,} bytes, and "
                f"'{name}' ends at {entry.offset + entry.num_bytes:,}"
            )
        infos[name] = info
    if not infos:
        raise DamagedError("it holds no tensors")

    def read(name: str) -> Tensor:
        entry = content.entries[name]
        octets = shards[entry.shard].octets(entry.offset, entry.num_bytes)
        if masked(crc32c(octets.numpy())) != entry.masked_crc:
            raise DamagedError(f"the checksum differs in {shards[entry.shard].path.name}")
        return tensor_of(octets, infos[name])

    return CheckpointTensors(index, infos, read, left_out)


class _Entry(NamedTuple):
    """A tensor as the index describes it."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    num_bytes: int
    masked_crc: int
    is_sliced: bool


class _Index(NamedTuple):
    num_shards: int
    entries: dict[str, _Entry]


def _read_index(path: Path) -> _Index:
    data = ByteRange(path)
    if data.num_bytes < FOOTER_BYTES or data.num_bytes > MAX_INDEX_BYTES:
        raise DamagedError("it is truncated, or no index of a TensorFlow checkpoint")
    whole = data.read(0, data.num_bytes)
    footer = whole[-FOOTER_BYTES:]
    if not footer.endswith(MAGIC):
        raise DamagedError("it is truncated, or no index of a TensorFlow checkpoint (its last bytes differ)")
    reader = _Reader(footer)
    reader.varint(), reader.varint()  # the meta index, which is empty
    entries: dict[str, _Entry] = {}
    num_shards, last = None, 0
    for _, handle in _block(whole, reader.varint(), reader.varint()):
        place = _Reader(handle)
        offset, num_bytes = place.varint(), place.varint()
        if offset < last:  # else a few bytes could ask for one large block again and again
            raise DamagedError("its blocks overlap")
        last = offset + num_bytes
        for key, value in _block(whole, offset, num_bytes):
            if key == b"":
                num_shards = _num_shards(value)
                continue
            name = key.decode("utf-8", "replace")
            if name in entries:
                raise DamagedError(f"'{name[:100]}' is there twice")
            entries[name] = _entry(value)
    if num_shards is None:
        raise DamagedError("its header is missing")
    return _Index(num_shards, entries)


def _block(whole: bytes, offset: int, num_bytes: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of one block of the table."""
    end = offset + num_bytes
    if end + TRAILER_BYTES > len(whole) or num_bytes < 4:
        raise DamagedError("a block of it reaches beyond its end")
    if masked(crc32c(whole[offset : end + 1])) != int.from_bytes(whole[end + 1 : end + 5], "little"):
        raise DamagedError("the checksum of a block differs")
    if whole[end]:
        raise UnsupportedError(
            f"it is compressed (kind {whole[end]}), which TensorFlow does not do with checkpoints"
        )
    num_restarts = int.from_bytes(whole[end - 4 : end], "little")
    stop = num_bytes - 4 - 4 * num_restarts
    if stop < 0:
        raise DamagedError("a block of it is damaged")
    reader, key = _Reader(whole[offset : offset + stop]), b""
    while not reader.at_end:
        shared, unshared, length = reader.varint(), reader.varint(), reader.varint()
        if shared > len(key) or shared + unshared > MAX_KEY_BYTES:  # else keys in memory outgrow the file
            raise DamagedError("a block of it is damaged")
        key = key[:shared] + reader.take(unshared)
        yield key, reader.take(length)


# Protocol buffers --------------------------------------------------------------------------------------------


def _num_shards(value: bytes) -> int:
    num_shards, endianness = 0, 0
    for number, content in _fields(value):
        if number == 1 and isinstance(content, int):
            num_shards = content
        elif number == 2 and isinstance(content, int):
            endianness = content
    if endianness:
        raise UnsupportedError("it was written on a big-endian machine")
    if not 1 <= num_shards <= MAX_SHARDS:
        raise DamagedError(f"it says that it has {num_shards} data files")
    return num_shards


def _entry(value: bytes) -> _Entry:
    numbers = {1: 0, 3: 0, 4: 0, 5: 0, 6: 0}
    shape: tuple[int, ...] = ()
    sliced = False
    for number, content in _fields(value):
        if number == 2 and isinstance(content, bytes):
            shape = tuple(_dimension(part) for field, part in _fields(content) if field == 2)
        elif number == 7:
            sliced = True
        elif number in numbers and isinstance(content, int):
            numbers[number] = content
    if len(shape) > MAX_DIMENSIONS:
        raise DamagedError("a tensor of it has an impossible shape")
    return _Entry(numbers[1], shape, numbers[3], numbers[4], numbers[5], numbers[6], sliced)


def _dimension(part: int | bytes) -> int:
    size = 0
    for number, content in _fields(part if isinstance(part, bytes) else b""):
        if number == 1 and isinstance(content, int):
            size = content
    return size


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field number -> its number (varint, fixed32, fixed64) or bytes."""
    reader = _Reader(message)
    while not reader.at_end:
        tag = reader.varint()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, reader.varint()
        elif kind == 2:
            yield tag >> 3, reader.take(reader.varint())
        elif kind in (1, 5):
            yield tag >> 3, int.from_bytes(reader.take(8 if kind == 1 else 4), "little")
        else:
            raise DamagedError("an entry of it is damaged")


class _Reader:
    """Bytes from the left to the right."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    @property
    def at_end(self) -> bool:
        return self.place >= len(self.data)

    def take(self, num_bytes: int) -> bytes:
        if self.place + num_bytes > len(self.data):
            raise DamagedError("an entry of it reaches beyond its end")
        self.place += num_bytes
        return self.data[self.place - num_bytes : self.place]

    def varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise DamagedError("a number of it has no end")
