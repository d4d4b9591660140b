"""`fit`: the one training loop, for pre-training, fine-tuning and adaptation.

Where a micro-batch is computed changes nothing: one process that accumulates four of them, two that accumulate two
each, and four processes trace the same curve. When a run is killed changes nothing either.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from audiation.distributed import copy_from_first, process_group, this_rank, value_from_first
from audiation.divergence import keep_evidence
from audiation.losses import ComputeLoss, Loss
from audiation.micro_batches import Batches, Place, load_ahead, random_stream
from audiation.selection import Selection, Validation
from audiation.training_checkpoints import Checkpoints
from audiation.training_config import TrainConfig
from audiation.training_layouts import BlockChoices, make_layout
from audiation.training_state import (
    Checkpoint,
    RunFolder,
    RunFolderError,
    TrainingLog,
    load_trainable_state,
    trainable_state,
    trainable_tensors,
)
from audiation.training_step import NotFiniteError, OptimiserStep, StepTotals, of_files

__all__ = [
    "Batches",
    "DivergedError",
    "FitReport",
    "Loss",
    "RunFolderError",
    "TrainConfig",
    "TrainingProgress",
    "Validation",
    "fit",
    "load_trainable_state",
    "process_group",
    "trainable_state",
]


@dataclass(frozen=True)
class TrainingProgress:
    """Where a run stands. step: optimiser steps done of `steps`. score: of the latest validation."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    score: float | None
    best_score: float | None
    seconds_left: float


@dataclass(frozen=True)
class FitReport:
    """How a run ended.

    best_score, best_step: the highest validation score (the first of equals) and the number of steps done by then;
        None without validation.
    last_step: optimiser steps done.
    stopped_early: by `patience`.
    history: every validation.
    train_seconds: with validation, without what was lost by being killed.
    log: JSONL with a line per step and per validation.
    """

    best_score: float | None
    best_step: int | None
    last_step: int
    stopped_early: bool
    history: tuple[Validation, ...]
    train_seconds: float
    log: Path


class DivergedError(ValueError):
    """The loss or its gradient is not finite any more.

    step: number of the optimiser step; the first is 1. names: files of the micro-batches where it happened.
    checkpoint: the last good state that was written; None if there is none. evidence: JSON file about these
    micro-batches, beside which their tensors lie (`divergence`); None if it could not be written.
    """

    def __init__(
        self,
        message: str,
        step: int,
        names: tuple[str, ...],
        checkpoint: Path | None,
        evidence: Path | None = None,
    ) -> None:
        super().__init__(message)
        self.step, self.names, self.checkpoint, self.evidence = step, names, checkpoint, evidence


def fit(
    module: nn.Module,
    step: ComputeLoss,
    batches: Batches,
    config: TrainConfig,
    run_dir: str | Path,
    validate: Callable[[nn.Module], float] | None = None,
    *,
    device: str | torch.device = "cpu",
    progress: Callable[[TrainingProgress], None] | None = None,
    identity: Mapping[str, str] | None = None,
    begun: Callable[[], object] | None = None,
) -> FitReport:
    """Train what requires gradients in `module`, which ends in the state that `config.keep` names.

    Can be killed at any moment and called again: it goes on from the last checkpoint in `run_dir` and ends with the
    same bits as a run that was never killed (with as many threads and processes; on CUDA, as far as torch's kernels
    repeat themselves). A finished run gives its report at once. Saved is what `trainable_state` names; nothing else in
    `module` may change from step to step. A module with a method `after_step(step)` has it called after every step, on
    every rank: what moves without gradients (an averaged teacher) moves there.

    Several processes: start them with torchrun and call this inside `with process_group(device) as device:`.
    Micro-batch i of a step goes to rank i modulo their number; rank 0 alone validates, reports and writes files, and
    its module is what all start from. How else the work is shared is said by `config.engine` (docs/scale.md). A module
    that is sharded meanwhile is whole again afterwards, but not after an error of one rank alone.

    Args:
        module: moved to `device`. Training and eval modes are the caller's and stay as they are.
        step: `(module, micro_batch, generator) -> Loss`, called under autocast. The generator, on `device`, and
            torch's global stream follow from seed, step and index.
        run_dir: folder of this run alone.
        validate: score of the module, higher is better. Called without gradients, every `config.validate_every_steps`
            and after the last step. It may switch modes, which are put back.
        progress: called after every step.
        identity: what else makes the run what it is: hashes of weights and data, the method.
        begun: called on rank 0 when it is clear that `run_dir` is this run's, before anything is computed.

    Raises:
        DivergedError: the loss or its gradient is not finite. Nothing of that state is written.
        RunFolderError: `run_dir` holds another run, or a damaged one.
        ValueError: nothing to train, parameters that the loss does not depend on, a loss without terms, a score that
            is not a number, arguments that do not go together.
    """
    device = _placed(torch.device(device))
    _check_arguments(config, this_rank().count, validate is not None)
    module.to(device)
    _trained_parameters(module)
    with ExitStack() as stack:
        stack.enter_context(closing(BlockChoices(module, config.engine)))
        folder = RunFolder(Path(run_dir))
        if this_rank().is_first:
            folder.open(_description(module, config, identity or {}), config.free_to_change)
            if begun is not None:
                begun()
        layout = make_layout(module, step, device, config.engine)
        optimiser_step = OptimiserStep(layout, config, device, _trained_parameters(module))
        return _Loop(optimiser_step, batches, folder, validate, progress).run_and_close()


class _Loop:
    """Steps, and what is due after each: log, validation, checkpoint, progress."""

    def __init__(
        self,
        step: OptimiserStep,
        batches: Batches,
        folder: RunFolder,
        validate: Callable[[nn.Module], float] | None,
        progress: Callable[[TrainingProgress], None] | None,
    ) -> None:
        self.step, self.module, self.config, self.rank = step, step.module, step.config, step.rank
        self.batches, self.folder, self.validate, self.progress = batches, folder, validate, progress
        self.after_step: Callable[[int], None] | None = getattr(self.module, "after_step", None)
        self.selection = Selection(self.config)
        self.first_step = self.steps_done = self.saved_step = 0
        self.seconds_before = self.train_seconds = 0.0  # up to this call, up to the last checkpoint
        self.started = self.saved_at = time.monotonic()
        self.log: TrainingLog | None = None  # rank 0 only
        self.checkpoints = Checkpoints(folder, step)

    def run_and_close(self) -> FitReport:
        try:
            self._start()
            report = self._run()
        except DivergedError:  # raised by all ranks together
            self.step.layout.close()
            raise
        self.step.layout.close()
        return report

    def _start(self) -> None:
        """From the last checkpoint, or from the state of rank 0."""
        if (held := self.checkpoints.load_last()) is not None:
            self.first_step = self.steps_done = self.saved_step = held.step
            self.seconds_before = self.train_seconds = held.train_seconds
            self.step.load_counters(held.counters)
            for validation in held.validations:
                self.selection.add(validation)

    def _run(self) -> FitReport:
        with ExitStack() as stack:
            if not self._finished:
                micro_batches = stack.enter_context(closing(load_ahead(self.batches, self._places())))
                if self.rank.is_first:
                    log = TrainingLog(self.folder.log, self.steps_done, self.config.tensorboard)
                    self.log = stack.enter_context(closing(log))
                if self._goes_back and self.steps_done == 0:
                    self._write_checkpoint()
            while not self._finished:
                self._advance(micro_batches)
        self._load_kept()
        best = self.selection.best
        return FitReport(
            best_score=None if best is None else best.score,
            best_step=None if best is None else best.step,
            last_step=self.steps_done,
            stopped_early=self.steps_done < self.config.steps,
            history=tuple(self.selection.validations),
            train_seconds=value_from_first(self.train_seconds),
            log=self.folder.log,
        )

    @property
    def _finished(self) -> bool:
        return self.steps_done == self.config.steps or self.selection.out_of_patience

    def _places(self) -> Iterator[Place]:
        for step in range(self.steps_done, self.config.steps):
            for index in range(self.rank.index, self.config.num_micro_batches, self.rank.count):
                yield Place(step, index)

    def _advance(self, micro_batches: Iterator[Any]) -> None:
        started = time.monotonic()
        reductions = self.selection.num_reductions
        learning_rate = self.config.learning_rate_at(self.steps_done, num_reductions=reductions)
        try:
            totals = self.step.take(self.steps_done, micro_batches, reductions)
        except NotFiniteError as found:
            raise self._diverged(found) from None
        if self.after_step is not None and not totals.skipped:
            self.after_step(self.steps_done)
        self.steps_done += 1
        if self.log is not None:
            seconds = round(time.monotonic() - started, 6)
            self.log.add(self.steps_done, self._line(totals, learning_rate, seconds))
        if goes_back := bool(totals.spike) and self._goes_back:
            self.checkpoints.load_last()
        if self.validate is not None and self._validation_is_due():
            self._note_score(self.validate)
        if goes_back or self._checkpoint_is_due():
            self._write_checkpoint()
        if self.rank.is_first and self.progress is not None:
            self.progress(self._standing(totals, learning_rate))

    @property
    def _goes_back(self) -> bool:
        """After a spike."""
        return self.config.engine.spike_action == "rollback"

    def _line(self, totals: StepTotals, learning_rate: float, seconds: float) -> dict[str, Any]:
        """Of the log."""
        line: dict[str, Any] = {
            "loss": totals.loss,
            "learning_rate": learning_rate,
            "grad_norm": totals.grad_norm,
        }
        line |= {"seconds": seconds, "parts": totals.parts}
        if not totals.is_finite:  # JSON knows no such numbers
            line |= {"loss": None, "grad_norm": None, "parts": {}}
        if totals.loss_scale is not None:
            line["loss_scale"] = totals.loss_scale
        if totals.spike:
            line["spike"] = totals.spike
        if totals.spike and self._goes_back:
            line["skipped"] = f"spike, back to the state after step {self.saved_step}"
        elif totals.skipped:
            line["skipped"] = totals.skipped
        return line

    # Validation ---------------------------------------------------------------------------------------------

    def _validation_is_due(self) -> bool:
        every = self.config.validate_every_steps
        return self.steps_done == self.config.steps or (every is not None and self.steps_done % every == 0)

    def _note_score(self, validate: Callable[[nn.Module], float]) -> None:
        score = value_from_first(self._score(validate) if self.rank.is_first else math.nan)
        if math.isnan(score):
            raise ValueError(f"validate gave {score} after step {self.steps_done}. A score must be a number.")
        validation = Validation(self.steps_done, score)
        is_best = self.selection.add(validation)
        if self.log is not None:
            self.log.add(validation.step, {"score": score})
            if is_best and self.config.keep == "best":
                self.folder.write_best(trainable_state(self.module), validation)

    def _score(self, validate: Callable[[nn.Module], float]) -> float:
        modes = [(part, part.training) for part in self.module.modules()]
        key = (self.config.seed, self.steps_done, "validation")
        try:
            with random_stream(self.step.device, *key), torch.no_grad():
                return float(validate(self.module))
        finally:
            for part, training in modes:
                part.training = training

    # Checkpoints --------------------------------------------------------------------------------------------

    def _checkpoint_is_due(self) -> bool:
        steps, seconds = self.steps_done - self.saved_step, time.monotonic() - self.saved_at
        due = self._finished or steps >= self.config.checkpoint_every_steps
        if self._goes_back:
            return due
        # All ranks write shards, and their clocks differ.
        late = seconds >= self.config.checkpoint_every_seconds
        return due or (value_from_first(late) if self.checkpoints.is_sharded else late)

    def _write_checkpoint(self) -> None:
        if self.log is not None:
            self.log.sync()
        self.train_seconds = self.seconds_before + time.monotonic() - self.started
        self.checkpoints.write(
            Checkpoint(
                self.steps_done,
                state={},
                optimiser={},
                validations=tuple(self.selection.validations),
                train_seconds=self.train_seconds,
                counters=self.step.counters(),
            )
        )
        self.saved_step, self.saved_at = self.steps_done, time.monotonic()

    def _load_kept(self) -> None:
        if self.config.keep == "best":
            assert self.selection.best is not None
            if self.rank.is_first:
                load_trainable_state(self.module, self.folder.read_best(self.selection.best))
            copy_from_first(list(trainable_tensors(self.module).values()))

    # Reporting ----------------------------------------------------------------------------------------------

    def _standing(self, totals: StepTotals, learning_rate: float) -> TrainingProgress:
        validations, best, steps = self.selection.validations, self.selection.best, self.config.steps
        seconds_per_step = (time.monotonic() - self.started) / (self.steps_done - self.first_step)
        return TrainingProgress(
            step=self.steps_done,
            steps=steps,
            loss=totals.loss,
            learning_rate=learning_rate,
            score=validations[-1].score if validations else None,
            best_score=None if best is None else best.score,
            seconds_left=0.0 if self._finished else seconds_per_step * (steps - self.steps_done),
        )

    def _diverged(self, found: NotFiniteError) -> DivergedError:
        checkpoint, step = value_from_first(self.checkpoints.last), self.steps_done + 1
        evidence, unkept = value_from_first(self._evidence(found) if self.rank.is_first else (None, ""))
        advice = ["a lower learning_rate", "more warmup_steps"]
        if self.config.precision == "bf16":
            advice.append("precision='fp32'")
        if self.config.precision == "fp16":
            advice.append("precision='bf16'")
        kept = (
            f"The last good state is in {checkpoint}." if checkpoint else "No checkpoint was written before."
        )
        about = f"What it was computed from is in {evidence}." if evidence else unkept
        return DivergedError(
            f"{found.what} at step {step} of {self.config.steps}{of_files(found.names)}. "
            f"Try {', '.join(advice)}, in another run folder. {kept} {about}",
            step,
            found.names,
            checkpoint,
            evidence,
        )

    def _evidence(self, found: NotFiniteError) -> tuple[Path | None, str]:
        """Where it is, or why it is nowhere: a full disk must not hide what has happened."""
        try:
            return keep_evidence(
                self.folder.diverged, self.batches, found.places, {"what": found.what, **found.facts}
            ), ""
        except OSError as error:
            return None, f"What it was computed from could not be written ({error})."


def _placed(device: torch.device) -> torch.device:
    """With its number. ValueError for what has no random stream of its own that could be set aside."""
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"training runs on 'cpu' or 'cuda', got '{device}'")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _check_arguments(config: TrainConfig, num_ranks: int, has_validation: bool) -> None:
    if config.num_micro_batches % num_ranks:
        raise ValueError(
            f"{config.num_micro_batches} micro-batches per step cannot be shared by {num_ranks} processes equally. "
            "Choose batch_size / micro_batch_size as a multiple of their number."
        )
    if has_validation:
        if num_ranks > 1 and config.engine.parallel == "sharded":
            raise ValueError(
                "validate runs on one process, and parallel='sharded' has the module on all of them"
            )
        return
    if config.keep == "best":
        raise ValueError("keep='best' needs validate. Give it, or keep='last'.")
    if config.validate_every_steps is not None:
        raise ValueError(f"validate_every_steps={config.validate_every_steps} needs validate")


def _trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("nothing to train: no parameter of the module requires a gradient")
    for name, parameter in trained.items():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{name} is {parameter.dtype}, too coarse to add small steps to. Hold what is trained in float32; "
                "precision='bf16' computes in bfloat16 all the same."
            )
    return trained


def _description(module: nn.Module, config: TrainConfig, identity: Mapping[str, str]) -> dict[str, Any]:
    """What has to be the same for a run to go on."""
    return {
        "config": dataclasses.asdict(config),
        "identity": dict(identity),
        "trained": {name: list(tensor.shape) for name, tensor in trainable_tensors(module).items()},
    }
