"""What a training step and an answer cost: seconds, floating-point operations and memory, per method.

Random weights of the published sizes: they change neither. Everything compared is timed in turn in one process, and
the fastest of several turns counts; peak memory is that of a process of its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from audiation.adapted import AdaptedModel, Stage
from audiation.loading import load_backbone
from audiation.methods import inject, merge, parse_method, set_modes
from audiation.targets import TagsTarget

NUM_TAGS = 50
LEARNING_RATE = 1e-4
KIB = 1024


@dataclass(frozen=True)
class Setting:
    """A method on a backbone, and what it is fed.

    cached: the step starts from what was kept of the frozen part: the stem's output, or the pooled vector for a probe.
    merged: the method is folded into the weights (for answers).
    """

    backbone: str
    method: str
    num_layers: int
    clip_seconds: float
    batch_size: int = 1
    cached: bool = False
    merged: bool = False


class Subject:
    """A setting made ready: `train` makes one optimiser step, `answer` one forward pass without gradients."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        method = parse_method(setting.method)
        backbone = load_backbone(setting.backbone, "random", num_layers=setting.num_layers)
        inject(backbone, method)
        if setting.merged:
            backbone = merge(backbone)
        self.model = AdaptedModel(backbone, TagsTarget(tuple(f"tag {i}" for i in range(NUM_TAGS))))
        self.stage: Stage = "waveform"
        num_samples = round(setting.clip_seconds * backbone.sample_rate_hz)
        generator = torch.Generator().manual_seed(0)
        self.inputs: Tensor = 0.1 * torch.randn(setting.batch_size, num_samples, generator=generator)
        self.targets = (torch.rand(setting.batch_size, NUM_TAGS, generator=generator) < 0.1).float()
        if setting.cached:
            if method.trains_stem:
                raise ValueError(f"nothing of '{setting.method}' can be kept: it trains the stem")
            self.stage = "stem" if method.trains_backbone else "pooled"
            with torch.no_grad():
                self.model.eval()
                make = backbone.project if self.stage == "stem" else self.model.pool
                self.inputs = make(self.inputs)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(trained, lr=LEARNING_RATE, fused=True)

    def prepare_training(self) -> None:
        set_modes(self.model.backbone)
        self.model.head.train()

    def train(self) -> None:
        """Forward, backward, update. Call `prepare_training` before the first."""
        self.loss().backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def loss(self) -> Tensor:
        return self.model.target.loss(self.model([self.inputs], self.stage), self.targets).mean

    def answer(self) -> Tensor:
        with torch.inference_mode():
            return self.model([self.inputs], self.stage)


def count_flops(subject: Subject, training: bool) -> int:
    """Multiplications and additions of one step or answer, as torch's counter sees them."""
    with FlopCounterMode(display=False) as counter:
        if training:
            subject.loss().backward()
        else:
            with torch.no_grad():
                subject.model([subject.inputs], subject.stage)
    subject.optimiser.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def fastest_seconds(calls: Sequence[Callable[[], object]], turns: int) -> list[float]:
    """Seconds of the fastest call of each, all called in turn; one turn more than asked warms up."""
    best = [float("inf")] * len(calls)
    for turn in range(turns + 1):
        for i, call in enumerate(calls):
            started = time.perf_counter()
            call()
            if turn:
                best[i] = min(best[i], time.perf_counter() - started)
    return best


@dataclass(frozen=True)
class PeakMemory:
    """Of a process that made training steps: peak resident memory, and what was resident with weights loaded."""

    peak_bytes: int
    loaded_bytes: int


def peak_memory(setting: Setting, steps: int = 2, threads: int | None = None) -> PeakMemory:
    """Peak memory of training steps, in a process of its own."""
    arguments = [sys.executable, "-m", "audiation.recipes.step_cost", json.dumps(asdict(setting)), str(steps)]
    arguments += [str(threads or torch.get_num_threads())]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{setting} could not be measured: {done.stderr.strip()[-500:]}")
    return PeakMemory(**json.loads(done.stdout))


def _measure_here(text: str, steps: int, threads: int) -> None:
    torch.set_num_threads(threads)
    subject = Subject(Setting(**json.loads(text)))
    with open("/proc/self/statm") as file:
        loaded = int(file.read().split()[1]) * resource.getpagesize()
    subject.prepare_training()
    for _ in range(steps):
        subject.train()
    with open("/proc/self/status") as file:  # ru_maxrss begins with what the parent had
        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * KIB
    print(json.dumps({"peak_bytes": peak, "loaded_bytes": loaded}))


if __name__ == "__main__":
    _measure_here(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
