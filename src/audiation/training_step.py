"""One optimiser step: a sum over micro-batches, divided by how many terms they have together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from audiation.distributed import copy_from_first, sum_over_ranks, this_rank, values_of_all
from audiation.loss_scale import LossScale
from audiation.micro_batches import BatchStatistics, Place, random_stream
from audiation.spikes import SpikeWatch
from audiation.training_config import TrainConfig
from audiation.training_layouts import Replicas
from audiation.training_state import listed


@dataclass(frozen=True)
class StepTotals:
    """Of all micro-batches of all ranks: mean loss and its parts, and the norm of its gradient before clipping.

    skipped: why the module is as before the step; "" if it is not. Loss and norm may be not finite then.
    spike: how the step stands out from those before; "" if it does not.
    loss_scale: that the step was computed with; None without one.
    """

    loss: float
    grad_norm: float
    parts: dict[str, float]
    skipped: str = ""
    spike: str = ""
    loss_scale: float | None = None

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class NotFiniteError(ArithmeticError):
    """Loss or gradient is not finite; the module is as before the step.

    names, places: files and micro-batches it may come from. facts: numbers about it, as JSON values.
    """

    def __init__(
        self, what: str, names: tuple[str, ...], places: tuple[Place, ...], facts: Mapping[str, Any]
    ) -> None:
        super().__init__(what)
        self.what, self.names, self.places, self.facts = what, names, places, facts


class OptimiserStep:
    """Adam on the trained parameters of a module.

    Args:
        layout: of the module on the ranks.
        trained: name -> parameter, the same on all ranks.
    """

    def __init__(
        self,
        layout: Replicas,
        config: TrainConfig,
        device: torch.device,
        trained: Mapping[str, nn.Parameter],
    ) -> None:
        self.layout, self.module, self.config, self.device = layout, layout.module, config, device
        self.trained, self.rank = dict(trained), this_rank()
        self.optimiser = _adam(self.trained, config)
        self.optimiser.zero_grad(set_to_none=True)  # whatever the caller left there
        engine = config.engine
        window, factor = engine.loss_scale_window, engine.spike_factor
        self.loss_scale = None if window is None else LossScale(window)
        self.spikes = None if factor is None else SpikeWatch(factor, engine.spike_window)
        self._skips_spikes = engine.spike_action != "log"
        self._statistics = BatchStatistics(self.module)
        self._part_names: tuple[str, ...] | None = None  # agreed on in the first step of this process

    def take(self, step: int, micro_batches: Iterator[Any], num_reductions: int) -> StepTotals:
        """Step `step` (the first is 0) on this rank's share of its micro-batches, which are taken from the iterator.

        A step that overflows float16, and a spike where these are not just logged, leaves the module as it was.

        num_reductions: of the learning rate by the plateau schedule.

        Raises:
            NotFiniteError: on all ranks together.
            ValueError: a loss without gradient or without terms; in the first step, parameters without gradient.
        """
        self._statistics.start_step()
        buffers = self._copied_buffers()
        places = [
            Place(step, index)
            for index in range(self.rank.index, self.config.num_micro_batches, self.rank.count)
        ]
        losses = [self._backward(place, next(micro_batches), place == places[-1]) for place in places]
        totals = self._judged(self._add_up(step, losses), losses)
        if totals.skipped:
            self._undo(buffers)
            return totals
        self._statistics.end_step(self.config.num_micro_batches)
        if self.config.clip_norm is not None and totals.grad_norm > self.config.clip_norm:
            norm = torch.tensor(totals.grad_norm, device=self.device)
            torch.nn.utils.clip_grads_with_norm_(self.trained.values(), self.config.clip_norm, norm)
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate_at(step, group["base_learning_rate"], num_reductions)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return totals

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Parameter name -> Adam's tensors for it, themselves."""
        return {
            name: dict(self.optimiser.state[parameter])
            for name, parameter in self.trained.items()
            if parameter in self.optimiser.state
        }

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Parameter name -> Adam's tensors for it, on the CPU; not copied where they are there already."""
        return {name: {k: t.cpu() for k, t in held.items()} for name, held in self.tensors().items()}

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """What `state` gave, in place of what is there. The tensors are taken over."""
        self.optimiser.state.clear()
        for name, tensors in state.items():
            parameter = self.trained[name]
            self.optimiser.state[parameter] = {k: t.to(parameter.device) for k, t in tensors.items()}

    def make_state(self, names: Iterable[str]) -> None:
        """Zeros for Adam's tensors of these parameters, in place of what is there; to be filled."""
        self.optimiser.state.clear()
        for parameter in (self.trained[name] for name in names):
            self.optimiser.state[parameter] = {
                "step": torch.zeros((), device=self.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def copy_state_from_first(self, names: Sequence[str]) -> None:
        """Adam's tensors of rank 0, which has some for these parameters, on all ranks."""
        if not self.rank.is_first:
            self.make_state(names)
        for parameter in (self.trained[name] for name in names):
            tensors = self.optimiser.state[parameter]
            copy_from_first([tensors[key] for key in sorted(tensors)])

    def counters(self) -> dict[str, Any]:
        """What decides about steps to come, beside tensors; JSON values."""
        held = {"loss_scale": self.loss_scale, "spikes": self.spikes}
        return {name: one.state() for name, one in held.items() if one is not None}

    def load_counters(self, counters: Mapping[str, Any]) -> None:
        """What `counters` gave; what this run does not have is left out, as the configuration decides about that."""
        if self.loss_scale is not None:
            self.loss_scale.load_state(counters["loss_scale"])
        if self.spikes is not None:
            self.spikes.load_state(counters["spikes"])

    def _backward(self, place: Place, micro_batch: Any, is_last: bool) -> _MicroBatchLoss:
        names = tuple(str(name) for name in getattr(micro_batch, "names", ()))
        dtype = torch.float16 if self.config.precision == "fp16" else torch.bfloat16
        self._statistics.start_micro_batch()
        with (
            random_stream(self.device, self.config.seed, place.step, place.index) as generator,
            self.layout.micro_batch(is_last),
        ):
            with torch.autocast(self.device.type, dtype, enabled=self.config.precision != "fp32"):
                loss = self.layout.loss(micro_batch, generator)
            self._statistics.end_micro_batch()
            if loss.sum.ndim != 0 or not loss.sum.requires_grad:
                raise ValueError(
                    f"step must give a Loss whose sum is a scalar with a gradient, got shape {tuple(loss.sum.shape)}, "
                    f"requires_grad={loss.sum.requires_grad}, at step {place.step + 1}{of_files(names)}. "
                    "It may not run without gradients, nor detach the loss."
                )
            (loss.sum if self.loss_scale is None else loss.sum * self.loss_scale.value).backward()
        return _MicroBatchLoss(loss.sum.detach(), loss.count, loss.parts, names, place)

    def _add_up(self, step: int, losses: list[_MicroBatchLoss]) -> StepTotals:
        """Divide the summed gradients by the summed count; refuse what must not reach the parameters.

        The host waits for the device once, when it reads what is decided on.
        """
        first = self._part_names is None
        parts = self._agreed_parts(losses)
        present = self._sum_gradients()
        totals = torch.cat([torch.stack([loss.row(parts, self.device) for loss in losses]).sum(0), present])
        sum_over_ranks([totals])
        gradients = self.layout.held([p.grad for p in self.trained.values() if p.grad is not None])
        scale = 1.0 if self.loss_scale is None else self.loss_scale.value
        if gradients:
            torch._foreach_mul_(gradients, (1.0 / totals[1] / scale).to(gradients[0].dtype))
        norm = self.layout.norm(gradients).to(totals)
        loss_sum, count, *rest, grad_norm = torch.cat([totals, norm.reshape(1)]).tolist()
        num = len(parts)
        part_sums, part_weights, having = rest[:num], rest[num : 2 * num], rest[2 * num :]
        if not count > 0:
            raise ValueError(f"the loss of step {step + 1} has no terms (count {count:g}){_of_all(losses)}")
        without = [name for name, ranks in zip(self.trained, having, strict=True) if ranks == 0]
        if first and without:
            raise ValueError(
                f"{len(without)} of {len(self.trained)} trained parameters are not part of the loss: "
                f"{listed(without)}. Freeze them with requires_grad_(False), or use them."
            )
        for name in without:  # zero where another rank might have had one
            self.trained[name].grad = None
        means = {
            name: total / weight if weight else 0.0
            for name, total, weight in zip(parts, part_sums, part_weights, strict=True)
        }
        return StepTotals(loss_sum / count, grad_norm, means)

    def _judged(self, totals: StepTotals, losses: list[_MicroBatchLoss]) -> StepTotals:
        """With what speaks against the step."""
        if not totals.is_finite and self.loss_scale is None:
            raise self._not_finite(totals, losses)
        if self.loss_scale is not None:
            totals = replace(totals, loss_scale=self.loss_scale.value)
            if not totals.is_finite:
                self.loss_scale.note_overflow()
                if self.loss_scale.is_too_small:
                    raise self._not_finite(totals, losses)
                return replace(totals, skipped=f"overflow at a loss scale of {totals.loss_scale:g}")
            self.loss_scale.note_good_step()
        if self.spikes is not None:
            totals = replace(totals, spike=self.spikes.look(totals.loss, totals.grad_norm))
            if totals.spike and self._skips_spikes:
                return replace(totals, skipped="spike")
        return totals

    def _sum_gradients(self) -> Tensor:
        """Add the gradients of all ranks; 1 for each parameter that has one here, else 0, float64."""
        parameters = list(self.trained.values())
        present = [p.grad is not None for p in parameters]
        self.layout.sum_gradients(parameters)
        return torch.tensor(present, dtype=torch.float64, device=self.device)

    def _copied_buffers(self) -> list[tuple[Tensor, Tensor]]:
        """Every buffer with a copy, where a step may be skipped."""
        if self.loss_scale is None and not self._skips_spikes:
            return []
        return [(buffer, buffer.clone()) for buffer in self.module.buffers()]

    def _undo(self, buffers: list[tuple[Tensor, Tensor]]) -> None:
        """As if the step had not begun."""
        self._statistics.undo_step()
        self.optimiser.zero_grad(set_to_none=True)
        for buffer, before in buffers:
            buffer.copy_(before)

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

    def _not_finite(self, totals: StepTotals, losses: list[_MicroBatchLoss]) -> NotFiniteError:
        """The error, after everything is as before the step."""
        self._undo([])
        if math.isfinite(totals.loss):
            what, suspects = f"the norm of the gradient is {totals.grad_norm}", losses
        else:
            what = f"the loss is {totals.loss}"
            suspects = [loss for loss in losses if not math.isfinite(loss.sum.item())]
        if totals.loss_scale is not None:
            what += f", and float16 overflows even at a loss scale of {totals.loss_scale:g}"
        rows = [(loss.place.index, loss.sum.item(), loss.count.item()) for loss in suspects]
        all_rows = sorted(row for rows_of_rank in values_of_all(rows) for row in rows_of_rank)
        facts = {
            "seed": self.config.seed,
            "precision": self.config.precision,
            "loss_scale": totals.loss_scale,
            "loss": str(totals.loss),  # JSON knows no nan
            "grad_norm": str(totals.grad_norm),
            "losses": {str(index): {"sum": str(total), "count": count} for index, total, count in all_rows},
        }
        places = tuple(Place(losses[0].place.step, index) for index, _, _ in all_rows)
        return NotFiniteError(what, _names_of_all(suspects), places, facts)


@dataclass(frozen=True, eq=False)
class _MicroBatchLoss:
    """What remains of a `Loss` after its backward pass, the files it is about, and its micro-batch."""

    sum: Tensor
    count: Tensor
    parts: Mapping[str, float | Tensor]
    names: tuple[str, ...]
    place: Place

    def row(self, parts: tuple[str, ...], device: torch.device) -> Tensor:
        """`(2 + 2 * parts,)` float64 that can be added: sum and count, then the sums of the parts, then how many terms
        each has. A part that is a scalar is a mean over the terms of the loss; one of shape `(2,)` is a share and has
        both itself."""
        count = self.count.to(device, torch.float64)
        values = [torch.as_tensor(self.parts[name]).to(count) for name in parts]
        sums = [value[0] if value.ndim else count * value for value in values]
        weights = [value[1] if value.ndim else count for value in values]
        return torch.stack([self.sum.to(device, torch.float64), count, *sums, *weights])


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
