"""One curve on every number of ranks and in every layout, from checkpoints that each can read; float16 and spikes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from audiation.loss_scale import LossScale
from audiation.losses import Loss
from audiation.pretraining_config import PretrainConfig
from audiation.spikes import SpikeWatch
from audiation.training import DivergedError, RunFolderError, TrainConfig, TrainingProgress, fit
from audiation.training_shards import newest_shards, read_record
from pretraining_script import CONFIG, Crops, compute, model, trained

SCRIPT = Path(__file__).with_name("pretraining_script.py")


def log_lines(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def values(folder: Path, key: str) -> list[float]:
    return [line[key] for line in log_lines(folder)]


def equal_states(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def end(out: Path, name: str) -> dict[str, Tensor]:
    return torch.load(out / f"{name}.pt", weights_only=True)


def same_curve(out: Path, name: str, other: str, tolerance: float = 1e-5) -> bool:
    """Of loss and norm, step by step, and the run learns; weights near where Adam does not magnify rounding errors."""
    assert len(values(out / name, "loss")) == 5
    assert values(out / name, "loss") == pytest.approx(values(out / other, "loss"), abs=tolerance)
    assert values(out / name, "grad_norm") == pytest.approx(
        values(out / other, "grad_norm"), abs=20 * tolerance
    )
    a, b = (end(out, n)["objective.head.weight"].double() for n in (name, other))
    assert float((a - b).abs().max()) < 100 * tolerance
    return True


# Processes ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def script(out: Path, mode: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, SCRIPT, mode, out],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with what it started
        process.wait()


def finished(process: subprocess.Popen[str]) -> None:
    output = process.communicate(timeout=180)[0]
    assert process.returncode == 0, output


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the script did on one and two ranks, and what was killed, side by side."""
    out = tmp_path_factory.mktemp("runs")
    for mode in ("two", "killed"):
        (out / mode).mkdir()
    with script(out / "two", "two") as two, script(out / "killed", "killed") as killed:
        finished(two)
        finished(killed)
    return out


@pytest.fixture(scope="module")
def two(runs: Path) -> Path:
    return runs / "two"


def test_two_ranks_with_shares_trace_the_curve_of_one(tmp_path: Path) -> None:
    """The one of its kind that is run always; the others take half a minute."""
    with script(tmp_path, "quick") as process:
        finished(process)
    assert same_curve(tmp_path, "one", "two-sharded")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two-replicated", "two-ddp", "two-sharded"])
def test_two_ranks_trace_the_curve_of_one(two: Path, name: str) -> None:
    losses = values(two / "one", "loss")
    assert max(losses) - min(losses) > 0.1
    assert same_curve(two, "one", name)
    assert log_lines(two / "one")[0]["parts"] == pytest.approx(log_lines(two / name)[0]["parts"], abs=1e-6)


@pytest.mark.slow
def test_a_teacher_is_averaged_share_by_share(two: Path) -> None:
    assert same_curve(two, "one-data2vec", "two-data2vec")
    one, shared = (end(two, name) for name in ("one-data2vec", "two-data2vec"))
    names = [n for n in one if n.startswith("objective.teacher.blocks") and one[n].is_floating_point()]
    assert len(names) > 20
    assert max(float((one[n] - shared[n]).abs().max()) for n in names) < 5e-3
    student = {n: one["backbone.encoder" + n.removeprefix("objective.teacher")] for n in names}
    assert max(float((one[n] - student[n]).abs().max()) for n in names) > 5e-3


@pytest.mark.slow
def test_shares_and_what_the_module_is_afterwards(two: Path) -> None:
    facts = json.loads((two / "facts.json").read_text())
    for here, whole in facts["shares"]:
        assert here == pytest.approx(whole / 2, rel=0.05)
    assert "Parameter" in facts["kinds"] and "ConformerBlock" in facts["kinds"]
    assert not [kind for kind in facts["kinds"] if "DTensor" in kind or "FSDP" in kind]


@pytest.mark.slow
def test_a_sharded_run_goes_on_to_the_same_bits(two: Path) -> None:
    assert log_lines(two / "two-stopped") == log_lines(two / "two-sharded")
    assert equal_states(end(two, "two-stopped"), end(two, "two-sharded"))


@pytest.mark.slow
def test_one_rank_goes_on_from_two(two: Path) -> None:
    assert same_curve(two, "one", "one-from-two")


@pytest.mark.slow
def test_shards_that_are_not_finite_stop_all_ranks(two: Path) -> None:
    found = json.loads((two / "facts.json").read_text())["diverged"]
    assert (found["step"], found["names"], found["kinds"]) == (4, ["3-1.wav"], ["Parameter"])
    assert found["checkpoint"] == str(two / "diverging" / "shards" / "step-2")
    evidence = json.loads(Path(found["evidence"]).read_text())
    assert [m["index"] for m in evidence["micro_batches"]] == [1]


@pytest.mark.slow
def test_what_cannot_be_sharded_is_refused(two: Path) -> None:
    refused = json.loads((two / "facts.json").read_text())["refused"]
    assert refused[0].startswith("validate runs on one process")
    assert refused[1] == "parallel='sharded' cannot split extra, a single number. Give it the shape (1,)."


@pytest.mark.slow
def test_killed_in_a_step_it_ends_with_the_same_bits(runs: Path) -> None:
    out = runs / "killed"
    assert log_lines(out / "killed") == log_lines(runs / "two" / "two-sharded")
    assert equal_states(end(out, "killed"), end(runs / "two", "two-sharded"))


@pytest.mark.slow
def test_killed_while_writing_it_ends_with_the_same_bits(runs: Path) -> None:
    out = runs / "killed"
    assert json.loads((out / "kills.json").read_text()) >= 2
    assert log_lines(out / "killed-files") == log_lines(runs / "two" / "two-sharded")
    assert equal_states(end(out, "killed-files"), end(runs / "two", "two-sharded"))
    shards = sorted(path.name for path in (out / "killed-files" / "shards").iterdir())
    assert shards == ["step-4", "step-5"]


# Damaged shards -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["__1_0.distcp", ".metadata", "training.json"])
def test_damaged_shards_are_named(two: Path, tmp_path: Path, name: str) -> None:
    folder = copied(two / "damaged", tmp_path)
    damaged = folder / "shards" / "step-2" / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(bytes(content))
    with pytest.raises(
        RunFolderError, match=r"cannot read .*step-2: truncated or damaged .*Delete it to go on"
    ):
        trained(folder, model())


@pytest.mark.slow
def test_half_a_checkpoint_is_not_used(two: Path, tmp_path: Path) -> None:
    folder = copied(two / "damaged", tmp_path)
    (folder / "shards" / "step-2").rename(folder / "shards" / "step-4.part")
    assert newest_shards(folder / "shards") is None
    trained(folder, model())
    # The other run had a process, and so a number of threads, of its own: equal to the rounding of sums.
    ours, theirs = ([line["loss"] for line in log_lines(run)] for run in (folder, two / "one"))
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
def test_metadata_that_would_run_code_is_not_read(two: Path, tmp_path: Path) -> None:
    checkpoint = copied(two / "damaged", tmp_path) / "shards" / "step-2"
    (checkpoint / ".metadata").write_bytes(pickle.dumps(os.getcwd))
    record = json.loads((checkpoint / "training.json").read_text())["record"] | {"files": {}}
    text = json.dumps({"record": record, "checksum": zlib.crc32(json.dumps(record).encode())})
    (checkpoint / "training.json").write_text(text)
    with pytest.raises(RunFolderError, match="getcwd does not belong into the metadata of a checkpoint"):
        read_record(checkpoint)


def copied(folder: Path, target: Path) -> Path:
    for path in folder.rglob("*"):
        if path.is_file():
            place = target / "run" / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
    return target / "run"


# Four ranks ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("four")
    with script(out, "four") as process:
        finished(process)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["four-replicated", "four-ddp", "four-sharded", "four-from-two"])
def test_four_ranks_trace_the_curve_of_one(four: Path, name: str) -> None:
    assert same_curve(four, "one-fp32", name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two-from-one", "two-replicated-from-sharded"])
def test_runs_go_on_from_checkpoints_of_other_layouts(four: Path, name: str) -> None:
    assert same_curve(four, "one-fp32", name)


@pytest.mark.slow
def test_recomputed_blocks_have_the_same_bits(four: Path) -> None:
    assert log_lines(four / "two-recomputed") == log_lines(four / "two-sharded")
    assert equal_states(end(four, "two-recomputed"), end(four, "two-sharded"))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_coarse_arithmetic_stays_near(four: Path, precision: str) -> None:
    assert same_curve(four, f"one-{precision}", f"two-{precision}", 1e-2)
    assert values(four / f"one-{precision}", "loss") == pytest.approx(
        values(four / "one-fp32", "loss"), abs=0.02
    )
    assert values(four / f"one-{precision}", "loss") != values(four / "one-fp32", "loss")


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "sharded"])
def test_a_parameter_that_one_micro_batch_uses(four: Path, parallel: str) -> None:
    names = ("two-partly-replicated", f"two-partly-{parallel}")
    losses = [values(four / name, "loss") for name in names]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    extra = [end(four, name)["extra"] for name in names]
    assert float((extra[0] - 1).abs().min()) > 1e-3
    torch.testing.assert_close(extra[0], extra[1], rtol=0, atol=1e-5)


# Blocks -------------------------------------------------------------------------------------------------


def test_blocks_are_recomputed_and_compiled_while_training_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, seen = {}, []
    compiled = nn.Module.compile
    # without generating machine code, which takes a minute
    monkeypatch.setattr(nn.Module, "compile", lambda block, **options: compiled(block, backend="eager"))

    def step(module: nn.Module, batch: Any, generator: torch.Generator) -> Loss:
        encoder = module.backbone.encoder
        seen.append((encoder.recompute_blocks, [b._compiled_call_impl is not None for b in encoder.blocks]))
        return compute(module, batch, generator)

    for name, changes in {
        "plain": {},
        "recomputed": {"recompute_blocks": True},
        "compiled": {"compile": True},
    }.items():
        module = model()
        trained(tmp_path / name, module, step, steps=2, **changes)
        encoder = module.backbone.encoder
        assert not encoder.recompute_blocks and all(b._compiled_call_impl is None for b in encoder.blocks)
        ends[name] = module.state_dict()
    assert seen == [(False, [False] * 2)] * 8 + [(True, [False] * 2)] * 8 + [(False, [True] * 2)] * 8
    assert equal_states(ends["plain"], ends["recomputed"])
    assert values(tmp_path / "compiled", "loss") == pytest.approx(
        values(tmp_path / "plain", "loss"), abs=1e-5
    )


def test_a_module_without_blocks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="blocks of an encoder, and there is none"):
        fit(Line(), square, Numbers(), small(recompute_blocks=True), tmp_path)


# Float16 ------------------------------------------------------------------------------------------------


class Line(nn.Module):
    """`y = w x`, which counts its calls in a buffer, and the steps that were made."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((4,), 0.5))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64), persistent=False)
        self.steps: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return x @ self.w

    def after_step(self, step: int) -> None:
        self.steps.append(step)


@dataclasses.dataclass(frozen=True)
class Numbers:
    """factors: step -> what its numbers are multiplied by, of which infinity is of the gradient alone."""

    factors: dict[int, float] = dataclasses.field(default_factory=dict)

    def micro_batch(self, step: int, index: int) -> dict[str, Tensor]:
        x = 1.0 + torch.rand(2, 4, generator=torch.Generator().manual_seed(10 * step + index))
        factor = torch.tensor(self.factors.get(step, 1.0))
        return {"x": x * factor.nan_to_num(posinf=1.0), "overflow": factor.isinf()}


def square(module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Loss:
    total = module(batch["x"]).float().square().sum()
    if batch["overflow"]:
        assert isinstance(module, Line)
        total = total + (module.w - module.w.detach()).sqrt().sum()
    return Loss(total, torch.tensor(2))


def small(**changes: Any) -> PretrainConfig:
    return PretrainConfig(
        **{"steps": 10, "batch_size": 4, "micro_batch_size": 2, "checkpoint_every_steps": 3} | changes
    )


class StopAt:
    """Breaks a run off after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, progress: TrainingProgress) -> None:
        if progress.step == self.step:
            raise InterruptedError


def weights_after(step: int, config: PretrainConfig, batches: Numbers, folder: Path) -> Tensor:
    module = Line()
    with pytest.raises(InterruptedError):
        fit(module, square, batches, config, folder, progress=StopAt(step))
    return module.w.detach().clone()


def test_an_overflow_halves_the_scale_and_leaves_everything(tmp_path: Path) -> None:
    config, batches, module = small(precision="fp16", loss_scale_window=3), Numbers({2: math.inf}), Line()
    fit(module, square, batches, config, tmp_path / "whole")
    lines = log_lines(tmp_path / "whole")
    scales = [128.0, 128.0, 128.0, 64.0, 64.0, 64.0, 128.0, 128.0, 128.0, 256.0]
    assert [line["loss_scale"] for line in lines] == scales
    assert [line.get("skipped") for line in lines] == [None, None, "overflow at a loss scale of 128"] + [
        None
    ] * 7
    assert (lines[2]["loss"], lines[2]["grad_norm"]) == (None, None)
    assert module.steps == [0, 1, *range(3, 10)] and module.seen.item() == 2 * 9
    before, after = (weights_after(n, config, batches, tmp_path / str(n)) for n in (2, 3))
    assert torch.equal(before, after) and not torch.equal(before, torch.full((4,), 0.5))
    weights_after(5, config, batches, tmp_path / "resumed")
    resumed = Line()
    fit(resumed, square, batches, config, tmp_path / "resumed")
    assert log_lines(tmp_path / "resumed") == lines and torch.equal(resumed.w, module.w)


def test_scaling_changes_nothing_but_what_would_vanish(tmp_path: Path) -> None:
    plain, scaled = Line(), Line()
    fit(plain, square, Numbers(), small(), tmp_path / "plain")
    fit(scaled, square, Numbers(), small(precision="fp16"), tmp_path / "scaled")
    torch.testing.assert_close(plain.w, scaled.w, rtol=0, atol=1e-5)
    assert values(tmp_path / "scaled", "grad_norm") == pytest.approx(
        values(tmp_path / "plain", "grad_norm"), rel=2e-3
    )

    def tiny(module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Loss:
        return Loss(module(batch["x"]).sum().float() * 1e-9, torch.tensor(2))

    gradients = {}
    for window in (1, 100):
        config = small(steps=30, precision="fp16", loss_scale_window=window)
        fit(Line(), tiny, Numbers(), config, tmp_path / f"tiny-{window}")
        gradients[window] = values(tmp_path / f"tiny-{window}", "grad_norm")[-1]
    # 1e-9 times 128 is rounded to a subnormal number of float16; scaled by more it is not
    assert gradients[1] == pytest.approx(3e-9, rel=0.2)
    assert abs(gradients[100] - gradients[1]) > 0.02 * gradients[1]


def test_autocast_is_in_float16(tmp_path: Path) -> None:
    seen = set()

    def step(module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Loss:
        y = module(batch["x"])
        seen.add(y.dtype)
        return Loss(y.float().square().sum(), torch.tensor(2))

    module = Line()
    fit(module, step, Numbers(), small(precision="fp16"), tmp_path)
    assert seen == {torch.float16} and module.w.dtype == torch.float32


def test_overflows_without_end_stop_the_run(tmp_path: Path) -> None:
    config = small(steps=50, precision="fp16")
    batches = Numbers(dict.fromkeys(range(50), math.inf))
    with pytest.raises(
        DivergedError, match=r"norm of the gradient .*overflows even at a loss scale of .*'bf16'"
    ) as caught:
        fit(Line(), square, batches, config, tmp_path)
    # 128 / 2^20 is the last scale that is not below 1e-4
    assert caught.value.step == 21 and len(log_lines(tmp_path)) == 20
    assert log_lines(tmp_path)[-1]["loss_scale"] == 128 / 2**19


def test_the_scale_doubles_and_halves() -> None:
    scale = LossScale(2)
    seen = []
    for good in (True, True, True, False, True, True):
        scale.note_good_step() if good else scale.note_overflow()
        seen.append(scale.value)
    assert seen == [128.0, 256.0, 256.0, 128.0, 128.0, 256.0]
    scale.load_state({"value": 2e-4, "good_steps": 1})
    assert not scale.is_too_small
    scale.note_overflow()
    assert not scale.is_too_small and scale.value == 1e-4
    scale.note_overflow()
    assert scale.is_too_small and scale.state() == {"value": 5e-5, "good_steps": 0}


# Spikes -------------------------------------------------------------------------------------------------


def test_a_spike_is_what_stands_out_from_the_median() -> None:
    watch = SpikeWatch(3.0, 4)
    assert [watch.look(loss, 1.0) for loss in (100.0, 1.0, 1.0, 1.0)] == [""] * 4  # too early
    assert watch.look(3.0, 1.0) == ""
    assert watch.look(3.1, 4.0) == "loss 3.1 is 3.1 times its median 1, grad_norm 4 is 4.0 times its median 1"
    again = SpikeWatch(3.0, 4)
    again.load_state(json.loads(json.dumps(watch.state())))
    assert again.look(9.0, 1.0) == watch.look(9.0, 1.0) == "loss 9 is 4.5 times its median 2"
    # a level that stays is the usual one after half a window
    assert [bool(watch.look(9.0, 1.0)) for _ in range(3)] == [False, False, False]
    assert SpikeWatch(2.0, 2).state() == {"loss": [], "grad_norm": []}


def spiky(action: str, **changes: Any) -> PretrainConfig:
    return small(spike_factor=3.0, spike_window=3, spike_action=action, **changes)


SPIKE = Numbers({7: 10.0})


def test_spikes_are_noted(tmp_path: Path) -> None:
    plain, noted = Line(), Line()
    fit(plain, square, SPIKE, small(), tmp_path / "plain")
    fit(noted, square, SPIKE, spiky("log"), tmp_path / "noted")
    assert torch.equal(plain.w, noted.w)
    spikes = [line.get("spike") for line in log_lines(tmp_path / "noted")]
    assert spikes[:7] == [None] * 7 and spikes[8:] == [None] * 2
    assert re.fullmatch(r"loss 97\d is 11\d\.\d times its median \S+, grad_norm 19\d\d is 11\d.*", spikes[7])
    assert "skipped" not in log_lines(tmp_path / "noted")[7]


def test_a_spike_is_skipped(tmp_path: Path) -> None:
    config, module = spiky("skip"), Line()
    fit(module, square, SPIKE, config, tmp_path / "whole")
    assert [line.get("skipped") for line in log_lines(tmp_path / "whole")] == [None] * 7 + [
        "spike",
        None,
        None,
    ]
    assert module.steps == [*range(7), 8, 9] and module.seen.item() == 2 * 9
    before, after = (weights_after(n, config, SPIKE, tmp_path / str(n)) for n in (7, 8))
    assert torch.equal(before, after)


def test_a_run_goes_back_and_on_with_the_next_batches(tmp_path: Path) -> None:
    config, module = spiky("rollback"), Line()
    fit(module, square, SPIKE, config, tmp_path / "whole")
    lines = log_lines(tmp_path / "whole")
    assert lines[7]["skipped"] == "spike, back to the state after step 6" and [x["step"] for x in lines] == [
        *range(1, 11)
    ]
    checkpointed = weights_after(6, config, SPIKE, tmp_path / "6")
    assert torch.equal(weights_after(8, config, SPIKE, tmp_path / "8"), checkpointed)
    assert not torch.equal(weights_after(7, config, SPIKE, tmp_path / "7"), checkpointed)
    # Adam's averages went back, too: the same as without the steps between
    skipping = Line()
    without = dataclasses.replace(config, spike_factor=1e9)

    def step(module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Loss:
        return square(module, batch, generator)

    assert module.steps == [*range(7), 8, 9]
    held = torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)
    assert held["optimiser"]["w"]["step"].item() == 8  # of 6, and two more
    fit(skipping, step, SPIKE, without, tmp_path / "without")
    assert not torch.equal(skipping.w, module.w)


@pytest.mark.parametrize("step", [1, 5, 7, 8, 9])
def test_a_run_that_went_back_resumes_to_the_same_bits(tmp_path: Path, step: int) -> None:
    config, whole, resumed = spiky("rollback"), Line(), Line()
    fit(whole, square, SPIKE, config, tmp_path / "whole")
    weights_after(step, config, SPIKE, tmp_path / "resumed")
    fit(resumed, square, SPIKE, config, tmp_path / "resumed")
    assert torch.equal(resumed.w, whole.w)
    assert log_lines(tmp_path / "resumed") == log_lines(tmp_path / "whole")


def test_a_run_can_go_back_to_its_beginning(tmp_path: Path) -> None:
    early = Numbers({4: 10.0})
    config = spiky("rollback", checkpoint_every_steps=50)
    assert torch.equal(weights_after(5, config, early, tmp_path), torch.full((4,), 0.5))
    assert log_lines(tmp_path)[4]["skipped"] == "spike, back to the state after step 0"


# Evidence -----------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_leaves_its_evidence(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"the loss is nan at step 4 of 5 \(files: 3-1\.wav\)") as caught:
        trained(tmp_path, model(), batches=Crops(broken_step=3))
    assert caught.value.evidence == tmp_path / "diverged" / "step-3.json"
    found = json.loads(caught.value.evidence.read_text())
    assert (found["step"], found["seed"], found["loss"], found["precision"]) == (3, 3, "nan", "fp32")
    assert found["micro_batches"] == [
        {
            "index": 1,
            "names": ["3-1.wav"],
            "tensors": "step-3-index-1.safetensors",
            "not_finite": ["waveform"],
        }
    ]
    assert found["losses"]["1"]["sum"] == "nan"
    kept = load_file(tmp_path / "diverged" / "step-3-index-1.safetensors")
    assert kept.keys() == {"waveform"} and bool(kept["waveform"].isnan().all())


def test_after_a_gradient_that_is_no_number_every_micro_batch_is_kept(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="norm of the gradient is inf at step 3") as caught:
        fit(Line(), square, Numbers({2: math.inf}), small(), tmp_path)
    assert caught.value.evidence is not None
    found = json.loads(caught.value.evidence.read_text())
    assert [m["tensors"] for m in found["micro_batches"]] == [
        f"step-2-index-{n}.safetensors" for n in range(2)
    ]
    kept = load_file(tmp_path / "diverged" / "step-2-index-1.safetensors")
    assert torch.equal(kept["x"], Numbers().micro_batch(2, 1)["x"])


def test_a_disk_that_is_full_does_not_hide_what_happened(tmp_path: Path) -> None:
    (tmp_path / "diverged").write_text("no folder")
    with pytest.raises(DivergedError, match=r"at step 3 .*could not be written") as caught:
        fit(Line(), square, Numbers({2: math.inf}), small(), tmp_path)
    assert caught.value.evidence is None


# Configuration ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"parallel": "fsdp"}, "parallel is one of replicated, ddp, sharded, got 'fsdp'"),
        ({"precision": "fp8"}, "precision is one of fp32, bf16, fp16, got 'fp8'"),
        ({"gather_precision": "fp16"}, "gather_precision is one of fp32, bf16"),
        ({"gather_precision": "bf16", "precision": "bf16"}, "needs parallel='sharded' and precision='bf16'"),
        (
            {"gather_precision": "bf16", "parallel": "sharded"},
            "needs parallel='sharded' and precision='bf16'",
        ),
        ({"loss_scale_window": 0}, "loss_scale_window must be a whole number >= 1"),
        ({"spike_factor": 1.0}, "spike_factor must be a number above 1, got 1.0"),
        ({"spike_factor": math.nan}, "spike_factor must be a number above 1"),
        ({"spike_window": 1}, "spike_window must be a whole number >= 2"),
        ({"spike_action": "ignore", "spike_factor": 2.0}, "spike_action is one of log, skip, rollback"),
        ({"spike_action": "skip"}, "needs spike_factor"),
        ({"compile": True, "recompute_blocks": True}, "do not go together"),
        ({"compile": "yes"}, "compile is true or false, got 'yes'"),
    ],
)
def test_bad_choices_are_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PretrainConfig(steps=3, **change)


def test_what_may_change_on_the_way() -> None:
    assert CONFIG.free_to_change - TrainConfig.free_to_change == {"parallel", "recompute_blocks", "compile"}
    assert not spiky("rollback").free_to_change & {"checkpoint_every_steps", "checkpoint_every_seconds"}
    assert TrainConfig(steps=1).engine.parallel == "replicated"
    recorded = {field.name for field in dataclasses.fields(TrainConfig)}
    assert not recorded & {"parallel", "compile", "spike_factor", "loss_scale_window"}


def test_rollback_needs_the_same_checkpoints(tmp_path: Path) -> None:
    weights_after(4, spiky("rollback"), SPIKE, tmp_path)
    with pytest.raises(RunFolderError, match="config checkpoint_every_steps was 3, is 4"):
        fit(Line(), square, SPIKE, spiky("rollback", checkpoint_every_steps=4), tmp_path)
