"""Grids of probes: all configurations at once against one after another in plain PyTorch with fused Adam.

  jukemir   the 216 configurations on the 930 clips of GTZAN (443 to train, 197 to validate) at 4,800 dimensions, as of
            Jukebox: so many steps of each, with a look at the validation split every 8 steps
  marble    84 configurations on the same clips at 768 dimensions: 13 layers and the weighted sum, six learning rates,
            with a look after every epoch of 7 steps
  same      the whole jukemir grid at 120 dimensions: are the same configuration and checkpoint selected?
  memory    peak memory of a stack at the size of MagnaTagATune: 18,706 vectors of 4,800 dimensions, 50 tags

Peers draw dropout with `nn.Dropout` and gather batches as users would. Every shape is measured in turn, a stack and
then its peers, so that a noisy machine touches both; peers are measured on one configuration per shape and multiplied.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import time
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from audiation.annotations import Label, Tags
from audiation.grid import _threads, train_grid
from audiation.grid_inputs import GridInputs
from audiation.grid_stack import Stack
from audiation.probe import WEIGHTED_SUM, ProbeConfig, ProbeSchedule
from audiation.protocols import PROTOCOLS
from audiation.targets import ClassTarget, TagsTarget

CLASSES = tuple("abcdefghij")
NUM_TRAIN, NUM_VALID = 443, 197


def vectors(
    count: int, dim: int, layers: range, seed: int = 0
) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, len(CLASSES), (count,), generator=generator)
    centres = torch.randn(len(CLASSES), dim, generator=torch.Generator().manual_seed(99))
    return {i: centres[labels] * 0.2 + torch.randn(count, dim, generator=generator) for i in layers}, labels


class Data:
    """Training vectors of some layers; the first of them are looked at as if they were the validation split."""

    def __init__(self, dim: int, layers: range) -> None:
        self.train, self.labels = vectors(NUM_TRAIN, dim, layers)
        held_out = {i: x[:NUM_VALID] for i, x in self.train.items()}
        self.inputs = GridInputs(self.train, held_out, torch.device("cpu"))


class Peer(nn.Module):
    """What a user writes: dropout, linear, and for a weighted sum a softmax over layers."""

    def __init__(self, config: ProbeConfig, dim: int, num_layers: int) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Dropout(config.dropout)] if config.input_dropout else []
        if config.hidden_size is not None:
            parts += [nn.Linear(dim, config.hidden_size), nn.ReLU(), nn.Dropout(config.dropout)]
        self.head = nn.Sequential(*parts, nn.Linear(config.hidden_size or dim, len(CLASSES)))
        self.mix = nn.Parameter(torch.randn(num_layers)) if config.layer == WEIGHTED_SUM else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.mix is not None:  # (B, L, D)
            x = torch.einsum("l,bld->bd", self.mix.softmax(0), x)
        return self.head(x)


def time_peer(config: ProbeConfig, data: Data, look_every: int, steps: int) -> float:
    """Seconds per step, with looks at the validation split."""
    train, labels = data.train, data.labels
    if config.layer == WEIGHTED_SUM:
        x = torch.stack([train[i] for i in sorted(train) if i > 0], 1)
    else:
        x = train[config.layer]  # type: ignore[index]
        if config.standardise:
            x = (x - x.mean(0)) / x.std(0)
    model = Peer(config, x.shape[-1], len(train) - 1)
    optimiser = torch.optim.Adam(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    held_out = x[:NUM_VALID]
    loss_of = nn.CrossEntropyLoss()

    def run(count: int) -> float:
        started = time.perf_counter()
        for step in range(count):
            if step % look_every == 0:
                model.eval()
                with torch.no_grad():
                    (model(held_out).argmax(1) == labels[:NUM_VALID]).float().mean().item()
                model.train()
            rows = torch.randperm(len(x))[: config.batch_size]
            loss = loss_of(model(x[rows]), labels[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        return (time.perf_counter() - started) / count

    run(look_every)
    return run(steps)


def time_stack(configs: list[ProbeConfig], data: Data, look_every: int, steps: int) -> float:
    """Seconds per step of all configurations together, with looks at the validation split."""
    layers = [(c.layer,) if isinstance(c.layer, int) else tuple(i for i in data.train if i) for c in configs]
    stack = Stack(
        range(len(configs)), configs, layers, data.inputs, ClassTarget(CLASSES), data.labels, ProbeSchedule()
    )
    with _threads(stack, "cpu"):

        def run(count: int) -> float:
            started = time.perf_counter()
            for step in range(0, count, look_every):
                (stack.valid_logits().argmax(-1) == data.labels[:NUM_VALID]).float().mean(1)
                stack.train_steps(min(look_every, count - step))
            return (time.perf_counter() - started) / count

        run(look_every)
        return run(steps)


def compare(name: str, configs: list[ProbeConfig], data: Data, look_every: int, steps: int) -> None:
    sums: dict[str, list[float]] = {}

    def key(c: ProbeConfig) -> tuple[bool, int, float, bool]:
        return c.hidden_size is not None, c.batch_size, c.dropout, c.layer == WEIGHTED_SUM

    print(f"{name}: {len(configs)} configurations; milliseconds per step of all configurations of a shape")
    for shape, group in itertools.groupby(sorted(configs, key=key), key):
        members = sorted(group, key=lambda c: (str(c.layer), c.standardise))
        together, alone = [], []
        for _ in range(2):  # in turn
            together.append(time_stack(members, data, look_every, steps // 2))
            alone.append(time_peer(members[0], data, look_every, steps // 2) * len(members))
        pair = sum(together) / 2, sum(alone) / 2
        half = "MLP" if shape[0] else "linear"
        for which in (half, "all"):
            for i, seconds in enumerate(pair):
                sums.setdefault(which, [0.0, 0.0])[i] += seconds
        kind = f"{half}, batch {shape[1]}, dropout {shape[2]}" + (", weighted sum" if shape[3] else "")
        show(f"{kind:45} x{len(members):3}", *pair)
    for which, (ours, theirs) in sums.items():
        show(f"{which:45}     ", ours, theirs)
    limits(configs, data, look_every, 1e3 * sums["all"][0], 1e3 * sums["all"][1])


def show(what: str, ours: float, theirs: float) -> None:
    print(f"  {what}: {1e3 * ours:8.1f} against {1e3 * theirs:8.1f}  {theirs / ours:5.1f}x", flush=True)


def limits(
    configs: list[ProbeConfig], data: Data, look_every: int, measured_ms: float, alone_ms: float
) -> None:
    """What is left against what the machine can do."""
    dim = next(iter(data.train.values())).shape[1]
    a = torch.randn(2048, 2048)
    peak = best_of(lambda: a @ a)
    flops_per_second = 2 * 2048**3 / peak
    big = [torch.zeros(2**24) for _ in range(4)]
    step = torch.tensor(1.0)
    adam = best_of(
        lambda: torch._fused_adam_(
            big[:1], big[1:2], big[2:3], big[3:], [], [step], lr=1e-3, beta1=0.9, beta2=0.999, weight_decay=0.0,
            eps=1e-8, amsgrad=False, maximize=False,
        )
    ) / 2**24  # fmt: skip
    stream = np.random.SFC64(0)
    bits = best_of(lambda: stream.random_raw(2**18)) / 2**21
    rows = [4.0 * c.batch_size + 2.0 * NUM_VALID / look_every for c in configs]
    flops = sum(n * dim * (c.hidden_size or len(CLASSES)) for n, c in zip(rows, configs, strict=True))
    parameters = sum(dim * (c.hidden_size or len(CLASSES)) for c in configs)
    masks = sum(
        {
            (c.batch_size, c.dropout, c.hidden_size): c.batch_size * dim for c in configs if c.input_dropout
        }.values()
    )
    parts = {
        f"dense products, {flops / 1e9:.0f} GFLOP at {flops_per_second / 1e9:.0f} GFLOP/s": flops
        / flops_per_second,
        f"Adam, {parameters / 1e6:.0f} M parameters at {28 / adam / 1e9:.0f} GB/s": parameters * adam,
        f"dropout, {masks / 1e6:.1f} M random bytes": masks * bits,
    }
    for what, seconds in parts.items():
        print(f"  limit: {what}: {1e3 * seconds:.1f} ms")
    limit_ms = 1e3 * sum(parts.values())
    print(
        f"  measured {measured_ms:.1f} ms; the limits add up to {limit_ms:.1f} ms, at which it would be "
        f"{alone_ms / limit_ms:.1f}x"
    )


def best_of(work, repeats: int = 5) -> float:
    work()
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best


def jukemir(steps: int) -> None:
    configs = [replace(c, layer=0) for c in PROTOCOLS["jukemir"].probes]
    compare("jukemir", configs, Data(4800, range(1)), 8, steps)


def marble(steps: int) -> None:
    probes = PROTOCOLS["marble-constrained"].probes
    configs = [replace(c, layer=layer) for layer in (*range(13), WEIGHTED_SUM) for c in probes]
    compare("marble", configs, Data(768, range(13)), 7, steps)


def same() -> None:
    train, labels = vectors(443, 120, range(1))
    valid, valid_labels = vectors(197, 120, range(1), seed=1)
    configs = [replace(c, layer=0) for c in PROTOCOLS["jukemir"].probes]
    target, annotations = ClassTarget(CLASSES), [Label(CLASSES[i]) for i in labels.tolist()]

    def score(logits: torch.Tensor) -> np.ndarray:
        return (logits.argmax(-1) == valid_labels).double().mean(1).numpy()

    schedule = ProbeSchedule()
    started = time.perf_counter()
    together = train_grid(configs, schedule, target, train, annotations, valid, score)
    between = time.perf_counter()
    alone = [train_grid([c], schedule, target, train, annotations, valid, score).trials[0] for c in configs]
    ended = time.perf_counter()
    equal = sum(
        (a.best_score, a.best_step, a.last_step) == (b.best_score, b.best_step, b.last_step)
        for a, b in zip(alone, together.trials, strict=True)
    )
    first = max(alone, key=lambda t: t.best_score)
    selected = first.config == together.best.config and first.best_step == together.best.best_step
    print(
        f"same: {equal} of {len(configs)} configurations have the same best score, checkpoint and end; the same one is "
        f"selected: {selected}. {between - started:.0f} s against {ended - between:.0f} s "
        f"({(ended - between) / (between - started):.1f}x)"
    )


def memory() -> None:
    count, dim, tags = 18_706, 4_800, tuple(f"tag {i}" for i in range(50))
    generator = torch.Generator().manual_seed(0)
    train = {0: torch.randn(count, dim, generator=generator)}
    valid = {0: torch.randn(1_825, dim, generator=generator)}
    truth = (torch.rand(count, len(tags), generator=generator) < 0.1).float()
    annotations = [Tags(dict(zip(tags, row, strict=True))) for row in truth.tolist()]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    configs = [replace(c, layer=0) for c in PROTOCOLS["jukemir"].probes]
    looks = 0

    class EnoughError(Exception):
        pass

    def score(logits: torch.Tensor) -> np.ndarray:
        nonlocal looks
        looks += 1
        if looks > 3:
            raise EnoughError
        return np.zeros(len(logits))

    widest = [c for c in configs if c.hidden_size and c.batch_size == 256 and c.dropout == 0.5]
    try:
        train_grid(widest, ProbeSchedule(), TagsTarget(tags), train, annotations, valid, score)
    except EnoughError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"memory: {peak / 2**20:.2f} GiB at the peak with a stack of {len(widest)} two-layer probes "
        f"({before / 2**20:.2f} GiB before it; the vectors alone are {count * dim * 4 / 2**30:.2f} GiB)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", default=["jukemir", "marble", "same", "memory"])
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    for what in arguments.what:
        if what in ("jukemir", "marble"):
            {"jukemir": jukemir, "marble": marble}[what](arguments.steps)
        elif what in ("same", "memory"):
            {"same": same, "memory": memory}[what]()
        else:
            parser.error(f"there is no benchmark '{what}'")


if __name__ == "__main__":
    main()
