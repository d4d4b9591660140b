"""Clusters of features as codes: fitted to a sample of the corpus, stored beside it, resumable at any moment.

    DIRECTORY/kmeans.json             settings, features, corpus, how it went, how much of the sample is in each cluster
    DIRECTORY/centroids.safetensors   `centroids` (K, F)
    DIRECTORY/sample.f32, sample.jsonl, state.safetensors   while it is being fitted

Shape letters: `N` frames, `R` frames of the sample, `F` features, `K` clusters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.numpy import save
from torch import Tensor

from audiation.cache import whole_file, write_text
from audiation.corpus import Corpus
from audiation.folder_lock import locked
from audiation.teachers.base import FrameFeatures, Recorded
from audiation.teachers.sampling import JOURNAL_FILE, SAMPLE_FILE, draw_sample, gather_sample

RECORD_FILE, CENTROIDS_FILE = "kmeans.json", "centroids.safetensors"
BEGUN_FILE, STATE_FILE = "begun.json", "state.safetensors"
SAVE_BATCHES = 100  # what a kill may cost; the arithmetic is the same with and without one
ENCODE_FRAMES = 3000  # at once
INIT_BATCHES = 3  # frames that a try of first centroids sees, in batches; scikit-learn's
Report = Callable[[str, int, int], None]  # (what is being done, done, all)


@dataclass(frozen=True)
class KMeansSettings:
    """How clusters are found; the defaults are those of fairseq's script for HuBERT (MERT spec, section 4).

    num_clusters: K.
    share: of all frames that is looked at. max_frames: at most so many, R.
    seed: of the sample, first centroids and batches.
    batch_frames: frames that centroids are moved by at once.
    num_inits: tries of first centroids (k-means++), of which the best is taken.
    max_rounds: over the sample. patience: batches without improvement after which it ends.

    Centroids that hardly anything is near are never put elsewhere (reassignment ratio 0), and how far they move ends
    nothing (tolerance 0).
    """

    num_clusters: int
    share: float = 0.1
    max_frames: int = 2_000_000
    seed: int = 0
    batch_frames: int = 10_000
    num_inits: int = 20
    max_rounds: int = 100
    patience: int = 100

    def __post_init__(self) -> None:
        counts = (self.max_frames, self.num_inits, self.max_rounds, self.patience)
        if self.num_clusters < 2 or min(counts) < 1 or not 0.0 < self.share <= 1.0:
            raise ValueError(
                f"k-means needs two clusters, a share over 0 and at most 1, and positive numbers, got {self}"
            )
        if self.batch_frames < self.num_clusters:
            raise ValueError(
                f"batch_frames must be at least the {self.num_clusters} clusters, got {self.batch_frames}"
            )


class KMeansTeacher:
    """The nearest centroid of every frame, `(1, N)`, see `Teacher`."""

    def __init__(self, features: FrameFeatures, centroids_KF: Tensor, fit: dict[str, Any]) -> None:
        """fit: what is recorded about the fit."""
        self.sample_rate_hz, self.rate_hz = features.sample_rate_hz, features.rate_hz
        self.num_codes: tuple[int, ...] = (len(centroids_KF),)
        self.features, self.centroids_KF, self.fit = features, centroids_KF.float(), fit
        self._offsets_K = -0.5 * self.centroids_KF.square().sum(1)

    def codes(self, recording: Recorded) -> Tensor:
        total = self.features.num_frames(recording.num_samples)
        at_once = -(-ENCODE_FRAMES // self.features.block_frames) * self.features.block_frames
        parts = []
        for first in range(0, total, at_once):
            x_NF = self.features.frames(recording, first, min(at_once, total - first))
            # A frame's own length brings no centroid nearer than another.
            parts.append(torch.addmm(self._offsets_K, x_NF, self.centroids_KF.t()).argmax(1))
        return torch.cat(parts).unsqueeze(0)

    def record(self) -> dict[str, Any]:
        return {"teacher": "k-means", "features": self.features.record(), "centroids": self.fit["centroids"]}


def fit_kmeans(
    corpus: Corpus,
    features: FrameFeatures,
    settings: KMeansSettings,
    directory: Path,
    workers: int = 0,
    progress: Report | None = None,
) -> KMeansTeacher:
    """Fit clusters to a sample of a corpus, or read those that are there already; goes on after a kill, to equal bits
    on one machine.

    workers: processes that compute the sample; 0: none besides this one.

    Raises:
        ValueError: clusters of something else are there, a sample with fewer frames than clusters, or features that
            are not finite.
        FolderLockedError: another process fits there.
    """
    if not (directory / RECORD_FILE).exists():
        with locked(directory, "fitting clusters"):
            if not (directory / RECORD_FILE).exists():
                _fit_new(
                    corpus,
                    features,
                    settings,
                    directory,
                    workers,
                    progress or (lambda what, done, total: None),
                )
    return read_kmeans(directory, features, settings)


def read_kmeans(
    directory: Path, features: FrameFeatures, settings: KMeansSettings | None = None
) -> KMeansTeacher:
    """What `fit_kmeans` made, also of another corpus.

    settings: None: whatever they are.

    Raises:
        ValueError: none there, damaged, or of other features or settings.
    """
    path = directory / RECORD_FILE
    try:
        fit = json.loads(path.read_text(encoding="utf-8"))
        with safetensors.safe_open(directory / CENTROIDS_FILE, "pt") as stored:
            centroids_KF = stored.get_tensor("centroids")
        held, held_settings = fit["features"], KMeansSettings(**fit["settings"])
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"{directory} has no clusters that can be read ({error}). Delete it and fit them again."
        ) from error
    if held != features.record() or centroids_KF.shape[1] != features.num_features:
        raise ValueError(
            f"{directory} has clusters of {held}, not of {features.record()}. Use another name, or delete the folder."
        )
    if settings is not None and held_settings != settings:
        raise ValueError(
            f"{directory} was fitted with {held_settings}, not with {settings}. Delete the folder to fit anew."
        )
    return KMeansTeacher(features, centroids_KF, fit)


# The fit --------------------------------------------------------------------------------------------------


def _fit_new(
    corpus: Corpus,
    features: FrameFeatures,
    settings: KMeansSettings,
    directory: Path,
    workers: int,
    report: Report,
) -> None:
    begun = {
        "settings": asdict(settings),
        "features": features.record(),
        "corpus": {"name": corpus.name, "hash": corpus.hash, "hours": corpus.hours},
    }
    sample = draw_sample(corpus, features, settings.share, settings.seed, settings.max_frames)
    num_frames = sum(blocks.num_frames for blocks in sample)
    if num_frames < settings.num_clusters:
        raise ValueError(
            f"{settings.num_clusters} clusters need as many frames, and the sample of corpus '{corpus.name}' has "
            f"{num_frames}. Take fewer clusters, or a larger share."
        )
    _keep_begun(directory, begun)
    rows_RF = gather_sample(
        corpus, features, sample, directory, workers, lambda done, total: report("sample", done, total)
    )
    state = _fit(rows_RF, settings, directory / STATE_FILE, report)
    _finish(rows_RF, state, begun, directory)


@dataclass
class _State:
    """Where a fit stands. centroids: `(K, F)`. counts: `(K,)`, frames that have moved each.

    inertia: mean squared distance; the least of all tries on the same frames, then a running mean over batches.
    """

    centroids: np.ndarray
    counts: np.ndarray
    num_inits: int = 0
    init_inertia: float = float("inf")
    num_batches: int = 0
    inertia: float | None = None
    least_inertia: float | None = None
    without_improvement: int = 0

    def save(self, path: Path) -> None:
        scalars = {name: value for name, value in vars(self).items() if not isinstance(value, np.ndarray)}
        arrays = {"centroids": self.centroids, "counts": self.counts}
        with whole_file(path) as stream:
            stream.write(save(arrays, {"state": json.dumps(scalars)}))

    @classmethod
    def read(cls, path: Path) -> _State:
        try:
            with safetensors.safe_open(path, "np") as stored:
                scalars = json.loads(stored.metadata()["state"])
                return cls(stored.get_tensor("centroids"), stored.get_tensor("counts"), **scalars)
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise ValueError(
                f"{path}, the state of a begun fit, cannot be read ({error}). Delete its folder to fit anew."
            ) from error


def _fit(rows_RF: np.ndarray, settings: KMeansSettings, path: Path, report: Report) -> _State:
    """As `MiniBatchKMeans.fit` does it, step by step, so that it can go on anywhere: whatever is random depends on the
    seed and the number of the step."""
    shape = (settings.num_clusters, rows_RF.shape[1])
    if path.exists():
        state = _State.read(path)
    else:
        state = _State(np.zeros(shape, np.float32), np.zeros(settings.num_clusters, np.float32))
    _find_first_centroids(rows_RF, settings, state, path, report)
    batch_frames = min(settings.batch_frames, len(rows_RF))
    last = max(1, settings.max_rounds * len(rows_RF) // batch_frames)
    while state.num_batches < last and state.without_improvement < settings.patience:
        _move(rows_RF, settings, state, last)
        state.save(path)
        report("clusters", state.num_batches, last)
    return state


def _find_first_centroids(
    rows_RF: np.ndarray, settings: KMeansSettings, state: _State, path: Path, report: Report
) -> None:
    from sklearn.cluster import kmeans_plusplus

    size = min(len(rows_RF), max(INIT_BATCHES * settings.batch_frames, INIT_BATCHES * settings.num_clusters))
    judged_by = _rows(
        rows_RF, np.random.default_rng((settings.seed, 0)).choice(len(rows_RF), size, replace=False)
    )
    while state.num_inits < settings.num_inits:
        rng = np.random.default_rng((settings.seed, 1, state.num_inits))
        seen = _rows(rows_RF, rng.choice(len(rows_RF), size, replace=False))
        centroids_KF, _ = kmeans_plusplus(seen, settings.num_clusters, random_state=int(rng.integers(2**31)))
        inertia = _inertia(judged_by, centroids_KF, _nearest(judged_by, centroids_KF))
        if inertia < state.init_inertia:
            state.centroids, state.init_inertia = centroids_KF.astype(np.float32), inertia
        state.num_inits += 1
        state.save(path)
        report("first centroids", state.num_inits, settings.num_inits)


def _move(rows_RF: np.ndarray, settings: KMeansSettings, state: _State, last: int) -> None:
    """The next `SAVE_BATCHES` batches, or fewer where the fit ends."""
    batch_frames = min(settings.batch_frames, len(rows_RF))
    alpha = min(1.0, 2.0 * batch_frames / (len(rows_RF) + 1))
    model = _model(settings, state)
    for number in range(state.num_batches, min(last, state.num_batches + SAVE_BATCHES)):
        rng = np.random.default_rng((settings.seed, 2, number))
        batch = _rows(rows_RF, rng.integers(len(rows_RF), size=batch_frames))
        nearest = _nearest(batch, state.centroids)
        inertia = _inertia(batch, state.centroids, nearest)
        model.partial_fit(batch)
        state.centroids = model.cluster_centers_.copy()
        state.counts += np.bincount(nearest, minlength=settings.num_clusters).astype(np.float32)
        state.num_batches += 1
        if number == 0:  # says how good the first centroids were
            continue
        state.inertia = inertia if state.inertia is None else (1 - alpha) * state.inertia + alpha * inertia
        if state.least_inertia is None or state.inertia < state.least_inertia:
            state.least_inertia, state.without_improvement = state.inertia, 0
        else:
            state.without_improvement += 1
            if state.without_improvement >= settings.patience:
                break


def _model(settings: KMeansSettings, state: _State) -> Any:
    """A `MiniBatchKMeans` that goes on from the state."""
    from sklearn.cluster import MiniBatchKMeans

    model = MiniBatchKMeans(
        settings.num_clusters,
        init=state.centroids,
        n_init=1,
        batch_size=settings.batch_frames,
        max_no_improvement=settings.patience,
        tol=0.0,
        reassignment_ratio=0.0,
        compute_labels=False,
        random_state=settings.seed,
    )
    if state.counts.any():
        # Each centroid as a frame of that weight puts it where it was, with that count.
        model.partial_fit(state.centroids, sample_weight=state.counts)
    return model


def _finish(rows_RF: np.ndarray, state: _State, begun: dict[str, Any], directory: Path) -> None:
    """Write what is kept, and remove the rest. The record is last: where it is, all is there."""
    num_clusters, histogram, total = len(state.centroids), np.zeros(len(state.centroids), np.int64), 0.0
    for start in range(0, len(rows_RF), ENCODE_FRAMES):
        part = np.asarray(rows_RF[start : start + ENCODE_FRAMES])
        nearest = _nearest(part, state.centroids)
        histogram += np.bincount(nearest, minlength=num_clusters)
        total += _inertia(part, state.centroids, nearest) * len(part)
    fit = begun | {
        "num_frames": len(rows_RF),
        "num_batches": state.num_batches,
        "inertia": total / len(rows_RF),
        "first_inertia": state.init_inertia,
        "centroids": hashlib.sha256(np.ascontiguousarray(state.centroids).data).hexdigest(),
        "num_used": int((histogram > 0).sum()),
        "histogram": histogram.tolist(),
        "scikit_learn": version("scikit-learn"),
    }
    with whole_file(directory / CENTROIDS_FILE) as stream:
        stream.write(save({"centroids": state.centroids}))
    write_text(directory / RECORD_FILE, json.dumps(fit, indent=1) + "\n")
    for name in (SAMPLE_FILE, JOURNAL_FILE, STATE_FILE, BEGUN_FILE):
        (directory / name).unlink(missing_ok=True)


def _keep_begun(directory: Path, begun: dict[str, Any]) -> None:
    """Remember what the unfinished fit is of. ValueError where it is of something else."""
    path = directory / BEGUN_FILE
    if not path.exists():
        write_text(path, json.dumps(begun, indent=1) + "\n")
        return
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}). Delete its folder to fit anew.") from error
    if held != json.loads(json.dumps(begun)):
        raise ValueError(
            f"{directory} has a begun fit of {held}, not of {begun}. Delete the folder to fit anew."
        )


def _rows(rows_RF: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows_RF[np.sort(chosen)])  # in the order in which the file has them


def _nearest(x_NF: np.ndarray, centroids_KF: np.ndarray) -> np.ndarray:
    """`(N,)`: number of the nearest centroid."""
    parts = (x_NF[i : i + ENCODE_FRAMES] for i in range(0, len(x_NF), ENCODE_FRAMES))
    offsets_K = 0.5 * np.square(centroids_KF).sum(1)
    return np.concatenate([(part @ centroids_KF.T - offsets_K).argmax(1) for part in parts])


def _inertia(x_NF: np.ndarray, centroids_KF: np.ndarray, nearest_N: np.ndarray) -> float:
    """Mean squared distance."""
    return float(np.square(x_NF - centroids_KF[nearest_N]).sum(dtype=np.float64) / len(x_NF))
