"""One run from end to end: tracks -> stored features -> probe -> answers -> scores with intervals.

A `Run` is a value that says everything that decides a number. Machine facts (where data and features lie, device,
workers) are arguments of `evaluate`, never part of a run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from audiation.audio import AudioError, content_hash
from audiation.backbones import BACKBONES, Backbone, BackboneSpec
from audiation.cache import cache_dir
from audiation.datasets import DATASETS, Dataset, Track
from audiation.extraction import ExtractProgress, extract
from audiation.leaderboard import Failure, Prediction, Result, bootstrap_interval
from audiation.loading import load_backbone
from audiation.methods import inject, parse_method
from audiation.metrics import Metric
from audiation.probe import ProbeConfig, ProbeFit, check_classes, mean_per_track, train_probe
from audiation.protocols import PROTOCOLS, Protocol
from audiation.store import FeatureStore
from audiation.tasks import TASKS, Task


@dataclass(frozen=True)
class Run:
    """What to evaluate. Written beside every result; `audiation evaluate --run` repeats it.

    weights: None for the official ones, "random", or a file, directory or Hub id.
    num_layers: cut the backbone to its first blocks; None: all.
    layer: the layer that is probed; None: the model's recommended one, else the last.
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
    seed: int = 0

    def __post_init__(self) -> None:
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


@dataclass(frozen=True)
class EvaluationProgress:
    """What `evaluate` is doing, for people: `extraction` is set while features are made, the others while training."""

    stage: Literal["data", "features", "probe", "test"]
    extraction: ExtractProgress | None = None
    validation_score: float | None = None
    step: int = 0


def evaluate(
    run: Run,
    *,
    data_root: str | Path | None = None,
    metadata_root: str | Path | None = None,
    store_dir: str | Path | None = None,
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
        device, batch_size, workers: as in `extract`.
        progress: called now and then, and at every look at the validation split.

    Raises:
        UnknownNameError: a name in the run that nothing has.
        FileNotFoundError: a data set that is not where it was looked for.
        ValueError: a split without usable tracks, a class that the training split lacks, choices of the run that
            the backbone does not have.
    """
    report = progress or (lambda _: None)
    task, protocol, method = TASKS[run.task], PROTOCOLS[run.protocol], parse_method(run.method)
    assert not task.target.per_frame and protocol.pooling == "mean" and not protocol.search_layers
    spec = BACKBONES[run.backbone]
    report(EvaluationProgress("data"))
    splits, split_hash = load_splits(task, data_root, metadata_root)
    if splits["train"].tracks:  # before anything is extracted in vain
        check_classes(task.target, [task.annotation(t) for t in splits["train"].tracks])

    backbone = load_backbone(
        run.backbone,
        run.weights,
        num_layers=run.num_layers,
        seed=run.seed,
        precision=run.precision,
        device=device,
    )
    inject(backbone, method)
    layer = (
        default_layer(spec, backbone) if run.layer is None else backbone.resolve_layers([run.layer], None)[1]
    )
    tracks = [t for split in splits.values() for t in split.tracks]
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
            name: _read_split(split, store, task.clip_seconds, layer, reasons)
            for name, split in splits.items()
        }
    for name, split_vectors in vectors.items():
        if not split_vectors.tracks:
            raise ValueError(f"no {name} track of {task.name} could be used: {_first_reasons(split_vectors)}")

    metric = task.metrics[0]
    timed = _select_probe(protocol, run.seed, task, vectors, metric, report)
    fit = timed.fit
    report(EvaluationProgress("test", validation_score=fit.best_score, step=fit.best_step))
    test = vectors["test"]
    references = [task.annotation(t) for t in test.tracks]
    estimates = answer_tracks(task, fit.predict(test.vectors), test.track_of_window)
    return Result(
        run=dataclasses.asdict(run)
        | {
            "layer": layer,
            "weights_hash": backbone.weights_hash,
            "weights_source": backbone.weights_source,
            "chunk_policy": extraction.spec.policy,
            "protocol_version": protocol.version,
            "metrics": [m.versioned_name for m in task.metrics],
            "frozen_mode": "eval",
        },
        scores={m.name: m.compute(references, estimates) for m in task.metrics},
        intervals={m.name: bootstrap_interval(m, references, estimates, seed=run.seed) for m in task.metrics},
        num_test_tracks=len(test.tracks),
        num_official_test_tracks=splits["test"].num_official,
        split_hash=split_hash,
        failures=tuple(
            Failure(track_id, why, name)
            for name, split in splits.items()
            for track_id, why in (*split.left_out, *vectors[name].failures)
        ),
        predictions=tuple(
            Prediction(t.track_id, str(r), str(e))
            for t, r, e in zip(test.tracks, references, estimates, strict=True)
        ),
        num_parameters=fit.num_parameters,
        train_seconds=timed.train_seconds,
        best_step=fit.best_step,
    )


# Data ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Tracks of one split that a task can use, and those of the official split that it cannot.

    left_out: (track id, reason) of recordings that the official split names but the reader had to skip. They
        count against coverage. Tracks without the annotation are no part of the task and do not.
    """

    tracks: tuple[Track, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    num_without_annotation: int = 0

    @property
    def num_official(self) -> int:
        return len(self.tracks) + len(self.left_out)


def load_splits(
    task: Task, data_root: str | Path | None = None, metadata_root: str | Path | None = None
) -> tuple[dict[str, Split], str]:
    """The train, valid and test split of a task, and a hash that says which recordings are in which."""
    test_data = load_dataset(task.test_dataset, data_root, metadata_root)
    same = task.train_dataset == task.test_dataset
    train_data = test_data if same else load_dataset(task.train_dataset, data_root, metadata_root)
    splits = {
        "train": _usable(task, train_data, "train"),
        "valid": _usable(task, train_data, "valid"),
        "test": _usable(task, test_data, "test"),
    }
    lines = [f"{task.name}\n"]
    for name, split in splits.items():
        lines += sorted(f"{name}\t{track.track_id}\n" for track in split.tracks)
    return splits, hashlib.sha256("".join(lines).encode()).hexdigest()


def load_dataset(
    name: str, data_root: str | Path | None = None, metadata_root: str | Path | None = None
) -> Dataset:
    """A data set by name: `data_root/name`, or `data_root` itself where it is the data set."""
    kind = DATASETS[name]
    root = data_root or os.environ.get("AUDIATION_DATA_ROOT")
    metadata_root = metadata_root or os.environ.get("AUDIATION_METADATA_ROOT")
    candidates = [Path(root).expanduser() / name, Path(root).expanduser()] if root else []
    candidates.append(cache_dir("datasets", name))  # where data sets that are made here lie
    found = next((c for c in candidates if c.is_dir()), candidates[0])
    data = kind(found, metadata_root=Path(metadata_root) if metadata_root else None)
    data.check_groups()
    return data


def _usable(task: Task, data: Dataset, name: str) -> Split:
    tracks = data.split(name)
    annotated = tuple(t for t in tracks if task.annotation(t) is not None)
    skipped = tuple((s.track_id, s.reason) for s in data.skipped if s.split == name)
    return Split(annotated, skipped, len(tracks) - len(annotated))


@dataclass(frozen=True)
class _SplitVectors:
    """vectors: `(N, D)`, a row per window; track_of_window: `(N,)` index into `tracks`."""

    tracks: tuple[Track, ...]
    vectors: Tensor
    track_of_window: Tensor
    failures: tuple[tuple[str, str], ...]


def _read_split(
    split: Split, store: FeatureStore, clip_seconds: float | None, layer: int, reasons: dict[Path, str]
) -> _SplitVectors:
    by_file = store.keys_by_file(clip_seconds)
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
        owner += [len(tracks)] * len(windows)
        keys += windows
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

    def score(logits: Tensor) -> float:
        value = metric.compute(references, answer_tracks(task, logits, valid.track_of_window))
        return value if metric.higher_is_better else -value

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


def answer_tracks(task: Task, logits: Tensor, track_of_window: Tensor) -> list[Any]:
    """`(N, C)` logits of windows -> one decoded annotation per track: the mean of its logits decides."""
    return [task.target.decode(row) for row in mean_per_track(logits, track_of_window)]
