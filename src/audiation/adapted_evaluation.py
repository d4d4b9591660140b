"""Judge an adapted backbone on a task: train it by a protocol, then ask it about every test track."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from audiation.adaptation import AdaptConfig, train_adaptation
from audiation.adapted import AdaptedModel, answer_track
from audiation.adapter_files import save_adapter
from audiation.audio import AudioError
from audiation.backbones import Backbone
from audiation.cache import cache_dir
from audiation.choices import parse_choices
from audiation.datasets import Track
from audiation.extraction import ExtractProgress
from audiation.grid import GridProgress
from audiation.methods import format_method
from audiation.protocols import AdaptProtocol
from audiation.results import Trial, current_versions
from audiation.splits import Split
from audiation.targets import ONE_OF_SEVERAL, clip_target
from audiation.tasks import Task
from audiation.track_windows import Example
from audiation.training import TrainingProgress


@dataclass(frozen=True)
class EvaluationProgress:
    """What `evaluate` is doing, for people.

    extraction: set while features are made; training: while a model is adapted; the others while a probe is trained.
    detail: what is worth a line of its own, once.
    grid: set while probes are trained.
    """

    stage: Literal["data", "features", "probe", "training", "test"]
    extraction: ExtractProgress | None = None
    training: TrainingProgress | None = None
    detail: str = ""
    validation_score: float | None = None
    step: int = 0
    grid: GridProgress | None = None


@dataclass(frozen=True)
class Outcome:
    """What a protocol made of a run, before it is scored.

    resolved: what the choices of the run came to, for the record.
    estimates: one per test track.
    failures: split -> (track id, reason) of recordings that could not be used.
    num_parameters: trained ones, head included.
    confidences: probability of each estimate, where it is one class out of several.
    chosen, trials, curve, departures: as in `results.Result`.
    """

    resolved: dict[str, Any]
    test_tracks: tuple[Track, ...]
    estimates: tuple[Any, ...]
    failures: Mapping[str, tuple[tuple[str, str], ...]]
    num_parameters: int
    train_seconds: float
    best_step: int
    confidences: tuple[float, ...] | None = None
    extract_seconds: float = 0.0
    chosen: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    curve: tuple[tuple[int, float], ...] = ()
    departures: tuple[str, ...] = ()


def judge_adapted(
    backbone: Backbone,
    task: Task,
    protocol: AdaptProtocol,
    splits: Mapping[str, Split],
    split_hash: str,
    *,
    train: str,
    layer: int | None,
    seed: int,
    device: str,
    progress: Callable[[EvaluationProgress], None],
    model_out: Path | None = None,
) -> Outcome:
    """Train what was injected into `backbone`, and answer the test tracks.

    model_out: directory to write the trained model into (`adapter_files.save_adapter`).
    train: choices that depart from the protocol, "field=value,field=value" of `AdaptConfig`.

    A run that was killed goes on from its last checkpoint, which lies in the cache directory until it is done.

    Raises:
        ValueError: a split without usable tracks, or choices that do not exist.
    """
    examples = {
        name: [Example(t.track_id, t.audio_path, task.annotation(t), t.span_seconds) for t in split.tracks]
        for name, split in splits.items()
    }
    config = protocol.config(
        backbone.adapted_with, backbone.name, backbone.max_seconds, task.name, len(examples["train"]), seed,
        clip_seconds=task.clip_seconds if task.target.per_frame or protocol.task_windows else None,
    )  # fmt: skip
    config = with_choices(config, train, "train")
    key = json.dumps(
        [
            task.name,
            backbone.name,
            backbone.weights_hash,
            format_method(backbone.adapted_with),
            layer,
            dataclasses.asdict(config),
            split_hash,
            current_versions(),
        ]
    )
    run_dir = cache_dir("runs", hashlib.sha256(key.encode()).hexdigest()[:16])
    adaptation = train_adaptation(
        backbone,
        task.target,
        examples["train"],
        examples["valid"],
        task.metrics[0],
        config,
        run_dir,
        layer=layer,
        device=device,
        progress=lambda p: progress(EvaluationProgress("training", training=p)),
        on_ready=lambda sentence, _: progress(EvaluationProgress("training", detail=sentence)),
    )
    progress(EvaluationProgress("test"))
    model = adaptation.model
    groups = None
    if task.answer_group is not None:
        groups = {t.track_id: task.answer_group(t) for t in splits["test"].tracks}
    answers = answer_examples(model, examples["test"], config.precision, groups)
    if not answers.estimates:
        raise ValueError(f"no test track of {task.name} could be used: {answers.failures[:3]}")
    report = adaptation.report
    assert report.best_step is not None
    if model_out is not None:
        moved = config.frozen_mode == "published"
        save_adapter(model, model_out, info={"task": task.name}, moved_statistics=moved)
    shutil.rmtree(run_dir, ignore_errors=True)  # the same run again computes again
    failures = {
        name: tuple((u.track_id, u.reason) for u in adaptation.unused if u.split == name)
        for name in ("train", "valid")
    }
    return Outcome(
        resolved={
            "layer": adaptation.model.layer,
            "frozen_mode": config.frozen_mode,
            "windows": dataclasses.asdict(model.policy) | {"window_seconds": model.crop_seconds},
            "caching": adaptation.caching,
            "config": dataclasses.asdict(config),
        },
        test_tracks=tuple(t for t in splits["test"].tracks if t.track_id in answers.estimates),
        estimates=tuple(answers.estimates.values()),
        failures=failures | {"test": answers.failures},
        num_parameters=sum(p.numel() for p in adaptation.model.parameters() if p.requires_grad),
        train_seconds=report.train_seconds,
        best_step=report.best_step,
        confidences=answers.confidences,
        chosen={"layer": str(adaptation.model.layer), "learning_rate": config.learning_rate},
        curve=tuple((v.step, v.score) for v in report.history),
        departures=() if protocol.free else tuple(filter(None, train.split(","))),
    )


def with_choices(config: AdaptConfig, choices: str, what: str) -> AdaptConfig:
    """`config` with the fields that "field=value,field=value" names. ValueError for others."""
    return dataclasses.replace(config, **parse_choices(AdaptConfig, choices, what, complete=False))


@dataclass(frozen=True)
class Answers:
    """estimates: track id -> annotation, in order. failures: (track id, reason).

    confidences: of each estimate, where it is one class out of several.
    """

    estimates: dict[str, Any]
    failures: tuple[tuple[str, str], ...]
    confidences: tuple[float, ...] | None = None


def answer_examples(
    model: AdaptedModel, examples: list[Example], precision: str, groups: Mapping[str, str] | None = None
) -> Answers:
    """Ask a model about every recording; one that cannot be read is a failure.

    groups: track id -> group; the windows of a group are combined, and it has one estimate, of its first recording.
    """
    estimates: dict[str, Any] = {}
    confidences: dict[str, float] = {}
    failures: list[tuple[str, str]] = []
    windows: dict[str, list[Tensor]] = {}
    first: dict[str, str] = {}
    for example in examples:
        try:
            answer = answer_track(model, example.path, precision=precision, span_seconds=example.span_seconds)
            group = example.track_id if groups is None else groups[example.track_id]
            windows.setdefault(group, []).extend(() if groups is None else answer.window_logits)
            if first.setdefault(group, example.track_id) == example.track_id:
                estimates[example.track_id] = answer.annotation
                together = answer.logits
            else:
                together = clip_target(model.target).combine(
                    torch.stack(windows[group]), model.policy.aggregation
                )
                estimates[first[group]] = model.target.decode(together)
            if isinstance(model.target, ONE_OF_SEVERAL):
                confidences[first[group]] = float(together.double().softmax(-1).max())
        except AudioError as error:
            failures.append((example.track_id, str(error)))
    return Answers(estimates, tuple(failures), tuple(confidences.values()) if confidences else None)
