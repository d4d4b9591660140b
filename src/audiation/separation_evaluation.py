"""Judge a frozen backbone on source separation: train masks by a protocol, then score every test track."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from audiation.adapted_evaluation import EvaluationProgress, Outcome
from audiation.backbones import Backbone
from audiation.cache import cache_dir
from audiation.choices import parse_choices
from audiation.methods import format_method
from audiation.metrics_separation import STEMS
from audiation.protocols import SeparationProtocol
from audiation.results import current_versions
from audiation.separation_scoring import evaluate_separation
from audiation.separation_training import SeparationConfig, train_separation
from audiation.splits import Split
from audiation.tasks import Task


def judge_separation(
    backbone: Backbone,
    task: Task,
    protocol: SeparationProtocol,
    splits: Mapping[str, Split],
    split_hash: str,
    *,
    train: str,
    layer: int | None,
    seed: int,
    device: str,
    progress: Callable[[EvaluationProgress], None],
) -> Outcome:
    """Train masks on the frozen backbone, and score the test tracks at both rates (D27).

    The estimates of the outcome are `StemScores`; the references of the task are `StemNames`.

    Args:
        splits: of tracks with stems (`separation_sources.StemTrack`).
        train: choices that depart from the protocol, "field=value,field=value" of `SeparationConfig`.
        layer: which hidden states the masks read; None: a weighted sum.

    A run that was killed goes on from its last checkpoint, which lies in the cache directory until it is done.

    Raises:
        ValueError: a split without usable tracks, choices that do not exist, or a method that changes the backbone.
    """
    config = protocol.config(len(splits["train"].tracks), seed)
    config = dataclasses.replace(config, **parse_choices(SeparationConfig, train, "train", complete=False))
    if missing := [stem for stem in STEMS if stem not in config.stem_names]:
        raise ValueError(
            f"a result of {task.name} has all four stems, and train='{train}' leaves out {', '.join(missing)}. Use "
            "train_separation for single stems."
        )
    key = json.dumps(
        [
            task.name,
            protocol.name,
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
    tracks: dict[str, tuple[Any, ...]] = {name: split.tracks for name, split in splits.items()}
    trained = train_separation(
        backbone,
        tracks["train"],
        tracks["valid"],
        config,
        run_dir,
        layer=layer,
        device=device,
        progress=lambda p: progress(EvaluationProgress("training", training=p)),
    )
    report = trained.report
    assert report.best_step is not None
    progress(EvaluationProgress("test", validation_score=report.best_score, step=report.best_step))
    found = evaluate_separation(
        trained.model,
        tracks["test"],
        config.filtering,
        feature_chunk_seconds=config.feature_chunk_seconds,
        precision=config.precision,
    )
    if not found.scores:
        raise ValueError(f"no test track of {task.name} could be used: {found.failures[:3]}")
    shutil.rmtree(run_dir, ignore_errors=True)  # the same run again computes again
    failures = {
        name: tuple((u.track_id, u.reason) for u in trained.unused if u.split == name)
        for name in ("train", "valid")
    }
    return Outcome(
        resolved={
            "layer": layer,  # None: a weighted sum of `layers`
            "layers": trained.model.layers,
            "frozen_mode": "eval",
            "filtering": dataclasses.asdict(config.filtering),
            "feature_chunk_seconds": config.feature_chunk_seconds,
            "lstm_state": "carried" if config.direction == "forward" else "restarted",
            "config": dataclasses.asdict(config),
        },
        test_tracks=tuple(t for t in splits["test"].tracks if t.track_id in found.scores),
        estimates=tuple(found.scores.values()),
        failures=failures | {"test": found.failures},
        num_parameters=sum(p.numel() for p in trained.model.parameters() if p.requires_grad),
        train_seconds=report.train_seconds,
        best_step=report.best_step,
        chosen={
            "layer": str(layer) if layer is not None else "weighted-sum",
            "learning_rate": config.learning_rate,
        },
        curve=tuple((v.step, v.score) for v in report.history),
        departures=tuple(filter(None, train.split(","))),
    )
