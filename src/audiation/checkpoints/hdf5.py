"""The HDF5 files that Keras writes (`.h5`, `.hdf5`, and inside `.keras`), without Keras and without the HDF5 library.

Names are paths in the file, for example `conv_1/kernel:0`. What is read is what Keras uses: groups as symbol tables or
as links in the object header, and data sets of numbers in one piece. Everything else is refused by name. HDF5 keeps no
checksum of such data, so that changed bytes of it go unnoticed.

Reference: HDF5 File Format Specification, version 3.0 (the section of each structure is named where it is read).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from audiation.checkpoints.tensors import (
    ByteRange,
    CheckpointTensors,
    DamagedError,
    TensorInfo,
    UnsupportedError,
)

SIGNATURE = b"\x89HDF\r\n\x1a\n"
WEIGHTS_IN_KERAS = "model.weights.h5"
UNDEFINED = (1 << 64) - 1
MAX_DEPTH, MAX_DIMENSIONS, MAX_NAME_BYTES = 64, 32, 1 << 12
# Of a whole file: an object that many links mean is walked for each of them.
MAX_OBJECTS, MAX_MESSAGES, MAX_STRUCTURE_BYTES = 100_000, 1_000_000, 1 << 28
SPACE, LINK_INFO, DATATYPE, LINK, LAYOUT, FILTERS, CONTINUATION, SYMBOLS = (
    0x1,
    0x2,
    0x3,
    0x6,
    0x8,
    0xB,
    0x10,
    0x11,
)
INTEGERS = {
    (1, True): torch.int8, (2, True): torch.int16, (4, True): torch.int32, (8, True): torch.int64,
    (1, False): torch.uint8, (2, False): torch.uint16, (4, False): torch.uint32, (8, False): torch.uint64,
}  # fmt: skip
FLOATS = {(2, 5): torch.float16, (4, 8): torch.float32, (8, 11): torch.float64, (2, 8): torch.bfloat16}


def read_hdf5(path: Path) -> CheckpointTensors:
    """The data sets of an HDF5 file. Raises DamagedError: truncated, damaged, or not as Keras writes it."""
    return _read(path, ByteRange(path))


def read_keras(path: Path) -> CheckpointTensors:
    """The weights in a `.keras` archive, after a comparison with their checksum. Raises as `read_hdf5`."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(WEIGHTS_IN_KERAS)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise UnsupportedError(
                f"its {WEIGHTS_IN_KERAS} is compressed. Unzip it and give the path of that file"
            )
        whole = ByteRange(path)
        header = whole.read(info.header_offset, 30)
        names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        data = ByteRange(path, info.header_offset + 30 + names, info.file_size)
        with archive.open(info) as stream:
            while stream.read(1 << 22):  # compares the checksum at the end
                pass
    return _read(path, data)


def _read(path: Path, data: ByteRange) -> CheckpointTensors:
    found: dict[str, _DataSet] = {}
    for name, item in _Walk(data).data_sets():
        if name in found:
            raise DamagedError(f"'{name[:100]}' is there twice")
        found[name] = item
    if not found:
        raise DamagedError("it holds no data sets")

    def read(name: str) -> Tensor:
        return data.tensor(found[name].offset, found[name].info)

    return CheckpointTensors(path, {name: item.info for name, item in found.items()}, read)


class _DataSet(NamedTuple):
    """Numbers in one piece."""

    info: TensorInfo
    offset: int


class _Message(NamedTuple):
    """A part of an object header; `offset`: of its body in the file."""

    kind: int
    body: bytes
    offset: int


class _Walk:
    """From the root group to every data set. Groups that hold themselves end at a depth, all else at a count."""

    def __init__(self, data: ByteRange) -> None:
        self.data = data
        self.num_objects = self.num_messages = self.num_bytes = 0

    def data_sets(self) -> Iterator[tuple[str, _DataSet]]:
        yield from self._object(self._root(), "", 0)

    def _root(self) -> int:
        """II.A, the superblock."""
        head = self.data.read(0, min(128, self.data.num_bytes))
        if not head.startswith(SIGNATURE) or len(head) < 48:
            raise DamagedError("it is truncated, or no HDF5 file")
        version = head[8]
        if version in (0, 1):
            sizes, base = head[13:15], 24 if version == 0 else 28
            root = _number(head, base + 32 + 8, 8)  # of the entry of the root group: behind its name
            end = _number(head, base + 16, 8)
        elif version in (2, 3):
            sizes, base = head[9:11], 12
            root, end = _number(head, 36, 8), _number(head, 28, 8)
        else:
            raise UnsupportedError(f"its superblock has version {version}, known are 0 to 3")
        if sizes != b"\x08\x08" or _number(head, base, 8) != 0:
            raise UnsupportedError("its addresses are not of 8 bytes from its beginning")
        if end > self.data.num_bytes:
            raise DamagedError(f"it is truncated: it has {self.data.num_bytes:,} of {end:,} bytes")
        return root

    def _object(self, address: int, path: str, depth: int) -> Iterator[tuple[str, _DataSet]]:
        self.num_objects += 1
        if self.num_objects > MAX_OBJECTS or depth > MAX_DEPTH or len(path) > MAX_NAME_BYTES:
            raise DamagedError("its groups have no end")
        messages = list(self._messages(address))
        kinds = {message.kind: message for message in messages}
        if LAYOUT in kinds:
            yield path, self._data_set(path, kinds)
            return
        for name, child in self._links(messages):
            yield from self._object(child, f"{path}/{name}" if path else name, depth + 1)

    # Object headers (IV.A.1)

    def _messages(self, address: int) -> Iterator[_Message]:
        head = self._bytes(address, 16)
        blocks: list[tuple[int, int]] = []
        if head.startswith(b"OHDR"):
            flags, width = head[5], 1 << (head[5] & 3)
            place = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
            first = self._bytes(address, place + width)
            blocks.append((address + place + width, _number(first, place, width)))
            is_new, creation_order = True, bool(flags & 4)
        elif head[0] == 1:
            blocks.append((address + 16, _number(head, 8, 4)))
            is_new = creation_order = False
        else:
            raise DamagedError(f"there is no object at byte {address}")
        header_bytes = (6 if creation_order else 4) if is_new else 8
        while blocks:
            start, num_bytes = blocks.pop(0)
            block, place = self._bytes(start, num_bytes), 0
            while place + header_bytes <= num_bytes:
                self.num_messages += 1
                if self.num_messages > MAX_MESSAGES:
                    raise DamagedError(f"it describes its objects in more than {MAX_MESSAGES:,} messages")
                kind = block[place] if is_new else _number(block, place, 2)
                size = _number(block, place + (1 if is_new else 2), 2)
                flags = block[place + (3 if is_new else 4)]
                place += header_bytes
                if place + size > num_bytes:
                    raise DamagedError("an object header of it is damaged")
                body = block[place : place + size]
                if kind == CONTINUATION:
                    offset, length = _number(body, 0, 8), _number(body, 8, 8)
                    # New headers frame a continuation with a signature and a checksum.
                    blocks.append((offset + 4, length - 8) if is_new else (offset, length))
                elif flags & 2 and kind in (SPACE, DATATYPE, LAYOUT, FILTERS):
                    raise UnsupportedError("a data set of it shares its description, which Keras does not do")
                else:
                    yield _Message(kind, body, start + place)
                place += size

    def _links(self, messages: list[_Message]) -> Iterator[tuple[str, int]]:
        """Name and address of what is in a group."""
        for message in messages:
            if message.kind == SYMBOLS:
                heap = self._heap(_number(message.body, 8, 8))
                yield from self._tree(_number(message.body, 0, 8), heap, 0)
            elif message.kind == LINK:
                yield _link(message.body)
            elif message.kind == LINK_INFO:
                place = 10 if message.body[1:2] and message.body[1] & 1 else 2
                if _number(message.body, place, 8) != UNDEFINED:
                    raise UnsupportedError(
                        "a group of it is a fractal heap (libver='latest'), which is not read"
                    )

    def _heap(self, address: int) -> bytes:
        """III.D, the names of a group."""
        head = self._bytes(address, 32)
        if not head.startswith(b"HEAP"):
            raise DamagedError("the names of a group are damaged")
        return self._bytes(_number(head, 24, 8), _number(head, 8, 8))

    def _tree(self, address: int, heap: bytes, depth: int) -> Iterator[tuple[str, int]]:
        """III.A.1, the tree of a group, and III.C, its leaves."""
        self.num_objects += 1
        if depth > MAX_DEPTH or self.num_objects > MAX_OBJECTS:
            raise DamagedError("a group of it has no end")
        head = self._bytes(address, 24)
        if head.startswith(b"TREE") and head[4] == 0:
            count = _number(head, 6, 2)
            children = self._bytes(address + 24, 8 + 16 * count)
            for i in range(count):
                yield from self._tree(_number(children, 8 + 16 * i, 8), heap, depth + 1)
        elif head.startswith(b"SNOD"):
            count = _number(head, 6, 2)
            entries = self._bytes(address + 8, 40 * count)
            for i in range(count):
                name = _name(heap, _number(entries, 40 * i, 8))
                if _number(entries, 40 * i + 16, 4) == 2:
                    raise UnsupportedError(f"'{name[:100]}' is a soft link, which Keras does not write")
                yield name, _number(entries, 40 * i + 8, 8)
        else:
            raise DamagedError("a group of it is damaged")

    # Data sets

    def _data_set(self, path: str, kinds: dict[int, _Message]) -> _DataSet:
        if SPACE not in kinds or DATATYPE not in kinds:
            raise DamagedError(f"'{path[:100]}' has no shape or no type")
        info = TensorInfo(_dtype(path, kinds[DATATYPE].body), _shape(path, kinds[SPACE].body))
        body, start = kinds[LAYOUT].body, kinds[LAYOUT].offset
        version, kind = body[0:1], body[1:2]
        if version not in (b"\x03", b"\x04") or kind not in (b"\x00", b"\x01") or FILTERS in kinds:
            raise UnsupportedError(
                f"'{path[:100]}' lies in chunks or is compressed, which Keras does not do. Write the file again with "
                "h5py, without chunks"
            )
        if kind == b"\x00":  # in the header itself
            offset, num_bytes = start + 4, _number(body, 2, 2)
        else:
            offset, num_bytes = _number(body, 2, 8), _number(body, 10, 8)
        if info.num_bytes == 0:
            return _DataSet(info, 0)
        if offset == UNDEFINED:
            raise DamagedError(f"'{path[:100]}' was never written")
        if num_bytes < info.num_bytes or offset + info.num_bytes > self.data.num_bytes:
            raise DamagedError(f"'{path[:100]}' of shape {info.shape} reaches beyond its place in the file")
        return _DataSet(info, offset)

    def _bytes(self, address: int, num_bytes: int) -> bytes:
        self.num_bytes += num_bytes
        if self.num_bytes > MAX_STRUCTURE_BYTES:
            raise DamagedError(f"it describes its objects in more than {MAX_STRUCTURE_BYTES:,} bytes")
        return self.data.read(address, num_bytes)


def _link(body: bytes) -> tuple[str, int]:
    """IV.A.2.g, a hard link."""
    if len(body) < 4:
        raise DamagedError("a link of it is damaged")
    flags, place, kind = body[1], 2, 0
    if flags & 8:
        kind, place = body[place], place + 1
    place += (8 if flags & 4 else 0) + (1 if flags & 0x10 else 0)
    width = 1 << (flags & 3)
    length = _number(body, place, width)
    place += width
    if length > MAX_NAME_BYTES or place + length > len(body):
        raise DamagedError("a link of it is damaged")
    name = body[place : place + length].decode("utf-8", "replace")
    if kind != 0:
        raise UnsupportedError(f"'{name[:100]}' is a soft or external link, which Keras does not write")
    return name, _number(body, place + length, 8)


def _dtype(path: str, body: bytes) -> torch.dtype:
    """IV.A.2.d, the type of the numbers."""
    if len(body) < 12:
        raise DamagedError(f"the type of '{path[:100]}' is damaged")
    kind, flags, size = body[0] & 15, body[1], _number(body, 4, 4)
    if kind > 1:
        raise UnsupportedError(f"'{path[:100]}' holds no numbers (HDF5 type class {kind})")
    if flags & 1 or (kind == 1 and flags & 0x40):
        raise UnsupportedError(f"'{path[:100]}' is big-endian")
    if kind == 0:
        dtype = INTEGERS.get((size, bool(flags & 8)))
    else:
        dtype = FLOATS.get((size, body[13])) if len(body) >= 20 else None
    if dtype is None:
        raise UnsupportedError(f"'{path[:100]}' holds numbers of {size} bytes that torch does not have")
    return dtype


def _shape(path: str, body: bytes) -> tuple[int, ...]:
    """IV.A.2.b, the shape."""
    version, rank = (body[0], body[1]) if len(body) >= 4 else (0, 0)
    if version not in (1, 2) or rank > MAX_DIMENSIONS or (version == 2 and body[3] == 2):
        raise DamagedError(f"the shape of '{path[:100]}' is damaged, or it is empty")
    start = 8 if version == 1 else 4
    return tuple(_number(body, start + 8 * i, 8) for i in range(rank))


def _name(heap: bytes, offset: int) -> str:
    end = heap.find(b"\0", offset)
    if offset >= len(heap) or end < 0 or end - offset > MAX_NAME_BYTES:
        raise DamagedError("the names of a group are damaged")
    return heap[offset:end].decode("utf-8", "replace")


def _number(data: bytes, offset: int, width: int) -> int:
    if offset + width > len(data):
        raise DamagedError("a part of it is truncated")
    return int.from_bytes(data[offset : offset + width], "little")
