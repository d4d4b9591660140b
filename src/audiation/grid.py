"""Many probes trained at once on stored vectors: the hyper-parameter grids of the protocols.

Configurations that draw the same batches and dropout masks are a *stack* (`grid_stack.py`): their heads lie in one
tensor and are trained as one. Random streams derive from (seed, batch size, dropout, model), so that configurations
that differ only in layer, learning rate, decay or standardisation share a stack. Each has its own early stopping; those
that ended leave the stack. A configuration in a stack equals the same one trained alone up to the rounding of products.

Shape letters: `K` configurations of a stack, `N`, `M` training and validation windows, `D` width of a vector, `C`
outputs.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiation.grid_files import GridFiles
from audiation.grid_inputs import GridInputs
from audiation.grid_stack import Scores, Stack
from audiation.probe import (
    WEIGHTED_SUM,
    ProbeConfig,
    ProbeFit,
    ProbeSchedule,
    check_vectors,
)
from audiation.targets import ClipTarget

STACK_BYTES = 3 * 2**29  # of weights, moments and best states of one stack
SMALL_PRODUCT = 2e8  # additions and multiplications for which a second thread costs more than it gives


@dataclass(frozen=True)
class ProbeTrial:
    """One configuration that was tried. best_score: larger is better, -inf where it has diverged from the start."""

    config: ProbeConfig
    best_score: float
    best_step: int
    last_step: int


@dataclass(frozen=True, eq=False)
class GridFit:
    """best: the trial with the best validation score, the first of equals. trials: all, in the order given.

    train_seconds: of all stacks, also before the training was killed; what was lost by that is not counted.
    fits: all of them with their weights where they were asked for, else empty.
    """

    best: ProbeFit
    trials: tuple[ProbeTrial, ...]
    train_seconds: float
    fits: tuple[ProbeFit, ...] = ()


@dataclass(frozen=True)
class GridProgress:
    """Where a grid is. num_alive: configurations in training or not begun. seconds_left: at least, if nothing
    improves any more; None at the beginning."""

    step: int
    num_alive: int
    num_configs: int
    best_score: float
    seconds_left: float | None


def train_grid(
    configs: Sequence[ProbeConfig],
    schedule: ProbeSchedule,
    target: ClipTarget,
    train_vectors: Mapping[int, Tensor],
    train_annotations: Sequence[Any],
    valid_vectors: Mapping[int, Tensor],
    score: Scores,
    *,
    run_dir: Path | None = None,
    run_key: str = "",
    device: str = "cpu",
    stack_bytes: int = STACK_BYTES,
    allow_missing_classes: bool = False,
    keep_states: bool = False,
    progress: Callable[[GridProgress], None] | None = None,
) -> GridFit:
    """Train every configuration until its own end; find the best on validation.

    Adam with coupled weight decay. A configuration whose outputs stop being finite has no score from then on, and ends
    like one that does not improve.

    Args:
        train_vectors: layer -> `(N, D)`, one row per window: each is an example of its own.
        train_annotations: N annotations, encoded by `target`.
        valid_vectors: layer -> `(M, D)`, of the same layers.
        score: `(K, M, C)` logits -> `(K,)` scores, larger is better (`probe_scores.ValidationScorer`).
        run_dir: folder from which a killed training goes on, to the same numbers; None: it cannot.
        run_key: identity of what `score` knows, and of versions. A folder of another key, other vectors, annotations or
            configurations is begun anew.
        device: torch device of weights and products. Random numbers come from the CPU, so all devices draw the same.
        stack_bytes: of weights and optimiser state in memory at a time.
        allow_missing_classes: train although a class of the target never occurs in the training split.
        keep_states: return the weights of all configurations, not only of the best.
        progress: called after every look at the validation split.

    Raises:
        ValueError: no configurations, a layer without vectors, what `check_vectors` refuses, a folder that holds
            something else or is in use, or no configuration that ever had a score.
    """
    if not configs:
        raise ValueError("a grid needs at least one configuration")
    targets = check_vectors(
        target, train_vectors, train_annotations, valid_vectors, allow_missing_classes=allow_missing_classes
    )
    inputs = GridInputs(train_vectors, valid_vectors, torch.device(device))
    layers_of = [_layers(config, list(train_vectors)) for config in configs]
    stacks = _plan_stacks(configs, layers_of, inputs.dim, target.num_outputs, stack_bytes)
    with ExitStack() as closing:
        files = None
        if run_dir is not None:
            data = _data_sha256(train_vectors, valid_vectors, targets)
            files = closing.enter_context(
                GridFiles(run_dir, f"{run_key} {data} {configs} {schedule} {stacks}")
            )
        return _train_stacks(
            configs, layers_of, stacks, inputs, target, targets, schedule, score, files,
            device=device, keep_states=keep_states, progress=progress,
        )  # fmt: skip


def _data_sha256(train: Mapping[int, Tensor], valid: Mapping[int, Tensor], targets: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in (*train.values(), *valid.values(), targets):
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _train_stacks(
    configs: Sequence[ProbeConfig],
    layers_of: Sequence[tuple[int, ...]],
    stacks: Sequence[list[int]],
    inputs: GridInputs,
    target: ClipTarget,
    targets: Tensor,
    schedule: ProbeSchedule,
    score: Scores,
    files: GridFiles | None,
    *,
    device: str,
    keep_states: bool,
    progress: Callable[[GridProgress], None] | None,
) -> GridFit:
    """One stack after another."""
    seconds = 0.0
    fits: dict[int, ProbeFit] = {}
    trials: dict[int, ProbeTrial] = {}
    clock = _Clock(len(configs), [len(s) for s in stacks])
    for number, members in enumerate(stacks):
        stack = Stack(
            members, [configs[i] for i in members], [layers_of[i] for i in members], inputs, target, targets, schedule
        )  # fmt: skip
        with _threads(stack, device):
            stack.run(score, files, number, lambda s: _report(progress, clock, s, trials))
        clock.ended()
        seconds += stack.seconds
        for fit_index, fit in stack.fits.items():
            trials[fit_index] = ProbeTrial(fit.config, fit.best_score, fit.best_step, fit.last_step)
        fits |= stack.fits
        if not keep_states:  # one is enough
            best = _first_best(fits)
            fits = {best: fits[best]}
    best = _first_best(fits)
    if fits[best].best_score == -math.inf:
        raise ValueError(
            "no configuration ever had a finite score on the validation split: the vectors may be too large for these "
            "learning rates"
        )
    if files is not None:
        files.remove()
    ordered = tuple(fits[i] for i in range(len(configs))) if keep_states else ()
    return GridFit(fits[best], tuple(trials[i] for i in range(len(configs))), seconds, ordered)


def _first_best(fits: Mapping[int, ProbeFit]) -> int:
    return max(sorted(fits), key=lambda i: fits[i].best_score)


def _layers(config: ProbeConfig, known: list[int]) -> tuple[int, ...]:
    """What a configuration reads. ValueError for a layer without vectors."""
    if config.layer == WEIGHTED_SUM:
        summed = tuple(sorted(i for i in known if i > 0))
        if not summed:
            raise ValueError(
                f"a weighted sum is over layers 1 and above, and there are vectors of {known} only"
            )
        return summed
    if config.layer is None:
        if len(known) != 1:
            raise ValueError(f"the configuration names no layer, and there are vectors of layers {known}")
        return (known[0],)
    assert isinstance(config.layer, int)
    if config.layer not in known:
        raise ValueError(f"there are vectors of layers {known}, not of layer {config.layer}")
    return (config.layer,)


def _plan_stacks(
    configs: Sequence[ProbeConfig],
    layers_of: Sequence[tuple[int, ...]],
    dim: int,
    num_outputs: int,
    stack_bytes: int,
) -> list[list[int]]:
    """Indices of the configurations of each stack; those with one input lie together."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, c in enumerate(configs):
        mixes = c.layer == WEIGHTED_SUM
        key = (c.seed, c.batch_size, c.dropout, c.input_dropout, c.hidden_size, mixes)
        groups.setdefault(key, []).append(i)
    stacks = []
    for members in groups.values():
        hidden = configs[members[0]].hidden_size
        parameters = dim * (hidden or num_outputs) + (0 if hidden is None else hidden * num_outputs)
        most = max(1, stack_bytes // (16 * parameters))  # float32 weights, two moments, best state
        members.sort(key=lambda i: (layers_of[i], configs[i].standardise, i))
        size = math.ceil(len(members) / math.ceil(len(members) / most))
        stacks += [members[a : a + size] for a in range(0, len(members), size)]
    return stacks


# Around it ----------------------------------------------------------------------------------------------


class _Clock:
    """How long the rest will take, if nothing improves any more."""

    def __init__(self, num_configs: int, sizes: Sequence[int]) -> None:
        self.num_configs, self._sizes = num_configs, list(sizes)
        self._stack_started = time.perf_counter()
        self._first_step: int | None = None
        self._ended: list[float] = []

    def ended(self) -> None:
        self._ended.append(time.perf_counter() - self._stack_started)
        self._stack_started, self._first_step = time.perf_counter(), None

    def seconds_left(self, stack: Stack) -> float | None:
        if self._first_step is None:  # what was done before a restart took no time here
            self._first_step, self._stack_started = stack.step, time.perf_counter()
            return None
        spent = time.perf_counter() - self._stack_started
        done = stack.step - self._first_step
        schedule = stack.schedule
        per_look = schedule.look_every_steps or stack.stream.batches_per_epoch
        steps = 0
        for course in stack.courses:
            ends = [
                (schedule.patience - course.since_best) * per_look
                if schedule.patience is not None
                else math.inf,
                schedule.max_epochs * stack.stream.batches_per_epoch - stack.step
                if schedule.max_epochs is not None
                else math.inf,
            ]
            steps = max(steps, int(min(ends)))
        here = spent / max(1, done) * steps
        others = len(self._sizes) - len(self._ended) - 1
        each = sum(self._ended) / len(self._ended) if self._ended else spent + here
        return here + others * each


def _report(
    progress: Callable[[GridProgress], None] | None,
    clock: _Clock,
    stack: Stack,
    trials: Mapping[int, ProbeTrial],
) -> None:
    if progress is None:
        return
    scores = [t.best_score for t in trials.values()]
    scores += [f.best_score for f in stack.fits.values()] + [c.best.score for c in stack.courses]
    alive = clock.num_configs - len(trials) - len(stack.fits)
    progress(GridProgress(stack.step, alive, clock.num_configs, max(scores), clock.seconds_left(stack)))


@contextmanager
def _threads(stack: Stack, device: str) -> Iterator[None]:
    """Divide the work of a stack among threads that each compute alone.

    Two products side by side are faster than one after the other with two threads each, which have to wait for each
    other after every product. Where products are as small as those of a few probes on short vectors, one thread alone
    is faster still.
    """
    threads = torch.get_num_threads()
    if not device.startswith("cpu"):
        yield
        return
    torch.set_num_threads(1)
    try:
        if threads == 1 or stack.product_size < SMALL_PRODUCT:
            yield
        else:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as stack.pool:
                yield
            stack.pool = None
    finally:
        torch.set_num_threads(threads)
