"""The recordings of a task, split by split, and those that are missing."""

from __future__ import annotations

import hashlib
import inspect
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
    """A data set by name: `data_root/name`, or `data_root` itself where it is the data set.

    Args:
        name: with choices of a variant behind it where wanted, "gtzan:jazz_00054=drop": they are handed to the reader.

    Raises:
        UnknownNameError: no data set of that name.
        ValueError: a choice that the reader does not have.
        FileNotFoundError: its files are not there.
    """
    name, _, choices = name.partition(":")
    kind = DATASETS[name]
    variant = _variant(kind, choices)
    root = data_root or os.environ.get("AUDIATION_DATA_ROOT")
    metadata_root = metadata_root or os.environ.get("AUDIATION_METADATA_ROOT")
    names = (name, *kind.folders)
    candidates = [*(Path(root).expanduser() / n for n in names), Path(root).expanduser()] if root else []
    candidates.append(cache_dir("datasets", name))  # where data sets that are made here lie
    found = next((c for c in candidates if c.is_dir()), candidates[0])
    data = kind(found, metadata_root=Path(metadata_root) if metadata_root else None, **variant)
    data.check_groups()
    return data


def _variant(kind: type[Dataset], choices: str) -> dict[str, str]:
    """ "jazz_00054=drop,..." -> arguments of the reader."""
    allowed = list(inspect.signature(kind.__init__).parameters)[3:]  # after self, root, metadata_root
    variant = {}
    for choice in filter(None, choices.split(",")):
        field, equals, value = choice.partition("=")
        if field not in allowed or not equals or field in variant:
            raise ValueError(
                f"{kind.name} has no choice '{choice}'. Each is given once, as FIELD=VALUE; "
                f"fields: {', '.join(allowed) or 'none'}"
            )
        variant[field] = value
    return variant


def _usable(task: Task, data: Dataset, name: str) -> Split:
    tracks = data.split(name)
    annotated = tuple(t for t in tracks if task.annotation(t) is not None)
    skipped = tuple((s.track_id, s.reason) for s in data.skipped if s.split == name)
    return Split(annotated, skipped, len(tracks) - len(annotated))
