"""What makes a micro-batch the unit of training: loaded ahead, with random numbers and batch-norm statistics of its
own, so that it does not matter which process it goes to, nor what came before it."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from audiation.distributed import sum_over_ranks
from audiation.training_state import batch_norms_in_training


class Batches(Protocol):
    """What to train on, as a pure function of step and index, so that a run resumes anywhere without replaying.

    `micro_batch` is called in a thread, ahead of time; random numbers must come from a generator of its own. What it
    returns may have an attribute `names`, a sequence of the files in it, for error messages.
    """

    def micro_batch(self, step: int, index: int) -> Any:
        """Micro-batch `index` (from 0 to `num_micro_batches - 1`) of optimiser step `step` (the first is 0)."""
        ...


@dataclass(frozen=True)
class Place:
    """Which micro-batch of which optimiser step, both from 0."""

    step: int
    index: int


def load_ahead(batches: Batches, places: Iterable[Place]) -> Generator[Any]:
    """Micro-batches in the order of `places`; while one is used, a thread loads the next.

    What loading raises is raised when that micro-batch is asked for. Close the iterator to stop the thread.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="micro-batches") as pool:
        ahead: Future[Any] | None = None
        try:
            for place in places:
                following = pool.submit(batches.micro_batch, place.step, place.index)
                if ahead is not None:
                    yield ahead.result()
                ahead = following
            if ahead is not None:
                yield ahead.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def random_stream(device: torch.device, *key: object) -> Iterator[torch.Generator]:
    """A generator on `device` that starts from `key`, and so does torch's global stream inside; outside it goes on
    as if nothing had happened. (`nn.Dropout` and attention know no other stream.)"""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(_seed("global", *key))
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(_seed("global", *key))
        yield torch.Generator(device).manual_seed(_seed("generator", *key))


class BatchStatistics:
    """Running statistics of the batch norms in training mode, over the micro-batches of a step.

    Each micro-batch starts from the statistics that the step started from. The step ends with the average of what
    each of them made of these.
    """

    def __init__(self, module: nn.Module) -> None:
        norms = batch_norms_in_training(module).values()
        self._averaged = [t for n in norms for t in (n.running_mean, n.running_var) if t is not None]
        self._counters = [n.num_batches_tracked for n in norms if n.num_batches_tracked is not None]
        self._start: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._counts: list[Tensor] = []

    def start_step(self) -> None:
        self._start = [t.clone() for t in (*self._averaged, *self._counters)]
        self._sums = [torch.zeros_like(t) for t in self._averaged]

    def start_micro_batch(self) -> None:
        for tensor, start in zip((*self._averaged, *self._counters), self._start, strict=True):
            tensor.copy_(start)

    def end_micro_batch(self) -> None:
        """To be called before the backward pass, in which gradient checkpointing runs the batch norms again."""
        for tensor, total in zip(self._averaged, self._sums, strict=True):
            total.add_(tensor)
        self._counts = [counter.clone() for counter in self._counters]

    def end_step(self, num_micro_batches: int) -> None:
        """num_micro_batches: of all ranks."""
        sum_over_ranks(self._sums)
        for tensor, total in zip(self._averaged, self._sums, strict=True):
            tensor.copy_(total / num_micro_batches)
        for counter, count in zip(self._counters, self._counts, strict=True):
            counter.copy_(count)

    def undo_step(self) -> None:
        """As if it had not begun."""
        self.start_micro_batch()


def _seed(*key: object) -> int:
    """63 bits that differ with every part of the key."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little") >> 1
