"""Stored features of a task's recordings: a vector per window and layer, split by split.

Shape letters: `N` windows, `D` width of a vector.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiation.audio import AudioError, content_hash
from audiation.backbones import BACKBONES, Backbone, BackboneSpec
from audiation.cache import cache_dir
from audiation.datasets import Track
from audiation.extraction import ExtractProgress, extract
from audiation.loading import load_backbone
from audiation.own_backbones import is_own_backbone, load_own_backbone
from audiation.protocols import PROTOCOLS, Protocol
from audiation.run import Run
from audiation.splits import Split, load_splits
from audiation.store import FeatureStore
from audiation.tasks import TASKS, Task

COMPANY_CLIPS = 256  # in a batch of jukemir, where features depend on it


@dataclass(frozen=True)
class SplitVectors:
    """What is stored of one split.

    vectors: layer -> `(N, D)` float32, a row per window.
    track_of_window: `(N,)` index into `tracks`.
    failures: (track id, reason) of recordings without a window.
    """

    tracks: tuple[Track, ...]
    vectors: dict[int, Tensor]
    track_of_window: Tensor
    failures: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class StoredFeatures:
    """The table that holds the features of all recordings of a task, after `extract_features`.

    policy: how long clips were cut into chunks. reasons: why files have no features.
    extract_seconds: what it took now; next to nothing where everything was there.
    num_stored: files whose features were there, and cost nothing now.
    """

    table: Path
    layers: tuple[int, ...]
    clip_seconds: float | None
    keep_remainders: bool
    policy: Any
    extract_seconds: float
    num_stored: int
    reasons: dict[Path, str] = field(default_factory=dict)

    def read(
        self,
        split: Split,
        layers: Sequence[int] | None = None,
        group_of: Callable[[Any], str] | None = None,
    ) -> SplitVectors:
        """Vectors of a split; no other layer than those asked for is read.

        group_of: tracks of a group are one, with the windows of all, in the place of the first.
        """
        with FeatureStore.open(self.table) as store:
            by_file = store.keys_by_file(self.clip_seconds)
            places: dict[str, int] = {}
            tracks: list[Track] = []
            keys: list[str] = []
            owner: list[int] = []
            failures: list[tuple[str, str]] = []
            for track in split.tracks:
                reason = self.reasons.get(track.audio_path, "no window was long enough")
                try:
                    windows = by_file.get(content_hash(track.audio_path), [])
                except AudioError as error:
                    windows, reason = [], str(error)
                windows = self._full(store, windows)
                if not windows:
                    failures.append((track.track_id, reason))
                    continue
                place = places.setdefault(
                    track.track_id if group_of is None else group_of(track), len(tracks)
                )
                owner += [place] * len(windows)
                keys += windows
                if place == len(tracks):
                    tracks.append(track)
            vectors = {
                i: torch.tensor(store.read(i, keys)) if keys else torch.zeros(0, store.spec.dim)
                for i in (self.layers if layers is None else layers)
            }
        return SplitVectors(tuple(tracks), vectors, torch.tensor(owner, dtype=torch.int64), tuple(failures))

    def _full(self, store: FeatureStore, windows: list[str]) -> list[str]:
        """Without a last window that is shorter than the others, where the rules drop it."""
        if self.keep_remainders or self.clip_seconds is None or not windows:
            return windows
        (last,) = store.infos(windows[-1:])
        return windows if last.duration_seconds > self.clip_seconds - 0.001 else windows[:-1]


def extract_features(
    backbone: Backbone,
    task: Task,
    splits: dict[str, Split],
    layers: Sequence[int],
    *,
    keep_remainders: bool = True,
    store_dir: str | Path | None = None,
    batch_size: int = 8,
    workers: int = 0,
    progress: Callable[[ExtractProgress], None] | None = None,
) -> StoredFeatures:
    """Make sure that the features of all recordings of a task are stored.

    Args:
        keep_remainders: whether what is left of a track behind its last full window is a window as well.
        store_dir: default: in the cache directory.

    Raises:
        ValueError: a task whose tracks are parts of longer files.
    """
    tracks = [t for split in splits.values() for t in split.tracks]
    spans = [t for t in tracks if t.span_seconds is not None]
    if spans:
        raise ValueError(
            f"{len(spans)} tracks of {task.name} are parts of longer files ({spans[0].track_id}), and features are "
            "stored for whole files. Use a protocol that trains on windows: petl or musicfm."
        )
    started = time.perf_counter()
    extraction = extract(
        [t.audio_path for t in tracks],
        backbone,
        store_dir or cache_dir("features"),
        layers=list(layers),
        clip_seconds=task.clip_seconds,
        batch_size=COMPANY_CLIPS if backbone.mixes_batch else batch_size,
        workers=workers,
        progress=progress,
    )
    return StoredFeatures(
        extraction.table,
        tuple(layers),
        task.clip_seconds,
        keep_remainders,
        extraction.spec.policy,
        time.perf_counter() - started,
        extraction.num_resumed,
        {Path(f.path): f.reason for f in extraction.failures},
    )


def read_splits(
    run: Run,
    *,
    layers: Sequence[int],
    data_root: str | Path | None = None,
    metadata_root: str | Path | None = None,
    store_dir: str | Path | None = None,
    workers: int = 0,
) -> dict[str, SplitVectors]:
    """Vectors of a run's untouched backbone on "train", "valid" and "test"; what is not stored yet is computed.
    Remainders behind the last full window are in them, whatever the run's protocol does.

    Raises:
        UnknownNameError, FileNotFoundError, ValueError: as `evaluate`.
    """
    task = TASKS[run.task]
    splits, _ = load_splits(task, data_root, metadata_root)
    backbone = load_for_run(run)
    wanted = sorted(backbone.resolve_layers(layers, None)[0])
    features = extract_features(backbone, task, splits, wanted, store_dir=store_dir, workers=workers)
    return {
        name: features.read(split, group_of=task.answer_group if name == "test" else None)
        for name, split in splits.items()
    }


def load_for_run(run: Run, device: str = "cpu") -> Backbone:
    """The untouched backbone of a run, under the convention of its protocol where it has one of that name.

    Raises:
        UnknownNameError, OwnBackboneError, WeightsError, ValueError: as `load_backbone`.
    """
    spec = load_own_backbone(run.backbone) if is_own_backbone(run.backbone) else BACKBONES[run.backbone]
    protocol = PROTOCOLS[run.protocol]
    wanted = protocol.convention if isinstance(protocol, Protocol) else "default"
    return load_backbone(
        run.backbone, run.weights, num_layers=run.num_layers, seed=run.seed, precision=run.precision, device=device,
        convention=wanted if wanted in spec.conventions else "default",
    )  # fmt: skip


def default_layer(spec: BackboneSpec, backbone: Backbone) -> int:
    """The layer that is used if nobody names one: the recommended one where the model has it, else the last."""
    recommended = spec.recommended_layer
    return (
        recommended if recommended is not None and recommended <= backbone.num_layers else backbone.num_layers
    )


def recommended_layer(run: Run, backbone: Backbone) -> int:
    """The layer of a run that names none."""
    return default_layer(BACKBONES[run.backbone], backbone)
