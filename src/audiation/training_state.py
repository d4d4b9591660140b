"""What training changes in a module, and the folder of a run, from which a killed run goes on.

    run.json           what the run is: configuration, identity, names and shapes of what is trained
    checkpoint.pt      everything that the steps after it depend on
    best.safetensors   trainable state with the best validation score; its step and score are in the header
    shards/step-N/     the same of a sharded run, see `training_shards`
    diverged/          what a loss that is no number came from, see `divergence`
    log.jsonl          a line per step and per validation

Every file but the log is replaced as a whole. The best state is written before the checkpoint that counts on it: a
run killed between the two finds a state that is too new, and makes the same one again before it reads it.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from audiation.selection import Validation

FORMAT = 1


class RunFolderError(ValueError):
    """A run folder that belongs to another run, or whose files are damaged."""


# Trainable state ------------------------------------------------------------------------------------------


def trainable_state(module: nn.Module) -> dict[str, Tensor]:
    """Copies, on the CPU, of what training changes: parameters that require gradients, the running statistics of batch
    norms in training mode, and all of the modules whose `kept_in_checkpoints` is true."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in trainable_tensors(module).items()}


def load_trainable_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put a `trainable_state` into a module, in place.

    Statistics of batch norms that are in eval mode by now are accepted too. Nothing is changed before all is checked.

    Raises:
        ValueError: a missing or unknown name, or another shape.
    """
    needed = trainable_tensors(module)
    places = needed | _batch_norm_tensors(module, also_eval=True)
    missing = [name for name in needed if name not in state]
    unknown = [name for name in state if name not in places]
    misshaped = [
        f"{name} is {tuple(tensor.shape)} there and {tuple(places[name].shape)} here"
        for name, tensor in state.items()
        if name in places and places[name].shape != tensor.shape
    ]
    for what, names in (("lacks", missing), ("has the unknown", unknown), ("does not fit:", misshaped)):
        if names:
            raise ValueError(
                f"this trainable state {what} {listed(names)}. It goes with a module that is adapted, frozen "
                "and in training mode in the same places."
            )
    with torch.no_grad():
        for name, tensor in state.items():
            places[name].copy_(tensor)


def trainable_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors themselves that `trainable_state` copies."""
    trained = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    return trained | _batch_norm_tensors(module, also_eval=False) | _kept_tensors(module)


def _kept_tensors(module: nn.Module) -> dict[str, Tensor]:
    """All of the modules that say so (`kept_in_checkpoints`): codebooks, averaged teachers, which no gradient moves."""
    return {
        f"{name}.{key}" if name else key: tensor.detach()
        for name, part in module.named_modules()
        if getattr(part, "kept_in_checkpoints", False)
        for key, tensor in part.state_dict(keep_vars=True).items()
    }


def batch_norms_in_training(module: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    """Name -> batch norm whose running statistics follow the batches."""
    return {name: norm for name, norm in _batch_norms(module).items() if norm.training}


def _batch_norm_tensors(module: nn.Module, also_eval: bool) -> dict[str, Tensor]:
    norms = _batch_norms(module) if also_eval else batch_norms_in_training(module)
    return {
        f"{name}.{buffer}" if name else buffer: tensor
        for name, norm in norms.items()
        for buffer, tensor in norm.named_buffers(recurse=False)
    }


def _batch_norms(module: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    return {
        name: norm
        for name, norm in module.named_modules()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None
    }


# Files of a run -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What the steps after `step` depend on. optimiser: parameter name -> Adam's tensors for it. counters: of loss
    scale and spikes, JSON values; empty where there are none."""

    step: int
    state: dict[str, Tensor]
    optimiser: dict[str, dict[str, Tensor]]
    validations: tuple[Validation, ...]
    train_seconds: float
    counters: dict[str, Any] = field(default_factory=dict)


class RunFolder:
    """The folder of one run. One process at a time may use it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.checkpoint = directory / "checkpoint.pt"
        self.shards = directory / "shards"
        self.diverged = directory / "diverged"
        self.best = directory / "best.safetensors"
        self.log = directory / "log.jsonl"
        self.description = directory / "run.json"

    def open(self, description: Mapping[str, Any], free_to_change: frozenset[str]) -> None:
        """Make the folder, or find that it belongs to this run.

        description: parts of JSON values; "config" has those of `free_to_change` compared with nothing.

        Raises:
            RunFolderError: it belongs to another run; says what differs.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        wanted = json.loads(json.dumps(description))
        if not self.description.exists():
            if self.checkpoint.exists() or self.shards.exists():
                raise RunFolderError(
                    f"{self.directory} has a checkpoint but no {self.description.name}. "
                    "Delete the folder to begin again, or use another one."
                )
            text = json.dumps(wanted, indent=1) + "\n"
            _replace(self.description, lambda path: path.write_text(text, encoding="utf-8"))
            return
        try:
            held = dict(json.loads(self.description.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise self._damaged(self.description, error) from error
        differences = [
            line
            for part in sorted(wanted.keys() | held.keys())
            for line in _differences(part, held.get(part), wanted.get(part), free_to_change)
        ]
        if differences:
            raise RunFolderError(
                f"{self.directory} holds another run: {listed(differences)}. Use another folder, or delete this one "
                "to begin again."
            )

    def read_checkpoint(self) -> Checkpoint | None:
        """The last checkpoint; None before the first one. RunFolderError if it is damaged."""
        if not self.checkpoint.exists():
            return None
        try:
            with zipfile.ZipFile(self.checkpoint) as archive:
                if record := archive.testzip():  # torch writes checksums but does not read them
                    raise zipfile.BadZipFile(f"the checksum of {record} differs")
            content = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}, expected {FORMAT}")
            return Checkpoint(
                content["step"],
                content["state"],
                content["optimiser"],
                tuple(Validation(step, score) for step, score in content["validations"]),
                content["train_seconds"],
                json.loads(content.get("counters", "{}")),
            )
        except Exception as error:  # whatever goes wrong in decoding damaged bytes is the file's fault
            raise self._damaged(self.checkpoint, error) from error

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        content = {
            "format": FORMAT,
            "step": checkpoint.step,
            "state": checkpoint.state,
            "optimiser": checkpoint.optimiser,
            "validations": [(v.step, v.score) for v in checkpoint.validations],
            "train_seconds": checkpoint.train_seconds,
            "counters": json.dumps(checkpoint.counters),
        }
        _replace(self.checkpoint, lambda path: torch.save(content, path))

    def read_best(self, validation: Validation) -> dict[str, Tensor]:
        """The state that `validation` was about. RunFolderError if the file is damaged or about another one."""
        try:
            with safe_open(self.best, framework="pt") as content:
                header = content.metadata() or {}
                state = {name: content.get_tensor(name) for name in content.keys()}
        except (OSError, SafetensorError) as error:
            raise self._damaged(self.best, error) from error
        if header != _best_header(validation):
            raise RunFolderError(
                f"{self.best} is about {header.get('validation')}, but the best of this run is {validation}. "
                f"Delete {self.directory} to begin again."
            )
        return state

    def write_best(self, state: dict[str, Tensor], validation: Validation) -> None:
        state = {name: tensor.contiguous() for name, tensor in state.items()}
        _replace(self.best, lambda path: save_file(state, path, metadata=_best_header(validation)))

    def _damaged(self, path: Path, error: Exception) -> RunFolderError:
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        return RunFolderError(
            f"cannot read {path}: truncated or damaged ({reason}). Delete {self.directory} to begin the run again."
        )


class TrainingLog:
    """log.jsonl, and TensorBoard events where asked for. Lines beyond `last_step` of an earlier try are removed."""

    def __init__(self, path: Path, last_step: int, tensorboard: bool) -> None:
        """Raises ValueError if TensorBoard is asked for but not installed."""
        self._writer: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ValueError(
                    "tensorboard=True needs a package that is not installed. Run `pip install tensorboard`, or set "
                    "tensorboard=False."
                ) from error
            self._writer = SummaryWriter(str(path.parent / "tensorboard"), purge_step=last_step + 1)
        self._stream = path.open("a", encoding="utf-8")
        _cut_log(path, last_step)

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """A line. In TensorBoard every number of it, those of a mapping under its name."""
        self._stream.write(json.dumps({"step": step, **values}) + "\n")
        self._stream.flush()
        if self._writer is not None:
            for name, value in values.items():
                scalars = value if isinstance(value, Mapping) else {"": value}
                for part, scalar in scalars.items():
                    self._writer.add_scalar(f"{name}/{part}" if part else name, scalar, step)

    def sync(self) -> None:
        """To the disk, so that no checkpoint is ahead of its log."""
        os.fsync(self._stream.fileno())
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        self._stream.close()
        if self._writer is not None:
            self._writer.close()


def listed(items: list[str]) -> str:
    """The first few, for an error message."""
    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "")


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make the file under another name, and put it in place when it is on the disk."""
    temporary = path.with_name(path.name + ".part")
    write(temporary)
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(directory: Path) -> None:
    """The names in it to the disk."""
    folder = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _cut_log(path: Path, last_step: int) -> None:
    """Keep the whole lines up to `last_step`; a killed process may have left more, and half a line."""
    kept_bytes = 0
    with path.open("rb") as lines:
        for line in lines:
            try:
                keep = line.endswith(b"\n") and json.loads(line)["step"] <= last_step
            except (ValueError, KeyError, TypeError):
                keep = False
            if not keep:
                break
            kept_bytes += len(line)
    os.truncate(path, kept_bytes)


def _best_header(validation: Validation) -> dict[str, str]:
    # One entry, because safetensors writes several in an order that changes from process to process.
    return {"validation": json.dumps({"step": validation.step, "score": validation.score})}


def _differences(part: str, held: Any, wanted: Any, free_to_change: frozenset[str]) -> list[str]:
    """One line per value that differs within a part of two descriptions."""
    if not isinstance(held, dict) or not isinstance(wanted, dict):
        return [] if held == wanted else [f"{part} was {held}, is {wanted}"]
    free = free_to_change if part == "config" else frozenset[str]()
    return [
        f"{part} {name} was {held.get(name, 'absent')}, is {wanted.get(name, 'absent')}"
        for name in sorted(held.keys() | wanted.keys())
        if name not in free and held.get(name, _ABSENT) != wanted.get(name, _ABSENT)
    ]


_ABSENT = object()
