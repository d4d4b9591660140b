"""One recording (`Track`), a collection with official splits (`Dataset`), and their registry."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from audiation.audio import load_audio
from audiation.registry import Registry

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Track:
    """One recording. A data set subclasses it and adds its annotations as cached properties.

    track_id: stable name inside the data set.
    audio_path: the file; its extension is not trusted.
    split: "train", "valid" or "test".
    group: recordings that must not be in two splits share it (same tune, same artist). "" where unknown.
    """

    track_id: str
    audio_path: Path
    split: str
    group: str = ""

    def load(
        self, sample_rate_hz: int, start_seconds: float = 0.0, duration_seconds: float | None = None
    ) -> Tensor:
        """Mono float32 samples `(S,)` at the asked rate; raises `audio.AudioError` naming the file."""
        return load_audio(
            self.audio_path, sample_rate_hz, start_seconds=start_seconds, duration_seconds=duration_seconds
        ).samples


@dataclass(frozen=True)
class Skipped:
    """A recording the official lists name but that is left out, and why. split: the one it is listed in."""

    track_id: str
    reason: str
    split: str = ""


@dataclass(frozen=True)
class DatasetInfo:
    """What a user must know before fetching: shown by `audiation list datasets` and docs/datasets.md."""

    title: str
    where: str
    size: str
    licence: str
    commercial_use: bool
    citation: str


class Dataset:
    """A data set read from disk. Subclasses set `name`, `info` and fill `tracks` and `skipped` when made.

    Constructor of every subclass: `(root: Path, *, metadata_root: Path | None = None, **variants)`; `root` is
    the data set's own folder, `metadata_root` a folder with local copies of official split and annotation files
    (see `datasets.metadata`). Raises FileNotFoundError naming what was looked for when `root` is not the data set.
    """

    name: ClassVar[str]
    info: ClassVar[DatasetInfo]
    tracks: tuple[Track, ...]
    skipped: tuple[Skipped, ...]

    def __init__(self, root: Path, *, metadata_root: Path | None = None) -> None:
        raise NotImplementedError

    def split(self, name: str) -> list[Track]:
        if name not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got '{name}'")
        return [t for t in self.tracks if t.split == name]

    @property
    def counts(self) -> dict[str, int]:
        counted = Counter(t.split for t in self.tracks)
        return {s: counted[s] for s in SPLITS}

    @property
    def split_hash(self) -> str:
        """SHA-256 over the sorted (split, track_id) pairs: equal hashes mean the same split."""
        lines = sorted(f"{t.split}\t{t.track_id}\n" for t in self.tracks)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def check_groups(self) -> None:
        """Raise ValueError when one group is in two splits."""
        home: dict[str, str] = {}
        for t in self.tracks:
            if t.group and home.setdefault(t.group, t.split) != t.split:
                raise ValueError(
                    f"{self.name}: group '{t.group}' is in '{home[t.group]}' and '{t.split}'; "
                    "recordings that share a group must share a split"
                )

    def verify(self) -> list[str]:
        """Human-readable lines, one per missing or differing file; empty when all is there."""
        return [
            f"{t.track_id}: {t.audio_path} is missing" for t in self.tracks if not t.audio_path.is_file()
        ] + [f"{s.track_id}: {s.reason}" for s in self.skipped]


DATASETS: Registry[type[Dataset]] = Registry("dataset", "audiation.datasets")
