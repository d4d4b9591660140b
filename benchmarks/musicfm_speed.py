"""MusicFM against the matrix-multiplication rate of the machine it runs on: `python benchmarks/musicfm_speed.py`.

Everything compared is timed in turn in one process, and the fastest of several turns counts. Weights are random,
which changes no timing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from audiation.backbones import musicfm
from audiation.backbones.precision import set_precision

CLIP_SECONDS = 30.0
LAYER = 7
GEMM_SIZE = 3072
GEMM_SIZE_EMULATED = 1024  # in bf16 without instructions for it, where the large one takes minutes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5, help="how often everything is timed")
    parser.add_argument("--quick", action="store_true", help="two turns")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    turns = 2 if options.quick else options.turns

    backbone = musicfm.build(musicfm.MSD).eval()
    rounded = musicfm.build(musicfm.MSD).eval()  # the same weights
    set_precision(rounded, "bf16")
    num_samples = int(CLIP_SECONDS * backbone.sample_rate_hz)
    generator = torch.Generator().manual_seed(0)
    waveform = 0.1 * torch.randn(1, num_samples, generator=generator)
    square = torch.randn(GEMM_SIZE, GEMM_SIZE, generator=generator)
    size_bf16 = GEMM_SIZE if rounded.arithmetic == "bf16" else GEMM_SIZE_EMULATED
    square_bf16 = square[:size_bf16, :size_bf16].bfloat16()

    with torch.inference_mode():
        flops = count_flops(num_samples, LAYER)
        with FlopCounterMode(display=False) as counter:
            backbone(waveform, layers=[LAYER])
        print(
            f"MusicFM, {CLIP_SECONDS:.0f} s, up to layer {LAYER}: {flops / 1e9:.0f} GFLOP by formula, ",
            end="",
        )
        print(
            f"{counter.get_total_flops() / 1e9:.0f} counted by torch; {options.threads} threads, {turns} turns"
        )
        seconds = fastest(
            {
                "gemm": lambda: square @ square,
                "fp32": lambda: backbone(waveform, layers=[LAYER]),
                "fp32 all layers": lambda: backbone(waveform, layers=[backbone.num_layers]),
                "gemm bf16, first transposed": lambda: square_bf16.t() @ square_bf16,
                "gemm bf16, second transposed": lambda: square_bf16 @ square_bf16.t(),
                "bf16": lambda: rounded(waveform, layers=[LAYER]),
            },
            turns,
        )
        errors = relative_errors(backbone, rounded, waveform)

    gemm_rate = 2 * GEMM_SIZE**3 / seconds["gemm"]
    # Which layout is the fast one depends on the processor; neither transposed is the slowest without instructions.
    gemm_rate_bf16 = 2 * size_bf16**3 / min(t for name, t in seconds.items() if name.startswith("gemm bf16"))
    rate, rate_bf16 = flops / seconds["fp32"], flops / seconds["bf16"]
    rows = [
        ("fp32 GEMM", f"{gemm_rate / 1e9:.0f} GFLOP/s"),
        ("fp32, layer 7", f"{seconds['fp32']:.2f} s, {rate / 1e9:.0f} GFLOP/s"),
        ("fp32 share of GEMM rate", f"{rate / gemm_rate:.1%}   (asked: 85 %)"),
        ("fp32, all layers", f"{seconds['fp32 all layers']:.2f} s"),
        ("bf16 GEMM", f"{gemm_rate_bf16 / 1e9:.0f} GFLOP/s"),
        ("bf16 multiplies in", rounded.arithmetic),
        ("bf16, layer 7", f"{seconds['bf16']:.2f} s, {rate_bf16 / 1e9:.0f} GFLOP/s"),
        ("bf16 share of bf16 GEMM rate", f"{rate_bf16 / gemm_rate_bf16:.1%}   (asked: 85 %)"),
        ("bf16 against fp32, same layer", f"{seconds['fp32'] / seconds['bf16']:.2f}x"),
        (
            "bf16 against fp32, all layers",
            f"{seconds['fp32 all layers'] / seconds['bf16']:.2f}x   (asked: 2.5x)",
        ),
        ("bf16 relative L2 error, layers 0..12", f"largest {max(errors):.2%}   (allowed: 2 %)"),
    ]
    for name, value in rows:
        print(f"  {name:38s}{value}")
    if rounded.arithmetic == "fp32":
        print("  This processor has no bfloat16 instructions: values are rounded, products are float32.")


def count_flops(num_samples: int, last_layer: int) -> float:
    """Multiplications and additions of convolutions, linear maps and attention; nothing else is counted."""
    config, channels = musicfm.ConformerConfig(), musicfm.CONV_CHANNELS
    frames = -(-(num_samples // musicfm.MEL_HOP_SAMPLES) // 4)
    dim, taps = config.dim, 9
    pixels = (
        2 * frames * musicfm.NUM_MEL_BANDS // 2,
        frames * musicfm.NUM_MEL_BANDS // 4,
    )  # of the two stem blocks
    stem = pixels[0] * taps * channels * (1 + 1 + channels) + pixels[1] * taps * channels * 3 * channels
    stem += frames * channels * musicfm.NUM_MEL_BANDS // 4 * dim
    stem += (num_samples // musicfm.MEL_HOP_SAMPLES) * (musicfm.FFT_SAMPLES // 2 + 1) * musicfm.NUM_MEL_BANDS
    linears = 4 * dim * config.ffn_dim + 4 * dim * dim + 3 * dim * dim
    block = frames * (linears + config.conv_kernel * dim + 2 * frames * dim)
    return 2.0 * (stem + last_layer * block)


def fastest(calls: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Seconds of the fastest call of each, all called in turn."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(turns + 1):  # the first one warms up, and cannot be the fastest by much
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def relative_errors(exact: musicfm.MusicFM, rounded: musicfm.MusicFM, waveform: Tensor) -> list[float]:
    """Per layer, L2 norm of the difference over that of the exact one."""
    theirs = rounded(waveform).layers
    return [float((theirs[i] - x).norm() / x.norm()) for i, x in exact(waveform).layers.items()]


if __name__ == "__main__":
    main()
