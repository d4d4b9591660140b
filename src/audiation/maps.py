"""Maps of clips: what a representation puts close together, in two dimensions, one map per layer.

A projection is fitted on the clips of the training split; those of the test split are put where it takes them, so that
the map shows how the representation treats recordings that nothing was fitted on.

Shape letters: `N`, `M` clips, `D` dimensions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from audiation.annotations import Emotion, Tags, Tempo, Values
from audiation.cards import card_of
from audiation.run import Run
from audiation.stored_vectors import SplitVectors, read_splits
from audiation.tasks import TASKS

ProjectionMethod = Literal["pca", "umap"]
NUM_NEIGHBOURS = 15  # of UMAP: its authors' choice
UMAP_SEED = 0
NO_LABEL = "(none)"


class Projection(NamedTuple):
    """Places of the clips: `(N, 2)` of training, `(M, 2)` of test, float64, and what they mean in words."""

    train_xy: np.ndarray
    test_xy: np.ndarray
    explained: str


@dataclass(frozen=True)
class ClipMap:
    """The clips of a task in two dimensions. All tuples have one entry per clip, training first.

    layer: of the backbone.
    points: (x, y).
    labels: what the clip is, as text; see `clip_maps`.
    audio_paths: where the recording is; None where the file is not there.
    splits: "train" or "test".
    explained: what the axes are, such as "PCA of standardised features: 41 % + 12 % of the variance".
    """

    title: str
    method: str
    layer: int
    points: tuple[tuple[float, float], ...]
    labels: tuple[str, ...]
    track_ids: tuple[str, ...]
    audio_paths: tuple[str | None, ...]
    splits: tuple[str, ...]
    explained: str

    def __post_init__(self) -> None:
        counts = {
            name: len(getattr(self, name))
            for name in ("points", "labels", "track_ids", "audio_paths", "splits")
        }
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise ValueError(f"a map has one of each for every clip, got {said}")


def clip_maps(
    run: Run,
    *,
    layers: Sequence[int] | None = None,
    method: ProjectionMethod = "pca",
    data_root: str | Path | None = None,
    metadata_root: str | Path | None = None,
    store_dir: str | Path | None = None,
) -> list[ClipMap]:
    """One map per layer, out of the stored features of a run's untouched backbone; what is not stored yet is computed.

    Recordings of the training and the test split are shown. A point is a recording: the mean of its windows. Its label
    is the class or key; of tags, the one of the recording's that most recordings have; of numbers (tempo, emotion,
    values: the first named), the quarter of the training split that it lies in.

    Args:
        layers: None: that of the run, or all of the backbone.
        data_root, metadata_root, store_dir: as in `evaluate`.

    Raises:
        UnknownNameError: a name in the run that nothing has.
        FileNotFoundError: a data set that is not where it was looked for.
        ValueError: the task answers for every frame, a layer that the backbone does not have, or a method that is not
            to be had.
    """
    task = TASKS[run.task]
    if task.target.per_frame or task.task_type == "separation":
        raise ValueError(
            f"'{run.task}' is answered for every frame, so a clip has no label to be coloured by. Maps are for tasks "
            "with one answer per clip."
        )
    if layers is None:
        num_layers = card_of(run.backbone).num_layers if run.num_layers is None else run.num_layers
        layers = range(num_layers + 1) if run.layer is None else (run.layer,)
    splits = read_splits(
        run, layers=tuple(layers), data_root=data_root, metadata_root=metadata_root, store_dir=store_dir
    )
    clips = {name: _heard(splits[name]) for name in ("train", "test")}
    tracks = [splits[name].tracks[i] for name in clips for i in clips[name]]
    label_of = _labelling([task.annotation(splits["train"].tracks[i]) for i in clips["train"]])
    labels = tuple(label_of(task.annotation(track)) for track in tracks)
    left_out = sum(len(splits[name].failures) for name in clips)
    note = f"; {left_out} recordings without features are left out" if left_out else ""
    paths = tuple(str(t.audio_path) if t.audio_path.is_file() else None for t in tracks)
    maps = []
    for layer in sorted(splits["train"].vectors):
        train, test = (_track_means(splits[name], layer, clips[name]) for name in ("train", "test"))
        projection = project(train, test, method)
        places = np.concatenate([projection.train_xy, projection.test_xy]).tolist()
        maps.append(
            ClipMap(
                title=f"{run.task}: {run.backbone}, layer {layer}",
                method=method,
                layer=layer,
                points=tuple((x, y) for x, y in places),
                labels=labels,
                track_ids=tuple(t.track_id for t in tracks),
                audio_paths=paths,
                splits=tuple(name for name in clips for _ in clips[name]),
                explained=projection.explained + note,
            )
        )
    return maps


def project(train: Tensor, test: Tensor, method: ProjectionMethod = "pca") -> Projection:
    """Features `(N, D)` and `(M, D)` -> two dimensions, fitted on the first; M may be 0.

    "pca": the two directions of largest variance of the standardised features; exact, in float64, and pointing such
    that the largest weight of each is positive. "umap": neighbourhoods, by the package umap-learn (the extra `maps`),
    with a fixed random state.

    Raises:
        ValueError: shapes that do not match, fewer than two clips to fit on (UMAP: four), numbers that are not finite,
            an unknown method, or umap-learn is not installed.
    """
    if train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1] or train.shape[1] == 0:
        raise ValueError(
            f"a projection needs features (N, D) and (M, D), got {tuple(train.shape)}, {tuple(test.shape)}"
        )
    methods = {"pca": (_pca, 2), "umap": (_umap, 4)}
    if method not in methods:
        raise ValueError(f"method must be one of {', '.join(methods)}, got {method!r}")
    fit, fewest = methods[method]
    if len(train) < fewest:
        raise ValueError(f"{method} is fitted on {fewest} clips or more, got {len(train)}")
    for name, features in (("train", train), ("test", test)):
        if not bool(torch.isfinite(features).all()):
            raise ValueError(f"the {name} features hold NaN or infinite values; extract them again")
    train_np, test_np = (x.detach().cpu().double().numpy() for x in (train, test))
    mean, deviation = train_np.mean(0), train_np.std(0)
    deviation[deviation <= 1e-12 * np.abs(mean)] = 1.0  # a dimension that never varies says nothing
    return fit((train_np - mean) / deviation, (test_np - mean) / deviation)


# Projections ----------------------------------------------------------------------------------------------


def _pca(train: np.ndarray, test: np.ndarray) -> Projection:
    # The eigenvectors of the smaller of the two products are those of both.
    num_clips, num_dims = train.shape
    values, vectors = np.linalg.eigh(train @ train.T if num_clips < num_dims else train.T @ train)
    values, vectors = values[::-1][:2].clip(min=0), vectors[:, ::-1][:, :2]
    directions = train.T @ vectors if num_clips < num_dims else vectors  # (D, 2), or (D, 1)
    lengths = np.linalg.norm(directions, axis=0)
    total = float(np.square(train).sum())
    there = values > 1e-12 * max(total, 1e-300)  # clips on a line have no second direction
    directions = np.where(there, directions / np.where(lengths > 0, lengths, 1), 0.0)
    largest = np.abs(directions).argmax(0)
    directions = directions * np.where(np.take_along_axis(directions, largest[None], 0) < 0, -1.0, 1.0)
    shares = [100 * float(v) / total if total > 0 else 0.0 for v in values]
    if directions.shape[1] == 1:
        directions, shares = np.pad(directions, ((0, 0), (0, 1))), [*shares, 0.0]
    explained = f"PCA of standardised features: {shares[0]:.0f} % + {shares[1]:.0f} % of the variance"
    return Projection(train @ directions, test @ directions, explained)


def require_umap() -> None:
    """ValueError where umap-learn is not installed."""
    try:
        import umap  # noqa: F401
    except ImportError:
        raise ValueError(
            "the method 'umap' needs the package umap-learn: pip install 'audiation[maps]', or use method 'pca'"
        ) from None


def _umap(train: np.ndarray, test: np.ndarray) -> Projection:
    require_umap()
    from umap import UMAP

    num_neighbours = min(NUM_NEIGHBOURS, len(train) - 1)
    # One thread: with more, a random state does not give the same map twice.
    model = UMAP(n_components=2, n_neighbors=num_neighbours, random_state=UMAP_SEED, n_jobs=1)
    train_xy = np.asarray(model.fit_transform(train.astype(np.float32)), np.float64)
    test_xy = (
        np.asarray(model.transform(test.astype(np.float32)), np.float64) if len(test) else np.empty((0, 2))
    )
    return Projection(
        train_xy,
        test_xy,
        f"UMAP of standardised features, {num_neighbours} neighbours: what is close is alike, far distances and axes "
        "mean little",
    )


# Clips ----------------------------------------------------------------------------------------------------


def _heard(split: SplitVectors) -> list[int]:
    """Numbers of the tracks that have a window."""
    return sorted(set(split.track_of_window.tolist()))


def _track_means(split: SplitVectors, layer: int, heard: Sequence[int]) -> Tensor:
    """Mean over the windows of each track that has one, `(N, D)`."""
    vectors = split.vectors[layer].double()
    sums = torch.zeros(len(split.tracks), vectors.shape[1], dtype=torch.float64)
    sums.index_add_(0, split.track_of_window, vectors)
    counts = torch.bincount(split.track_of_window, minlength=len(split.tracks)).clamp(min=1)
    return (sums / counts.unsqueeze(1))[list(heard)]


def _labelling(train: Sequence[Any]) -> Callable[[Any], str]:
    """Annotation -> text. train: annotations to take quarters and frequencies from."""
    first = next((a for a in train if a is not None), None)
    if isinstance(first, Tags):
        frequency = Counter(tag for a in train for tag in _tags(a))
        return lambda a: min(_tags(a), key=lambda tag: (-frequency[tag], tag), default=NO_LABEL)
    if isinstance(first, Tempo | Emotion | Values):
        name = _named_number(first)[0]
        numbers = [_named_number(a)[1] for a in train if a is not None]
        borders = np.quantile(numbers, (0.25, 0.5, 0.75)).tolist()
        low, middle, high = (f"{b:.4g}" for b in borders)
        texts = (
            f"{name} to {low}",
            f"{name} {low} to {middle}",
            f"{name} {middle} to {high}",
            f"{name} over {high}",
        )
        return lambda a: NO_LABEL if a is None else texts[int(np.searchsorted(borders, _named_number(a)[1]))]
    return lambda a: NO_LABEL if a is None else str(a)


def _tags(annotation: Tags | None) -> list[str]:
    return [] if annotation is None else [tag for tag, score in annotation.scores.items() if score >= 0.5]


def _named_number(annotation: Tempo | Emotion | Values) -> tuple[str, float]:
    if isinstance(annotation, Tempo):
        return "BPM", annotation.bpm
    if isinstance(annotation, Emotion):
        return "arousal", annotation.arousal
    return next(iter(annotation.values.items()))
