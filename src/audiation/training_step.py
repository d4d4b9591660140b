"""One optimiser step: a sum over micro-batches, divided by how many terms they have together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from audiation.distributed import copy_from_first, sum_over_ranks, this_rank, values_of_all
from audiation.micro_batches import BatchStatistics, Place, random_stream
from audiation.training_config import TrainConfig
from audiation.training_state import listed


@dataclass(frozen=True)
class Loss:
    """sum: scalar with gradient; count: how many terms it sums; parts: named means of these terms, for the log, as
    numbers or scalar tensors (for which the host does not wait)."""

    sum: Tensor
    count: Tensor
    parts: Mapping[str, float | Tensor] = field(default_factory=dict)

    @property
    def mean(self) -> Tensor:
        return self.sum / self.count.clamp(min=1)


ComputeLoss = Callable[[nn.Module, Any, torch.Generator], Loss]


@dataclass(frozen=True)
class StepTotals:
    """Of all micro-batches of all ranks: mean loss and its parts, and the norm of its gradient before clipping."""

    loss: float
    grad_norm: float
    parts: dict[str, float]


class NotFiniteError(ArithmeticError):
    """Loss or gradient is not finite; the module is as before the step. names: files it may come from."""

    def __init__(self, what: str, names: tuple[str, ...]) -> None:
        super().__init__(what)
        self.what, self.names = what, names


class OptimiserStep:
    """Adam on the trained parameters of a module.

    Args:
        compute_loss: `(module, micro_batch, generator) -> Loss`.
        trained: name -> parameter, the same on all ranks.
    """

    def __init__(
        self,
        module: nn.Module,
        compute_loss: ComputeLoss,
        config: TrainConfig,
        device: torch.device,
        trained: Mapping[str, nn.Parameter],
    ) -> None:
        self.module, self.compute_loss, self.config, self.device = module, compute_loss, config, device
        self.trained, self.rank = dict(trained), this_rank()
        self.optimiser = _adam(self.trained, config)
        self.optimiser.zero_grad(set_to_none=True)  # whatever the caller left there
        self._statistics = BatchStatistics(module)
        self._part_names: tuple[str, ...] | None = None  # agreed on in the first step of this process

    def take(self, step: int, micro_batches: Iterator[Any], num_reductions: int) -> StepTotals:
        """Step `step` (the first is 0) on this rank's share of its micro-batches, which are taken from the iterator.

        num_reductions: of the learning rate by the plateau schedule.

        Raises:
            NotFiniteError: on all ranks together.
            ValueError: a loss without gradient or without terms; in the first step, parameters without gradient.
        """
        self._statistics.start_step()
        losses = [
            self._backward(Place(step, index), next(micro_batches))
            for index in range(self.rank.index, self.config.num_micro_batches, self.rank.count)
        ]
        totals = self._add_up(step, losses)
        self._statistics.end_step(self.config.num_micro_batches)
        if self.config.clip_norm is not None and totals.grad_norm > self.config.clip_norm:
            norm = torch.tensor(totals.grad_norm, device=self.device)
            torch.nn.utils.clip_grads_with_norm_(self.trained.values(), self.config.clip_norm, norm)
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate_at(step, group["base_learning_rate"], num_reductions)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return totals

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Parameter name -> Adam's tensors for it, on the CPU; not copied where they are there already."""
        return {
            name: {key: tensor.cpu() for key, tensor in self.optimiser.state[parameter].items()}
            for name, parameter in self.trained.items()
            if parameter in self.optimiser.state
        }

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """What `state` gave. The tensors are taken over."""
        for name, tensors in state.items():
            parameter = self.trained[name]
            self.optimiser.state[parameter] = {k: t.to(parameter.device) for k, t in tensors.items()}

    def copy_state_from_first(self, names: Sequence[str]) -> None:
        """Adam's tensors of rank 0, which has some for these parameters, on all ranks."""
        for parameter in (self.trained[name] for name in names):
            if not self.rank.is_first:
                self.optimiser.state[parameter] = {
                    "step": torch.zeros((), device=self.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
            tensors = self.optimiser.state[parameter]
            copy_from_first([tensors[key] for key in sorted(tensors)])

    def _backward(self, place: Place, micro_batch: Any) -> _MicroBatchLoss:
        names = tuple(str(name) for name in getattr(micro_batch, "names", ()))
        bf16 = self.config.precision == "bf16"
        self._statistics.start_micro_batch()
        with random_stream(self.device, self.config.seed, place.step, place.index) as generator:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                loss = self.compute_loss(self.module, micro_batch, generator)
            self._statistics.end_micro_batch()
            if loss.sum.ndim != 0 or not loss.sum.requires_grad:
                raise ValueError(
                    f"step must give a Loss whose sum is a scalar with a gradient, got shape {tuple(loss.sum.shape)}, "
                    f"requires_grad={loss.sum.requires_grad}, at step {place.step + 1}{of_files(names)}. "
                    "It may not run without gradients, nor detach the loss."
                )
            loss.sum.backward()
        return _MicroBatchLoss(loss.sum.detach(), loss.count, loss.parts, names)

    def _add_up(self, step: int, losses: list[_MicroBatchLoss]) -> StepTotals:
        """Divide the summed gradients by the summed count; refuse what must not reach the parameters.

        The host waits for the device once, when it reads what is decided on.
        """
        first = self._part_names is None
        parts = self._agreed_parts(losses)
        present = self._sum_gradients()
        totals = torch.cat([torch.stack([loss.row(parts, self.device) for loss in losses]).sum(0), present])
        sum_over_ranks([totals])
        gradients = [p.grad for p in self.trained.values() if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, (1.0 / totals[1]).to(gradients[0].dtype))
        norm = torch.nn.utils.get_total_norm(gradients).to(totals)
        loss_sum, count, *rest, grad_norm = torch.cat([totals, norm.reshape(1)]).tolist()
        part_sums, having = rest[: len(parts)], rest[len(parts) :]
        if not count > 0:
            raise ValueError(f"the loss of step {step + 1} has no terms (count {count:g}){_of_all(losses)}")
        without = [name for name, ranks in zip(self.trained, having, strict=True) if ranks == 0]
        if first and without:
            raise ValueError(
                f"{len(without)} of {len(self.trained)} trained parameters are not part of the loss: "
                f"{listed(without)}. Freeze them with requires_grad_(False), or use them."
            )
        if not math.isfinite(loss_sum) or not math.isfinite(grad_norm):
            raise self._not_finite(loss_sum, grad_norm, losses)
        for name in without:  # zero where another rank might have had one
            self.trained[name].grad = None
        means = {name: total / count for name, total in zip(parts, part_sums, strict=True)}
        return StepTotals(loss_sum / count, grad_norm, means)

    def _sum_gradients(self) -> Tensor:
        """Add the gradients of all ranks; 1 for each parameter that has one here, else 0, float64."""
        parameters = list(self.trained.values())
        present = [p.grad is not None for p in parameters]
        if self.rank.count > 1:
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            sum_over_ranks([p.grad for p in parameters if p.grad is not None])
        return torch.tensor(present, dtype=torch.float64, device=self.device)

    def _agreed_parts(self, losses: list[_MicroBatchLoss]) -> tuple[str, ...]:
        """Names of the parts of the loss, which are the same in every micro-batch, because they are averaged."""
        found = {tuple(sorted(loss.parts)) for loss in losses}
        if self._part_names is None:
            found = set().union(*values_of_all(found))
            self._part_names = min(found)
        if found != {self._part_names}:
            seen = " and ".join(str(list(names)) for names in sorted(found | {self._part_names}))
            raise ValueError(f"every micro-batch must give the same parts of the loss, got {seen}")
        return self._part_names

    def _not_finite(self, loss_sum: float, grad_norm: float, losses: list[_MicroBatchLoss]) -> NotFiniteError:
        """The error, after everything is as before the step."""
        self._statistics.undo_step()
        self.optimiser.zero_grad(set_to_none=True)
        if math.isfinite(loss_sum):
            return NotFiniteError(f"the norm of the gradient is {grad_norm}", _names_of_all(losses))
        bad = [loss for loss in losses if not math.isfinite(loss.sum.item())]
        return NotFiniteError(f"the loss is {loss_sum}", _names_of_all(bad))


@dataclass(frozen=True, eq=False)
class _MicroBatchLoss:
    """What remains of a `Loss` after its backward pass, and the files it is about."""

    sum: Tensor
    count: Tensor
    parts: Mapping[str, float | Tensor]
    names: tuple[str, ...]

    def row(self, parts: tuple[str, ...], device: torch.device) -> Tensor:
        """`(2 + parts,)` float64 that can be added: sum, count, and the parts times the count."""
        count = self.count.to(device, torch.float64)
        weighted = [count * torch.as_tensor(self.parts[name]).to(count) for name in parts]
        return torch.stack([self.sum.to(device, torch.float64), count, *weighted])


def of_files(names: tuple[str, ...]) -> str:
    return f" (files: {listed(list(names))})" if names else ""


def _names_of_all(losses: list[_MicroBatchLoss]) -> tuple[str, ...]:
    """Files of these micro-batches on all ranks; all ranks must ask."""
    mine = tuple(name for loss in losses for name in loss.names)
    return tuple(name for names in values_of_all(mine) for name in names)


def _of_all(losses: list[_MicroBatchLoss]) -> str:
    return of_files(_names_of_all(losses))


def _adam(trained: Mapping[str, nn.Parameter], config: TrainConfig) -> torch.optim.Adam:
    """A group per learning rate."""
    members = defaultdict[float, list[nn.Parameter]](list)
    for name, rate in config.base_learning_rates(trained).items():
        members[rate].append(trained[name])
    groups = [
        {"params": parameters, "lr": rate, "base_learning_rate": rate} for rate, parameters in members.items()
    ]
    return config.make_adam(groups)
