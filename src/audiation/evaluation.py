"""One run from end to end: tracks -> stored features -> probe -> answers -> scores with intervals.

A `Run` is a value that says everything that decides a number. Machine facts (where data and features lie, device,
workers) are arguments of `evaluate`, never part of a run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from audiation.adapted import AdaptedModel, HeadConfig
from audiation.adapted_evaluation import EvaluationProgress, Outcome, judge_adapted
from audiation.adapter_files import check_place, save_adapter
from audiation.annotations import Tags
from audiation.audio import AudioError, content_hash
from audiation.backbones import BACKBONES, Backbone, BackboneSpec
from audiation.bootstrap import Interval, bootstrap_interval
from audiation.cache import cache_dir
from audiation.datasets import Track
from audiation.extraction import extract
from audiation.loading import load_backbone
from audiation.methods import inject, parse_method
from audiation.metrics import Metric, undefined_tags
from audiation.probe import ProbeConfig, ProbeFit, check_classes, mean_per_track, train_probe
from audiation.protocols import PROTOCOLS, AdaptProtocol, AnyProtocol, Protocol, SeparationProtocol
from audiation.results import Failure, Prediction, Result
from audiation.separation_evaluation import judge_separation
from audiation.splits import Split, load_splits
from audiation.store import FeatureStore
from audiation.targets import ClipTarget, KeyTarget, clip_target
from audiation.tasks import TASKS, Task
from audiation.windows import AGGREGATIONS, WINDOW_POLICIES, Aggregation


@dataclass(frozen=True)
class Run:
    """What to evaluate. Written beside every result; `audiation evaluate --run` repeats it.

    weights: None for the official ones, "random", or a file, directory or Hub id.
    num_layers: cut the backbone to its first blocks; None: all.
    layer: the layer that is probed; None: the model's recommended one, else the last. Adapted models: the last.
    train: choices of the training that depart from the protocol, as "field=value,field=value" of
        `adaptation.AdaptConfig`; "" for none.
    seed: of random weights, the probe and the bootstrap.
    """

    backbone: str
    task: str
    method: str = "probe"
    protocol: str = "jukemir-single"
    weights: str | None = None
    num_layers: int | None = None
    layer: int | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    train: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.train, str):
            raise ValueError(f"train of a run is a text like 'steps=500,batch_size=8', got {self.train!r}")
        for name, value in (("num_layers", self.num_layers), ("layer", self.layer)):
            if value is not None and (type(value) is not int or value < 0):
                raise ValueError(f"{name} of a run is a whole number >= 0 or None, got {value!r}")
        if type(self.seed) is not int or not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed of a run is a whole number from 0 to 2^63 - 1, got {self.seed!r}")
        if self.weights is not None and not isinstance(self.weights, str):
            raise ValueError(f"weights of a run is a text or None, got {self.weights!r}")

    @property
    def key(self) -> str:
        """Short name of everything that the run fixes."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @classmethod
    def of(cls, result: Result) -> Run:
        """The run behind a result."""
        names = {f.name for f in dataclasses.fields(cls)}
        return cls(**{k: v for k, v in result.run.items() if k in names})


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
    backbone = load_backbone(
        run.backbone,
        run.weights,
        num_layers=run.num_layers,
        seed=run.seed,
        precision=run.precision,
        device=device,
    )
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
        outcome = _judge_probe(
            backbone, task, protocol, splits, run,
            store_dir=store_dir, batch_size=batch_size, workers=workers, report=report, model_out=model_place,
        )  # fmt: skip
    num_official = splits["test"].num_official
    if task.answer_group is not None:  # one answer for all parts of a recording
        num_official = len(outcome.test_tracks) + len(splits["test"].left_out) + len(outcome.failures["test"])
    references = [task.annotation(t) for t in outcome.test_tracks]
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
            Prediction(t.track_id, str(r), str(e))
            for t, r, e in zip(outcome.test_tracks, *pairs, strict=True)
        ),
        num_parameters=outcome.num_parameters,
        train_seconds=outcome.train_seconds,
        best_step=outcome.best_step,
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
    if run.train:
        raise ValueError(
            f"protocol '{run.protocol}' fixes its training; train='{run.train}' has no place in it"
        )


def _judge_probe(
    backbone: Backbone,
    task: Task,
    protocol: Protocol,
    splits: dict[str, Split],
    run: Run,
    *,
    store_dir: str | Path | None,
    batch_size: int,
    workers: int,
    report: Callable[[EvaluationProgress], None],
    model_out: Path | None,
) -> Outcome:
    """Extract, train probes on what is stored, answer the test tracks."""
    assert protocol.pooling == "mean" and not protocol.search_layers
    target = clip_target(task.target)
    spec = BACKBONES[run.backbone]
    layer = (
        default_layer(spec, backbone) if run.layer is None else backbone.resolve_layers([run.layer], None)[1]
    )
    tracks = [t for split in splits.values() for t in split.tracks]
    spans = [t for t in tracks if t.span_seconds is not None]
    if spans:
        raise ValueError(
            f"{len(spans)} tracks of {task.name} are parts of longer files ({spans[0].track_id}), and features are "
            "stored for whole files. Use a protocol that trains on windows: petl or musicfm."
        )
    extraction = extract(
        [t.audio_path for t in tracks],
        backbone,
        store_dir or cache_dir("features"),
        layers=[layer],
        clip_seconds=task.clip_seconds,
        batch_size=batch_size,
        workers=workers,
        progress=lambda p: report(EvaluationProgress("features", extraction=p)),
    )
    reasons = {Path(f.path): f.reason for f in extraction.failures}
    with FeatureStore.open(extraction.table) as store:
        vectors = {
            name: _read_split(
                split, store, task.clip_seconds, layer, reasons, task.answer_group if name == "test" else None
            )
            for name, split in splits.items()
        }
    for name, split_vectors in vectors.items():
        if not split_vectors.tracks:
            raise ValueError(f"no {name} track of {task.name} could be used: {_first_reasons(split_vectors)}")
    timed = _select_probe(protocol, run.seed, task, vectors, task.metrics[0], report)
    fit, test = timed.fit, vectors["test"]
    report(EvaluationProgress("test", validation_score=fit.best_score, step=fit.best_step))
    rule = _best_rule(protocol, task, fit, vectors["valid"])
    if model_out is not None:
        model = probed_model(backbone, target, layer, fit, task.clip_seconds, rule)
        save_adapter(model, model_out, info={"task": task.name})
    return Outcome(
        resolved={
            "layer": layer,
            "chunk_policy": extraction.spec.policy,
            "frozen_mode": "eval",
            "aggregation": rule,
        },
        test_tracks=test.tracks,
        estimates=tuple(answer_tracks(target, fit.predict(test.vectors), test.track_of_window, rule)),
        failures={name: split_vectors.failures for name, split_vectors in vectors.items()},
        num_parameters=fit.num_parameters,
        train_seconds=timed.train_seconds,
        best_step=fit.best_step,
    )


def probed_model(
    backbone: Backbone,
    target: ClipTarget,
    layer: int,
    fit: ProbeFit,
    clip_seconds: float | None,
    rule: Aggregation,
) -> AdaptedModel:
    """The backbone with a trained probe as its head; what standardises the vectors is folded into the first map."""
    config = fit.config
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
    weight = state[f"{first}.weight"] / fit.standardiser.scale
    state[f"{first}.bias"] = state[f"{first}.bias"] - weight @ fit.standardiser.mean
    state[f"{first}.weight"] = weight
    model.head.load_state_dict(state)
    return model.eval()


# Probing stored features ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _SplitVectors:
    """vectors: `(N, D)`, a row per window; track_of_window: `(N,)` index into `tracks`."""

    tracks: tuple[Track, ...]
    vectors: Tensor
    track_of_window: Tensor
    failures: tuple[tuple[str, str], ...]


def _read_split(
    split: Split,
    store: FeatureStore,
    clip_seconds: float | None,
    layer: int,
    reasons: dict[Path, str],
    group_of: Callable[[Any], str] | None,
) -> _SplitVectors:
    """group_of: tracks of a group are one, with the windows of all, in the place of the first."""
    by_file = store.keys_by_file(clip_seconds)
    places: dict[str, int] = {}
    tracks: list[Track] = []
    keys: list[str] = []
    owner: list[int] = []
    failures: list[tuple[str, str]] = []
    for track in split.tracks:
        try:
            windows = by_file.get(content_hash(track.audio_path), [])
        except AudioError as error:
            windows, reasons = [], reasons | {track.audio_path: str(error)}
        if not windows:
            failures.append((track.track_id, reasons.get(track.audio_path, "no window was long enough")))
            continue
        place = places.setdefault(track.track_id if group_of is None else group_of(track), len(tracks))
        owner += [place] * len(windows)
        keys += windows
        if place == len(tracks):
            tracks.append(track)
    vectors = torch.tensor(store.read(layer, keys)) if keys else torch.zeros(0, store.spec.dim)
    return _SplitVectors(tuple(tracks), vectors, torch.tensor(owner, dtype=torch.int64), tuple(failures))


def _first_reasons(split: _SplitVectors, most: int = 3) -> str:
    if not split.failures:
        return "the split is empty"
    shown = "; ".join(f"{track_id}: {reason}" for track_id, reason in split.failures[:most])
    return shown + (f"; and {len(split.failures) - most} more" if len(split.failures) > most else "")


# Training and answering -----------------------------------------------------------------------------------


def default_layer(spec: BackboneSpec, backbone: Backbone) -> int:
    """The layer that is used if nobody names one: the recommended one where the model has it, else the last."""
    recommended = spec.recommended_layer
    return (
        recommended if recommended is not None and recommended <= backbone.num_layers else backbone.num_layers
    )


@dataclass(frozen=True)
class _TimedFit:
    fit: ProbeFit
    train_seconds: float


def _select_probe(
    protocol: Protocol,
    seed: int,
    task: Task,
    vectors: dict[str, _SplitVectors],
    metric: Metric,
    report: Callable[[EvaluationProgress], None],
) -> _TimedFit:
    """Train every configuration of the protocol; the best on validation, the first of equals."""
    train_split, valid = vectors["train"], vectors["valid"]
    annotations = [task.annotation(t) for t in train_split.tracks]
    references = [task.annotation(t) for t in valid.tracks]

    target = clip_target(task.target)

    def score(logits: Tensor) -> float:
        return max(
            _score(metric, references, answer_tracks(target, logits, valid.track_of_window, rule))
            for rule in _rules(protocol, task)
        )

    def train(config: ProbeConfig) -> ProbeFit:
        return train_probe(
            dataclasses.replace(config, seed=seed),
            task.target,
            train_split.vectors,
            [annotations[i] for i in train_split.track_of_window.tolist()],
            valid.vectors,
            score,
            progress=lambda e: report(EvaluationProgress("probe", validation_score=e.score, step=e.step)),
        )

    started = time.perf_counter()
    with _one_thread():
        fits = [train(config) for config in protocol.probes]
    return _TimedFit(max(fits, key=lambda f: f.best_score), time.perf_counter() - started)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Products as small as a probe's cost less than waking a second thread for them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _rules(protocol: Protocol, task: Task) -> tuple[Aggregation, ...]:
    """The rules that a protocol tries on validation."""
    return (
        AGGREGATIONS
        if isinstance(task.target, KeyTarget) and protocol.search_key_aggregation
        else ("logits_mean",)
    )


def _best_rule(protocol: Protocol, task: Task, fit: ProbeFit, valid: _SplitVectors) -> Aggregation:
    """The rule that is best on validation; of equals the first."""
    rules = _rules(protocol, task)
    if len(rules) == 1:
        return rules[0]
    logits, references = fit.predict(valid.vectors), [task.annotation(t) for t in valid.tracks]
    target, metric = clip_target(task.target), task.metrics[0]
    return max(
        rules,
        key=lambda rule: _score(
            metric, references, answer_tracks(target, logits, valid.track_of_window, rule)
        ),
    )


def _score(metric: Metric, references: list[Any], estimates: list[Any]) -> float:
    """Larger is better."""
    value = metric.compute(references, estimates)
    return value if metric.higher_is_better else -value


def answer_tracks(
    target: ClipTarget, logits: Tensor, track_of_window: Tensor, rule: Aggregation = "logits_mean"
) -> list[Any]:
    """`(N, C)` logits of windows -> one decoded annotation per track, its windows combined by the rule."""
    if rule == "logits_mean" or len(track_of_window) == int(track_of_window.max()) + 1:  # or a window each
        return [target.decode(row) for row in mean_per_track(logits, track_of_window)]
    num_tracks = int(track_of_window.max()) + 1
    return [target.decode(target.combine(logits[track_of_window == i], rule)) for i in range(num_tracks)]
