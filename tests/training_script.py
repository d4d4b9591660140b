"""Training runs for processes of their own, which tests start, kill and compare.

    training_script.py ranks OUT    under torchrun: what every rank saw, as OUT/rank-R.json; then one of them fails
    training_script.py forks OUT    OUT/killed: a run killed again and again, beside one that was not, OUT/whole
                                    OUT/four: four ranks, with the variables that torchrun would set

Forks share what is already imported, which takes longer than all that is tested here.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiation.distributed import process_group, this_rank
from audiation.training import DivergedError, FitReport, Loss, TrainConfig, fit, trainable_state

WIDTH = 6


class Net(nn.Module):
    """A frozen map, batch norm and dropout in training mode, a head.

    No bias in front of the batch norm: its gradient would be rounding errors, which Adam magnifies.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.frozen = nn.Linear(WIDTH, 8)
        self.body = nn.Sequential(nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU())
        self.head = nn.Linear(8, 3)
        self.rarely_used = nn.Linear(8, 3)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.4, generator=generator)
        self.frozen.requires_grad_(False)
        self.rarely_used.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.frozen(x)))


@dataclass(frozen=True)
class MicroBatch:
    """x: `(B, WIDTH)`; y, valid: `(B,)`."""

    x: Tensor
    y: Tensor
    valid: Tensor
    names: tuple[str, ...]


@dataclass(frozen=True)
class RandomBatches:
    """Examples that follow from step and index, with varying numbers of valid ones."""

    size: int = 4

    def micro_batch(self, step: int, index: int) -> MicroBatch:
        generator = torch.Generator().manual_seed(1000 * step + index)
        x = torch.randn(self.size, WIDTH, generator=generator)
        valid = torch.rand(self.size, generator=generator) < 0.6
        valid[0] = True
        y = (x.sum(1) > 0).long() + (x[:, 0] > 1).long()
        return MicroBatch(x, y, valid, tuple(f"{step}-{index}-{n}.wav" for n in range(self.size)))


def classify(module: nn.Module, batch: MicroBatch, generator: torch.Generator) -> Loss:
    noise = 0.1 * torch.randn(batch.x.shape, generator=generator)
    losses = F.cross_entropy(module(batch.x + noise), batch.y, reduction="none")
    return Loss(losses[batch.valid].sum(), batch.valid.sum(), {"valid": float(batch.valid.float().mean())})


def accuracy(module: nn.Module) -> float:
    """On 64 examples, in eval mode; goes up and down enough to have several best steps."""
    module.eval()
    batch = RandomBatches(64).micro_batch(10**6, 0)
    return float((module(batch.x).argmax(1) == batch.y).float().mean())


CONFIG = TrainConfig(
    steps=40,
    batch_size=8,
    micro_batch_size=4,
    learning_rate=2e-2,
    group_learning_rates=(("head", 3e-2),),
    schedule="plateau",
    plateau_patience=2,
    warmup_steps=3,
    validate_every_steps=3,
    checkpoint_every_steps=4,
    seed=7,
)

LAYOUT_CONFIG = dataclasses.replace(CONFIG, steps=12, batch_size=16, keep="last")


# kill ---------------------------------------------------------------------------------------------------


def undisturbed_and_killed(out: Path) -> None:
    """OUT/whole is a run in one go; OUT/killed one that was killed -9, and OUT/kills.json counts how often."""
    code = _forked(lambda: _run(out / "whole"), kill_after_seconds=None)
    assert code == 0, code
    draw = random.Random(0)
    kills = {"at_file_operation": 0, "at_any_time": 0}
    for attempt in range(200):
        if attempt % 2:
            seconds = draw.uniform(0.0, 0.03)
            code = _forked(lambda: _run(out / "killed"), seconds)
            kind = "at_any_time"
        else:
            operation = draw.randrange(1, 15)
            code = _forked(lambda n=operation: _run(out / "killed", n), None)  # type: ignore[misc]
            kind = "at_file_operation"
        if code == 0:
            break
        assert code == -signal.SIGKILL, code
        kills[kind] += 1
    assert code == 0, "it never came to its end"
    (out / "kills.json").write_text(json.dumps(kills))


def _run(folder: Path, kill_at_file_operation: int | None = None) -> None:
    module = Net()
    if kill_at_file_operation is not None:
        _kill_at(kill_at_file_operation)
    report = fit(module, classify, RandomBatches(), CONFIG, folder, accuracy)
    state = {"module": module.state_dict(), "report": dataclasses.astuple(report)[:4]}
    torch.save(state, folder.with_name(folder.name + "-end.pt"))


def _kill_at(number: int) -> None:
    """Kill this process before file operation `number`: something reaches the disk, or its place."""
    done = 0

    def counted(operation: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            nonlocal done
            done += 1
            if done == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args)

        return call

    os.fsync, os.replace, os.truncate = counted(os.fsync), counted(os.replace), counted(os.truncate)  # type: ignore


def _forked(work: Callable[[], None], kill_after_seconds: float | None) -> int:
    """Exit code of a child that does `work`; minus the signal if it was killed."""
    child = _fork(work)
    if kill_after_seconds is not None:
        time.sleep(kill_after_seconds)
        os.kill(child, signal.SIGKILL)
    return _exit_code(child)


def _fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(1)
    return child


def _exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# ranks --------------------------------------------------------------------------------------------------


def four_ranks(out: Path) -> None:
    """The layout and resuming, where sums of four can be made in several orders."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    os.environ.update(WORLD_SIZE="4", MASTER_ADDR="localhost", MASTER_PORT=str(port))
    children = []
    for rank in range(4):
        os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
        children.append(_fork(lambda: rank_scenarios(out, (layout, resumed))))
    codes = [_exit_code(child) for child in children]
    assert codes == [0] * 4, codes


def rank_scenarios(out: Path, scenarios: Iterable[Callable[[Path, int], object]]) -> None:
    """Everything that is looked at with several processes, so that they start once."""
    with process_group("cpu") as device:
        rank = this_rank()
        seen: dict[str, object] = {"device": str(device)}
        for scenario in scenarios:
            seen[scenario.__name__] = scenario(out / scenario.__name__, rank.index)
        (out / f"rank-{rank.index}.json").write_text(json.dumps(seen))


def layout(folder: Path, rank: int) -> object:
    """Loss curve and end of the run that tests compare over layouts. Other ranks start from other weights."""
    module = Net(seed=rank)
    report = fit(module, classify, RandomBatches(), LAYOUT_CONFIG, folder, accuracy)
    return _end(module, report)


def resumed(folder: Path, rank: int) -> object:
    """The same in two tries: the first stops all ranks in a step between two checkpoints."""
    try:
        fit(Net(seed=rank), _Breaking(7), RandomBatches(), LAYOUT_CONFIG, folder, accuracy)
    except InterruptedError:
        pass
    module = Net(seed=rank)
    nn.init.zeros_(module.head.weight)  # read from the checkpoint
    return _end(module, fit(module, classify, RandomBatches(), LAYOUT_CONFIG, folder, accuracy))


def partly_used(folder: Path, rank: int) -> object:
    """A head-only run with a parameter that only micro-batch 0 uses."""
    module = Net()
    module.body.requires_grad_(False).eval()
    module.rarely_used.requires_grad_(True)
    config = TrainConfig(steps=3, batch_size=16, micro_batch_size=4, keep="last")

    def step(module: nn.Module, batch: MicroBatch, generator: torch.Generator) -> Loss:
        assert isinstance(module, Net)
        features = module.body(module.frozen(batch.x))
        logits = module.head(features)
        if "-0-" in batch.names[0]:
            logits = logits + module.rarely_used(features)
        return Loss(F.cross_entropy(logits, batch.y, reduction="sum"), torch.tensor(len(batch.y)))

    return _end(module, fit(module, step, RandomBatches(), config, folder))


def unused(folder: Path, rank: int) -> object:
    module = Net()
    module.rarely_used.requires_grad_(True)
    try:
        fit(module, classify, RandomBatches(), TrainConfig(2, 16, 4, keep="last"), folder)
    except ValueError as error:
        return str(error)
    return None


def diverging(folder: Path, rank: int) -> object:
    """Micro-batch 1 of the fifth step is not finite."""
    config = TrainConfig(steps=9, batch_size=16, micro_batch_size=4, keep="last", checkpoint_every_steps=3)
    try:
        fit(Net(), _poisoned, RandomBatches(), config, folder)
    except DivergedError as error:
        return [error.step, list(error.names), str(error.checkpoint), str(error.evidence)]
    return None


def unshareable(folder: Path, rank: int) -> object:
    try:
        fit(Net(), classify, RandomBatches(), TrainConfig(2, 20, 4, keep="last"), folder)
    except ValueError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class _Breaking:
    """`classify`, until all ranks break off."""

    step: int

    def __call__(self, module: nn.Module, batch: MicroBatch, generator: torch.Generator) -> Loss:
        if batch.names[0].startswith(f"{self.step}-"):
            raise InterruptedError
        return classify(module, batch, generator)


def _poisoned(module: nn.Module, batch: MicroBatch, generator: torch.Generator) -> Loss:
    loss = classify(module, batch, generator)
    return Loss(loss.sum * float("nan"), loss.count, loss.parts) if "4-1-0.wav" in batch.names else loss


def one_rank_fails(folder: Path, rank: int) -> None:
    """The other one waits for gradients that never come."""

    def step(module: nn.Module, batch: MicroBatch, generator: torch.Generator) -> Loss:
        if "2-1-0.wav" in batch.names:
            raise OSError("the disk of rank 1 broke")
        return classify(module, batch, generator)

    with process_group("cpu"):
        fit(Net(), step, RandomBatches(), LAYOUT_CONFIG, folder, accuracy)


def _end(module: nn.Module, report: FitReport) -> dict[str, object]:
    return {
        "state": {name: tensor.tolist() for name, tensor in trainable_state(module).items()},
        "best_step": report.best_step,
        "history": [validation.score for validation in report.history],
    }


if __name__ == "__main__":
    mode, out_dir = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    if mode == "ranks":
        rank_scenarios(out_dir, (layout, resumed, partly_used, unused, diverging, unshareable))
        one_rank_fails(out_dir / "failing", int(os.environ["RANK"]))
    else:
        torch.optim.Adam(Net().parameters(), fused=True)  # imports half of torch
        undisturbed_and_killed(out_dir)
        four_ranks(out_dir / "four")
