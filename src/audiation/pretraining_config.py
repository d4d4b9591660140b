"""The choices of a pre-training run beyond those of any training."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from audiation.training_config import Engine, TrainConfig, check_count

TRI_STAGE_START = (
    0.01  # of the learning rate, where the warm-up of "tri-stage" begins (MERT spec, section 5.2)
)


@dataclass(frozen=True)
class PretrainConfig(TrainConfig):
    """How a backbone is pre-trained; `TrainConfig` has the rest. There is no validation: the last state is kept, and
    what goes by validations is refused. So is whatever another choice would leave unused.

    schedule: "constant" or "cosine"; "linear" falls from learning_rate to min_learning_rate over the steps after the
        warm-up (MERT, HuBERT); "tri-stage" warms up linearly from a hundredth of learning_rate, holds it, and falls
        exponentially to min_learning_rate over the last decay_fraction of the steps (data2vec, as fairseq does it).
    betas, eps: of Adam.
    decoupled_weight_decay: AdamW's form, as in the recipes of MERT, HuBERT and data2vec.
    decay_fraction: of "tri-stage".
    precision: besides those of `TrainConfig`, "fp16": float16 autocast, with the loss scaled by a factor that starts
        at 128, doubles after `loss_scale_window` good steps in a row, and is halved when a gradient overflows; that
        step is skipped. Below 1e-4 the run stops (MERT spec, section 3.6).
    loss_scale_window: of "fp16". (fairseq: 2^14, divided by the number of workers and of accumulated batches.)
    parallel: how several processes share the work (docs/scale.md). "replicated": each has a copy of the model, and
        gradients are added in an order that repeats itself. "ddp": torch's DistributedDataParallel, which adds while
        the backward pass goes on. "sharded": FSDP2; parameters, gradients and Adam's averages are split among the
        processes. One process alone is the same in all three.
    gather_precision: of "sharded", in which blocks are put together for computing; what is trained stays float32.
    recompute_blocks: keep only what enters a block, and run it again for the gradient: less memory, more time.
    compile: blocks by torch.compile, which rounds a little differently; not together with `recompute_blocks`.
    spike_factor: a step whose loss, or norm of the gradient, is over so many times its median over the last
        `spike_window` steps is a spike; None: nothing is looked for.
    spike_window: nothing is a spike before so many steps.
    spike_action: "log": a note in the log. "skip": the parameters stay as they are. "rollback": they and Adam's
        averages go back to the last checkpoint, and the run goes on with the batches that come next; then checkpoints
        come by steps, not by seconds, and when they come belongs to the result.
    """

    schedule: Literal["constant", "cosine", "linear", "tri-stage"] = "constant"  # type: ignore[assignment]
    keep: Literal["last"] = "last"  # type: ignore[assignment]
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    decoupled_weight_decay: bool = True
    decay_fraction: float = 0.07
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # type: ignore[assignment]
    loss_scale_window: int = 2000
    parallel: Literal["replicated", "ddp", "sharded"] = "replicated"
    gather_precision: Literal["fp32", "bf16"] = "fp32"
    recompute_blocks: bool = False
    compile: bool = False
    spike_factor: float | None = None
    spike_window: int = 100
    spike_action: Literal["log", "skip", "rollback"] = "log"

    schedules: ClassVar[tuple[str, ...]] = ("constant", "cosine", "linear", "tri-stage")
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "fp16")

    def __post_init__(self) -> None:
        self._refuse_validation()
        super().__post_init__()
        if (
            not isinstance(self.betas, tuple)
            or len(self.betas) != 2
            or not all(isinstance(beta, int | float) and 0.0 <= beta < 1.0 for beta in self.betas)
        ):
            raise ValueError(f"betas are two numbers from 0 to below 1, like (0.9, 0.98), got {self.betas!r}")
        if not 0.0 < self.eps < 1.0:
            raise ValueError(f"eps must be between 0 and 1, got {self.eps}")
        if not 0.0 < self.decay_fraction < 1.0:
            raise ValueError(f"decay_fraction must be between 0 and 1, got {self.decay_fraction}")
        if self.schedule == "tri-stage" and self.min_learning_rate == 0.0:
            raise ValueError("schedule='tri-stage' falls exponentially. Set min_learning_rate above 0.")
        self._check_engine()
        self._refuse_unused()

    def _refuse_validation(self) -> None:
        for name in ("keep", "validate_every_steps", "patience"):
            value = getattr(self, name)
            if value != _default(name):
                raise ValueError(
                    f"pre-training has no validation, so {name}={value!r} cannot be. Leave {name} away; a probe shows "
                    "how the backbone does meanwhile (--probe)."
                )
        if self.schedule == "plateau":  # type: ignore[comparison-overlap]
            raise ValueError(
                "pre-training has no validation that schedule='plateau' could go by. Use one of "
                f"{', '.join(self.schedules)}."
            )

    def _refuse_unused(self) -> None:
        """What is set, and would be left unread."""
        needs = {
            "plateau_factor": (False, "schedule='plateau', which pre-training does not have"),
            "plateau_patience": (False, "schedule='plateau', which pre-training does not have"),
            "min_learning_rate": (self.schedule != "constant", "a schedule that falls, like 'linear'"),
            "decay_fraction": (self.schedule == "tri-stage", "schedule='tri-stage'"),
            "loss_scale_window": (self.precision == "fp16", "precision='fp16'"),
            "spike_window": (self.spike_factor is not None, "spike_factor, like 3.0"),
        }
        for name, (is_read, need) in needs.items():
            value = getattr(self, name)
            if not is_read and value != _default(name):
                raise ValueError(f"{name}={value!r} needs {need}. Set that, or leave {name} away.")

    def _check_engine(self) -> None:
        allowed = {
            "parallel": ("replicated", "ddp", "sharded"),
            "gather_precision": ("fp32", "bf16"),
            "spike_action": ("log", "skip", "rollback"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"{name} is one of {', '.join(map(str, values))}, got {getattr(self, name)!r}"
                )
        check_count("loss_scale_window", self.loss_scale_window, 1)
        check_count("spike_window", self.spike_window, 2)
        factor = self.spike_factor
        if factor is not None and not (isinstance(factor, int | float) and 1.0 < factor < math.inf):
            raise ValueError(f"spike_factor must be a number above 1, got {self.spike_factor!r}")
        if self.spike_factor is None and self.spike_action != "log":
            raise ValueError(f"spike_action={self.spike_action!r} needs spike_factor, like 3.0")
        if self.compile and self.recompute_blocks:
            raise ValueError(
                "compile and recompute_blocks do not go together: a compiled block may run otherwise when run again. "
                "Choose one."
            )
        if self.gather_precision == "bf16" and (self.parallel != "sharded" or self.precision != "bf16"):
            raise ValueError("gather_precision='bf16' needs parallel='sharded' and precision='bf16'")

    @property
    def engine(self) -> Engine:
        return Engine(
            parallel=self.parallel,
            gather_precision=self.gather_precision,
            recompute_blocks=self.recompute_blocks,
            compile=self.compile,
            loss_scale_window=self.loss_scale_window if self.precision == "fp16" else None,
            spike_factor=self.spike_factor,
            spike_window=self.spike_window,
            spike_action=self.spike_action,
        )

    @property
    def free_to_change(self) -> frozenset[str]:  # type: ignore[override]
        """How the work is shared is free, and results then differ by rounding, as with another number of processes."""
        free = TrainConfig.free_to_change | {"parallel", "recompute_blocks", "compile"}
        if self.spike_action == "rollback":
            free -= {"checkpoint_every_steps", "checkpoint_every_seconds"}
        return free

    def learning_rate_at(
        self, step: int, base_learning_rate: float | None = None, num_reductions: int = 0
    ) -> float:
        is_rising = step < self.warmup_steps
        if self.schedule not in ("linear", "tri-stage") or (is_rising and self.schedule == "linear"):
            return super().learning_rate_at(step, base_learning_rate, num_reductions)
        base = self.learning_rate if base_learning_rate is None else base_learning_rate
        floor = self.min_learning_rate * (base / self.learning_rate)
        if self.schedule == "linear":
            fraction = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
            return base + (floor - base) * min(1.0, fraction)
        if is_rising:
            return base * (TRI_STAGE_START + (1.0 - TRI_STAGE_START) * step / self.warmup_steps)
        decay_steps = max(1, round(self.decay_fraction * self.steps))
        fraction = min(1.0, max(0.0, (step - (self.steps - decay_steps)) / decay_steps))
        return base * (floor / base) ** fraction

    def make_adam(self, groups: list[dict[str, object]]) -> torch.optim.Adam:
        kind = torch.optim.AdamW if self.decoupled_weight_decay else torch.optim.Adam
        return kind(groups, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=True)  # type: ignore[arg-type]


def _default(name: str) -> object:
    return next(field.default for field in dataclasses.fields(PretrainConfig) if field.name == name)
