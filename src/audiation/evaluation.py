"""One run from end to end: tracks -> stored features -> probe -> answers -> scores with intervals.

A `Run` is a value that says everything that decides a number. Machine facts (where data and features lie, device,
workers) are arguments of `evaluate`, never part of a run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from audiation.adapted_evaluation import EvaluationProgress, judge_adapted
from audiation.adapter_files import check_place
from audiation.annotations import Tags
from audiation.bootstrap import Interval, bootstrap_interval
from audiation.methods import inject, parse_method
from audiation.metrics import undefined_tags
from audiation.own_backbones import recorded_file
from audiation.probe import check_classes
from audiation.probe_evaluation import judge_probes
from audiation.protocols import PROTOCOLS, AdaptProtocol, AnyProtocol, Protocol, SeparationProtocol
from audiation.provenance import current_hardware
from audiation.results import Failure, Prediction, Result
from audiation.run import Run
from audiation.separation_evaluation import judge_separation
from audiation.splits import load_splits
from audiation.stored_vectors import load_for_run
from audiation.tasks import TASKS, Task


def evaluate(
    run: Run,
    *,
    data_root: str | Path | None = None,
    metadata_root: str | Path | None = None,
    store_dir: str | Path | None = None,
    model_out: str | Path | None = None,
    device: str = "cpu",
    batch_size: int = 8,
    workers: int = 0,
    progress: Callable[[EvaluationProgress], None] | None = None,
) -> Result:
    """Carry out a run.

    Args:
        data_root: folder that holds one folder per data set; default `$AUDIATION_DATA_ROOT`. `scores` lies in the
            cache directory unless it is found there.
        metadata_root: folder with official split and annotation files; default `$AUDIATION_METADATA_ROOT`.
        store_dir: where features are kept and found again; default: in the cache directory.
        model_out: directory to write the trained model into, for `own_audio.predict`.
        device, batch_size, workers: as in `extract`.
        progress: called now and then, and at every look at the validation split.

    Raises:
        UnknownNameError: a name in the run that nothing has.
        FileNotFoundError: a data set that is not where it was looked for.
        ValueError: a split without usable tracks, a class that the training split lacks, choices of the run that
            the backbone does not have.
    """
    report = progress or (lambda _: None)
    model_place = None if model_out is None else Path(model_out)
    if model_place is not None:
        check_place(model_place)
        if run.task in TASKS and TASKS[run.task].task_type == "separation":
            raise ValueError(
                "masks of source separation cannot be written as a model yet; leave model_out out"
            )
    task, protocol, method = TASKS[run.task], PROTOCOLS[run.protocol], parse_method(run.method)
    _check_choices(run, protocol, method)
    _check_task(task, protocol)
    report(EvaluationProgress("data"))
    splits, split_hash = load_splits(task, data_root, metadata_root)
    if splits["train"].tracks and not task.target.per_frame:  # before anything is computed in vain
        check_classes(task.target, [task.annotation(t) for t in splits["train"].tracks])
    backbone = load_for_run(run, device)
    parameters = inject(backbone, method, torch.Generator().manual_seed(run.seed))
    trunk_hash, trunk_source = backbone.weights_hash, backbone.weights_source
    if isinstance(protocol, SeparationProtocol):
        outcome = judge_separation(
            backbone, task, protocol, splits, split_hash, train=run.train, layer=run.layer, seed=run.seed,
            device=device, progress=report,
        )  # fmt: skip
    elif isinstance(protocol, AdaptProtocol):
        outcome = judge_adapted(
            backbone, task, protocol, splits, split_hash, train=run.train, layer=run.layer, seed=run.seed,
            device=device, progress=report, model_out=model_place,
        )  # fmt: skip
    else:
        outcome = judge_probes(
            backbone, task, protocol, splits, split_hash, run, store_dir=store_dir, batch_size=batch_size,
            workers=workers, device=device, progress=report, model_out=model_place,
        )  # fmt: skip
    num_official = splits["test"].num_official
    if task.answer_group is not None:  # one answer for all parts of a recording
        num_official = len(outcome.test_tracks) + len(splits["test"].left_out) + len(outcome.failures["test"])
    references = [task.annotation(t) for t in outcome.test_tracks]
    confidences = outcome.confidences or (None,) * len(references)
    pairs = references, outcome.estimates
    scored: dict[str, tuple[float, Interval | None]] = {}
    not_defined: dict[str, str] = {}
    for place, metric in enumerate(task.metrics):
        try:
            score = metric.compute(*pairs)
        except ValueError as error:  # of these tracks; the run is not lost for a metric beside the first
            if place == 0:
                raise
            not_defined[metric.name] = str(error)
            continue
        try:
            scored[metric.name] = score, bootstrap_interval(metric, *pairs, seed=run.seed)
        except ValueError as error:
            scored[metric.name] = score, None
            not_defined[f"interval of {metric.name}"] = str(error)
    return Result(
        run=dataclasses.asdict(run)
        | outcome.resolved
        | {
            "weights_hash": trunk_hash,
            "weights_source": trunk_source,
            **recorded_file(run.backbone),
            "protocol_version": protocol.version,
            "metrics": [m.versioned_name for m in task.metrics],
            "method_parameters": parameters.trainable,
            **_undefined(references),
            **({"not_defined": not_defined} if not_defined else {}),
        },
        scores={name: score for name, (score, _) in scored.items()},
        intervals={name: interval for name, (_, interval) in scored.items()},
        num_test_tracks=len(outcome.test_tracks),
        num_official_test_tracks=num_official,
        split_hash=split_hash,
        failures=tuple(
            Failure(track_id, why, name)
            for name, split in splits.items()
            for track_id, why in (*split.left_out, *outcome.failures[name])
        ),
        predictions=tuple(
            Prediction(t.track_id, str(r), str(e), c)
            for t, r, e, c in zip(outcome.test_tracks, *pairs, confidences, strict=True)
        ),
        num_parameters=outcome.num_parameters,
        train_seconds=outcome.train_seconds,
        best_step=outcome.best_step,
        chosen=dict(outcome.chosen),
        trials=outcome.trials,
        curve=outcome.curve,
        departures=outcome.departures,
        extract_seconds=outcome.extract_seconds,
        hardware=current_hardware(device),
    )


def default_protocol(task: str, method: str) -> str:
    """The protocol that is used if nobody names one."""
    asked = TASKS[task]
    if asked.task_type == "separation":
        return "marble-v1-separation"
    if parse_method(method).trains_backbone:
        return "petl"
    return "musicfm" if asked.target.per_frame else "jukemir-single"


def _undefined(references: list[Any]) -> dict[str, list[str]]:
    """Tags of the test split without a positive or a negative, which a macro average skips or counts as 0."""
    if not all(isinstance(r, Tags) for r in references):
        return {}
    return {
        f"tags_with_{why.replace(' ', '_')}": list(tags) for why, tags in undefined_tags(references).items()
    }


def _check_task(task: Task, protocol: AnyProtocol) -> None:
    """ValueError for a question that a protocol has no answer to."""
    if (task.task_type == "separation") != isinstance(protocol, SeparationProtocol):
        able = ", ".join(
            name
            for name in PROTOCOLS
            if isinstance(PROTOCOLS[name], SeparationProtocol) == (task.task_type == "separation")
        )
        raise ValueError(
            f"protocol '{protocol.name}' cannot be asked '{task.name}', whose answers are of another sort. Use one of: "
            f"{able}."
        )
    if isinstance(protocol, Protocol) and task.target.per_frame:
        able = ", ".join(name for name in PROTOCOLS if isinstance(PROTOCOLS[name], AdaptProtocol))
        raise ValueError(
            f"protocol '{protocol.name}' probes one vector per window, and task '{task.name}' asks about every frame. "
            f"Use a protocol that trains on frames: {able}."
        )


def _check_choices(run: Run, protocol: AnyProtocol, method: Any) -> None:
    """ValueError for choices of a run that its protocol has no place for."""
    if isinstance(protocol, AdaptProtocol | SeparationProtocol):
        return
    if method.trains_backbone:
        able = ", ".join(name for name in PROTOCOLS if isinstance(PROTOCOLS[name], AdaptProtocol))
        raise ValueError(
            f"protocol '{run.protocol}' trains probes on stored features, and method '{run.method}' changes the "
            f"features. Use method 'probe', or a protocol that adapts: {able}."
        )
