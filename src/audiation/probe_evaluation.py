"""Judge a frozen backbone on a task: stored vectors -> the probes of a protocol -> the best answers the test tracks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from audiation.adapted import AdaptedModel, HeadConfig
from audiation.adapted_evaluation import EvaluationProgress, Outcome
from audiation.adapter_files import save_adapter
from audiation.backbones import Backbone
from audiation.cache import cache_dir
from audiation.choices import parse_choices
from audiation.grid import GridFit, GridProgress, train_grid
from audiation.model_cost import cost_line
from audiation.probe import WEIGHTED_SUM, Layer, ProbeConfig, ProbeFit, ProbeSchedule
from audiation.probe_scores import ValidationScorer, track_logits
from audiation.protocols import Protocol
from audiation.results import Trial, current_versions
from audiation.run import Run
from audiation.splits import Split
from audiation.stored_vectors import SplitVectors, extract_features, recommended_layer
from audiation.targets import ONE_OF_SEVERAL, ClipTarget, KeyTarget, clip_target
from audiation.tasks import Task
from audiation.windows import AGGREGATIONS, WINDOW_POLICIES, Aggregation

LARGE_GFLOP = 10_000.0  # for a clip: what it costs is said before it is spent


@dataclass(frozen=True)
class Search:
    """What a run searches of its protocol.

    configs: one per layer and probe, in the order of the protocol.
    layers: that are read, in ascending order.
    departures: how this differs from the protocol, in words.
    """

    configs: tuple[ProbeConfig, ...]
    schedule: ProbeSchedule
    layers: tuple[int, ...]
    departures: tuple[str, ...]


@dataclass(frozen=True)
class _Choices:
    """What `Run.train` may say of a protocol that trains probes; what it does not say is searched as the protocol says.

    layer: a number, or "weighted-sum".
    patience, max_epochs: of the schedule.
    """

    layer: str = ""
    standardise: bool = True
    hidden_size: int | None = None
    batch_size: int = 0
    learning_rate: float = 0.0
    dropout: float = 0.0
    input_dropout: bool = True
    weight_decay: float = 0.0
    patience: int | None = None
    max_epochs: int | None = None


def plan_search(protocol: Protocol, task: str, backbone: Backbone, run: Run) -> Search:
    """The configurations of a run.

    A choice of `run.train` takes the place of what the protocol varies there, and `run.layer` that of the layers it
    searches; unless the protocol is free, that is a departure.

    Raises:
        ValueError: choices that do not exist, or a layer that the backbone does not have.
    """
    given = parse_choices(_Choices, run.train, "train", complete=False)
    departures = [] if protocol.free else _said(given, protocol, task)
    if not protocol.free:
        departures += _unsaid(run, protocol, task, backbone)
    schedule = protocol.schedule_for(task)
    changed = {name: given.pop(name) for name in ("patience", "max_epochs") if name in given}
    if changed:
        schedule = dataclasses.replace(schedule, **changed)
    layers = _searched_layers(protocol, task, backbone, run, given.pop("layer", ""))
    every = protocol.probes_for(task)
    probes = list(dict.fromkeys(dataclasses.replace(p, **given) for p in every))
    if len(probes) < len(every) and not protocol.free:
        departures.append(f"{len(probes)} of {len(every)} configurations")
    configs = tuple(dataclasses.replace(p, layer=layer, seed=run.seed) for layer in layers for p in probes)
    summed = range(1, backbone.num_layers + 1) if WEIGHTED_SUM in layers else ()
    read = sorted({*summed, *(i for i in layers if isinstance(i, int))})
    return Search(configs, schedule, tuple(read), tuple(departures))


def _said(given: Mapping[str, Any], protocol: Protocol, task: str) -> list[str]:
    """Choices of `train` that change something, in words."""
    said = []
    schedule = protocol.schedule_for(task)
    for name, value in given.items():
        if name in ("patience", "max_epochs"):
            if value != getattr(schedule, name):
                said.append(f"{name}={value}")
            continue
        known = {getattr(p, name, None) for p in protocol.probes_for(task)}
        if known == {value}:
            continue
        outside = name != "layer" and value not in known
        said.append(f"{name}={value}" + (", which its grid does not have" if outside else ""))
    return said


def _unsaid(run: Run, protocol: Protocol, task: str, backbone: Backbone) -> list[str]:
    """Choices of the run beside `train` that change what the protocol fixes, in words."""
    said = []
    if run.layer is not None and protocol.layers != "one":
        said.append(f"layer {run.layer} only")
    published = {(b, t): layer for b, t, layer in protocol.task_layers}.get((backbone.name, task))
    if run.layer is not None and published not in (None, run.layer):
        said.append(f"layer {run.layer}, where {published} is published")
    if run.num_layers is not None and protocol.layers != "one":
        said.append(f"layers of the first {run.num_layers} blocks only")
    if run.precision != "fp32":
        said.append(f"precision={run.precision}")
    return said


def _searched_layers(protocol: Protocol, task: str, backbone: Backbone, run: Run, chosen: str) -> list[Layer]:
    """Which layers a run searches. A representation of one vector has nothing to mix: it is probed as it is."""
    every: list[Layer] = list(range(backbone.num_layers + 1))
    if chosen and run.layer is not None:
        raise ValueError(f"the layer is named twice: layer={run.layer}, and '{chosen}' in train")
    if chosen == WEIGHTED_SUM:
        if backbone.num_layers == 0:
            raise ValueError(f"{backbone.name} has one vector per clip, and no layers to mix")
        return ["weighted-sum"]
    if chosen:
        if not chosen.isdecimal():
            raise ValueError(f"layer in train is a number or '{WEIGHTED_SUM}', got '{chosen}'")
        return [backbone.resolve_layers([int(chosen)], None)[1]]
    if run.layer is not None:
        return [backbone.resolve_layers([run.layer], None)[1]]
    if protocol.layers == "one":
        published = {(b, t): layer for b, t, layer in protocol.task_layers}
        return [published.get((backbone.name, task), recommended_layer(run, backbone))]
    if backbone.num_layers == 0:
        return [0]
    single = every if protocol.layers != "weighted-sum" else []
    return [*single, "weighted-sum"] if protocol.layers != "every" else single


def aggregation_rules(protocol: Protocol, task: Task) -> tuple[Aggregation, ...]:
    """The rules, for the windows of a track, that a protocol tries on validation."""
    searched = protocol.search_key_aggregation and isinstance(task.target, KeyTarget)
    return AGGREGATIONS if searched else ("logits_mean",)


def judge_probes(
    backbone: Backbone,
    task: Task,
    protocol: Protocol,
    splits: dict[str, Split],
    split_hash: str,
    run: Run,
    *,
    store_dir: str | Path | None,
    batch_size: int,
    workers: int,
    device: str,
    progress: Callable[[EvaluationProgress], None],
    model_out: Path | None,
) -> Outcome:
    """Extract, train the probes of the protocol on what is stored, answer the test tracks with the best.

    A run that was killed goes on from its last files, which lie in the cache directory until it is done.

    Raises:
        ValueError: choices that do not exist, a split without usable tracks, or a weighted sum that should be written
            as a model.
    """
    assert protocol.pooling == "mean"
    target = clip_target(task.target)
    search = plan_search(protocol, task.name, backbone, run)
    if model_out is not None and any(c.layer == WEIGHTED_SUM for c in search.configs):
        raise ValueError(
            "a model that is written reads one layer, and this run may choose a weighted sum. Name a layer: "
            "--layer 7, or leave model_out out."
        )
    if model_out is not None and (backbone.mixes_batch or backbone.normalisation == "file-peak"):
        raise ValueError(
            f"under the convention '{backbone.convention}' what {backbone.name} hears depends on other clips or on the "
            f"whole file, and a model that is written hears windows by themselves. Leave model_out out, or use another "
            f"protocol than {protocol.name}."
        )
    if line := cost_line(backbone, max(search.layers), LARGE_GFLOP):
        progress(EvaluationProgress("features", detail=line))
    features = extract_features(
        backbone,
        task,
        splits,
        search.layers,
        keep_remainders=protocol.keep_remainders,
        store_dir=store_dir,
        batch_size=batch_size,
        workers=workers,
        progress=lambda p: progress(EvaluationProgress("features", extraction=p)),
    )
    train, valid = features.read(splits["train"]), features.read(splits["valid"])
    for name, vectors in (("train", train), ("valid", valid)):
        _check_usable(vectors, name, task)
    scorer = ValidationScorer(
        target,
        task.metrics[0],
        [task.annotation(t) for t in valid.tracks],
        valid.track_of_window,
        aggregation_rules(protocol, task),
    )
    identity = [
        task.name, backbone.name, backbone.weights_hash, str(features.policy), protocol.keep_remainders, split_hash,
        backbone.precision, current_versions(),
    ]  # fmt: skip
    answers = [str(task.annotation(t)) for t in valid.tracks], valid.track_of_window.tolist()
    key = json.dumps([*identity, repr(search), *answers])
    annotations = [task.annotation(t) for t in train.tracks]
    grid = train_grid(
        search.configs,
        search.schedule,
        target,
        train.vectors,
        [annotations[i] for i in train.track_of_window.tolist()],
        valid.vectors,
        scorer,
        run_dir=cache_dir(
            "runs", hashlib.sha256(json.dumps([*identity, repr(search)]).encode()).hexdigest()[:16]
        ),
        run_key=key,
        device=device,
        progress=lambda p: progress(_shown(p)),
    )
    fit = grid.best
    progress(EvaluationProgress("test", validation_score=fit.best_score, step=fit.best_step))
    rule = scorer.best_rule(fit.predict({i: valid.vectors[i] for i in fit.layers}))
    test = features.read(splits["test"], fit.layers, task.answer_group)
    _check_usable(test, "test", task)
    if model_out is not None:
        model = probed_model(backbone, target, fit, task.clip_seconds, rule)
        save_adapter(model, model_out, info={"task": task.name})
    outputs = track_logits(target, fit.predict(test.vectors), test.track_of_window, rule)
    hours = (features.extract_seconds + grid.train_seconds) / 3600
    beyond = protocol.wall_hours is not None and hours > protocol.wall_hours
    return Outcome(
        resolved={
            **({"layer": fit.config.layer} if protocol.layers == "one" and "layer=" not in run.train else {}),
            "chunk_policy": features.policy,
            "frozen_mode": "eval",
            "aggregation": rule,
            "num_configurations": len(search.configs),
            "features_from_store": features.num_stored,
            **({"beyond_wall_hours": protocol.wall_hours} if beyond else {}),
        },
        test_tracks=test.tracks,
        estimates=tuple(target.decode(row) for row in outputs),
        confidences=_confidences(target, outputs),
        failures={"train": train.failures, "valid": valid.failures, "test": test.failures},
        num_parameters=fit.num_parameters,
        train_seconds=grid.train_seconds,
        extract_seconds=features.extract_seconds,
        best_step=fit.kept_step,
        chosen=_choices(fit.config, search.schedule),
        trials=_trials(grid),
        curve=tuple((e.step, e.score) for e in fit.history if e.score > float("-inf")),
        departures=search.departures,
    )


def _shown(progress: GridProgress) -> EvaluationProgress:
    return EvaluationProgress(
        "probe", validation_score=progress.best_score, step=progress.step, grid=progress
    )


def _check_usable(vectors: SplitVectors, name: str, task: Task, most: int = 3) -> None:
    if vectors.tracks:
        return
    reasons = [f"{track_id}: {reason}" for track_id, reason in vectors.failures]
    shown = "; ".join(reasons[:most]) or "the split is empty"
    more = f"; and {len(reasons) - most} more" if len(reasons) > most else ""
    raise ValueError(f"no {name} track of {task.name} could be used: {shown}{more}")


def _choices(config: ProbeConfig, schedule: ProbeSchedule | None = None) -> dict[str, Any]:
    """What a trial was, for the record; a layer is a text, because a weighted sum has no number."""
    choices = {k: v for k, v in dataclasses.asdict(config).items() if k != "seed"} | {
        "layer": str(config.layer)
    }
    return choices if schedule is None else choices | {"keep": schedule.keep}


def _trials(grid: GridFit) -> tuple[Trial, ...]:
    """Those that had a score."""
    return tuple(
        Trial(_choices(t.config), t.best_score, t.best_step, t.last_step)
        for t in grid.trials
        if t.best_score > float("-inf")
    )


def _confidences(target: ClipTarget, outputs: torch.Tensor) -> tuple[float, ...] | None:
    """Probability of each track's answer, where it is one of several; `(T, C)` outputs."""
    if not isinstance(target, ONE_OF_SEVERAL):
        return None
    return tuple(outputs.double().softmax(-1).amax(-1).tolist())


def probed_model(
    backbone: Backbone,
    target: ClipTarget,
    fit: ProbeFit,
    clip_seconds: float | None,
    rule: Aggregation,
) -> AdaptedModel:
    """The backbone with a trained probe as its head; what standardises the vectors is folded into the first map."""
    config, (layer,), (standardiser,) = fit.config, fit.layers, fit.standardisers
    model = AdaptedModel(
        backbone,
        target,
        layer=layer,
        head=HeadConfig(config.hidden_size is not None, config.dropout, config.hidden_size),
        crop_seconds=clip_seconds,
        policy=next(p for p in WINDOW_POLICIES.values() if p.remainder == "drop" and p.aggregation == rule),
    )
    state = dict(fit.state)
    first = "output" if config.hidden_size is None else "hidden"
    weight = state[f"{first}.weight"] / standardiser.scale
    state[f"{first}.bias"] = state[f"{first}.bias"] - weight @ standardiser.mean
    state[f"{first}.weight"] = weight
    model.head.load_state_dict(state)
    return model.eval()
