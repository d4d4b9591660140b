"""Several processes that train one model, each with a copy of it: who they are, and what they add up.

Gradients are added here and not by `DistributedDataParallel`, which regroups them after its first step, so that a
resumed run would add them in another order, and which waits for ever for a parameter that only some ranks use.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")

BUCKET_BYTES = 32 * 2**20  # added in one message
# The others wait that long for rank 0 to validate. A rank that dies is noticed at once, by torchrun.
TIMEOUT = timedelta(hours=6)


@dataclass(frozen=True)
class Rank:
    """This process among `count` that run the same program; the first one has index 0 and alone writes files."""

    index: int
    count: int

    @property
    def is_first(self) -> bool:
        return self.index == 0


@contextmanager
def process_group(device: str | torch.device = "cpu") -> Iterator[torch.device]:
    """Join the processes that torchrun started (gloo on the CPU, NCCL on CUDA); gives the device of this one.

    Does nothing but give the device where there is one process only, or where they are joined already.

    Raises:
        ValueError: a numbered CUDA device for several processes.
    """
    device = torch.device(device)
    if _processes_started() == 1 or dist.is_initialized():
        yield device
        return
    if device.type == "cuda":
        if device.index is not None:
            raise ValueError(f"{_processes_started()} processes cannot share {device}. Use device='cuda'.")
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # Each time under a prefix of its own: in the store lie the addresses of earlier groups, which are gone.
    store = dist.PrefixStore(f"audiation/{next(_group_numbers)}", _store())
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=int(os.environ["RANK"]),
        world_size=_processes_started(),
        timeout=TIMEOUT,
    )
    yield device
    # Not after an error: leaving in order would wait for ranks that are gone.
    dist.destroy_process_group()


def this_rank() -> Rank:
    """Which of the processes this is. ValueError where torchrun started several and they are not joined."""
    if dist.is_initialized():
        return Rank(dist.get_rank(), dist.get_world_size())
    if (started := _processes_started()) > 1:
        raise ValueError(
            f"{started} processes were started (WORLD_SIZE), but they are not joined. Train inside "
            "`with process_group(device) as device:`, or start one process."
        )
    return Rank(0, 1)


def sum_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replace every tensor by its sum over the ranks, which must give the same shapes in the same order.

    The sum is made in an order that depends on shapes only, so that equal inputs give equal bits.
    """
    if this_rank().count == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in bucket])
        for tensor, part in zip(bucket, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))


def copy_from_first(tensors: Sequence[Tensor]) -> None:
    """Overwrite every tensor with that of rank 0, in place."""
    if (rank := this_rank()).count == 1:
        return
    with torch.no_grad():
        for tensor in (t for t in tensors if t.numel()):
            sent = tensor.detach().contiguous()  # another tensor only where this one is not
            dist.broadcast(sent.view(-1).view(torch.uint8), src=0)  # bytes, whatever the type
            if not rank.is_first:
                tensor.copy_(sent)


def value_from_first(value: T) -> T:
    """What rank 0 gives; a plain value that can be pickled."""
    if this_rank().count == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def values_of_all(value: T) -> list[T]:
    """What every rank gives, in the order of ranks; plain values that can be pickled."""
    if (rank := this_rank()).count == 1:
        return [value]
    box: list[Any] = [None] * rank.count
    dist.all_gather_object(box, value)
    return box


@contextmanager
def first_rank_first() -> Iterator[None]:
    """Rank 0 goes through the block alone, then the others, which find what it has made."""
    rank = this_rank()
    if not rank.is_first:
        values_of_all(None)
    yield
    if rank.is_first:
        values_of_all(None)


_group_numbers = itertools.count()  # the same on all ranks, which join and leave together


@functools.cache
def _store() -> dist.Store:
    """Where the processes find each other; torchrun's, by its environment variables."""
    store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
    return store


def _processes_started() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type, together at most BUCKET_BYTES unless one alone is larger."""
    bucket: list[Tensor] = []
    num_bytes = 0
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or num_bytes + tensor.nbytes > BUCKET_BYTES):
            yield bucket
            bucket, num_bytes = [], 0
        bucket.append(tensor)
        num_bytes += tensor.nbytes
    if bucket:
        yield bucket
