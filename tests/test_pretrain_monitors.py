"""What a run shows of itself: its log, warnings, throughput, and the text of `audiation pretrain show`."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from audiation import pretrain_throughput
from audiation.backbones.conformer import ConformerConfig
from audiation.backbones.musicfm import MSD, MusicFM, fresh
from audiation.json_lines import DamagedLinesError, append_line, read_lines
from audiation.model_cost import count_gflop
from audiation.objectives import PretrainBatch
from audiation.objectives.best_rq import BestRq
from audiation.pretrain_log import Curve, RunCurves, family_of, in_order, member_of, read_log, titled
from audiation.pretrain_monitors import Spike, sparkline, spikes, summary, warnings_of, write_tensorboard
from audiation.pretrain_throughput import (
    Machine,
    measured_tflops,
    note_machine,
    published_peak,
    read_machines,
)
from audiation.pretrain_view_commands import show
from audiation.pretraining_config import PretrainConfig
from audiation.training import Loss, fit

TINY = ConformerConfig(dim=16, num_heads=2, ffn_dim=24, num_layers=2, conv_kernel=5)
MACHINE = Machine(1, "a card", 1, "bf16", 8, 800.0, "measured", 50.0, 160.0)


def tiny() -> MusicFM:
    return fresh(MSD, TINY, conv_channels=4)


@dataclasses.dataclass(frozen=True)
class Noise:
    """Two clips of a second per micro-batch."""

    def micro_batch(self, step: int, index: int) -> PretrainBatch:
        generator = torch.Generator().manual_seed(1000 * step + index)
        return PretrainBatch(0.1 * torch.randn(2, 24000, generator=generator), ("a", "b"))


def step_line(step: int, loss: float = 2.0, **parts: float) -> dict:
    line = {"step": step, "loss": loss, "learning_rate": 1e-4, "grad_norm": 1.0, "seconds": 0.5}
    return line | {"parts": parts}


def write(folder: Path, *lines: dict, name: str = "log.jsonl", end: str = "\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(map(json.dumps, lines)) + end)
    return folder


def described(folder: Path, steps: int, **identity: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"config": {"steps": steps}, "identity": identity}))


def run_of(folder: Path, **curves: list[float]) -> RunCurves:
    return RunCurves(
        folder, {n: Curve(np.arange(1, len(v) + 1), np.array(v, dtype=float)) for n, v in curves.items()}
    )


# The log ----------------------------------------------------------------------------------------------


def test_what_a_pre_training_writes_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = tiny()
    objective = BestRq(codebook_size=32).build(backbone)
    module = nn.ModuleDict({"backbone": backbone, "objective": objective}).train()
    config = PretrainConfig(steps=3, batch_size=4, micro_batch_size=2)
    note_machine(tmp_path, backbone, crop_seconds=1.0, batch_size=4)
    identity = {
        "run": '{"objective": "best_rq", "crop_seconds": 1.0, "train": {"steps": 3}}',
        "corpus": "noise",
    }

    def step(module: nn.Module, batch: PretrainBatch, generator: torch.Generator) -> Loss:
        return objective(backbone, batch, generator)

    report = fit(module, step, Noise(), config, tmp_path, identity=identity)
    run = read_log(tmp_path)
    assert (run.last_step, run.planned_steps) == (3, 3)
    assert run.identity == {"objective": "best_rq", "crop_seconds": "1.0", "corpus": "noise"}
    logged = [json.loads(line) for line in report.log.read_text().splitlines()]
    for name in ("loss", "grad_norm", "seconds"):
        assert run.curves[name].values.tolist() == [line[name] for line in logged]
    for name in ("masked_accuracy", "target_perplexity", "targets_used", "prediction_perplexity"):
        assert run.curves[name].values.tolist() == [line["parts"][name] for line in logged]
    assert run.audio_hours == pytest.approx(3 * 4 / 3600)
    rates = [4.0 / line["seconds"] for line in logged]
    assert run.curves["audio_per_second"].values == pytest.approx(rates)
    (machine,) = read_machines(tmp_path)
    shares = [3 * machine.gflop_per_second * rate / 1e3 / machine.peak_tflops for rate in rates]
    assert run.curves["flop_share"].values == pytest.approx(shares)
    assert "masked accuracy" in summary(run) and "best_rq" in summary(run)


def test_half_a_last_line_is_not_counted_and_said(tmp_path: Path) -> None:
    write(tmp_path, step_line(1), step_line(2))
    with (tmp_path / "log.jsonl").open("a") as stream:
        stream.write('{"step": 3, "lo')
    run = read_log(tmp_path)
    assert (run.last_step, run.num_cut) == (2, 1)
    assert "The last line is not whole" in summary(run)
    assert "not whole" not in summary(read_log(write(tmp_path / "whole", step_line(1))))


@pytest.mark.parametrize(
    "line", ["", "{", "[1]", '{"loss": 1}', '{"step": -1}', '{"step": "1"}', '{"step": true}']
)
def test_a_damaged_line_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    (tmp_path / "log.jsonl").write_text(f"{json.dumps(step_line(1))}\n{line}\n{json.dumps(step_line(2))}\n")
    with pytest.raises(DamagedLinesError, match=r"log\.jsonl, line 2, is no JSON object"):
        read_log(tmp_path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"loss": "two"}, "loss must be a number"),
        ({"grad_norm": [1.0]}, "grad_norm must be a number"),
        ({"seconds": True}, "seconds must be a number"),
        ({"loss_scale": {}}, "loss_scale must be a number"),
        ({"parts": {"cqt_mse": "much"}}, "parts/cqt_mse must be a number"),
        ({"parts": 3}, "parts must be an object of numbers"),
    ],
)
def test_a_value_of_another_type_is_named_by_its_line(tmp_path: Path, change: dict, text: str) -> None:
    write(tmp_path, step_line(1), step_line(2) | change)
    with pytest.raises(DamagedLinesError, match=rf"log\.jsonl, line 2: {text}\. Take the file from a copy"):
        read_log(tmp_path)


def test_other_values_of_another_type_are_named(tmp_path: Path) -> None:
    write(tmp_path, step_line(1))
    write(tmp_path, {"step": 1, "task": "gtzan_genre", "probe": {"accuracy": "high"}}, name="probe.jsonl")
    with pytest.raises(
        DamagedLinesError, match=r"probe\.jsonl, line 1: the score 'accuracy' must be a number"
    ):
        read_log(tmp_path)
    (tmp_path / "probe.jsonl").unlink()
    write(tmp_path, dataclasses.asdict(MACHINE) | {"threads": "many"}, name="machines.jsonl")
    with pytest.raises(DamagedLinesError, match=r"machines\.jsonl, line 1, has .* of another type"):
        read_log(tmp_path)
    (tmp_path / "machines.jsonl").unlink()
    (tmp_path / "run.json").write_text(json.dumps({"config": {"steps": "many"}, "identity": {}}))
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        read_log(tmp_path)


def test_other_folders_and_a_damaged_description_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no log\.jsonl"):
        read_log(tmp_path)
    write(tmp_path, step_line(1))
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        read_log(tmp_path)


def test_a_run_without_steps(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("")
    run = read_log(tmp_path)
    assert (run.last_step, run.curves, warnings_of(run)) == (0, {}, [])
    assert summary(run) == f"{tmp_path.name}: step 0"


def test_steps_that_are_made_again_replace_the_first_try(tmp_path: Path) -> None:
    lines = [step_line(step, loss=float(step), cqt=0.1 * step) for step in (1, 2, 3, 4)]
    again = [step_line(step, loss=10.0 * step, cqt=step) for step in (3, 4, 5)]
    run = read_log(write(tmp_path, *lines, {"step": 4, "score": 0.1}, *again, {"step": 4, "score": 0.2}))
    assert run.curves["loss"].steps.tolist() == [1, 2, 3, 4, 5]
    assert run.curves["loss"].values.tolist() == [1, 2, 30, 40, 50]
    assert run.curves["cqt"].values.tolist() == [0.1, 0.2, 3, 4, 5]
    assert run.curves["score"].values.tolist() == [0.2]
    assert "step 3: went back: steps 3 to 4 were made again" in summary(run)


def test_notes_are_kept_and_names_do_not_collide(tmp_path: Path) -> None:
    line = step_line(1, loss=2.0) | {"skipped": True, "spike": None, "action": "rollback", "ids": [1, 2]}
    line["parts"] = {"loss": 7.0, "cqt": 1.0}
    line["optimiser"] = {"beta": 0.9}
    run = read_log(write(tmp_path, line))
    assert run.curves["loss"].values.tolist() == [2.0]
    assert run.curves["parts/loss"].values.tolist() == [7.0]
    assert run.curves["optimiser/beta"].values.tolist() == [0.9]
    assert [(e.name, e.text) for e in run.events] == [
        ("skipped", "true"), ("action", "rollback"), ("ids", "[1, 2]")
    ]  # fmt: skip


def test_only_the_latest_notes_are_shown(tmp_path: Path) -> None:
    text = summary(read_log(write(tmp_path, *(step_line(i) | {"note": f"n{i}"} for i in range(1, 14)))))
    assert "3 earlier notes are in" in text and "note: n13" in text and "note: n3\n" not in text


def test_probes_are_curves_too(tmp_path: Path) -> None:
    write(tmp_path, step_line(1), step_line(2))
    write(tmp_path, {"step": 2, "task": "gtzan_genre", "probe": {"accuracy": 0.4}}, name="probe.jsonl")
    run = read_log(tmp_path)
    assert run.curves["probe/gtzan_genre accuracy"].values.tolist() == [0.4]
    write(tmp_path, {"step": 2, "probe": {"accuracy": 0.4}}, name="probe.jsonl")
    with pytest.raises(DamagedLinesError, match=r"probe\.jsonl, line 1, has no task"):
        read_log(tmp_path)


def test_lines_are_appended_behind_what_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lines.jsonl"
    append_line(path, {"step": 1}, 0)
    append_line(path, {"step": 2}, read_lines(path, "step")[0].end_byte)
    with path.open("a") as stream:
        stream.write('{"st')
    first, second = read_lines(path, "step")
    append_line(path, {"step": 3}, first.end_byte)
    assert path.read_text() == '{"step": 1}\n{"step": 3}\n'
    assert (second.number, read_lines(tmp_path / "absent", "step")) == (2, [])


def test_names_for_people_and_their_order() -> None:
    families = {
        "accuracy_chroma": "accuracy",
        "cross_entropy_12": "cross_entropy",
        "head3": "head",
        "head_3": "head",
    }
    assert {name: family_of(name) for name in families} == families
    for name in ("cqt_mse", "cross_entropy", "masked_accuracy", "probe/task top_5", "cqt_target_std"):
        assert (family_of(name), member_of(name)) == (None, "")
    assert titled("cross_entropy_3") == "cross-entropy, codebook 3"
    assert titled("accuracy_chroma") == "masked accuracy, chroma"
    assert (titled("head_3"), titled("mixup_share")) == ("head 3", "mixup share")
    order = [
        "loss", "cross_entropy", "cross_entropy_2", "cross_entropy_10", "grad_norm", "zeta", "probe/t acc"
    ]  # fmt: skip
    assert in_order(order[::-1]) == order


def test_hours_of_audio_follow_from_the_choices_of_the_run(tmp_path: Path) -> None:
    write(tmp_path, step_line(1), step_line(2))
    assert read_log(tmp_path).audio_hours is None
    described = {"config": {"steps": 9, "batch_size": 90}, "identity": {"run": '{"crop_seconds": 5}'}}
    (tmp_path / "run.json").write_text(json.dumps(described))
    assert read_log(tmp_path).audio_hours == pytest.approx(0.25)
    write(tmp_path, dataclasses.asdict(MACHINE), name="machines.jsonl")
    assert read_log(tmp_path).audio_hours == pytest.approx(2 * 160 / 3600)


# Warnings ---------------------------------------------------------------------------------------------


def test_a_healthy_run_has_no_warnings(tmp_path: Path) -> None:
    n = 200
    falling = [3 - i / 100 for i in range(n)]
    run = run_of(
        tmp_path, loss=falling, grad_norm=[1.0] * n, prediction_perplexity=[1.0] * 50 + [40.0] * 150,
        targets_used=[0.2] * n, cqt_target_std=[0.01] * n, target_std=[0.9] * n, prediction_std=[0.3] * n,
        loss_scale=[128.0] * n,
    )  # fmt: skip
    assert warnings_of(run) == []


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("prediction_perplexity", 1.4, "predictions have collapsed"),
        ("prediction_perplexity_chroma", 1.4, "predictions have collapsed"),
        ("teacher/prediction_perplexity", 1.4, "predictions have collapsed"),
        ("targets_used", 0.004, "codebook has collapsed"),
        ("target_std", 0.09, "targets have collapsed"),
        ("prediction_std", 0.009, "predictions have collapsed to a constant"),
        ("loss_scale", 0.5, "float16 overflows"),
    ],
)
def test_collapse_is_told(tmp_path: Path, name: str, value: float, words: str) -> None:
    (line,) = warnings_of(run_of(tmp_path, **{name: [50.0] * 60 + [value] * 50}))
    assert words in line and f"{value:g} over the last 50 values" in line


def test_a_loss_that_rises_and_numbers_that_are_none(tmp_path: Path) -> None:
    (line,) = warnings_of(run_of(tmp_path, loss=[4.0] * 60 + [2.0] * 60 + [2.4] * 60))
    assert line.startswith("loss: it has risen to 2.4, mean of the last 50 values, from 2 around step")
    (line,) = warnings_of(run_of(tmp_path, cqt_mse=[1.0, math.nan, math.inf, 1.0]))
    assert line == "CQT loss: not a finite number at 2 steps, first at 2"


def test_spikes_stand_out_from_the_median_before_them(tmp_path: Path) -> None:
    values = [2.0] * 60
    values[10] = 99.0  # nothing is known yet
    values[55] = 3.1
    run = run_of(tmp_path, loss=values)
    assert spikes(run.curves["loss"], 1.5, 50) == [Spike(56, 3.1, 2.0)]
    (line,) = warnings_of(run)
    assert line == "loss: 1 spike; the last at step 56, 3.1 where the median of the 50 values before is 2"
    assert spikes(Curve(np.arange(3), np.ones(3)), 1.5, 50) == []


# Throughput -------------------------------------------------------------------------------------------


def test_throughput_by_hand() -> None:
    assert MACHINE.audio_per_second(2.0) == 80.0
    # 3 x 50 GFLOP x 160 s of audio = 24 TFLOP; in 2 s, of 800 TFLOP/s
    assert MACHINE.flop_share(2.0) == pytest.approx(24 / 2 / 800)
    assert dataclasses.replace(MACHINE, gflop_per_second=None).flop_share(2.0) is None


def test_steps_belong_to_the_machine_that_made_them(tmp_path: Path) -> None:
    write(tmp_path, *(step_line(step) for step in (1, 2, 3)))
    second = dataclasses.replace(MACHINE, from_step=3, peak_tflops=1600.0)
    write(tmp_path, *map(dataclasses.asdict, (MACHINE, second)), name="machines.jsonl")
    run = read_log(tmp_path)
    share = MACHINE.flop_share(0.5)
    assert run.curves["flop_share"].values.tolist() == pytest.approx([share, share, share / 2])
    write(tmp_path, {"from_step": 1, "device": "x"}, name="machines.jsonl")
    with pytest.raises(DamagedLinesError, match="has other fields than a machine"):
        read_log(tmp_path)


def test_a_machine_is_noted_once_and_again_where_it_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def peak(device: str, precision: str) -> float:
        measured.append((device, precision))
        return 0.1

    monkeypatch.setattr(pretrain_throughput, "measured_tflops", peak)
    backbone = tiny().train()
    backbone.stem.eval()
    modes = [part.training for part in backbone.modules()]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = note_machine(tmp_path, backbone, crop_seconds=1.0, batch_size=4, num_processes=2)
    assert [part.training for part in backbone.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before)
    cost = count_gflop(tiny().eval(), 1.0)
    assert cost is not None and first.gflop_per_second == cost.gflop_per_second
    assert (first.from_step, first.peak_tflops, first.audio_seconds_per_step) == (1, 0.2, 4.0)
    write(tmp_path, step_line(1), step_line(2))
    assert note_machine(tmp_path, backbone, crop_seconds=1.0, batch_size=4, num_processes=2) == first
    other = note_machine(tmp_path, backbone, crop_seconds=1.0, batch_size=4, num_processes=1)
    assert (other.from_step, other.peak_tflops) == (3, 0.1)
    back = note_machine(tmp_path, backbone, crop_seconds=1.0, batch_size=4, num_processes=2)
    assert (back.from_step, back.peak_tflops) == (3, 0.2)
    assert len(measured) == 2 and read_machines(tmp_path) == [first, other, back]


def test_peaks() -> None:
    h100 = published_peak("NVIDIA H100 80GB HBM3", "bf16")
    assert h100 is not None and h100.tflops == 989.4
    a100 = published_peak("NVIDIA A100-SXM4-80GB", "fp32")
    assert a100 is not None and a100.tflops == 19.5
    assert published_peak("Tesla T4", "bf16") is None
    assert published_peak("Some card", "fp16") is None
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert 0 < measured_tflops("cpu", "fp32") < 100
    assert torch.equal(torch.get_rng_state(), before)


# Views ------------------------------------------------------------------------------------------------


def test_sparklines() -> None:
    assert sparkline(np.array([0.0, 1.0, 2.0, 7.0])) == "▁▂▃█"
    assert sparkline(np.arange(16.0), width=8) == "▁▂▃▄▅▆▇█"
    assert sparkline(np.array([1.0, math.nan, 3.0])) == "▁.█"
    assert sparkline(np.full(3, 5.0)) == "▁▁▁"
    assert (sparkline(np.array([])), sparkline(np.array([math.inf]))) == ("", ".")


def test_show_prints_numbers_and_fails_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    described(tmp_path, 100, objective="mert")
    write(tmp_path, *(step_line(i, loss=2.0 if i > 50 else 6.0, cqt_mse=1234.5) for i in range(1, 101)))
    show(tmp_path)
    shown = capsys.readouterr().out
    assert f"{tmp_path.name}: step 100 of 100\nobjective: mert\n" in shown
    row = next(line for line in shown.splitlines() if line.startswith("loss"))
    assert row.split()[1:5] == ["6", "2", "2", "6"]
    assert "1,234" in next(line for line in shown.splitlines() if line.startswith("CQT loss"))
    write(tmp_path, *(step_line(i, prediction_perplexity=1.0) for i in range(1, 101)))
    with pytest.raises(SystemExit) as ended:
        show(tmp_path)
    assert ended.value.code == 1
    assert "warning: prediction perplexity: 1 over the last 50 values" in capsys.readouterr().out


def test_tensorboard_gets_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[object] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            written.append(folder)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append("closed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    write(tmp_path, step_line(1, cqt=0.5))
    write(tmp_path, {"step": 1, "task": "t", "probe": {"accuracy": 0.4}}, name="probe.jsonl")
    assert write_tensorboard(read_log(tmp_path), tmp_path / "events") == 6
    assert written[0] == str(tmp_path / "events") and written[-1] == "closed"
    assert {("loss", 2.0, 1), ("cqt", 0.5, 1), ("probe/t/accuracy", 0.4, 1)} <= set(written[1:-1])
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        write_tensorboard(read_log(tmp_path), tmp_path / "events")
