"""One recording (`Track`), a collection with official splits (`Dataset`), and their registry."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
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

    @property
    def span_seconds(self) -> tuple[float, float] | None:
        """(start, end) of the part of the file that is the track; None: all of it. Annotations count from its start."""
        return None

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
class Download:
    """One file at its official place.

    path: where it goes, below the data set's folder; its name without a folder where it is unpacked there.
    num_bytes: its size where the place tells it. checksum: "sha256:..." or "md5:..." as published there, else None.
    unpack: a .zip, .tar or .tar.gz whose content belongs into the data set's folder.
    """

    url: str
    path: str
    num_bytes: int | None = None
    checksum: str | None = None
    unpack: bool = False


@dataclass(frozen=True)
class DatasetInfo:
    """What a user must know before fetching: shown by `audiation datasets list` and docs/datasets.md.

    downloads: what can be fetched without an account; empty where the audio must come from elsewhere.
    """

    title: str
    where: str
    size: str
    licence: str
    commercial_use: bool
    citation: str
    downloads: tuple[Download, ...] = ()


class Dataset:
    """A data set read from disk. Subclasses set `name`, `info` and fill `tracks` and `skipped` when made.

    Constructor of every subclass: `(root: Path, *, metadata_root: Path | None = None, **variants)`; `root` is
    the data set's own folder, `metadata_root` a folder with local copies of official split and annotation files
    (see `datasets.metadata`). Raises FileNotFoundError naming what was looked for when `root` is not the data set.

    folders: names that its folder may have below the data root beside `name`: what the official download unpacks to.
    """

    name: ClassVar[str]
    info: ClassVar[DatasetInfo]
    folders: ClassVar[tuple[str, ...]] = ()
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


@dataclass(frozen=True)
class Present:
    """Tracks whose file is there, and those whose file is not."""

    tracks: tuple[Track, ...]
    skipped: tuple[Skipped, ...]


def keep_present(name: str, listed: Iterable[Track]) -> Present:
    """Leave out the tracks whose file is missing or empty; only names and sizes are looked at, nothing is opened.

    A file that is there and cannot be read is a reported failure of whatever reads it.

    Raises:
        FileNotFoundError: none of the listed files is there (names the first).

    Warns:
        UserWarning: some are missing.
    """
    kept: list[Track] = []
    skipped: list[Skipped] = []
    for track in listed:
        try:
            size = track.audio_path.stat().st_size
        except OSError as error:
            reason = f"{track.audio_path} cannot be read: {error.strerror}"
        else:
            if size:
                kept.append(track)
                continue
            reason = f"{track.audio_path} is an empty file"
        skipped.append(Skipped(track.track_id, reason, track.split))
    if not kept:
        where = f", the first: {skipped[0].reason}" if skipped else ""
        raise FileNotFoundError(f"none of the {len(skipped)} listed {name} recordings is there{where}")
    warn_of_skipped(name, len(kept) + len(skipped), skipped)
    return Present(tuple(kept), tuple(skipped))


def warn_of_skipped(name: str, num_listed: int, skipped: Sequence[Skipped]) -> None:
    """One warning for all recordings that are left out; `Dataset.skipped` has each of them."""
    if skipped:
        warnings.warn(
            f"{name}: {len(skipped)} of {num_listed} listed recordings left out, "
            f"the first: {skipped[0].track_id}: {skipped[0].reason}",
            stacklevel=3,
        )


DATASETS: Registry[type[Dataset]] = Registry("dataset", "audiation.datasets")
