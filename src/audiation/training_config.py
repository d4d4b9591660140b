"""The choices of a training run, and the learning rate that follows from them."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

MAX_SEED = 2**63 - 1  # what every generator of torch takes


@dataclass(frozen=True)
class Engine:
    """How steps are computed and guarded. The defaults are those of all training but pre-training, whose
    `PretrainConfig` says what the fields are.

    loss_scale_window: None: the loss is not scaled.
    """

    parallel: Literal["replicated", "ddp", "sharded"] = "replicated"
    gather_precision: Literal["fp32", "bf16"] = "fp32"
    recompute_blocks: bool = False
    compile: bool = False
    loss_scale_window: int | None = None
    spike_factor: float | None = None
    spike_window: int = 100
    spike_action: Literal["log", "skip", "rollback"] = "log"


@dataclass(frozen=True)
class TrainConfig:
    """How `training.fit` trains. The optimiser is Adam with torch's betas and epsilon.

    steps: optimiser steps.
    batch_size: examples per optimiser step, over all ranks and accumulations.
    micro_batch_size: examples that go through the model at once, with batch-norm statistics and random numbers of
        their own; divides batch_size. None: batch_size. It belongs to the result; how micro-batches are spread
        over ranks does not.
    learning_rate: of everything that is trained, unless group_learning_rates says otherwise.
    group_learning_rates: (prefix of parameter names, learning rate); the longest prefix wins.
    schedule: "constant"; "cosine" falls from learning_rate to min_learning_rate over the steps after the warm-up;
        "plateau" multiplies by plateau_factor after plateau_patience validations in a row without improvement.
    min_learning_rate: where cosine and plateau end; in groups in the proportion of their rates.
    warmup_steps: in the first so many steps the rate rises linearly, `rate * (s + 1) / warmup_steps` at step s.
    weight_decay: L2 in Adam's coupled form, on everything that is trained.
    clip_norm: largest norm of all gradients together; None: they are not clipped.
    precision: "bf16": the model computes under bfloat16 autocast; parameters stay float32.
    validate_every_steps: None: after the last step only.
    patience: stop after that many validations in a row without improvement; None: never.
    keep: which state the module holds at the end, the "best" by validation (the first of equals) or the "last".
    checkpoint_every_steps, checkpoint_every_seconds: whichever comes first. When it happens changes no result.
    seed: of everything random while training.
    tensorboard: write events for TensorBoard beside the log.
    """

    steps: int
    batch_size: int = 16
    micro_batch_size: int | None = None
    learning_rate: float = 1e-4
    group_learning_rates: tuple[tuple[str, float], ...] = ()
    schedule: Literal["constant", "cosine", "plateau"] = "constant"
    min_learning_rate: float = 0.0
    warmup_steps: int = 0
    plateau_factor: float = 0.5
    plateau_patience: int = 5
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    validate_every_steps: int | None = None
    patience: int | None = None
    keep: Literal["best", "last"] = "best"
    checkpoint_every_steps: int = 100
    checkpoint_every_seconds: float = 60.0
    seed: int = 0
    tensorboard: bool = False

    schedules: ClassVar[tuple[str, ...]] = ("constant", "cosine", "plateau")
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16")
    # Fields that a resumed run may have otherwise, because no result depends on them. Subclasses add theirs.
    free_to_change: ClassVar[frozenset[str]] = frozenset(
        {"checkpoint_every_steps", "checkpoint_every_seconds", "tensorboard"}
    )

    def __post_init__(self) -> None:
        _check_types(self)
        for name in ("steps", "batch_size", "plateau_patience", "checkpoint_every_steps"):
            check_count(name, getattr(self, name), 1)
        for name in ("micro_batch_size", "validate_every_steps", "patience"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), 1)
        for name in ("warmup_steps", "seed"):
            check_count(name, getattr(self, name), 0)
        if self.seed > MAX_SEED:
            raise ValueError(f"seed must be at most 2^63 - 1 = {MAX_SEED}, got {self.seed}")
        for name in ("learning_rate", "checkpoint_every_seconds"):
            _check_positive(name, getattr(self, name))
        for prefix, rate in self.group_learning_rates:
            _check_positive(
                f"the learning rate of '{prefix}' (to freeze it, set requires_grad_(False))", rate
            )
        if self.clip_norm is not None:
            _check_positive("clip_norm (None: no clipping)", self.clip_norm)
        if not 0.0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be a number >= 0, got {self.weight_decay}")
        if not 0.0 < self.plateau_factor < 1.0:
            raise ValueError(f"plateau_factor must be between 0 and 1, got {self.plateau_factor}")
        if not 0.0 <= self.min_learning_rate <= self.learning_rate:
            raise ValueError(
                f"min_learning_rate must be from 0 to learning_rate = {self.learning_rate:g}, "
                f"got {self.min_learning_rate:g}"
            )
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of micro_batch_size {self.micro_batch_size}"
            )
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be fewer than steps {self.steps}")
        prefixes = Counter(prefix for prefix, _ in self.group_learning_rates)
        if twice := [prefix for prefix, count in prefixes.items() if count > 1]:
            raise ValueError(f"group_learning_rates has '{twice[0]}' twice")
        self._check_choices()

    def _check_choices(self) -> None:
        allowed = {
            "schedule": self.schedules,
            "precision": self.precisions,
            "keep": ("best", "last"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is one of {', '.join(values)}, got {getattr(self, name)!r}")
        if self.validate_every_steps is None:
            if self.schedule == "plateau":
                raise ValueError("schedule='plateau' goes by validations. Set validate_every_steps.")
            if self.patience is not None:
                raise ValueError(f"patience={self.patience} counts validations. Set validate_every_steps.")

    @property
    def engine(self) -> Engine:
        """How steps are computed and guarded."""
        return Engine()

    @property
    def num_micro_batches(self) -> int:
        """Per optimiser step, over all ranks."""
        return self.batch_size // (self.micro_batch_size or self.batch_size)

    def learning_rate_at(
        self, step: int, base_learning_rate: float | None = None, num_reductions: int = 0
    ) -> float:
        """Learning rate of optimiser step `step` (the first is 0).

        Args:
            base_learning_rate: that of a group; None: `learning_rate`.
            num_reductions: by the plateau schedule so far.
        """
        base = self.learning_rate if base_learning_rate is None else base_learning_rate
        floor = self.min_learning_rate * (base / self.learning_rate)
        if step < self.warmup_steps:
            return base * (step + 1) / self.warmup_steps
        if self.schedule == "cosine":
            fraction = min(1.0, (step - self.warmup_steps) / (self.steps - self.warmup_steps))
            return floor + 0.5 * (base - floor) * (1.0 + math.cos(math.pi * fraction))
        if self.schedule == "plateau":
            return max(base * self.plateau_factor**num_reductions, floor)
        return base

    def make_adam(self, groups: list[dict[str, Any]]) -> torch.optim.Adam:
        """The optimiser of groups of parameters. Fused: the default makes a pass over memory for each operation."""
        return torch.optim.Adam(groups, weight_decay=self.weight_decay, fused=True)

    def base_learning_rates(self, names: Iterable[str]) -> dict[str, float]:
        """Name of every trained parameter -> its learning rate before the schedule.

        Raises:
            ValueError: a prefix in group_learning_rates that decides about none of them.
        """
        names, rates = list(names), dict(self.group_learning_rates)
        longest = {
            name: max((p for p in rates if name.startswith(p)), key=len, default=None) for name in names
        }
        idle = [prefix for prefix in rates if prefix not in longest.values()]
        if idle:
            raise ValueError(
                f"group_learning_rates: no trained parameter is decided by '{idle[0]}'. Trained are "
                f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}."
            )
        return {name: self.learning_rate if p is None else rates[p] for name, p in longest.items()}


def check_count(name: str, value: object, least: int) -> None:
    if type(value) is not int or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")


def _check_types(config: TrainConfig) -> None:
    """Values may come from a JSON file or a person's hands, and comparing text with numbers would say nothing."""
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), field.default
        if isinstance(default, bool) and type(value) is not bool:
            raise ValueError(f"{field.name} is true or false, got {value!r}")
        if isinstance(default, float) and field.name != "clip_norm" and not _is_number(value):
            raise ValueError(f"{field.name} must be a number, got {value!r}")
    if config.clip_norm is not None and not _is_number(config.clip_norm):
        raise ValueError(f"clip_norm must be a number, or None for no clipping, got {config.clip_norm!r}")
    rates = config.group_learning_rates
    if not isinstance(rates, tuple) or not all(
        isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) and _is_number(pair[1])
        for pair in rates
    ):
        raise ValueError(
            f"group_learning_rates are pairs of a prefix and a number, like (('head', 1e-3),), got {rates!r}"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_positive(name: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number, got {value!r}")
