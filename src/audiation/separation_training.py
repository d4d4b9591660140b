"""Train the masks of a `SeparationModel` on random mixes: `fit` with frozen features, validated by SDR.

Shape letters: `B` clips, `S` samples, `N` stems.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from audiation.backbones import Backbone
from audiation.distributed import values_of_all
from audiation.metrics_separation import EVALUATION_RATES_HZ, STEMS
from audiation.separation import Direction, SeparationModel, separation_loss
from audiation.separation_filter import Filtering, Sources, Stereo
from audiation.separation_inference import FEATURE_CHUNK_SECONDS
from audiation.separation_mixes import SEGMENT_SECONDS, MixBatch, RandomMixes, UnusedTrack, readable_tracks
from audiation.separation_scoring import evaluate_separation
from audiation.separation_sources import StemTrack
from audiation.training import FitReport, Loss, TrainConfig, TrainingProgress, fit


@dataclass(frozen=True)
class SeparationConfig(TrainConfig):
    """How masks are trained: what `fit` needs, and the choices of the model, the mixes and the validation.

    stems: which ones, joined by "+"; every stem has a model of its own, and one run may train them all.
    direction: of the LSTM: "forward" as in the released code, "both" as in the thesis (D26).
    hidden_size: its width, both directions together.
    segment_seconds: length of a mix.
    valid_seconds: how much of each validation song is separated for the score, from its beginning; None: all of it,
        as published.
    evaluation_rate_hz: where the validation score compares (D27): 24000 as in the released code, or 44100 as in
        MDX 2021.
    feature_chunk_seconds: how much of a song the backbone hears at a time.
    filter_...: the fields of `Filtering`, of validation and test.
    """

    stems: str = "+".join(STEMS)
    direction: Direction = "forward"
    hidden_size: int = 512
    segment_seconds: float = SEGMENT_SECONDS
    valid_seconds: float | None = None
    evaluation_rate_hz: Literal[24_000, 44_100] = 24_000
    feature_chunk_seconds: float = FEATURE_CHUNK_SECONDS
    filter_iterations: int = 1
    filter_window_frames: int = 600
    filter_residual: bool = True
    filter_sources: Sources = "alone"
    filter_stereo: Stereo = "mean"

    @property
    def stem_names(self) -> tuple[str, ...]:
        return tuple(self.stems.split("+"))

    @property
    def filtering(self) -> Filtering:
        return Filtering(
            self.filter_iterations,
            self.filter_window_frames,
            self.filter_residual,
            self.filter_sources,
            self.filter_stereo,
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [name for name in self.stem_names if name not in STEMS]:
            raise ValueError(f"stems are of {', '.join(STEMS)}, joined by '+', got '{', '.join(unknown)}'")
        if self.direction not in ("forward", "both"):
            raise ValueError(f"direction is 'forward' or 'both', got {self.direction!r}")
        if self.evaluation_rate_hz not in EVALUATION_RATES_HZ:
            rates = " or ".join(str(rate) for rate in EVALUATION_RATES_HZ)
            raise ValueError(f"evaluation_rate_hz is {rates}, got {self.evaluation_rate_hz}")
        for name in ("segment_seconds", "valid_seconds", "feature_chunk_seconds"):
            value = getattr(self, name)
            if value is not None and not 0.1 <= value < float("inf"):
                raise ValueError(f"{name} must be at least 0.1 and finite, got {value}")
        _ = self.filtering  # refuses what does not go together


@dataclass(frozen=True, eq=False)
class TrainedSeparation:
    """A trained model, in eval mode, and how it came about. unused: tracks of both splits that could not be read."""

    model: SeparationModel
    report: FitReport
    unused: tuple[UnusedTrack, ...]


def train_separation(
    backbone: Backbone,
    train: Sequence[StemTrack],
    valid: Sequence[StemTrack],
    config: SeparationConfig,
    run_dir: Path,
    *,
    layer: int | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[TrainingProgress], None] | None = None,
) -> TrainedSeparation:
    """Train masks on random mixes of the stems of `train`, by the mean SDR of the stems on `valid`.

    Features are computed anew for every mix, since no mix comes twice. A track that cannot be read is left out and
    reported; one that breaks off while training is replaced by another draw and reported. Killed at any moment, the
    same call goes on from the last checkpoint in `run_dir` and ends with the same bits.

    Args:
        backbone: on `device`; frozen in place.
        layer: which hidden states the masks read; None: a weighted sum of layers 1..L.
        run_dir: checkpoints and log.
        progress: after every step.

    Raises:
        ValueError: no usable track in a split, or what `SeparationModel` and `fit` refuse.
        KeyError: a track without one of the stems.
        DivergedError: the loss is not a number any more.
    """
    model = SeparationModel(
        backbone,
        config.stem_names,
        layer=layer,
        hidden_size=config.hidden_size,
        direction=config.direction,
        generator=torch.Generator().manual_seed(config.seed),
    ).to(device)
    unused: list[UnusedTrack] = []
    least = model.min_seconds  # a song that is only shorter than a mix is followed by silence
    usable = {
        name: readable_tracks(tracks, name, least, unused)
        for name, tracks in (("train", train), ("valid", valid))
    }
    for name, tracks in usable.items():
        if not tracks:
            reasons = "; ".join(f"{u.track_id}: {u.reason}" for u in unused if u.split == name)
            raise ValueError(f"no {name} track can be used. {reasons[:500] or 'There is none.'}")
    batches = RandomMixes(
        usable["train"],
        model.stems,
        config,
        backbone_rate_hz=backbone.sample_rate_hz,
        sample_rate_hz=model.spectrogram.sample_rate_hz,
        segment_seconds=config.segment_seconds,
        unused=unused,
    )

    def step(module: nn.Module, batch: MixBatch, generator: torch.Generator) -> Loss:
        on_device = (x.to(model.device) for x in (batch.waveform, batch.mixture, batch.stems))
        return separation_loss(model, *on_device)

    def validate(module: nn.Module) -> float:
        model.eval()
        found = evaluate_separation(
            model,
            usable["valid"],
            config.filtering,
            evaluation_rates_hz=[config.evaluation_rate_hz],
            max_seconds=config.valid_seconds,
            feature_chunk_seconds=config.feature_chunk_seconds,
            precision=config.precision,
        )
        unused.extend(UnusedTrack(track_id, "valid", reason) for track_id, reason in found.failures)
        failed = {track_id for track_id, _ in found.failures}
        usable["valid"] = [track for track in usable["valid"] if track.track_id not in failed]
        if not found.scores:
            raise ValueError("no validation track can be read to its end")
        return found.mean_sdr_db(model.stems, config.evaluation_rate_hz)

    model.masks.train()
    report = fit(
        model,
        step,
        batches,
        config,
        run_dir,
        validate,
        device=device,
        progress=progress,
        identity=_identity(model, usable["train"], usable["valid"]),
    )
    model.eval()
    reported = tuple(dict.fromkeys(one for held in values_of_all(unused) for one in held))  # of every rank
    return TrainedSeparation(model, report, reported)


def _identity(
    model: SeparationModel, train: Sequence[StemTrack], valid: Sequence[StemTrack]
) -> dict[str, str]:
    """What a run must have in common with the one whose checkpoints it goes on from."""
    lines = [
        f"{split}\t{track.track_id}\t{track.stems.duration_seconds!r}"
        for split, tracks in (("train", train), ("valid", valid))
        for track in tracks
    ]
    return {
        "backbone": model.backbone.name,
        "weights": model.backbone.weights_hash,
        "layers": ", ".join(str(layer) for layer in model.layers),
        "data": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
    }
