"""Pre-training on one process and on two, one thread each: `python benchmarks/pretrain_scaling.py`.

musicfm-mini with BEST-RQ, the same set of micro-batches per step; noise instead of music, which changes no timing. The
fastest step of each layout counts. "alone, beside another" is one process while a second one computes the same next to
it: what two cores give on this machine when nothing is sent. Losses of the last step are compared, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from audiation.distributed import process_group
from audiation.loading import load_backbone
from audiation.losses import Loss
from audiation.objectives import PretrainBatch, parse_objective
from audiation.pretraining import Pretraining
from audiation.pretraining_config import PretrainConfig
from audiation.training import fit

LAYOUTS = ("replicated", "ddp", "sharded")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="musicfm-mini")
    parser.add_argument("--crop-seconds", type=float, default=10.0)
    parser.add_argument("--micro-batches", type=int, default=4)
    parser.add_argument("--clips", type=int, default=2, help="in a micro-batch")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--turns", type=int, default=2, help="how often everything is timed")
    parser.add_argument("--worker", nargs=2, metavar=("LAYOUT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options, *options.worker)
        return
    fastest: dict[str, float] = {}
    losses: dict[str, float] = {}
    for _ in range(options.turns):
        for name, seconds, loss in measured():
            fastest[name] = min(fastest.get(name, seconds), seconds)
            losses[name] = loss
    one, beside = fastest["1 process"], fastest["alone, beside another"]
    print(f"{options.backbone}, best_rq, {options.micro_batches} micro-batches of {options.clips} x ", end="")
    print(f"{options.crop_seconds:g} s per step, 1 thread per process")
    for name, seconds in fastest.items():
        line = f"  {name:24s}{seconds:7.2f} s per step"
        if name.startswith("2"):
            line += f"   {one / seconds:.2f}x of one process ({one / seconds / 2:.0%}), "
            line += f"{beside / seconds / 2:.0%} of two that send nothing"
            line += f"; loss differs by {abs(losses[name] - losses['1 process']):.1e}"
        print(line)


def measured() -> list[tuple[str, float, float]]:
    """(name, seconds of the fastest step, last loss) of every layout."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        started = [start("replicated", 1, Path(folder) / "one")]
        found.append(("1 process", *result(started, Path(folder) / "one")))
        started = [start("replicated", 1, Path(folder) / name) for name in ("left", "right")]
        found.append(("alone, beside another", *result(started, Path(folder) / "left")))
        for layout in LAYOUTS:
            started = [start(layout, 2, Path(folder) / layout)]
            found.append((f"2 processes, {layout}", *result(started, Path(folder) / layout)))
    return found


def start(layout: str, processes: int, folder: Path) -> subprocess.Popen[bytes]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *launch, __file__, *sys.argv[1:], "--worker", layout, str(folder)]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)


def result(started: list[subprocess.Popen[bytes]], folder: Path) -> tuple[float, float]:
    for process in started:
        if process.wait():
            raise SystemExit(f"a process ended with code {process.returncode}")
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return min(line["seconds"] for line in lines[1:]), lines[-1]["loss"]


# In a process of its own ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noise:
    """`(clips, samples)` that follow from step and index."""

    clips: int
    num_samples: int

    def micro_batch(self, step: int, index: int) -> PretrainBatch:
        generator = torch.Generator().manual_seed(1000 * step + index)
        return PretrainBatch(0.1 * torch.randn(self.clips, self.num_samples, generator=generator))


def compute(module: nn.Module, batch: PretrainBatch, generator: torch.Generator) -> Loss:
    return module(batch, generator)


def work(options: argparse.Namespace, layout: str, folder: str) -> None:
    torch.set_num_threads(1)
    backbone = load_backbone(options.backbone, "random")
    module = Pretraining(backbone, parse_objective("best_rq").build(backbone)).train()
    config = PretrainConfig(
        steps=options.steps,
        batch_size=options.micro_batches * options.clips,
        micro_batch_size=options.clips,
        parallel=layout,  # type: ignore[arg-type]
        checkpoint_every_seconds=1e9,
    )
    batches = Noise(options.clips, round(options.crop_seconds * backbone.sample_rate_hz))
    with process_group("cpu") as device:
        fit(module, compute, batches, config, folder, device=device)


if __name__ == "__main__":
    main()
