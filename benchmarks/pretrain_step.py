"""One step of pre-training at full size: `python benchmarks/pretrain_step.py [best_rq|mert] [--precision bf16]`.

best_rq: MusicFM's conformer (330M), crops of 30 s. mert: the 95M encoder, crops of 5 s, EnCodec codes as stored.
Forward and backward pass of a micro-batch and Adam's step, and what the targets cost of it, timed in turn with one
large matrix product of the same arithmetic. "of GEMM" is three times the work of the forward pass (counted from shapes,
without heads) per second. Weights, audio and codes are random, which changes no timing.
"""

from __future__ import annotations

import argparse

import torch
from measuring import fastest, gemm_calls, gemm_rate, peak_mib

from audiation.loading import load_backbone
from audiation.model_cost import count_gflop
from audiation.objectives import Objective, PretrainBatch, parse_objective
from audiation.objectives.best_rq import BestRqObjective
from audiation.objectives.mert import MertObjective
from audiation.pretraining import Pretraining
from audiation.pretraining_config import PretrainConfig

CASES = {"best_rq": ("musicfm-msd", "best_rq", 30.0, 1), "mert": ("mert-v1-95m", "mert", 5.0, 4)}
ENCODEC_RATE_HZ, CODEBOOKS, CODES = 75, 8, 1024
ASKED = {"fp32": 0.65, "bf16": 0.50}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for case in options.cases or CASES:
        measure(case, options.precision, options.threads, options.turns)


def measure(case: str, precision: str, threads: int, turns: int) -> None:
    name, objective_text, seconds, batch_size = CASES[case]
    backbone = load_backbone(name, "random")
    cost = count_gflop(backbone, seconds)  # in eval mode, in which it comes
    assert cost is not None
    objective = parse_objective(objective_text).build(backbone)
    model = Pretraining(backbone, objective).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    adam = PretrainConfig(steps=1000, learning_rate=1e-4).make_adam([{"params": trained, "lr": 1e-4}])
    generator = torch.Generator().manual_seed(0)
    batch = _batch(case, backbone.sample_rate_hz, seconds, batch_size, generator)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(batch, generator)
        loss.mean.backward()
        adam.step()
        adam.zero_grad(set_to_none=True)

    step()
    calls = {"step": step, "targets": lambda: _targets(objective, model, batch)}
    took = fastest(calls | gemm_calls(precision, generator), turns)
    share = 3 * batch_size * 1e9 * cost.gflop / took["step"] / gemm_rate(took)
    rows = (
        ("step", f"{took['step']:.2f} s, {batch_size * seconds / took['step']:.2f} s of audio per second"),
        ("of GEMM", f"{share:.0%}   (asked: {ASKED[precision]:.0%})"),
        ("targets", f"{took['targets'] / took['step']:.1%} of the step"),
        ("peak memory", f"{peak_mib():,.0f} MiB"),
    )
    print(
        f"{case}: {name}, {batch_size} x {seconds:g} s, {precision}, {threads} threads, fastest of {turns + 1}"
    )
    for what, value in rows:
        print(f"  {what:14s}{value}", flush=True)


def _batch(
    case: str, rate_hz: int, seconds: float, batch_size: int, generator: torch.Generator
) -> PretrainBatch:
    waveform = 0.1 * torch.randn(batch_size, round(seconds * rate_hz), generator=generator)
    if case != "mert":
        return PretrainBatch(waveform)
    shape = (batch_size, CODEBOOKS, round(seconds * ENCODEC_RATE_HZ))
    return PretrainBatch(waveform, targets={"encodec": torch.randint(CODES, shape, generator=generator)})


@torch.no_grad()
def _targets(objective: Objective, model: Pretraining, batch: PretrainBatch) -> None:
    """What is computed for the targets alone."""
    if isinstance(objective, BestRqObjective):
        objective.tokens(objective.spectrum(model.backbone, batch.waveform))
    elif isinstance(objective, MertObjective):
        assert objective.cqt is not None
        objective.cqt(batch.waveform)


if __name__ == "__main__":
    main()
