"""How fast a pre-training run is: seconds of music a second, and the share of what the machine could compute (MFU).

A step is counted as three forward passes of the backbone over its audio, of which two stand for the backward one, as is
usual. What is computed beside it (heads, teachers, targets, recomputed blocks) takes time and is not counted, so the
share is that of useful work.

The machine is noted beside a run, in `machines.jsonl`, and is never a part of it: a run may go on somewhere else.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from audiation.backbones import Backbone
from audiation.json_lines import DamagedLinesError, append_line, is_number, read_lines
from audiation.model_cost import count_gflop
from audiation.provenance import current_hardware

MACHINES = "machines.jsonl"
FORWARDS_PER_STEP = 3.0
GEMM_SIZE = {"cpu": 1024, "cuda": 8192}  # from where on a product reaches the peak
GEMM_REPEATS = 20
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class PublishedPeak:
    """Dense peak of one GPU in TFLOP/s, as its maker publishes it. name: begins what the driver calls it.

    half: of bf16 and fp16 products that are added up in float32. fp32: without TF32, torch's default for products of
    matrices (convolutions do use TF32 by default, which makes the share of a float32 run look larger).
    """

    name: str
    half: float
    fp32: float
    source: str
    has_bf16: bool = True


# Tables often show twice as much, "with sparsity", which no dense model reaches.
PUBLISHED_PEAKS = (
    PublishedPeak("NVIDIA H100 PCIe", 756.0, 51.2, "NVIDIA H100 data sheet, PCIe"),
    PublishedPeak("NVIDIA H100 80GB HBM3", 989.4, 66.9, "NVIDIA H100 architecture white paper, SXM5"),
    PublishedPeak("NVIDIA H200", 989.4, 66.9, "NVIDIA H200 data sheet, SXM"),
    PublishedPeak("NVIDIA A100", 312.0, 19.5, "NVIDIA A100 data sheet"),
    PublishedPeak("NVIDIA L40S", 362.05, 91.6, "NVIDIA L40S data sheet"),
    PublishedPeak("Tesla V100-SXM2", 125.0, 15.7, "NVIDIA V100 data sheet, SXM2", has_bf16=False),
    PublishedPeak("Tesla T4", 65.0, 8.1, "NVIDIA T4 data sheet", has_bf16=False),
)


@dataclass(frozen=True)
class Machine:
    """What a run computes on from step `from_step` on.

    from_step: number of the first step there; the first of a run is 1.
    device, threads, precision: name of GPU or processor, threads per process on the CPU, what products are computed in.
    num_processes: each with a device (or its threads) of its own.
    peak_tflops: of all processes together. peak_source: "measured", or where it is published.
    gflop_per_second: of one forward pass over a second of audio; None: it cannot be counted.
    audio_seconds_per_step: over all processes.
    """

    from_step: int
    device: str
    threads: int
    precision: str
    num_processes: int
    peak_tflops: float
    peak_source: str
    gflop_per_second: float | None
    audio_seconds_per_step: float

    def audio_per_second(self, seconds: float) -> float:
        """Seconds of audio in a second, in a step that took so long."""
        return self.audio_seconds_per_step / seconds

    def flop_share(self, seconds: float) -> float | None:
        """Model FLOP utilisation of a step that took so long, 0 .. 1; None where the model cannot be counted."""
        if self.gflop_per_second is None:
            return None
        tflop = FORWARDS_PER_STEP * self.gflop_per_second * self.audio_seconds_per_step / 1e3
        return tflop / seconds / self.peak_tflops


def note_machine(
    run_dir: Path,
    backbone: Backbone,
    *,
    crop_seconds: float,
    batch_size: int,
    precision: Precision = "fp32",
    device: str = "cpu",
    num_processes: int = 1,
) -> Machine:
    """Note in the folder of a run what it is about to go on with; by one process, before its first step, and not before
    the folder is known to be this run's.

    The rate of a machine whose peak nobody publishes is measured, in about a second, once for a run and machine. Where
    a run is put back to its last checkpoint, the steps between are counted for the machine that had done them first.

    Args:
        crop_seconds, batch_size: of a step, over all processes.
        device: torch device.

    Raises:
        DamagedLinesError: `machines.jsonl` or `log.jsonl` is damaged.
    """
    past = read_machines(run_dir)
    log = read_lines(run_dir / "log.jsonl", "step")
    hardware = current_hardware(device)
    on_gpu = bool(hardware["gpus"])
    machine = Machine(
        from_step=log[-1].values["step"] + 1 if log else 1,
        device=str(hardware["device"] if on_gpu else hardware["cpu"]),
        threads=1 if on_gpu else int(hardware["torch_threads"]),
        precision=precision,
        num_processes=num_processes,
        peak_tflops=0.0,
        peak_source="",
        gflop_per_second=_gflop_per_second(backbone, crop_seconds),
        audio_seconds_per_step=crop_seconds * batch_size,
    )
    known = next((m for m in past if _same_peak(m, machine)), None)
    if known is not None:
        machine = dataclasses.replace(machine, peak_tflops=known.peak_tflops, peak_source=known.peak_source)
    else:
        peak = published_peak(machine.device, precision) if on_gpu else None
        tflops = measured_tflops(device, precision) if peak is None else peak.tflops
        source = "measured" if peak is None else peak.source
        machine = dataclasses.replace(machine, peak_tflops=tflops * num_processes, peak_source=source)
    if past and dataclasses.replace(past[-1], from_step=machine.from_step) == machine:
        return past[-1]
    lines = read_lines(run_dir / MACHINES, "from_step")
    append_line(run_dir / MACHINES, dataclasses.asdict(machine), lines[-1].end_byte if lines else 0)
    return machine


def read_machines(run_dir: Path) -> list[Machine]:
    """What the run has computed on, in order; empty where nobody has noted it. DamagedLinesError as `note_machine`."""
    machines = []
    for line in read_lines(run_dir / MACHINES, "from_step"):
        if not _is_machine(line.values):
            raise DamagedLinesError(
                f"{run_dir / MACHINES}, line {line.number}, has other fields than a machine, or values of another "
                "type. Delete the file: nothing but throughput depends on it."
            )
        machines.append(Machine(**line.values))
    return machines


def machine_at(machines: list[Machine], step: int) -> Machine | None:
    """The one that made a step; None where there is none."""
    return next((m for m in reversed(machines) if m.from_step <= step), None)


@dataclass(frozen=True)
class Peak:
    tflops: float
    source: str


def published_peak(device_name: str, precision: Precision) -> Peak | None:
    """Of one GPU by the name that its driver gives; None where it is not in the table, or has no such numbers."""
    for known in PUBLISHED_PEAKS:
        if device_name.startswith(known.name):
            if precision == "bf16" and not known.has_bf16:
                return None
            return Peak(known.fp32 if precision == "fp32" else known.half, known.source)
    return None


def measured_tflops(device: str, precision: Precision) -> float:
    """The best of a few products of square matrices, in TFLOP/s, with the threads that torch uses now."""
    size = GEMM_SIZE[torch.device(device).type]
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    a = (
        torch.linspace(-1.0, 1.0, size * size, device=device).view(size, size).to(kind)
    )  # no random stream is asked
    seconds = min(_product_seconds(a) for _ in range(GEMM_REPEATS))
    return 2.0 * size**3 / seconds / 1e12


def _product_seconds(a: Tensor) -> float:
    if a.device.type == "cuda":
        torch.cuda.synchronize(a.device)
    started = time.perf_counter()
    torch.mm(a, a)
    if a.device.type == "cuda":
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - started


def _is_machine(values: Mapping[str, Any]) -> bool:
    """Whether these are its fields, numbers and text in their places."""
    if values.keys() != {field.name for field in dataclasses.fields(Machine)}:
        return False
    for name, value in values.items():
        if name in ("device", "precision", "peak_source"):
            fits = isinstance(value, str)
        elif value is None:
            fits = name == "gflop_per_second"
        else:
            fits = is_number(value)
        if not fits:
            return False
    return True


def _same_peak(a: Machine, b: Machine) -> bool:
    return all(getattr(a, n) == getattr(b, n) for n in ("device", "threads", "precision", "num_processes"))


def _gflop_per_second(backbone: Backbone, crop_seconds: float) -> float | None:
    """Counted in eval mode, from shapes; every module has its mode again afterwards."""
    modes: list[tuple[Any, bool]] = [(part, part.training) for part in backbone.modules()]
    try:
        cost = count_gflop(backbone.eval(), crop_seconds)
    except ValueError:  # a model of somebody's own that cannot be counted is trained all the same
        return None
    finally:
        for part, training in modes:
            part.training = training
    return None if cost is None else cost.gflop_per_second
