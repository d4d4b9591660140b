"""From module and optimiser to files and back, for replicated and sharded runs, which go on from each other's files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from audiation.distributed import copy_from_first, value_from_first
from audiation.selection import Validation
from audiation.training_layouts import Shards
from audiation.training_shards import (
    newest_shards,
    read_record,
    read_shards,
    read_whole,
    record_from_first,
    step_of,
    write_shards,
)
from audiation.training_state import (
    Checkpoint,
    RunFolder,
    load_trainable_state,
    trainable_state,
    trainable_tensors,
)
from audiation.training_step import OptimiserStep

STATE, OPTIMISER = "state", "optimiser"  # begin the names of tensors in shards


class Checkpoints:
    """Of one run. All ranks call everything together."""

    def __init__(self, folder: RunFolder, step: OptimiserStep) -> None:
        self.folder, self.step, self.module, self.rank = folder, step, step.module, step.rank
        self.is_sharded = isinstance(step.layout, Shards)

    @property
    def last(self) -> Path | None:
        """Where the last one is; None before the first one."""
        path = self.folder.checkpoint if self.folder.checkpoint.exists() else None
        return newest_shards(self.folder.shards) or path if self.is_sharded else path

    def load_last(self) -> Checkpoint | None:
        """Put the last checkpoint on all ranks; what it says beside tensors. None, and the state of rank 0 on all, if
        there is none.

        Raises:
            RunFolderError: it is damaged.
        """
        whole: Checkpoint | None = None
        shards: Path | None = None
        if self.rank.is_first:
            whole, shards = self.folder.read_checkpoint(), newest_shards(self.folder.shards)
            if whole is not None and shards is not None and whole.step >= step_of(shards):
                shards = None
            if shards is not None and not self.is_sharded:
                whole, shards = _read_whole(shards), None
        if (path := value_from_first(shards)) is not None:
            return self._load_shards(path)
        return self._scatter(whole) if self.is_sharded else self._load(whole)

    def write(self, checkpoint: Checkpoint) -> None:
        """checkpoint: without tensors, which are those of now."""
        if not self.is_sharded:
            if self.rank.is_first:
                state, optimiser = trainable_state(self.module), self.step.state()
                self.folder.write_checkpoint(
                    dataclasses.replace(checkpoint, state=state, optimiser=optimiser)
                )
            return
        values = {
            "validations": [(v.step, v.score) for v in checkpoint.validations],
            "train_seconds": checkpoint.train_seconds,
            "counters": checkpoint.counters,
            "optimiser": {name: sorted(tensors) for name, tensors in self.step.tensors().items()},
        }
        write_shards(self.folder.shards, checkpoint.step, self._tensors(), values)

    def _load(self, checkpoint: Checkpoint | None) -> Checkpoint | None:
        if checkpoint is not None:
            load_trainable_state(self.module, checkpoint.state)
            self.step.load_state(checkpoint.optimiser)
        copy_from_first([*self.module.parameters(), *self.module.buffers()])
        held = value_from_first(None if checkpoint is None else _without_tensors(checkpoint))
        if held is not None:
            self.step.copy_state_from_first(list(held.optimiser))
        return held

    def _scatter(self, checkpoint: Checkpoint | None) -> Checkpoint | None:
        """Share out what rank 0 has read whole."""
        held = value_from_first(None if checkpoint is None else _without_tensors(checkpoint))
        if held is None:
            return None
        self.step.make_state(held.optimiser)
        whole: Mapping[str, Tensor] = {}
        if checkpoint is not None:
            whole = _named(checkpoint.state, checkpoint.optimiser)
        with torch.no_grad():
            for name, place in self._tensors().items():
                tensor = torch.empty(place.shape, dtype=place.dtype, device=self.step.device)
                if whole:
                    tensor.copy_(whole[name])
                copy_from_first([tensor])
                if isinstance(place, DTensor):
                    share = distribute_tensor(tensor, place.device_mesh, place.placements, src_data_rank=None)
                    place.copy_(share)
                else:
                    place.copy_(tensor)
        return held

    def _load_shards(self, path: Path) -> Checkpoint:
        record = record_from_first(path)
        held = _from_record(record)
        self.step.make_state(held.optimiser)
        with torch.no_grad():
            read_shards(path, self._tensors())
        return held

    def _tensors(self) -> dict[str, Tensor]:
        return _named(trainable_tensors(self.module), self.step.tensors())


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a run in this folder goes on from one."""
    folder = RunFolder(run_dir)
    return folder.checkpoint.exists() or newest_shards(folder.shards) is not None


def _named(state: Mapping[str, Tensor], optimiser: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    named = {f"{STATE}/{name}": tensor for name, tensor in state.items()}
    for name, tensors in optimiser.items():
        named |= {f"{OPTIMISER}/{key}/{name}": tensor for key, tensor in tensors.items()}
    return named


def _without_tensors(checkpoint: Checkpoint) -> Checkpoint:
    empty = torch.empty(0)
    names = {name: dict.fromkeys(tensors, empty) for name, tensors in checkpoint.optimiser.items()}
    return dataclasses.replace(checkpoint, state={}, optimiser=names)


def _from_record(record: Mapping[str, Any]) -> Checkpoint:
    """Without tensors."""
    empty = torch.empty(0)
    return Checkpoint(
        step=record["step"],
        state={},
        optimiser={name: dict.fromkeys(keys, empty) for name, keys in record["optimiser"].items()},
        validations=tuple(Validation(step, score) for step, score in record["validations"]),
        train_seconds=record["train_seconds"],
        counters=record["counters"],
    )


def _read_whole(path: Path) -> Checkpoint:
    """Shards as one process holds them."""
    held = _from_record(read_record(path))
    tensors = read_whole(path)
    prefix = f"{STATE}/"
    state = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    optimiser = {
        name: {key: tensors[f"{OPTIMISER}/{key}/{name}"] for key in keys}
        for name, keys in held.optimiser.items()
    }
    return dataclasses.replace(held, state=state, optimiser=optimiser)
