"""Every backbone on this machine: `python benchmarks/backbone_speed.py [NAME...] [--write]`.

Seconds of audio per second of time, the share of the rate of matrix products, and peak memory, in float32 and bfloat16.
Each backbone and precision has a process of its own, so that peaks of memory are its own; the products that it is
compared with are timed in turn with it. Weights are random, which changes no timing. A model of billions of parameters
runs with its first blocks only, which its row says. `--write` puts the rows into docs/throughput.md; rows of backbones
that were not measured now stay.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from measuring import fastest, gemm_calls, gemm_rate, peak_mib

from audiation.backbones import BACKBONES
from audiation.backbones.precision import has_native_bf16
from audiation.inference import run_clip
from audiation.loading import load_backbone
from audiation.model_cost import count_gflop
from audiation.provenance import current_hardware

CLIP_SECONDS = 30.0
MOST_PARAMETERS = 1_000_000_000  # more are cut to their first blocks
FEW_BLOCKS = 4
PAGE = Path(__file__).parent.parent / "docs" / "throughput.md"
BEGIN, END = "<!-- table: benchmarks/backbone_speed.py --write -->", "<!-- end of table -->"
MISSING = "-"


@dataclass(frozen=True)
class Measured:
    """A backbone in one precision.

    audio_per_second: seconds of audio that are computed per second, all layers.
    gemm_share: of the rate of matrix products in the same arithmetic; None where nothing can be counted.
    peak_mib: resident memory of the process.
    num_layers: blocks that were run, where it was cut; else None.
    arithmetic: what was multiplied in: bf16 is emulated with float32 where there are no instructions for it.
    """

    name: str
    precision: str
    audio_per_second: float
    gemm_share: float | None
    peak_mib: float
    num_layers: int | None
    arithmetic: str


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="backbones; default: all of the registry")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3, help="how often everything is timed")
    parser.add_argument("--batch-size", type=int, default=4, help="chunks per forward pass")
    parser.add_argument("--write", action="store_true", help="put the rows into docs/throughput.md")
    parser.add_argument("--measure", nargs=2, metavar=("NAME", "PRECISION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, precision = options.measure
        print(json.dumps(asdict(measure(name, precision, options))))
        return
    rows = []
    for name in options.names or list(BACKBONES):
        pair = [in_own_process(name, precision, options) for precision in precisions(name)]
        rows.append(row_of(name, [m for m in pair if m is not None]))
        print("  ".join(rows[-1]), flush=True)
    if options.write:
        write_page(PAGE, rows, machine(options))
        print(f"Written: {PAGE}")


def precisions(name: str) -> list[str]:
    """A formula has no precision to choose."""
    return ["fp32"] if BACKBONES[name].from_published is None else ["fp32", "bf16"]


def in_own_process(name: str, precision: str, options: argparse.Namespace) -> Measured | None:
    """None where it failed; the reason is printed."""
    command = [sys.executable, __file__, "--measure", name, precision, "--threads", str(options.threads)]
    command += ["--turns", str(options.turns), "--batch-size", str(options.batch_size)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        print(f"{name} in {precision} was not measured: {reason}", file=sys.stderr)
        return None
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def measure(name: str, precision: str, options: argparse.Namespace) -> Measured:
    """In this process."""
    torch.set_num_threads(options.threads)
    spec = BACKBONES[name]
    weights = None if spec.from_published is None else "random"
    num_layers = FEW_BLOCKS if (spec.published_parameters or 0) > MOST_PARAMETERS else None
    backbone = load_backbone(name, weights, num_layers=num_layers, precision=precision)  # type: ignore[arg-type]
    seconds = CLIP_SECONDS
    if backbone.hop_samples is None and backbone.max_seconds is not None:
        seconds = min(seconds, backbone.max_seconds)  # one vector per clip: clips of what it takes
    num_samples = int(seconds * backbone.sample_rate_hz)
    generator = torch.Generator().manual_seed(0)
    waveform = 0.1 * torch.randn(num_samples, generator=generator)
    cost = count_gflop(backbone, num_samples / backbone.sample_rate_hz)
    with torch.inference_mode():
        run_clip(backbone, waveform, reduce="mean", batch_size=options.batch_size)
        peak = peak_mib()  # before the products, which have memory of their own
        calls = {"": lambda: run_clip(backbone, waveform, reduce="mean", batch_size=options.batch_size)}
        took = fastest(calls | gemm_calls(backbone.arithmetic, generator), options.turns)
    share = None if cost is None else 1e9 * cost.gflop / took[""] / gemm_rate(took)
    return Measured(name, precision, seconds / took[""], share, peak, num_layers, backbone.arithmetic)


# The page -------------------------------------------------------------------------------------------------

HEADER = ("backbone", "fp32, audio s / s", "of GEMM", "peak MiB", "bf16, audio s / s", "of GEMM", "peak MiB")


def row_of(name: str, measured: Sequence[Measured]) -> tuple[str, ...]:
    """Cells of a backbone; what was not measured is a dash."""
    by_precision = {m.precision: m for m in measured}
    cut = next((m.num_layers for m in measured if m.num_layers is not None), None)
    cells = [name if cut is None else f"{name} (first {cut} blocks)"]
    for precision in ("fp32", "bf16"):
        m = by_precision.get(precision)
        if m is None:
            cells += [MISSING] * 3
            continue
        rate = f"{m.audio_per_second:,.1f}" if m.audio_per_second < 100 else f"{m.audio_per_second:,.0f}"
        emulated = " (fp32 products)" if precision == "bf16" and m.arithmetic != "bf16" else ""
        share = MISSING if m.gemm_share is None else f"{m.gemm_share:.0%}"
        cells += [rate + emulated, share, f"{m.peak_mib:,.0f}"]
    return tuple(cells)


def machine(options: argparse.Namespace) -> str:
    """What the numbers were measured on, in a line."""
    hardware = current_hardware("cpu")
    bf16 = "with" if has_native_bf16(torch.device("cpu")) else "without"
    return (
        f"{hardware.get('device') or platform.processor()}, {options.threads} threads, {bf16} bfloat16 instructions; "
        f"torch {torch.__version__.partition('+')[0]}; clips of {CLIP_SECONDS:g} s, {options.batch_size} chunks at a "
        f"time, the fastest of {options.turns} turns."
    )


def write_page(page: Path, rows: Sequence[Sequence[str]], machine_line: str) -> None:
    """Replace the table of the page, which is made where there is none. Rows that are not measured now stay only if
    they come from the same machine and settings."""
    text = page.read_text(encoding="utf-8") if page.is_file() else NEW_PAGE
    before, begin, rest = text.partition(BEGIN)
    old, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no table between '{BEGIN}' and '{END}'")
    kept = _rows_in(old) if machine_line in old else {}
    merged = kept | {_plain(row[0]): tuple(row) for row in rows}
    lines = [machine_line, "", _line(HEADER), _line(("---",) + ("---:",) * (len(HEADER) - 1))]
    lines += [_line(merged[name]) for name in sorted(merged)]
    page.write_text(f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{after}", encoding="utf-8")


def _rows_in(table: str) -> dict[str, tuple[str, ...]]:
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    return {_plain(row[0]): row for row in cells}


def _plain(cell: str) -> str:
    return cell.partition(" (")[0]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


NEW_PAGE = f"""# How fast is it?

Seconds of audio that a backbone computes in one second, all layers, with random weights: `python
benchmarks/backbone_speed.py --write` measures every backbone and writes this table. "of GEMM" is its work (matrix
products, convolutions, attention; as in `audiation list backbones`) per second, as a share of what one large matrix
product reaches on the same machine in the same arithmetic. Models of one vector per clip hear clips of the length that
they take. Peaks are resident memory of a process of its own, with Python, torch and the weights.

{BEGIN}

{END}
"""


if __name__ == "__main__":
    main()
