"""Pre-training runs on several processes, which `test_pretraining_scale` compares: `pretraining_script.py MODE OUT`.

OUT/NAME is the folder of a run, OUT/NAME.pt what the module is at its end, OUT/facts.json what else was seen. Ranks are
forks, which share what is already imported; that takes longer than all that is tested here.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from audiation.backbones.conformer import ConformerConfig
from audiation.backbones.musicfm import MSD, fresh
from audiation.distributed import process_group, this_rank, values_of_all
from audiation.losses import ComputeLoss, Loss
from audiation.objectives import PretrainBatch, parse_objective
from audiation.pretraining_config import PretrainConfig
from audiation.training import DivergedError, FitReport, fit

TINY = ConformerConfig(dim=16, num_heads=2, ffn_dim=24, num_layers=2, conv_kernel=5)
NUM_SAMPLES = 19200  # 0.8 s, two windows of BEST-RQ
BEST_RQ = "best_rq:codebook_size=32"
DATA2VEC = "data2vec:top_layers=2,ema_decay=0.5,ema_end_decay=0.5"
CONFIG = PretrainConfig(
    steps=5,
    batch_size=4,
    micro_batch_size=1,
    learning_rate=1e-2,
    clip_norm=0.5,
    checkpoint_every_steps=100,
    checkpoint_every_seconds=1e9,
    seed=3,
)
SHARDED: dict[str, Any] = {"parallel": "sharded"}
OFTEN = {"checkpoint_every_steps": 2}


@dataclass(frozen=True)
class Crops:
    """Noise. broken_step: in which micro-batch 1 is no music, but numbers that are none; None: never."""

    broken_step: int | None = None

    def micro_batch(self, step: int, index: int) -> PretrainBatch:
        generator = torch.Generator().manual_seed(100 * step + index)
        waveform = 0.1 * torch.randn(1, NUM_SAMPLES, generator=generator)
        if self.broken_step == step and index == 1:
            waveform.fill_(torch.nan)
        return PretrainBatch(waveform, (f"{step}-{index}.wav",))


class Root(nn.Module):
    """As `Pretraining`, whose file imports all that is needed for loading weights.

    shares: numbers of parameters on this rank after a step, and of all.
    """

    shares: tuple[int, int]

    def __init__(self, objective: str) -> None:
        super().__init__()
        self.backbone = fresh(MSD, TINY, conv_channels=4)
        self.objective = parse_objective(objective).build(self.backbone)

    def forward(self, batch: PretrainBatch, generator: torch.Generator) -> Loss:
        return self.objective(self.backbone, batch, generator)

    def after_step(self, step: int) -> None:
        self.objective.after_step(self.backbone, step)
        parameters = list(self.parameters())
        here = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in parameters)
        self.shares = here, sum(p.numel() for p in parameters)


def model(objective: str = BEST_RQ) -> Root:
    module = Root(objective).train()
    if not this_rank().is_first:  # which all start from
        nn.init.zeros_(module.objective.head.weight)
    return module


def compute(module: nn.Module, batch: PretrainBatch, generator: torch.Generator) -> Loss:
    return module(batch, generator)


def trained(
    folder: Path, module: Root, step: ComputeLoss = compute, batches: Crops | None = None, **changes: Any
) -> FitReport:
    return fit(module, step, batches or Crops(), dataclasses.replace(CONFIG, **changes), folder)


def run(out: Path, name: str, objective: str = BEST_RQ, **changes: Any) -> Root:
    """Train to the end, and note what the module has become."""
    module = model(objective)
    trained(out / name, module, **changes)
    if this_rank().is_first:
        torch.save(module.state_dict(), out / f"{name}.pt")
    return module


def stopped(out: Path, name: str, **changes: Any) -> None:
    """A run whose ranks all break off in step 4, and whose last checkpoint is that of step 2."""

    def breaking(module: nn.Module, batch: PretrainBatch, generator: torch.Generator) -> Loss:
        if batch.names[0].startswith("3-"):
            raise InterruptedError
        return compute(module, batch, generator)

    try:
        trained(out / name, model(), breaking, **OFTEN, **changes)
    except InterruptedError:
        return
    raise AssertionError("it was not stopped")


# On so many ranks ------------------------------------------------------------------------------------------


def one_rank(out: Path) -> None:
    run(out, "one")
    run(out, "one-data2vec", DATA2VEC)


def two_ranks(out: Path) -> None:
    run(out, "two-replicated")
    run(out, "two-ddp", parallel="ddp")
    module = run(out, "two-sharded", **SHARDED)
    facts: dict[str, Any] = {
        "shares": values_of_all(module.shares),
        "kinds": sorted({type(p).__name__ for p in module.parameters()} | {type(m).__name__ for m in module.modules()}),
    }  # fmt: skip
    run(out, "two-data2vec", DATA2VEC, **SHARDED)
    stopped(out, "two-stopped", **SHARDED)
    facts |= {"diverged": _diverged(out), "refused": _refused(out)}
    if this_rank().is_first:
        (out / "facts.json").write_text(json.dumps(facts))
        for name in ("one-from-two", "damaged"):
            shutil.copytree(out / "two-stopped", out / name)
    values_of_all(None)
    run(out, "two-stopped", **SHARDED)


def four_ranks(out: Path) -> None:
    run(out, "four-replicated")
    run(out, "four-ddp", parallel="ddp")
    run(out, "four-sharded", **SHARDED)
    run(out, "four-from-two", **SHARDED)


def two_ranks_more(out: Path) -> None:
    run(out, "two-bf16", precision="bf16", gather_precision="bf16", **SHARDED)
    run(out, "two-fp16", precision="fp16", **SHARDED)
    for parallel in ("replicated", "ddp", "sharded"):
        _partly_used(out, f"two-partly-{parallel}", parallel=parallel)
    run(out, "two-sharded", **SHARDED)
    run(out, "two-recomputed", recompute_blocks=True, **SHARDED)
    run(out, "two-from-one", **SHARDED)
    for name in ("four-from-two", "two-replicated-from-sharded"):
        stopped(out, name, **SHARDED)
    run(out, "two-replicated-from-sharded")


def _diverged(out: Path) -> dict[str, Any] | None:
    """Step 4 is not finite; the module is whole afterwards, and as after step 3."""
    module = model()
    try:
        trained(out / "diverging", module, batches=Crops(broken_step=3), **OFTEN, **SHARDED)
    except DivergedError as error:
        kinds = sorted({type(p).__name__ for p in module.parameters()})
        where = {"checkpoint": str(error.checkpoint), "evidence": str(error.evidence)}
        return {"names": error.names, "step": error.step, "kinds": kinds} | where
    return None


def _refused(out: Path) -> list[str]:
    """Why: validation of shards, and a single number that is to be split."""
    number = model()
    number.extra = nn.Parameter(torch.ones(()))
    messages = []
    for module, validate in ((model(), lambda _: 0.0), (number, None)):
        try:
            fit(module, compute, Crops(), dataclasses.replace(CONFIG, **SHARDED), out / "refused", validate)
        except ValueError as error:
            messages.append(str(error))
    return messages


def _partly_used(out: Path, name: str, **changes: Any) -> None:
    """A parameter that only the first micro-batch of a step uses."""

    def step(module: nn.Module, batch: PretrainBatch, generator: torch.Generator) -> Loss:
        assert isinstance(module, Root)
        loss = compute(module, batch, generator)
        if batch.names[0].endswith("-0.wav"):
            loss = dataclasses.replace(loss, sum=loss.sum + module.extra.square().sum())
        return loss

    module = model()
    module.extra = nn.Parameter(torch.ones(3))
    trained(out / name, module, step, steps=3, **changes)
    if this_rank().is_first:
        torch.save(module.state_dict(), out / f"{name}.pt")


# Killed ----------------------------------------------------------------------------------------------------


def killed_in_a_step(out: Path) -> None:
    """Rank 1, while rank 0 waits for its share of a block."""

    def dying(module: nn.Module, batch: PretrainBatch, generator: torch.Generator) -> Loss:
        loss = compute(module, batch, generator)
        if batch.names == ("3-1.wav",):
            os.kill(os.getpid(), signal.SIGKILL)
        return loss

    trained(out / "killed", model(), dying, **OFTEN, **SHARDED)


def killed_again_and_again(out: Path) -> int:
    """One rank dies before something reaches the disk or its place; how often, until the run came to its end."""
    for kills, (rank, operation) in enumerate([(0, 1), (1, 1), (0, 3), (0, 4), (0, 7), (1, 99)]):
        codes = launch(2, lambda r=rank, n=operation: _dying_at(out, r, n), any_may_fail=True)  # type: ignore[misc]
        if codes == [0, 0]:
            return kills
        assert -signal.SIGKILL in codes, codes
    raise AssertionError("it never came to its end")


def _dying_at(out: Path, rank: int, number: int) -> None:
    if this_rank().index == rank:
        _kill_at(number)
    run(out, "killed-files", **OFTEN, **SHARDED)


def _kill_at(number: int) -> None:
    """Kill this process before file operation `number`."""
    done = 0

    def counted(operation: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **named: object) -> object:
            nonlocal done
            done += 1
            if done == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args, **named)

        return call

    os.fsync, os.replace, shutil.rmtree = counted(os.fsync), counted(os.replace), counted(shutil.rmtree)  # type: ignore


def launch(count: int, work: Callable[[], object], any_may_fail: bool = False) -> list[int]:
    """Exit codes of so many ranks that do `work`. When one fails, the others are killed, as torchrun does it."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    os.environ.update(WORLD_SIZE=str(count), MASTER_ADDR="localhost", MASTER_PORT=str(port))
    children: dict[int, int] = {}
    for rank in range(count):
        os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
        if (child := os.fork()) == 0:
            _as_rank(work, quiet=any_may_fail)
        children[child] = rank
    codes = [0] * count
    while children:
        child, status = os.wait()
        codes[children.pop(child)] = code = os.waitstatus_to_exitcode(status)
        if code != 0:
            time.sleep(0.05)
            for other in children:
                os.kill(other, signal.SIGKILL)
    assert any_may_fail or codes == [0] * count, codes
    return codes


def _as_rank(work: Callable[[], object], quiet: bool) -> None:
    try:
        with process_group("cpu"):
            work()
        os._exit(0)
    except BaseException:
        if not quiet:
            traceback.print_exc()
            sys.stderr.flush()
    finally:
        os._exit(1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.optim.Adam(model().parameters(), fused=True)  # imports half of torch
    mode, out = sys.argv[1], Path(sys.argv[2])
    if mode == "quick":
        launch(1, lambda: run(out, "one"))
        launch(2, lambda: run(out, "two-sharded", **SHARDED))
    elif mode == "two":
        launch(1, lambda: one_rank(out))
        launch(2, lambda: two_ranks(out))
        launch(1, lambda: run(out, "one-from-two"))
    elif mode == "killed":
        codes = launch(2, lambda: killed_in_a_step(out), any_may_fail=True)
        assert -signal.SIGKILL in codes, codes
        launch(2, lambda: run(out, "killed", **SHARDED))
        (out / "kills.json").write_text(json.dumps(killed_again_and_again(out)))
    else:
        for precision in ("fp32", "bf16", "fp16"):
            launch(1, lambda p=precision: run(out, f"one-{p}", precision=p))  # type: ignore[misc]
        launch(1, lambda: stopped(out, "two-from-one"))
        launch(2, lambda: two_ranks_more(out))
        launch(4, lambda: four_ranks(out))
