"""What every format of checkpoint is read into: named tensors that stay in the file until they are asked for."""

from __future__ import annotations

import hashlib
import math
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PIECE_BYTES = 1 << 22
MAX_TENSOR_BYTES = 1 << 62


class WeightsError(ValueError):
    """Weights that cannot be used. The message names the file, the reason, and what to do next."""


class DamagedError(ValueError):
    """Bytes that are no such file, or not all of it. Readers raise it; `read_checkpoint` adds the file's name."""


class UnsupportedError(ValueError):
    """A whole file that uses parts of its format which the publishers of weights do not use. As `DamagedError`."""


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before it is read. DamagedError: dimensions that torch cannot count."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        # One dimension of 0 would hide the others: strides and conversions count with them all the same.
        if math.prod(max(size, 1) for size in self.shape) * self.dtype.itemsize >= MAX_TENSOR_BYTES:
            raise DamagedError("a tensor of it has an impossible shape")

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class CheckpointTensors(Mapping[str, Tensor]):
    """Name -> tensor on the CPU. Asking for a tensor reads it (or maps it into memory); nothing is kept here.

    path: the file, or one of its files.
    infos: dtype and shape of every tensor; no data is read for them.
    read: reads one.
    left_out: name -> why it is no tensor here, of what the file holds besides.
    """

    path: Path
    infos: Mapping[str, TensorInfo]
    read: Callable[[str], Tensor]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.infos:
            raise KeyError(name)
        try:
            return self.read(name)
        except (OSError, DamagedError) as error:
            raise WeightsError(
                f"cannot read '{name}' of {self.path}: {error}. Fetch the file again."
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    def __contains__(self, name: object) -> bool:
        return name in self.infos  # that of Mapping would read the tensor


class ByteRange:
    """A part of a file. What reaches beyond its end is refused before anything is allocated."""

    def __init__(self, path: Path, start: int = 0, num_bytes: int | None = None) -> None:
        self.path, self.start = path, start
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)  # open as long as somebody may ask for a tensor
        whole = os.fstat(self._descriptor).st_size
        self.num_bytes = whole - start if num_bytes is None else num_bytes
        if start < 0 or self.num_bytes < 0 or start + self.num_bytes > whole:
            raise DamagedError(f"bytes {start} to {start + self.num_bytes} of {whole} were asked for")

    def read(self, offset: int, num_bytes: int) -> bytes:
        self._check(offset, num_bytes)
        return b"".join(self._pieces(offset, num_bytes))

    def tensor(self, offset: int, info: TensorInfo) -> Tensor:
        """A contiguous little-endian tensor at `offset`, in memory of its own."""
        return tensor_of(self.octets(offset, info.num_bytes), info)

    def octets(self, offset: int, num_bytes: int) -> Tensor:
        """(num_bytes,) of uint8, in memory of its own."""
        self._check(offset, num_bytes)
        flat = torch.empty(num_bytes, dtype=torch.uint8)
        view, done = flat.numpy(), 0
        for piece in self._pieces(offset, num_bytes):
            view[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
            done += len(piece)
        return flat

    def _check(self, offset: int, num_bytes: int) -> None:
        if offset < 0 or num_bytes < 0 or offset + num_bytes > self.num_bytes:
            raise DamagedError(
                f"it ends at byte {self.num_bytes}, but holds references up to byte {offset + num_bytes}"
            )

    def _pieces(self, offset: int, num_bytes: int) -> Iterator[bytes]:
        place, end = self.start + offset, self.start + offset + num_bytes
        while place < end:
            piece = os.pread(self._descriptor, min(PIECE_BYTES, end - place), place)
            if not piece:
                raise DamagedError("it became shorter while it was read")
            yield piece
            place += len(piece)


def tensor_of(octets: Tensor, info: TensorInfo) -> Tensor:
    """What the bytes of a contiguous little-endian tensor mean."""
    if info.dtype is torch.bool:
        return octets.ne(0).reshape(info.shape)  # other bytes than 0 and 1 are no bools
    return octets.view(info.dtype).reshape(info.shape)


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
