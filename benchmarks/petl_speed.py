"""What adapting costs against full fine-tuning: `python benchmarks/petl_speed.py`.

Full-size MusicFM (30 s) and MERT-95M (5 s), 6 layers, random weights (they change no timing). Everything compared is
timed in turn in one process, and the fastest of several turns counts; peak memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from audiation.recipes.step_cost import Setting, Subject, count_flops, fastest_seconds, peak_memory

NUM_LAYERS = 6
# backbone -> clip, batch (full fine-tuning has to fit into 16 GiB), what is asked: step without cache, with cache
BACKBONES = {"musicfm-msd": (30.0, 1, 2.2, 5.5), "mert-v1-95m": (5.0, 4, 1.8, 2.7)}
METHODS = ("probe", "adapter", "prompt", "prefix", "bitfit", "ssf", "lora")
ASKED_OF = ("lora", "adapter")
GEMM_SHAPE = (750, 1024, 4096)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3, help="how often everything is timed")
    parser.add_argument("--quick", action="store_true", help="one turn, Adapter and LoRA only, no memory")
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), choices=list(BACKBONES))
    parser.add_argument("--only", choices=("training", "memory", "inference"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    turns = 1 if options.quick else options.turns
    print(f"{options.threads} threads, fastest of {turns} turns, load {os.getloadavg()[0]:.1f} at the start")
    for name in options.backbones:
        if options.only in (None, "training"):
            training(name, ASKED_OF if options.quick else METHODS, turns)
        if options.only in (None, "inference"):
            inference(name, max(turns, 5))
        if options.only in (None, "memory") and not options.quick:
            memory(name, options.threads)
    print(f"load {os.getloadavg()[0]:.1f} at the end")


def setting(
    name: str, method: str, cached: bool = False, merged: bool = False, batch_size: int = 0
) -> Setting:
    clip_seconds, batch, _, _ = BACKBONES[name]
    return Setting(name, method, NUM_LAYERS, clip_seconds, batch_size or batch, cached, merged)


def training(name: str, methods: tuple[str, ...], turns: int) -> None:
    """Step of each method against full fine-tuning, without and with the kept output of the stem."""
    _, batch, asked, asked_cached = BACKBONES[name]
    settings = [setting(name, "finetune")]
    settings += [setting(name, method, cached) for method in methods for cached in (False, True)]
    subjects = [Subject(one) for one in settings]
    for subject in subjects:
        subject.prepare_training()
    flops = [count_flops(subject, training=True) for subject in subjects]
    a, b = torch.randn(GEMM_SHAPE[:2]), torch.randn(GEMM_SHAPE[1:])
    *seconds, gemm = fastest_seconds([*(s.train for s in subjects), lambda: a @ b], turns)
    rate = 2 * GEMM_SHAPE[0] * GEMM_SHAPE[1] * GEMM_SHAPE[2] / gemm
    print(f"\n{name}, {NUM_LAYERS} layers, {batch} clips of {BACKBONES[name][0]:g} s, training step, float32")
    print(
        f"  {'method':22s}{'GFLOP':>8s}{'seconds':>9s}{'of GEMM':>9s}{'FLOPs allow':>13s}{'faster than FT':>16s}"
    )
    for one, count, elapsed in zip(settings, flops, seconds, strict=True):
        label = one.method + (", kept" if one.cached else "")
        bar = asked_cached if one.cached else asked
        note = f"   (asked: {bar}x)" if one.method in ASKED_OF else ""
        allowed, ratio = flops[0] / count, seconds[0] / elapsed
        share = count / elapsed / rate
        print(
            f"  {label:22s}{count / 1e9:8.0f}{elapsed:9.2f}{share:9.0%}{allowed:12.1f}x{ratio:15.2f}x{note}"
        )


def inference(name: str, turns: int) -> None:
    """A forward pass of merged LoRA and of Adapter against the plain backbone."""
    plain = Subject(setting(name, "probe", batch_size=1))
    merged = Subject(setting(name, "lora", merged=True, batch_size=1))
    adapter = Subject(setting(name, "adapter", batch_size=1))
    for subject in (plain, merged, adapter):
        subject.model.eval()
    same = operations(plain) == operations(merged)
    assert same, "a merged backbone must run the operations of the plain one"
    seconds = fastest_seconds([plain.answer, merged.answer, adapter.answer], turns)
    print(f"\n{name}, one clip, inference, float32: plain {seconds[0]:.2f} s")
    print(
        f"  {'merged LoRA against plain':32s}same operations, {seconds[1] / seconds[0]:.3f}x   (asked: <= 1.05x)"
    )
    print(f"  {'Adapter against plain':32s}{seconds[2] / seconds[0]:.3f}x   (asked: <= 1.10x)")


def operations(subject: Subject) -> Counter[str]:
    """How often each ATen operation runs in a forward pass."""
    counted: Counter[str] = Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            counted[str(func)] += 1
            return func(*args, **(kwargs or {}))

    subject.answer()  # derives weights and tables
    with torch.no_grad(), Count():
        subject.model([subject.inputs], subject.stage)
    return counted


def memory(name: str, threads: int) -> None:
    """Peak resident memory of a step."""
    full = peak_memory(setting(name, "finetune"), threads=threads)
    print(
        f"\n{name}, peak resident memory of training steps: full fine-tuning {full.peak_bytes / 2**30:.2f} GiB"
    )
    for method, cached in (("lora", False), ("lora", True), ("adapter", False)):
        own = peak_memory(setting(name, method, cached), threads=threads)
        label = method + (", kept" if cached else "")
        note = "   (asked: <= 0.45x)" if (method, cached) == ("lora", False) else ""
        ratio = own.peak_bytes / full.peak_bytes
        print(f"  {label:22s}{own.peak_bytes / 2**30:6.2f} GiB, {ratio:.2f}x{note}")


if __name__ == "__main__":
    main()
