"""MERT-95M against stock HuBERT of `transformers` with the same weights: `python benchmarks/mert_speed.py`.

30 s of audio as one clip, all layers. Everything compared is timed in turn in one process, and the fastest of several
turns counts. Weights are random, which changes no timing. Needs the extra `benchmark`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import HubertConfig, HubertModel

from audiation.backbones import BACKBONES, mert
from audiation.backbones.precision import has_native_bf16, set_precision

NAME = "mert-v1-95m"
CLIP_SECONDS = 30.0
GEMM_SHAPE = (2249, 768, 3072)  # frames of the clip, width, feed-forward width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5, help="how often everything is timed")
    parser.add_argument("--quick", action="store_true", help="two turns, without bfloat16 arithmetic")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    turns = 2 if options.quick else options.turns

    backbone = BACKBONES[NAME].build()
    rounded = {"bf16, rounded, float32 products": new(native=False)}
    if has_native_bf16(torch.device("cpu")) or not options.quick:
        rounded["bf16 arithmetic"] = new(native=True)
    peer = peer_with_weights_of(backbone)
    num_samples = int(CLIP_SECONDS * backbone.sample_rate_hz)
    generator = torch.Generator().manual_seed(0)
    waveform = 0.1 * torch.randn(1, num_samples, generator=generator)
    normalised = mert.unit_variance(waveform)  # the peer's feature extractor does this outside the model
    a, b = (torch.randn(shape, generator=generator) for shape in (GEMM_SHAPE[:2], GEMM_SHAPE[1:]))

    with torch.inference_mode():
        calls: dict[str, Callable[[], object]] = {
            "gemm": lambda: a @ b,
            "ours": lambda: backbone(waveform),
            "peer": lambda: peer(normalised, output_hidden_states=True),
        }
        for name, model in rounded.items():
            if model.arithmetic == "fp32" or has_native_bf16(torch.device("cpu")):
                calls[name] = lambda model=model: model(waveform)
        seconds = fastest(calls, turns)
        for name, model in rounded.items():  # emulated instructions: minutes, so one turn
            if name not in seconds:
                seconds |= fastest({name: lambda model=model: model(waveform)}, turns=0)
        layers = backbone(waveform).layers
        theirs = peer(normalised, output_hidden_states=True).hidden_states
        difference = max(float((layers[i] - x).abs().max()) for i, x in enumerate(theirs))
        errors = {name: relative_errors(layers, model(waveform).layers) for name, model in rounded.items()}

    flops = count_flops(backbone.config, num_samples)
    gemm_rate = 2 * GEMM_SHAPE[0] * GEMM_SHAPE[1] * GEMM_SHAPE[2] / seconds["gemm"]
    print(
        f"{NAME}, {CLIP_SECONDS:.0f} s as one clip, {len(theirs)} layers, {flops / 1e9:.0f} GFLOP, ", end=""
    )
    print(f"{options.threads} threads, fastest of {turns + 1} turns")
    rows = [
        ("fp32 GEMM", f"{gemm_rate / 1e9:.0f} GFLOP/s"),
        ("transformers HubertModel, fp32, SDPA", f"{seconds['peer']:.2f} s"),
        (
            "ours, fp32",
            f"{seconds['ours']:.2f} s, {flops / seconds['ours'] / gemm_rate:.0%} of the GEMM rate",
        ),
        ("ours against transformers", f"{seconds['peer'] / seconds['ours']:.2f}x   (asked: 1.0x)"),
        ("largest difference, all layers", f"{difference:.1e}   (allowed: 1e-4)"),
    ]
    for name in rounded:
        ratio = seconds["peer"] / seconds[name]
        rows.append((name, f"{seconds[name]:.2f} s, {ratio:.2f}x of transformers' fp32   (asked: 2.0x)"))
        text = " ".join(f"{error:.2%}" for error in errors[name])
        rows.append(("  relative L2 error, layers 0..12", f"{text}   (allowed: 2 %)"))
    for name, value in rows:
        print(f"  {name:38s}{value}")
    if not has_native_bf16(torch.device("cpu")):
        print("  This processor has no bfloat16 instructions, so precision='bf16' runs the rounded path.")


def new(native: bool) -> mert.Mert:
    backbone = BACKBONES[NAME].build()  # always the same weights
    set_precision(backbone, "bf16", native=native)
    return backbone


def peer_with_weights_of(backbone: mert.Mert) -> nn.Module:
    config = HubertConfig(
        **mert.BASE,
        num_conv_pos_embeddings=backbone.config.num_conv_pos_embeddings,
        num_conv_pos_embedding_groups=backbone.config.num_conv_pos_embedding_groups,
        mask_time_prob=0.0,
        attn_implementation="sdpa",
    )
    peer = HubertModel(config).eval()
    state = {official: backbone.get_parameter(own) for official, own in mert.official_names(backbone)}
    conv, new_names = "encoder.pos_conv_embed.conv", "parametrizations.weight.original"
    state[f"{conv}.{new_names}0"] = state.pop(f"{conv}.weight_g")
    state[f"{conv}.{new_names}1"] = state.pop(f"{conv}.weight_v")
    peer.load_state_dict(state)
    return peer


def count_flops(config: mert.MertConfig, num_samples: int) -> float:
    """Multiplications and additions as a direct computation has them: convolutions, linear maps, attention."""
    frames, channels, macs = num_samples, 1, 0
    for out, kernel, stride in zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True):
        frames = (frames - kernel) // stride + 1
        macs += frames * kernel * channels * out
        channels = out
    width = config.hidden_size
    positions = width // config.num_conv_pos_embedding_groups * config.num_conv_pos_embeddings
    block = 4 * width + 2 * config.intermediate_size + 2 * frames
    return 2.0 * (macs + frames * width * (channels + positions + config.num_hidden_layers * block))


def fastest(calls: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Seconds of the fastest call of each, all called in turn."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(turns + 1):  # the first one warms up, and cannot be the fastest by much
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def relative_errors(exact: dict[int, Tensor], rounded: dict[int, Tensor]) -> list[float]:
    """Per layer, L2 norm of the difference over that of the exact one."""
    return [float((rounded[i] - x).norm() / x.norm()) for i, x in exact.items()]


if __name__ == "__main__":
    main()
