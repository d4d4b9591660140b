"""What targets cost beside training: `python benchmarks/target_cost.py`.

One step of MERT-v1-95M (forward, backward, AdamW) on 4 crops of 5 s, and for as much audio: codes of EnCodec of full
size, codes of BEST-RQ, MFCC and the two spectra of MERT-v0. Everything is timed in turn in one process, and the fastest
of several turns counts. Weights are random, which changes no timing. EnCodec and features are computed once for a whole
corpus, so after one epoch nothing more is spent on them; the share is that of a run of one epoch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from measuring import best_of, fastest, gemm_calls, gemm_rate
from torch import Tensor

from audiation.backbones import BACKBONES
from audiation.objectives.base import PretrainBatch
from audiation.objectives.best_rq import BestRq
from audiation.objectives.mert import Mert
from audiation.pretraining import Pretraining
from audiation.teachers import FrameFeatures, Recorded
from audiation.teachers.encodec import EncodecTeacher
from audiation.teachers.encodec_network import EncodecConfig, fresh
from audiation.teachers.mfcc import MfccFeatures
from audiation.teachers.spectra import FineChroma, LogMelBands, SpectrumFeatures

NAME = "mert-v1-95m"
BATCH, CROP_SECONDS = 4, 5.0
AUDIO_SECONDS = BATCH * CROP_SECONDS
LABEL_RATE_HZ, NUM_CODEBOOKS, NUM_CODES = 75.0, 8, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--turns", type=int, default=3, help="how often everything is timed, after once to warm up"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)

    backbone = BACKBONES[NAME].build()
    rate_hz = backbone.sample_rate_hz
    crops = 0.1 * torch.randn(BATCH, round(CROP_SECONDS * rate_hz), generator=generator)
    recording = Recorded.of(crops.flatten())
    best_rq = BestRq().build(backbone)
    encodec = EncodecTeacher(fresh(EncodecConfig(), generator))
    targets: dict[str, Callable[[], object]] = {
        "encodec": lambda: encodec.codes(recording),
        "best_rq": lambda: best_rq.tokens(best_rq.spectrum(backbone, crops)),
    }
    features: dict[str, FrameFeatures] = {
        "mfcc39": MfccFeatures(rate_hz, 13),
        "logmel": SpectrumFeatures("logmel", rate_hz, LogMelBands(rate_hz)),
        "chroma": SpectrumFeatures("chroma", rate_hz, FineChroma(rate_hz)),
    }
    for name, made in features.items():
        targets[f"{name}, features"] = lambda made=made: made.frames(  # type: ignore[misc]
            recording, 0, made.num_frames(recording.num_samples)
        )
    seconds = fastest(targets, options.turns)
    gemms = gemm_calls("fp32", generator)
    rate = gemm_rate(fastest(gemms, options.turns))
    step = best_of(training_step(crops, generator), options.turns)

    print(
        f"{NAME}, {BATCH} crops of {CROP_SECONDS:g} s, fp32, {options.threads} threads, GEMM {rate / 1e9:.0f} GFLOP/s"
    )
    print(f"  {'training step':20s}{step:8.2f} s   {step / AUDIO_SECONDS:.4f} s per audio second")
    allowed = {"encodec": "allowed: 15 %", "best_rq": "allowed: 5 %"}
    for name, took in seconds.items():
        note = f"   ({allowed[name]})" if name in allowed else ""
        print(
            f"  {name:20s}{took:8.3f} s   {took / AUDIO_SECONDS:.4f} s per audio second, "
            f"{took / step:.1%} of the step{note}"
        )


def training_step(crops: Tensor, generator: torch.Generator) -> Callable[[], object]:
    """One optimiser step of MERT on these crops, with stored codes."""
    backbone = BACKBONES[NAME].build()
    model = Pretraining(backbone, Mert().build(backbone)).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)
    num_labels = round(CROP_SECONDS * LABEL_RATE_HZ)
    codes = torch.randint(NUM_CODES, (BATCH, NUM_CODEBOOKS, num_labels), generator=generator)
    batch = PretrainBatch(crops, targets={"encodec": codes})

    def step() -> None:
        optimiser.zero_grad()
        model(batch, generator).mean.backward()
        optimiser.step()

    return step


if __name__ == "__main__":
    main()
