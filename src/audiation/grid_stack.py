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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from audiation.grid_files import GridFiles
from audiation.grid_inputs import STEPS_PER_DRAW, GridInputs, GridStream
from audiation.heads import ProbeHead
from audiation.probe import WEIGHTED_SUM, Evaluation, ProbeConfig, ProbeFit, ProbeSchedule
from audiation.targets import ClassTarget, ClipTarget, KeyTarget, PitchTarget

# What a thread works on at a time should stay in the cache:
ACTIVATION_BYTES = 2**20  # hidden units,
GRADIENT_BYTES = 4 * 2**20  # gradient,
STATE_BYTES = 8 * 2**20  # weights and moments that make some steps before others have their turn.
INPUT_BYTES = 2**28  # of vectors that are picked for these steps
MOST_KEPT, LEAST_WIDTH = 0.6, 512  # of hidden units behind dropout, of which the ReLU leaves half; of vectors
LOGIT_BYTES = 64 * 2**20  # of hidden units while the validation split is looked at
ONE_LABEL = (ClassTarget, KeyTarget, PitchTarget)  # whose loss is the cross-entropy of one class
PLATEAU_THRESHOLD = 1e-4  # relative; smaller improvements do not keep the rate up (PyTorch, Lightning)
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


@dataclass(frozen=True)
class _Block:
    """Configurations of a stack that are multiplied together: their input and their places."""

    layers: tuple[int, ...]
    standardise: bool
    places: slice

    @property
    def input(self) -> tuple[tuple[int, ...], bool]:
        return self.layers, self.standardise


class _Masks(NamedTuple):
    """Dropout of one step, scaled: `(B, D)` and `(H, B)`; None where nothing is dropped."""

    on_input: Tensor | None
    on_hidden: Tensor | None


class _Step(NamedTuple):
    """What all configurations of a stack share in one step; input `(L, B, D)` by what is read."""

    number: Tensor
    rows: Tensor
    targets: Tensor
    drop: _Masks
    inputs: dict[tuple[tuple[int, ...], bool], Tensor]


_Lists = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]  # weights, gradients, moments, squares


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
        self.seconds = 0.0
        self.pool: ThreadPoolExecutor | None = None  # threads among which the work of a step is divided
        self.fits: dict[int, ProbeFit] = {}
        self._fresh_state(first, len(layers[0]))
        rows = self._weights["first.weight"].shape[1]
        self._passes_over = (
            first.hidden_size is not None
            and 1 / self.stream.scale <= MOST_KEPT
            and inputs.dim >= LEAST_WIDTH
            and inputs.device.type == "cpu"
        )
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
        started = time.perf_counter() - self.seconds
        per_look = self.schedule.look_every_steps or self.stream.batches_per_epoch
        if self.schedule.sampling == "draws" and self.courses and not self.courses[0].history:
            self._look(score, per_look)
            report(self)
        while self.courses:
            self.train_steps(per_look)
            self._look(score, per_look)
            report(self)
            self.seconds = time.perf_counter() - started
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
        if value > course.plateau_best * (1 + PLATEAU_THRESHOLD):
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

    def _blocks(self, most: int) -> Iterator[_Block]:
        """Runs of configurations with one input, `most` of them at a time."""
        start = 0
        for place in range(1, len(self.courses) + 1):
            ends = place == len(self.courses) or self._input_of(place) != self._input_of(start)
            if ends or place - start == most:
                yield _Block(*self._input_of(start), slice(start, place))
                start = place

    def _input_of(self, place: int) -> tuple[tuple[int, ...], bool]:
        course = self.courses[place]
        return self._layers_of[course.index], course.config.standardise

    def train_steps(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """Updates of every configuration; for each, the outputs `(K, B, C)` before it, and the targets of the batch.

        Configurations do not know of each other: a few of them make some steps while their state is in the cache.
        """
        size, dim = self._weights["first.weight"].shape[1:]
        most = min(ACTIVATION_BYTES // (4 * self.stream.batch_size * size), STATE_BYTES // (12 * size * dim))
        blocks = list(self._blocks(1 if self._mixes else max(1, most)))
        inputs = list(dict.fromkeys(block.input for block in blocks))
        input_bytes = 4 * self.stream.batch_size * dim * sum(len(layers) for layers, _ in inputs)
        at_once = min(STEPS_PER_DRAW, max(1, INPUT_BYTES // input_bytes))
        outputs: list[tuple[Tensor, Tensor]] = []
        while len(outputs) < count:
            outputs += self._train_blocks(blocks, inputs, min(at_once, count - len(outputs)))
        return outputs

    def _train_blocks(
        self, blocks: Sequence[_Block], inputs: Sequence[tuple[tuple[int, ...], bool]], count: int
    ) -> list[tuple[Tensor, Tensor]]:
        steps = [self._draw_step() for _ in range(count)]

        def pick(step: _Step, layers: tuple[int, ...], standardise: bool) -> None:
            x_LBD = self._inputs.rows(self._inputs.train, step.rows, layers, standardise)
            mask = step.drop.on_input
            step.inputs[layers, standardise] = x_LBD if mask is None else x_LBD.mul_(mask)

        self._divide(pick, [(step, *which) for step in steps for which in inputs])
        shape = (len(self.courses), self._target.num_outputs)
        logits = [self._weights["first.weight"].new_empty(shape[0], len(s.rows), shape[1]) for s in steps]

        def train(block: _Block) -> None:
            for step, logits_KBC in zip(steps, logits, strict=True):
                logits_KBC[block.places] = self._train_block(block, step)

        self._divide(train, [(block,) for block in blocks])
        return [(of_step, step.targets) for of_step, step in zip(logits, steps, strict=True)]

    def _draw_step(self) -> _Step:
        device = self._inputs.device
        rows = self.stream.batch(self.step).to(device)
        hidden_size = None if "second.weight" not in self._weights else self._weights["first.weight"].shape[1]
        drop = self._masks(len(rows), hidden_size)
        self.step += 1
        number = torch.tensor(float(self.step), device=device)
        return _Step(number, rows, self._targets[rows], drop, {})

    def _masks(self, num_rows: int, hidden_size: int | None) -> _Masks:
        """Dropout of this step."""
        device = self._inputs.device
        on_input = (
            self.stream.dropout(0, self.step, num_rows, self._inputs.dim) if self._input_dropout else None
        )
        hidden = None if hidden_size is None else self.stream.dropout(1, self.step, num_rows, hidden_size)
        return _Masks(
            None if on_input is None else on_input.to(device),
            None if hidden is None else hidden.T.contiguous().to(device),
        )

    def _train_block(self, block: _Block, step: _Step) -> Tensor:
        """Forward, back and update of some configurations with one input; gives outputs `(K, B, C)`."""
        places, picked, drop = block.places, step.inputs[block.input], step.drop
        weights = self._weights["first.weight"][places]
        count, size, _ = weights.shape
        x_BD = self._mix(picked, places.start) if self._mixes else picked[0]
        first_KRB = (weights.flatten(0, 1) @ x_BD.T).view(count, size, len(x_BD))
        first_KRB += self._weights["first.bias"][places, :, None]
        gradients: dict[str, Tensor] = {}
        if "second.weight" in self._weights:
            second = self._weights["second.weight"][places]
            hidden_KHB = first_KRB.clamp_(min=0)
            if drop.on_hidden is not None:
                hidden_KHB *= drop.on_hidden
            bias = self._weights["second.bias"][places, :, None]
            logits_KBC = torch.baddbmm(bias, second, hidden_KHB).transpose(1, 2).contiguous()
            d_outputs_KCB = self._loss_gradient(logits_KBC, step.targets)
            gradients["second.weight"] = d_outputs_KCB @ hidden_KHB.transpose(1, 2)
            gradients["second.bias"] = d_outputs_KCB.sum(2)
            d_first_KRB = second.transpose(1, 2) @ d_outputs_KCB
            # What is above zero was neither cut by the ReLU nor dropped.
            d_first_KRB.mul_(hidden_KHB > 0).mul_(self.stream.scale)
        else:
            logits_KBC = first_KRB.transpose(1, 2).contiguous()
            d_first_KRB = self._loss_gradient(logits_KBC, step.targets)
        gradients["first.bias"] = d_first_KRB.sum(2)
        if self._mixes:
            gradients["mix"] = self._mix_gradient(d_first_KRB[0], picked, places.start)[None]
        self._move(places, d_first_KRB, x_BD, gradients, step.number)
        return logits_KBC

    def _loss_gradient(self, logits_KBC: Tensor, targets: Tensor) -> Tensor:
        """`(K, C, B)`: of each configuration's mean loss."""
        count, num_rows, _ = logits_KBC.shape
        if type(self._target) in ONE_LABEL:  # what autograd gives, without its cost
            gradient = logits_KBC.softmax(-1)
            gradient.scatter_add_(
                -1, targets.expand(count, -1)[..., None], gradient.new_full((count, num_rows, 1), -1.0)
            )
            return gradient.div_(num_rows).transpose(1, 2).contiguous()
        leaf = logits_KBC.flatten(0, 1).requires_grad_()
        repeated = targets.expand(count, *targets.shape).flatten(0, 1)
        with torch.enable_grad():
            loss = self._target.loss(leaf, repeated)
        (gradient,) = torch.autograd.grad(loss.sum, leaf)
        gradient *= count / float(loss.count)
        return gradient.view(logits_KBC.shape).transpose(1, 2).contiguous()

    def _mix(self, picked: Tensor, place: int) -> Tensor:
        """`(L, B, D)` -> `(B, D)`: the weighted sum of the configuration at `place`."""
        share = F.softmax(self._weights["mix"][place], 0)
        return (share @ picked.flatten(1)).view(picked.shape[1:])

    def _mix_gradient(self, d_first_RB: Tensor, picked: Tensor, place: int) -> Tensor:
        """`(L,)`: through the weighted sum to its numbers; before the weights move."""
        d_input_BD = d_first_RB.T @ self._weights["first.weight"][place]
        d_share = picked.flatten(1) @ d_input_BD.flatten()
        share = F.softmax(self._weights["mix"][place], 0)
        return share * (d_share - (share * d_share).sum())

    def _move(
        self, places: slice, d_first_KRB: Tensor, x_BD: Tensor, gradients: Mapping[str, Tensor], steps: Tensor
    ) -> None:
        """Gradient of the first layer, a part of its rows at a time, and the updates."""
        size, dim = self._weights["first.weight"].shape[1:]
        part_rows = min(size, max(1, GRADIENT_BYTES // (4 * dim)))
        buffer = x_BD.new_empty(part_rows, dim)
        for place in range(places.start, places.stop):
            d_first_RB = d_first_KRB[place - places.start]
            lists: _Lists = ([], [], [], [])
            for name, gradient in gradients.items():
                self._append(lists, name, place, slice(None), gradient[place - places.start])
            for start in range(0, size, part_rows):
                part = slice(start, min(size, start + part_rows))
                gradient = self._product(d_first_RB[part], x_BD, buffer[: part.stop - start])
                self._append(lists, "first.weight", place, part, gradient)
                self._adam(lists, steps, self.courses[place])
                lists = ([], [], [], [])

    def _product(self, d_RB: Tensor, x_BD: Tensor, out_RD: Tensor) -> Tensor:
        """Gradient of rows of the first layer: passing over units that are off, where that is faster (measured)."""
        if not self._passes_over:
            return torch.mm(d_RB, x_BD, out=out_RD)
        from audiation.grid_kernel import sparse_product  # numba takes a second to import

        sparse_product(d_RB.numpy(), x_BD.numpy(), out_RD.numpy())
        return out_RD

    def _append(self, lists: _Lists, name: str, place: int, part: slice, gradient: Tensor) -> None:
        kinds = (self._weights[name], None, self._moments[name], self._squares[name])
        for tensors, kind in zip(lists, kinds, strict=True):
            tensors.append(gradient if kind is None else kind[place, part])

    def _adam(self, lists: _Lists, steps: Tensor, course: Course) -> None:
        """The update of `torch.optim.Adam(fused=True)`; the class wants a parameter and a counter for each part."""
        torch._fused_adam_(
            *lists, [], [steps] * len(lists[0]),
            lr=course.learning_rate, beta1=BETAS[0], beta2=BETAS[1], weight_decay=course.config.weight_decay,
            eps=EPSILON, amsgrad=False, maximize=False,
        )  # fmt: skip

    # Looking -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def valid_logits(self) -> Tensor:
        """`(K, M, C)`."""
        num_rows = len(next(iter(self._inputs.valid.values())))
        weights = self._weights["first.weight"]
        logits = weights.new_empty(len(self.courses), num_rows, self._target.num_outputs)
        work = []
        for block in self._blocks(1 if self._mixes else len(self.courses)):
            count = block.places.stop - block.places.start
            most = max(1, LOGIT_BYTES // (4 * count * weights.shape[1]))
            chunk = min(most, -(-num_rows // (1 if self.pool is None else 2)))
            work += [(block, slice(a, min(num_rows, a + chunk))) for a in range(0, num_rows, chunk)]

        def look(block: _Block, rows: slice) -> None:
            logits[block.places, rows] = self._look_at(block, rows)

        self._divide(look, work)
        return logits

    def _look_at(self, block: _Block, rows: slice) -> Tensor:
        """`(K, M, C)` of a block, for some rows of the validation split."""
        places = block.places
        picked = self._inputs.rows(self._inputs.valid, rows, *block.input)
        x_MD = self._mix(picked, places.start) if self._mixes else picked[0]
        weights = self._weights["first.weight"][places]
        first_KRM = (weights.flatten(0, 1) @ x_MD.T).view(*weights.shape[:2], len(x_MD))
        first_KRM += self._weights["first.bias"][places, :, None]
        if "second.weight" in self._weights:
            second, bias = (
                self._weights["second.weight"][places],
                self._weights["second.bias"][places, :, None],
            )
            first_KRM = torch.baddbmm(bias, second, first_KRM.clamp_(min=0))
        return first_KRM.transpose(1, 2)

    def _divide(self, do: Callable[..., None], work: Sequence[tuple[Any, ...]]) -> None:
        """Do all of it, in threads where there are some."""
        if self.pool is None or len(work) == 1:
            for arguments in work:
                do(*arguments)
        else:
            list(self.pool.map(lambda arguments: do(*arguments), work))  # a list, so that errors are raised

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
        return tensors, {"step": self.step, "seconds": self.seconds, "courses": courses, "fits": fits}

    def _restore(self, kept: tuple[dict[str, Tensor], dict[str, Any]]) -> None:
        tensors, values = kept
        device = self._inputs.device
        by_index = {c.index: c.config for c in self.courses}
        for kind, group in (
            ("weights", self._weights), ("moments", self._moments), ("squares", self._squares), ("best", self._best)
        ):  # fmt: skip
            for name in group:
                group[name] = tensors[f"{kind}.{name}"].to(device)
        self.step, self.seconds = values["step"], values["seconds"]
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
