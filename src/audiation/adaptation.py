"""Train a method and a head on labelled recordings: windows of tracks -> `fit` -> an `AdaptedModel`.

Shape letters: `B` windows, `S` samples, `T` frames, `D` model width, `C` outputs.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from audiation.adapted import AdaptedModel, HeadConfig, combine_windows
from audiation.audio import AudioError
from audiation.augmentation import Augmentation, petl_copies
from audiation.backbones import Backbone
from audiation.cache import cache_dir
from audiation.distributed import first_rank_first, values_of_all
from audiation.methods import FrozenMode, format_method, set_modes
from audiation.metrics import Metric
from audiation.output_cache import Crops, OutputCache, cache_plan
from audiation.targets import ClipContext, Target
from audiation.track_windows import (
    Example,
    MicroBatch,
    Recording,
    Unused,
    WindowBatches,
    augmented_examples,
    load_windows,
    readable_recordings,
)
from audiation.training import FitReport, Loss, TrainConfig, TrainingProgress, fit
from audiation.windows import window_policy

GIB = 1 << 30
Augment = Literal["none", "pitch_shift", "time_stretch"]


@dataclass(frozen=True)
class AdaptConfig(TrainConfig):
    """How a backbone is adapted: what `fit` needs, and how windows, modes and the head are chosen.

    crops: where in a track the window of an example lies. "fixed": one of the windows that follow one another from
        its beginning, drawn anew every epoch; the frozen part can be paid for once. "random": anywhere, as in the
        PETL protocol for clips longer than a window.
    crop_seconds: length of a window; None: what the backbone was trained on. A shorter track is a window of its
        own length.
    frozen_mode, backbone_dropout: see `methods.set_modes`.
    head_hidden, head_dropout, head_size: see `adapted.HeadConfig`.
    gradient_checkpointing: keep only what enters each block and run it again for the gradient: less memory, about
        a third more time.
    cache_gib: memory for the outputs of what is frozen; 0: none are kept.
    cache_disk_gib: room for them on disk, where a folder is given.
    augment: "pitch_shift": every training recording eight times more, moved by -4 to 4 semitones; "time_stretch": four
        times more, at 0.95 to 1.05 of its speed; annotations move along (PETL; `augmentation.petl_copies`). "none".
        Validation recordings stay as they are.
    windows: how tracks are cut and windows combined for their answer, a name of `windows.WINDOW_POLICIES`; "":
        `adapted.default_policy`.
    """

    crops: Crops = "fixed"
    crop_seconds: float | None = None
    frozen_mode: FrozenMode = "eval"
    backbone_dropout: bool | None = None
    head_hidden: bool = True
    head_dropout: float = 0.5
    head_size: int | None = None
    gradient_checkpointing: bool = False
    cache_gib: float = 2.0
    cache_disk_gib: float = 32.0
    augment: Augment = "none"
    windows: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crops not in ("random", "fixed"):
            raise ValueError(f"crops is 'random' or 'fixed', got {self.crops!r}")
        if self.frozen_mode not in ("eval", "published"):
            raise ValueError(f"frozen_mode is 'eval' or 'published', got {self.frozen_mode!r}")
        if self.crop_seconds is not None and not 0 < self.crop_seconds < float("inf"):
            raise ValueError(f"crop_seconds must be positive, or None, got {self.crop_seconds}")
        if self.augment not in get_args(Augment):
            raise ValueError(f"augment is 'pitch_shift', 'time_stretch' or 'none', got {self.augment!r}")
        if self.windows:
            window_policy(self.windows)
        if self.head_size is not None and (type(self.head_size) is not int or self.head_size < 1):
            raise ValueError(
                f"head_size is a whole number >= 1, or None for the width of the features, got {self.head_size}"
            )
        if not 0 <= self.head_dropout < 1:
            raise ValueError(f"head_dropout is a probability in [0, 1), got {self.head_dropout}")
        for name, value in (("cache_gib", self.cache_gib), ("cache_disk_gib", self.cache_disk_gib)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a finite number >= 0, got {value}")


@dataclass(frozen=True, eq=False)
class Adaptation:
    """A trained model, in eval mode, and how it came about.

    caching: one sentence: what of the frozen part was kept, or why nothing.
    unused: recordings of both splits that could not be read.
    cache_hits, cache_misses: windows for which the frozen part was at hand, and those for which it was computed.
    """

    model: AdaptedModel
    report: FitReport
    caching: str
    unused: tuple[Unused, ...]
    cache_hits: int = 0
    cache_misses: int = 0


def train_adaptation(
    backbone: Backbone,
    target: Target,
    train: Sequence[Example],
    valid: Sequence[Example],
    metric: Metric,
    config: AdaptConfig,
    run_dir: Path,
    *,
    layer: int | None = None,
    cache_directory: Path | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[TrainingProgress], None] | None = None,
    on_ready: Callable[[str, tuple[Unused, ...]], None] | None = None,
) -> Adaptation:
    """Train what `methods.inject` put into the backbone, and a head, by the validation score of `metric`.

    A recording that cannot be read is left out and reported. One that breaks off while training (a damaged MP3)
    is replaced by another of the same epoch and reported. Killed at any moment, the same call goes on from the last
    checkpoint in `run_dir` and ends with the same bits.

    Args:
        backbone: adapted (`adapted_with` is set), on `device`.
        layer: which hidden states the head reads; None: the last.
        run_dir: checkpoints and log.
        cache_directory: keep the outputs of what is frozen there as well, for runs to come. None: in memory.
        progress: after every step.
        on_ready: before the first step, with the sentence about the cache and the recordings that cannot be read.

    Raises:
        ValueError: no method injected, no usable recording in a split, or what `fit` refuses.
        DivergedError: the loss is not a number any more.
    """
    if backbone.adapted_with is None:
        raise ValueError(f"{backbone.name} is not adapted: `audiation.inject(backbone, method)` comes first")
    generator = torch.Generator().manual_seed(config.seed)
    crop_seconds = backbone.max_seconds if config.crop_seconds is None else config.crop_seconds
    head = HeadConfig(config.head_hidden, config.head_dropout, config.head_size)
    model = AdaptedModel(
        backbone,
        target,
        layer=layer,
        head=head,
        crop_seconds=crop_seconds,
        policy=window_policy(config.windows) if config.windows else None,
        generator=generator,
    ).to(device)
    if backbone.encoder is not None:
        backbone.encoder.recompute_blocks = config.gradient_checkpointing

    unused: list[Unused] = []
    if copies := copies_of(config.augment):
        place = cache_dir("augmented")  # named after their content, so that every run finds them
        if on_ready is not None:
            on_ready(f"{len(train) * len(copies)} augmented copies are made in {place}, once", ())
        # One rank makes them, the others find them.
        with first_rank_first():
            train = augmented_examples(train, copies, place, backbone.sample_rate_hz, target, unused)
    usable_train = readable_recordings(model, train, "train", unused)
    usable_valid = readable_recordings(model, valid, "valid", unused)
    for name, usable, given in (("train", usable_train, train), ("valid", usable_valid, valid)):
        if not usable:
            reasons = "; ".join(f"{u.track_id}: {u.reason}" for u in unused if u.split == name)
            raise ValueError(f"none of the {len(given)} {name} recordings can be used. {reasons[:500]}")

    _check_metric(metric, usable_valid)

    plan = cache_plan(
        backbone,
        layer=model.layer,
        frames=model.frames,
        crops=config.crops if any(r.is_longer_than_a_window for r in usable_train) else "fixed",
        frozen_mode=config.frozen_mode,
        dropout=config.backbone_dropout,
        precision=config.precision,
        max_bytes=int(config.cache_gib * GIB),
        directory=cache_directory,
        max_disk_bytes=int(config.cache_disk_gib * GIB),
        recordings=list({r.content: r.file_samples for r in usable_train}.items()),
    )
    if on_ready is not None:
        on_ready(plan.sentence, tuple(unused))
    batches = WindowBatches(usable_train, model, config, config.crops, plan, unused)
    validation = _Validation(usable_valid, model, metric, config, plan.cache, unused)

    def step(module: nn.Module, batch: MicroBatch, generator: torch.Generator) -> Loss:
        inputs, stage = batch.inputs(batches.cache, model.device)
        logits = module(inputs, stage)
        valid = None if batch.valid is None else batch.valid.to(logits.device)
        return target.loss(logits.float(), batch.targets.to(logits.device), valid)

    set_modes(backbone, config.frozen_mode, config.backbone_dropout)
    model.head.train()
    try:
        report = fit(
            model,
            step,
            batches,
            config,
            run_dir,
            validation.score,
            device=device,
            progress=progress,
            identity=_identity(model, usable_train, usable_valid, metric),
        )
    finally:
        if plan.cache is not None:
            plan.cache.close()
    model.eval()
    unused = list(dict.fromkeys(one for held in values_of_all(unused) for one in held))  # of every rank
    stats = plan.cache.stats if plan.cache is not None else None
    return Adaptation(
        model,
        report,
        plan.sentence,
        tuple(unused),
        cache_hits=stats.hits if stats else 0,
        cache_misses=stats.misses if stats else 0,
    )


def copies_of(augment: Augment) -> tuple[Augmentation, ...]:
    """The augmented copies of each training recording."""
    return petl_copies("key" if augment == "pitch_shift" else "tempo") if augment != "none" else ()


def epoch_steps(num_tracks: int, batch_size: int) -> int:
    """Optimiser steps in which every track is used once, the last batch reaching into the next epoch."""
    return max(1, -(-num_tracks // batch_size))


# Validation ----------------------------------------------------------------------------------------------


class _Validation:
    """The score on the validation split: the windows of every track, as in the test."""

    def __init__(
        self,
        recordings: list[Recording],
        model: AdaptedModel,
        metric: Metric,
        config: AdaptConfig,
        cache: OutputCache | None,
        unused: list[Unused],
    ) -> None:
        self.recordings, self.model, self.metric, self.config = recordings, model, metric, config
        self.cache, self._unused = cache, unused

    @torch.no_grad()
    def score(self, module: nn.Module) -> float:
        self.model.eval()
        references, estimates, broken = [], [], []
        for recording in self.recordings:
            try:
                estimate = self._answer(recording)
            except AudioError as error:
                broken.append(recording)
                self._unused.append(Unused(recording.example.track_id, "valid", str(error)))
                continue
            references.append(recording.example.annotation)
            estimates.append(estimate)
        self.recordings = [r for r in self.recordings if r not in broken]
        if not references:
            raise ValueError("no validation recording can be read to its end")
        value = self.metric.compute(references, estimates)
        return value if self.metric.higher_is_better else -value

    def _answer(self, recording: Recording) -> Any:
        windows = recording.windows(self.model.policy)
        size = self.config.micro_batch_size or self.config.batch_size
        outputs: list[Tensor] = []
        for _, group in itertools.groupby(windows, key=lambda window: window.num_samples + window.num_zeros):
            clips = [recording.clip(window) for window in group]
            for start in range(0, len(clips), size):
                loaded = load_windows(
                    clips[start : start + size], self.cache, self.model.backbone.sample_rate_hz
                )
                batch = MicroBatch((loaded,), torch.empty(0), ())
                inputs, stage = batch.inputs(self.cache, self.model.device)
                with torch.autocast(
                    self.model.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"
                ):
                    outputs += self.model(inputs, stage).float().cpu().unbind()
        logits, grid = combine_windows(self.model, windows, outputs)
        return self.model.target.decode(logits, ClipContext(grid))


def _check_metric(metric: Metric, recordings: Sequence[Recording]) -> None:
    """That the score is defined for this validation split, before anything is trained by it."""
    references = [r.example.annotation for r in recordings]
    try:
        metric.compute(references, references)
    except ValueError as error:
        raise ValueError(
            f"{metric.name} is not defined on these {len(recordings)} validation recordings: {error}. Give the "
            "validation split more of them."
        ) from error


def _identity(
    model: AdaptedModel, train: Sequence[Recording], valid: Sequence[Recording], metric: Metric
) -> dict[str, str]:
    """What a run must have in common with the one whose checkpoints it goes on from."""
    lines = []
    for split, recordings in (("train", train), ("valid", valid)):
        for r in recordings:
            target = r.target
            if target is None:
                target = model.target.encode(r.example.annotation, model.frame_grid(r.num_samples))
            encoded = hashlib.sha256(target.numpy().tobytes()).hexdigest()
            lines.append(f"{split}\t{r.content}\t{r.first_sample}\t{r.num_samples}\t{encoded}")
    backbone = model.backbone
    return {
        "backbone": backbone.name,
        "weights": backbone.weights_hash,
        "method": format_method(backbone.adapted_with),
        "layer": str(model.layer),
        "metric": metric.versioned_name,
        "data": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
    }
