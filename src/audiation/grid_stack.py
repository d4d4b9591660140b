"""A stack: probes that draw the same batches and dropout masks, trained as one.

Their heads lie in one tensor, are multiplied in one product per distinct input, and move in one optimiser call per
learning rate. Gradients of the two layers are written by hand, and a block of rows moves as soon as its gradient is
made: the gradient of a whole stack is never in memory. That of the loss comes from the target, by autograd over the
outputs alone.

Shape letters: `K` configurations of a stack, `N`, `M` training and validation windows, `B` batch, `D` width of a
vector, `R` rows of the first layer of one configuration (its hidden size H, or C), `C` outputs, `L` layers of a sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from audiation.grid_files import GridFiles
from audiation.grid_inputs import GridInputs, GridStream
from audiation.heads import ProbeHead
from audiation.probe import WEIGHTED_SUM, Evaluation, ProbeConfig, ProbeFit, ProbeSchedule
from audiation.targets import ClassTarget, ClipTarget, KeyTarget, PitchTarget

BLOCK_BYTES = 4 * 2**20  # of gradient that is alive at a time: it should stay in the cache
LOGIT_BYTES = 64 * 2**20  # of hidden units while the validation split is looked at
ONE_LABEL = (ClassTarget, KeyTarget, PitchTarget)  # whose loss is the cross-entropy of one class
BETAS, EPSILON = (0.9, 0.999), 1e-8

Scores = Callable[[Tensor], np.ndarray]


@dataclass
class Course:
    """How one configuration of a stack is doing."""

    index: int
    config: ProbeConfig
    learning_rate: float
    best: Evaluation = field(default_factory=lambda: Evaluation(0, -math.inf))
    since_best: int = 0
    plateau_best: float = -math.inf
    plateau: int = 0
    history: list[Evaluation] = field(default_factory=list)


class Stack:
    """Configurations that draw the same batches and masks. `run` trains them; then `fits` holds them by their index."""

    def __init__(
        self,
        indices: Sequence[int],
        configs: Sequence[ProbeConfig],
        layers: Sequence[tuple[int, ...]],
        inputs: GridInputs,
        target: ClipTarget,
        targets: Tensor,
        schedule: ProbeSchedule,
    ) -> None:
        """indices, layers: of each configuration, its place in the grid and what it reads."""
        self._inputs, self._target, self.schedule = inputs, target, schedule
        self._layers_of = dict(zip(indices, layers, strict=True))
        self._targets = targets.to(inputs.device)
        first = configs[0]
        self._mixes = first.layer == WEIGHTED_SUM
        self.stream = GridStream(first, schedule, inputs.num_windows)
        self._input_dropout = first.input_dropout
        self.courses = [Course(i, c, c.learning_rate) for i, c in zip(indices, configs, strict=True)]
        self.step = 0
        self.fits: dict[int, ProbeFit] = {}
        self._fresh_state(first, len(layers[0]))
        rows = self._weights["first.weight"].shape[1]
        self.product_size = 2.0 * self.stream.batch_size * rows * inputs.dim * len(configs)

    def _fresh_state(self, config: ProbeConfig, num_layers: int) -> None:
        """Every configuration starts from the same weights: those of its seed and model."""
        generator = torch.Generator().manual_seed(config.seed)
        head = ProbeHead(
            self._inputs.dim, self._target.num_outputs, config.hidden_size, generator=generator
        ).state_dict()
        names = (
            {"first.weight": "output.weight", "first.bias": "output.bias"}
            if config.hidden_size is None
            else {
                "first.weight": "hidden.weight", "first.bias": "hidden.bias",
                "second.weight": "output.weight", "second.bias": "output.bias",
            }
        )  # fmt: skip
        fresh = {name: head[theirs] for name, theirs in names.items()}
        if self._mixes:
            fresh["mix"] = torch.randn(num_layers, generator=generator)
        self._names = {**names, "mix": "mix"}
        count, device = len(self.courses), self._inputs.device
        self._weights = {
            n: x.to(device).expand(count, *x.shape).clone(memory_format=torch.contiguous_format)
            for n, x in fresh.items()
        }
        self._moments = {n: torch.zeros_like(x) for n, x in self._weights.items()}
        self._squares = {n: torch.zeros_like(x) for n, x in self._weights.items()}
        self._best = {n: x.clone() for n, x in self._weights.items()}

    # The course of training ----------------------------------------------------------------------------

    def run(
        self, score: Scores, files: GridFiles | None, number: int, report: Callable[[Stack], None]
    ) -> None:
        """Train all configurations to their ends; goes on from `files` where there is something."""
        if files is not None and (kept := files.load_stack(number)) is not None:
            self._restore(kept)
        per_look = self.schedule.look_every_steps or self.stream.batches_per_epoch
        if self.schedule.sampling == "draws" and self.courses and not self.courses[0].history:
            self._look(score, per_look)
            report(self)
        while self.courses:
            for _ in range(per_look):
                self.train_step()
            self._look(score, per_look)
            report(self)
            if files is not None and (not self.courses or files.is_due()):
                files.save_stack(number, self._snapshot())

    def _look(self, score: Scores, per_look: int) -> None:
        """Score every configuration on the validation split, and let go of those that end here."""
        schedule = self.schedule
        logits = self.valid_logits()
        finite = torch.isfinite(logits).flatten(1).all(1).cpu().numpy()
        scores = np.full(len(finite), -math.inf)
        if finite.any():
            given = np.asarray(score(logits[torch.from_numpy(finite).to(logits.device)]), float)
            if np.isnan(given).any():
                raise ValueError(f"the validation score is NaN at step {self.step}; a score must be a number")
            scores[finite] = given
        epoch = self.step // self.stream.batches_per_epoch
        ended = []
        for place, (course, value) in enumerate(zip(self.courses, scores.tolist(), strict=True)):
            course.history.append(Evaluation(self.step, value))
            if value > course.best.score or (len(course.history) == 1 and value > -math.inf):
                course.best, course.since_best = course.history[-1], 0
                if schedule.keep == "best":
                    self._keep_state(place)
            else:
                course.since_best += 1
            if schedule.keep == "last":
                self._keep_state(place)
            self._slow_down(course, value)
            out_of_patience = schedule.patience is not None and course.since_best >= schedule.patience
            if out_of_patience or (schedule.max_epochs is not None and epoch >= schedule.max_epochs):
                ended.append(place)
        for place in ended:
            course = self.courses[place]
            # jukemir makes the updates up to the next look before it stops, and discards them.
            extra = per_look if schedule.sampling == "draws" else 0
            self.fits[course.index] = self._fit(place, self.step + extra)
        if ended:
            self._drop(set(ended))

    def _slow_down(self, course: Course, value: float) -> None:
        if self.schedule.halve_patience is None:
            return
        if value > course.plateau_best:
            course.plateau_best, course.plateau = value, 0
            return
        course.plateau += 1
        if course.plateau > self.schedule.halve_patience:
            course.learning_rate, course.plateau = course.learning_rate * self.schedule.factor, 0

    def _keep_state(self, place: int) -> None:
        for name, best in self._best.items():
            best[place].copy_(self._weights[name][place])

    def _drop(self, places: set[int]) -> None:
        """Finished configurations leave; the others move together."""
        alive = [i for i in range(len(self.courses)) if i not in places]
        self.courses = [self.courses[i] for i in alive]
        for group in (self._weights, self._moments, self._squares, self._best):
            for name in group:
                group[name] = group[name][alive]

    def _fit(self, place: int, last_step: int) -> ProbeFit:
        course = self.courses[place]
        layers = self._layers_of[course.index]
        state = {self._names[n]: x[place].cpu().clone() for n, x in self._best.items()}
        return ProbeFit(
            course.config,
            self._target.num_outputs,
            layers,
            state,
            tuple(self._inputs.standardiser(i, course.config.standardise) for i in layers),
            course.best.score,
            course.best.step,
            course.best.step if self.schedule.keep == "best" else self.step,
            last_step,
            tuple(course.history),
        )

    # One step ------------------------------------------------------------------------------------------

    def _blocks(self) -> Iterator[tuple[tuple[int, ...], bool, slice]]:
        """Runs of configurations with one input: its layers, whether it is standardised, their places."""
        start = 0
        for place in range(1, len(self.courses) + 1):
            if place == len(self.courses) or self._input_of(place) != self._input_of(start) or self._mixes:
                layers, standardise = self._input_of(start)
                yield layers, standardise, slice(start, place)
                start = place

    def _input_of(self, place: int) -> tuple[tuple[int, ...], bool]:
        course = self.courses[place]
        return self._layers_of[course.index], course.config.standardise

    def train_step(self) -> tuple[Tensor, Tensor]:
        """One update of every configuration; gives the outputs `(K, B, C)` before it, and the targets of the batch."""
        batch = self.stream.batch(self.step)
        num_rows, device = len(batch), self._inputs.device
        targets = self._targets[batch.to(device)]
        drop_input = (
            self.stream.dropout(0, self.step, num_rows, self._inputs.dim) if self._input_dropout else None
        )
        batches: dict[tuple[tuple[int, ...], bool], Tensor] = {}  # (L, B, D)
        mixed: dict[int, Tensor] = {}
        weights = self._weights["first.weight"]
        first_KRB = weights.new_empty(len(self.courses), weights.shape[1], num_rows)
        for layers, standardise, places in self._blocks():
            key = (layers, standardise)
            if key not in batches:
                picked = self._inputs.rows(self._inputs.train, batch.to(device), layers, standardise)
                if drop_input is not None:
                    picked *= drop_input.to(device)
                batches[key] = picked
            x_BD = self._mix(batches[key], places.start, mixed)
            torch.mm(weights[places].flatten(0, 1), x_BD.T, out=first_KRB[places].view(-1, num_rows))
        first_KRB += self._weights["first.bias"][:, :, None]
        hidden, d_first_KRB, logits_KBC, small = self._head(first_KRB, targets, num_rows)
        self.step += 1
        steps = torch.tensor(float(self.step), device=device)
        self._move_first(d_first_KRB, batches, mixed, small, steps)
        small["first.bias"] = d_first_KRB.sum(2)
        self._move_small(small, steps)
        del hidden
        return logits_KBC, targets

    def _mix(self, picked: Tensor, place: int, mixed: dict[int, Tensor]) -> Tensor:
        """`(L, B, D)` -> `(B, D)`: the one layer, or the weighted sum of the configuration at `place`."""
        if not self._mixes:
            return picked[0]
        share = F.softmax(self._weights["mix"][place], 0)
        mixed[place] = (share @ picked.flatten(1)).view(picked.shape[1:])
        return mixed[place]

    def _head(
        self, first_KRB: Tensor, targets: Tensor, num_rows: int
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Outputs and loss of what the first layer gives, and back to its gradient `(K, R, B)`.

        Also the gradients of what lies behind it.
        """
        small: dict[str, Tensor] = {}
        if "second.weight" not in self._weights:
            logits_KBC = first_KRB.transpose(1, 2).contiguous()
            return first_KRB, self._loss_gradient(logits_KBC, targets), logits_KBC, small
        hidden_KHB = first_KRB.clamp_(min=0)
        drop = self.stream.dropout(1, self.step, num_rows, hidden_KHB.shape[1])
        if drop is not None:
            hidden_KHB *= drop.T.contiguous().to(hidden_KHB.device)
        second = self._weights["second.weight"]
        outputs_KCB = torch.baddbmm(self._weights["second.bias"][:, :, None], second, hidden_KHB)
        logits_KBC = outputs_KCB.transpose(1, 2).contiguous()
        d_outputs_KCB = self._loss_gradient(logits_KBC, targets)
        small["second.weight"] = torch.bmm(d_outputs_KCB, hidden_KHB.transpose(1, 2))
        small["second.bias"] = d_outputs_KCB.sum(2)
        d_hidden_KHB = torch.bmm(second.transpose(1, 2), d_outputs_KCB)
        # What is above zero was neither cut by the ReLU nor dropped.
        d_hidden_KHB *= hidden_KHB > 0
        if drop is not None:
            d_hidden_KHB *= self.stream.scale
        return hidden_KHB, d_hidden_KHB, logits_KBC, small

    def _loss_gradient(self, logits_KBC: Tensor, targets: Tensor) -> Tensor:
        """`(K, C, B)`: of each configuration's mean loss."""
        count = len(logits_KBC)
        if type(self._target) in ONE_LABEL:  # what autograd gives, without its cost
            gradient = logits_KBC.softmax(-1)
            gradient.scatter_add_(-1, targets.expand(count, -1)[..., None], self._minus_one(targets, count))
            return gradient.div_(len(targets)).transpose(1, 2).contiguous()
        leaf = logits_KBC.flatten(0, 1).requires_grad_()
        repeated = targets.expand(count, *targets.shape).flatten(0, 1)
        with torch.enable_grad():
            loss = self._target.loss(leaf, repeated)
        (gradient,) = torch.autograd.grad(loss.sum, leaf)
        gradient *= count / float(loss.count)
        return gradient.view(logits_KBC.shape).transpose(1, 2).contiguous()

    def _minus_one(self, targets: Tensor, count: int) -> Tensor:
        return torch.full((count, len(targets), 1), -1.0, device=targets.device)

    def _move_first(
        self,
        d_first_KRB: Tensor,
        batches: Mapping[tuple[tuple[int, ...], bool], Tensor],
        mixed: Mapping[int, Tensor],
        small: dict[str, Tensor],
        steps: Tensor,
    ) -> None:
        """Gradient and update of the first layer, a block of rows at a time."""
        weights, moments, squares = (
            group["first.weight"] for group in (self._weights, self._moments, self._squares)
        )
        rows, dim = weights.shape[1:]
        if self._mixes:
            small["mix"] = torch.zeros_like(self._weights["mix"])
        for layers, standardise, places in self._blocks():
            picked = batches[layers, standardise]
            x_BD = mixed[places.start] if self._mixes else picked[0]
            if self._mixes:
                self._mix_gradient(d_first_KRB[places.start], picked, places.start, small["mix"])
            for place in range(places.start, places.stop):
                block = max(1, BLOCK_BYTES // (4 * dim))
                for a in range(0, rows, block):
                    part = slice(a, min(rows, a + block))
                    gradient = d_first_KRB[place, part] @ x_BD
                    self._adam(
                        [weights[place, part]], [gradient], [moments[place, part]], [squares[place, part]],
                        steps, self.courses[place],
                    )  # fmt: skip

    def _mix_gradient(self, d_first_RB: Tensor, picked: Tensor, place: int, out: Tensor) -> None:
        """Through the weighted sum to its numbers, before the weights move."""
        d_input_BD = d_first_RB.T @ self._weights["first.weight"][place]
        d_share = picked.flatten(1) @ d_input_BD.flatten()
        share = F.softmax(self._weights["mix"][place], 0)
        out[place] = share * (d_share - (share * d_share).sum())

    def _move_small(self, gradients: Mapping[str, Tensor], steps: Tensor) -> None:
        """Everything but the first weights: one call for all configurations with one learning rate and decay."""
        groups: dict[tuple[float, float], list[int]] = {}
        for place, course in enumerate(self.courses):
            groups.setdefault((course.learning_rate, course.config.weight_decay), []).append(place)
        for places in groups.values():
            names = list(gradients)
            self._adam(
                [self._weights[n][i] for i in places for n in names],
                [gradients[n][i] for i in places for n in names],
                [self._moments[n][i] for i in places for n in names],
                [self._squares[n][i] for i in places for n in names],
                steps,
                self.courses[places[0]],
            )

    def _adam(
        self,
        weights: list[Tensor],
        gradients: list[Tensor],
        moments: list[Tensor],
        squares: list[Tensor],
        steps: Tensor,
        course: Course,
    ) -> None:
        """The update of `torch.optim.Adam(fused=True)`; the class wants a parameter and a counter for each block."""
        torch._fused_adam_(
            weights, gradients, moments, squares, [], [steps] * len(weights),
            lr=course.learning_rate, beta1=BETAS[0], beta2=BETAS[1], weight_decay=course.config.weight_decay,
            eps=EPSILON, amsgrad=False, maximize=False,
        )  # fmt: skip

    # Looking -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def valid_logits(self) -> Tensor:
        """`(K, M, C)`."""
        valid = self._inputs.valid
        num_rows = len(next(iter(valid.values())))
        weights = self._weights["first.weight"]
        logits = weights.new_empty(len(self.courses), num_rows, self._target.num_outputs)
        for layers, standardise, places in self._blocks():
            count = places.stop - places.start
            chunk = max(1, LOGIT_BYTES // (4 * count * weights.shape[1]))
            for a in range(0, num_rows, chunk):
                rows = slice(a, min(num_rows, a + chunk))
                x_MD = self._mix(self._inputs.rows(valid, rows, layers, standardise), places.start, {})
                first = (weights[places].flatten(0, 1) @ x_MD.T).view(count, -1, len(x_MD))
                first += self._weights["first.bias"][places, :, None]
                if "second.weight" in self._weights:
                    second, bias = (
                        self._weights["second.weight"][places],
                        self._weights["second.bias"][places],
                    )
                    first = torch.baddbmm(bias[:, :, None], second, first.clamp_(min=0))
                logits[places, rows] = first.transpose(1, 2)
        return logits

    # Going on ------------------------------------------------------------------------------------------

    def _snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values from which `_restore` goes on to the same numbers."""
        tensors = {
            f"{kind}.{name}": x
            for kind, group in (
                ("weights", self._weights), ("moments", self._moments), ("squares", self._squares), ("best", self._best)
            )
            for name, x in group.items()
        }  # fmt: skip
        for index, fit in self.fits.items():
            tensors |= {f"fit.{index}.{name}": x for name, x in fit.state.items()}
        fits = {
            str(i): {
                "best": [f.best_step, f.best_score], "kept_step": f.kept_step, "last_step": f.last_step,
                "history": [[e.step, e.score] for e in f.history],
            }
            for i, f in self.fits.items()
        }  # fmt: skip
        courses = [
            {
                "index": c.index, "learning_rate": c.learning_rate, "best": [c.best.step, c.best.score],
                "since_best": c.since_best, "plateau_best": c.plateau_best, "plateau": c.plateau,
                "history": [[e.step, e.score] for e in c.history],
            }
            for c in self.courses
        ]  # fmt: skip
        return tensors, {"step": self.step, "courses": courses, "fits": fits}

    def _restore(self, kept: tuple[dict[str, Tensor], dict[str, Any]]) -> None:
        tensors, values = kept
        device = self._inputs.device
        by_index = {c.index: c.config for c in self.courses}
        for kind, group in (
            ("weights", self._weights), ("moments", self._moments), ("squares", self._squares), ("best", self._best)
        ):  # fmt: skip
            for name in group:
                group[name] = tensors[f"{kind}.{name}"].to(device)
        self.step = values["step"]
        self.courses = [
            Course(
                c["index"], by_index[c["index"]], c["learning_rate"], Evaluation(*c["best"]), c["since_best"],
                c["plateau_best"], c["plateau"], [Evaluation(*e) for e in c["history"]],
            )
            for c in values["courses"]
        ]  # fmt: skip
        for text, f in values["fits"].items():
            index, config = int(text), by_index[int(text)]
            layers = self._layers_of[index]
            prefix = f"fit.{index}."
            self.fits[index] = ProbeFit(
                config,
                self._target.num_outputs,
                layers,
                {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)},
                tuple(self._inputs.standardiser(i, config.standardise) for i in layers),
                f["best"][1],
                f["best"][0],
                f["kept_step"],
                f["last_step"],
                tuple(Evaluation(*e) for e in f["history"]),
            )
