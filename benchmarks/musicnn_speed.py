"""MusiCNN against a plain transcription of the published graph, window by window: `python benchmarks/musicnn_speed.py`.

30 s of audio, pooled vectors. Everything compared is timed in turn in one process, and the fastest of several turns
counts. Weights are random, which changes no timing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiation.backbones import BACKBONES
from audiation.backbones.musicnn import WINDOW_FRAMES, Musicnn
from audiation.backbones.musicnn_layers import NUM_MEL_BANDS, Branch, MidLayer

NAMES = ("musicnn-msd", "musicnn-msd-big")
CLIP_SECONDS = 30.0
GEMM_SHAPE = (1870, 768, 3072)
ASKED = 1.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="one is disturbed least by whatever else runs")
    parser.add_argument("--turns", type=int, default=5, help="how often everything is timed")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in NAMES:
        compare(name, options.threads, options.turns)


def compare(name: str, threads: int, turns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for shape in (GEMM_SHAPE[:2], GEMM_SHAPE[1:]))
    backbone = BACKBONES[name].build()
    assert isinstance(backbone, Musicnn)
    num_samples = round(CLIP_SECONDS * backbone.sample_rate_hz)
    waveform = 0.1 * torch.randn(1, num_samples, generator=generator)
    peer = Plain(backbone).eval()
    with torch.inference_mode():
        calls: dict[str, Callable[[], object]] = {
            "gemm": lambda: a @ b,
            "ours": lambda: backbone(waveform, reduce="mean"),
            "peer": lambda: peer(waveform),
        }
        seconds = fastest(calls, turns)
        ours, theirs = backbone(waveform, reduce="mean").layers[0][0, 0], peer(waveform)
    flops = count_flops(backbone, backbone.num_frames(num_samples))
    gemm_rate = 2 * GEMM_SHAPE[0] * GEMM_SHAPE[1] * GEMM_SHAPE[2] / seconds["gemm"]
    share = flops / seconds["ours"] / gemm_rate
    difference, largest = float((ours - theirs).abs().max()), float(theirs.max())
    print(
        f"{name}, {CLIP_SECONDS:.0f} s, {flops / 1e9:.1f} GFLOP, {threads} threads, fastest of {turns + 1} turns"
    )
    rows = [
        ("fp32 GEMM", f"{gemm_rate / 1e9:.0f} GFLOP/s"),
        ("plain transcription", f"{seconds['peer']:.3f} s"),
        ("ours", f"{seconds['ours']:.3f} s, {share:.0%} of the GEMM rate"),
        ("ours, seconds of music per second", f"{CLIP_SECONDS / seconds['ours']:.0f}"),
        ("ours against the transcription", f"{seconds['peer'] / seconds['ours']:.2f}x   (asked: {ASKED}x)"),
        ("largest difference", f"{difference:.1e}   (values to {largest:.1f})"),
    ]
    for what, value in rows:
        print(f"  {what:36s}{value}")


class Plain(nn.Module):
    """The published graph as one would write it down: a window at a time, every layer in its order."""

    def __init__(self, backbone: Musicnn) -> None:
        super().__init__()
        self.front_end, self.norm = backbone.front_end, backbone.front.norm
        self.branches, self.layers = branches_of(backbone), layers_of(backbone)

    def forward(self, waveform: Tensor) -> Tensor:
        """`(1, S)` -> `(D,)`."""
        frames = self.front_end(waveform)[0]
        windows = frames[: len(frames) // WINDOW_FRAMES * WINDOW_FRAMES].split(WINDOW_FRAMES)
        return torch.stack([self.window(window) for window in windows]).mean(0)

    def window(self, window_TF: Tensor) -> Tensor:
        x = self.norm(window_TF[None, None])
        heard = []
        for branch in self.branches:
            y = branch.norm(F.relu(branch.conv(F.pad(x, (0, 0, *branch.pads)))))
            heard.append(y.amax(-1))
        features = [torch.cat(heard, dim=1)]
        for number, layer in enumerate(self.layers):
            y = layer.norm(F.relu(layer.conv(features[-1])))
            features.append(y if number == 0 else y + features[-1])
        together = torch.cat(features, dim=1)[0]
        return torch.cat([together.mean(-1), together.amax(-1)])


def branches_of(backbone: Musicnn) -> list[Branch]:
    return [b for b in (*backbone.front.timbral, *backbone.front.temporal) if isinstance(b, Branch)]


def layers_of(backbone: Musicnn) -> list[MidLayer]:
    return [layer for layer in backbone.mid.layers if isinstance(layer, MidLayer)]


def count_flops(backbone: Musicnn, num_windows: int) -> int:
    """Of the convolutions; a product and a sum are two."""
    per_frame = 0
    for branch in branches_of(backbone):
        weight = branch.conv.weight
        per_frame += weight.numel() * (NUM_MEL_BANDS - weight.shape[-1] + 1)
    per_frame += sum(layer.conv.weight.numel() for layer in layers_of(backbone))
    return 2 * per_frame * WINDOW_FRAMES * num_windows


def fastest(calls: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Seconds of each call, the fastest of `turns` + 1, timed in turn."""
    seconds = dict.fromkeys(calls, float("inf"))
    for _ in range(turns + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
