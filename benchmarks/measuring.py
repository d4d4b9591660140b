"""What benchmarks measure with: times of calls, the rate of matrix products, memory of a process."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

GEMM_SIZE = 3072


def best_of(call: Callable[[], object], turns: int = 5) -> float:
    """Seconds of the fastest of so many calls, after one that warms up."""
    return fastest({"": call}, turns)[""]


def fastest(calls: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Seconds of the fastest call of each, all called in turn, so that a noisy machine touches all alike."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(turns + 1):  # the first one warms up, and cannot be the fastest by much
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def gemm_calls(arithmetic: str, generator: torch.Generator) -> dict[str, Callable[[], object]]:
    """Square products that show what the machine can do, by name; `gemm_rate` reads their times.

    arithmetic: "fp32" or "bf16". Which layout of bf16 is the fast one depends on the processor.
    """
    if arithmetic == "fp32":
        square = torch.randn(GEMM_SIZE, GEMM_SIZE, generator=generator)
        return {"gemm": lambda: square @ square}
    small = torch.randn(GEMM_SIZE, GEMM_SIZE, generator=generator).bfloat16()
    return {
        "gemm first transposed": lambda: small.t() @ small,
        "gemm second transposed": lambda: small @ small.t(),
    }


def gemm_rate(seconds: dict[str, float]) -> float:
    """FLOP per second of the fastest of `gemm_calls`."""
    return 2 * GEMM_SIZE**3 / min(took for name, took in seconds.items() if name.startswith("gemm"))


def peak_mib() -> float:
    """Largest resident set of this process so far; unlike `ru_maxrss`, nothing of its parent. Linux only."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
