"""The recordings of a task, split by split, and those that are missing."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from audiation.cache import cache_dir
from audiation.datasets import DATASETS, Dataset, Track
from audiation.tasks import Task


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
