"""HookTheory: chords and keys of 26,175 excerpts of popular songs, aligned with videos by Sheet Sage. No audio.

Source: Donahue, Thickstun & Liang 2022, `Hooktheory.json.gz`. Split as released, 8:1:1 by artist. The lists of MARBLE
v2 are read by `hooktheory_jsonl`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from audiation.annotations import Key, Segments
from audiation.audio import AudioWindowError, load_audio
from audiation.datasets.annotation_files import read_bytes
from audiation.datasets.base import (
    DATASETS,
    SPLITS,
    Dataset,
    DatasetInfo,
    Download,
    Skipped,
    Track,
    keep_present,
    warn_of_skipped,
)
from audiation.datasets.hooktheory_list import OTHER_MODE, Alignment, Region, read_entries
from audiation.datasets.metadata import ENVIRONMENT, MetadataError
from audiation.datasets.own_recordings import recordings_in

FILE = "Hooktheory.json.gz"
SHA256 = "917b7cd58f5f4e07d6c36acf7bfad958c99ee05472dab3555399141094698e0c"  # as sheetsage/assets/hooktheory.json says
PLACE_BELOW_METADATA_ROOT = f"sheetsage-data/hooktheory/{FILE}"
_URL = (
    "https://github.com/chrisdonahue/sheetsage-data/raw/06113c04b109a2f27517b0399ff47550099f2466/hooktheory/"
    + FILE
)
MAX_BYTES = 1 << 26  # it has about 20 MB


@dataclass(frozen=True)
class HooktheoryTrack(Track):
    """One excerpt. Its audio is part of a longer file, and all times count from where the excerpt begins.

    track_id: the HookTheory id. group: the artist, where all excerpts of that name are in one split, else "".
    youtube_id, song: which recording. span_seconds: start and end of the excerpt in the file.
    """

    youtube_id: str = ""
    song: str = ""
    span_seconds: tuple[float, float] = (0.0, 0.0)
    alignment: Alignment | None = field(default=None, repr=False, compare=False)
    harmony: tuple[Region, ...] = field(default=(), repr=False, compare=False)
    key_regions: tuple[Region, ...] = field(default=(), repr=False, compare=False)
    other_modes: str = field(default="none", repr=False, compare=False)

    @property
    def chords(self) -> Segments | None:
        """'C:maj', 'A:min', 'N' where no chord is written, 'X' for chords that are neither. None without harmony.

        Sevenths and further notes are their triad.
        """
        return self._segments(self.harmony, gaps="N") if self.harmony else None

    @property
    def keys(self) -> Segments | None:
        """'C major', 'A minor', and 'none' in other modes, or nothing there (`other_modes`). None if none is left."""
        regions = [r for r in self.key_regions if self.other_modes == "none" or r.label != OTHER_MODE]
        return self._segments(regions, gaps=None) if regions else None

    @property
    def key(self) -> Key | None:
        """The key, where the whole excerpt has one and it is major or minor."""
        labels = {region.label for region in self.key_regions}
        return Key.parse(labels.pop()) if len(labels) == 1 and OTHER_MODE not in labels else None

    def load(
        self, sample_rate_hz: int, start_seconds: float = 0.0, duration_seconds: float | None = None
    ) -> Tensor:
        """As `Track.load`, of the excerpt: 0 s is its start, and nothing behind its end is read."""
        start, end = self.span_seconds
        if not 0 <= start_seconds < end - start:
            raise AudioWindowError(
                self.audio_path,
                f"the excerpt {self.track_id} lasts {end - start:.3f} s; no window can start at {start_seconds} s.",
            )
        left = end - start - start_seconds
        duration = left if duration_seconds is None else min(left, duration_seconds)
        return load_audio(
            self.audio_path, sample_rate_hz, start_seconds=start + start_seconds, duration_seconds=duration
        ).samples

    def _segments(self, regions: Iterable[Region], gaps: str | None) -> Segments | None:
        """Regions in seconds from the start of the span. One that the next one cuts into ends there."""
        assert self.alignment is not None
        ordered = sorted(regions)
        next_onsets = [r.onset_beats for r in ordered[1:]] + [math.inf]
        bounds = [
            (r.onset_beats, min(r.offset_beats, following))
            for r, following in zip(ordered, next_onsets, strict=True)
        ]
        start, end = self.span_seconds
        times = np.clip(self.alignment.seconds(np.array(bounds)), start, end) - start
        rows: list[tuple[float, float, str]] = []
        reached = 0.0
        for (onset, offset), region in zip(times.tolist(), ordered, strict=True):
            if gaps is not None and onset > reached:
                rows.append((reached, onset, gaps))
            if offset > onset:
                rows.append((onset, offset, region.label))
                reached = offset
        if gaps is not None and end - start > reached:
            rows.append((reached, end - start, gaps))
        if not rows:
            return None
        return Segments(np.array([row[:2] for row in rows]), tuple(label for _, _, label in rows))


@DATASETS.register("hooktheory")
class Hooktheory(Dataset):
    """`Hooktheory.json.gz`, and audio that you bring: `audio/<YouTube id>.<suffix>`, or beside the list.

    Excerpts that name no video, or are not aligned with it, are no part of the data set; `num_without_audio` counts
    them per split. The alignment refined by beat tracking is used where there is one, else the user's.

    Args:
        root: the folder with `Hooktheory.json.gz` and the audio.
        metadata_root: a folder with `sheetsage-data/hooktheory/Hooktheory.json.gz`, for a `root` without it.
        other_modes: keys that are neither major nor minor have the label "none", or are left out ("drop") (D34:
            musicfm has a class "none" and does not say what is in it; "none" is a choice).

    Raises:
        FileNotFoundError: no list, or none of the audio.
        AnnotationError: not that list (names file, line and entry).
        MetadataError: the list below `metadata_root` is not the published one.

    Warns:
        UserWarning: recordings are missing, or an alignment does not advance; `skipped` has each of them.
    """

    name = "hooktheory"
    folders = ("HookTheory",)
    info = DatasetInfo(
        title="HookTheory: chords and keys of excerpts of popular songs, aligned by Sheet Sage",
        where="github.com/chrisdonahue/sheetsage-data (annotations); the audio is on YouTube and not distributed",
        size="20 MB of annotations of 26,175 excerpts, mostly 10 to 30 s",
        licence="CC BY-NC-SA 3.0 (annotations); the recordings are commercial",
        commercial_use=False,
        citation="C. Donahue, J. Thickstun, P. Liang: Melody transcription via generative pre-training, ISMIR 2022",
        downloads=(Download(_URL, FILE, checksum=f"sha256:{SHA256}"),),
    )

    def __init__(
        self,
        root: str | Path,
        *,
        metadata_root: str | Path | None = None,
        other_modes: Literal["none", "drop"] = "none",
    ) -> None:
        if other_modes not in ("none", "drop"):
            raise ValueError(f"other_modes is 'none' or 'drop', got {other_modes!r}")
        source = _find_list(Path(root), metadata_root)
        content = read_bytes(source, MAX_BYTES)
        self.official_list = hashlib.sha256(content).hexdigest() == SHA256
        if not self.official_list and source.parent != Path(root):
            raise MetadataError(f"{source} is not the published file. Replace it with {_URL}")
        audio = recordings_in([Path(root) / "audio", Path(root)])
        self.num_without_audio = dict.fromkeys(SPLITS, 0)
        listed: list[HooktheoryTrack] = []
        unusable: list[Skipped] = []
        entries = list(read_entries(content, source))
        groups = groups_of_one_split((entry.artist, entry.split) for entry in entries)
        for entry in entries:
            if not entry.youtube_id or entry.alignment is None:
                self.num_without_audio[entry.split] += 1
                continue
            if isinstance(entry.alignment, str):
                unusable.append(Skipped(entry.track_id, entry.alignment, entry.split))
                continue
            path = audio.get(entry.youtube_id, Path(root) / "audio" / f"{entry.youtube_id}.mp3")
            start, end = entry.alignment.seconds(np.array([0.0, entry.num_beats])).tolist()
            listed.append(
                HooktheoryTrack(
                    entry.track_id,
                    path,
                    entry.split,
                    entry.artist if entry.artist in groups else "",
                    entry.youtube_id,
                    entry.song,
                    (max(0.0, start), end),
                    entry.alignment,
                    entry.harmony,
                    entry.keys,
                    other_modes,
                )
            )
        present = keep_present(self.name, listed)
        self.tracks, self.skipped = present.tracks, (*present.skipped, *unusable)
        warn_of_skipped(self.name, len(listed) + len(unusable), unusable)

    def verify(self) -> list[str]:
        own = [] if self.official_list else [f"{FILE} in the data folder is not the published file"]
        return super().verify() + own


def groups_of_one_split(pairs: Iterable[tuple[str, str]]) -> set[str]:
    """The names, out of (name, split), that are in one split only."""
    homes: dict[str, set[str]] = {}
    for group, split in pairs:
        homes.setdefault(group, set()).add(split)
    return {group for group, splits in homes.items() if len(splits) == 1}


# Files -------------------------------------------------------------------------------------------------------


def _find_list(root: Path, metadata_root: str | Path | None) -> Path:
    if (root / FILE).is_file():
        return root / FILE
    if metadata_root and (found := Path(metadata_root).expanduser() / PLACE_BELOW_METADATA_ROOT).is_file():
        return found
    raise FileNotFoundError(
        f"hooktheory not found at {root} (looked for {FILE} there, and for {PLACE_BELOW_METADATA_ROOT} below the "
        f"metadata root: --metadata-root, ${ENVIRONMENT}). docs/datasets/hooktheory.md says where to get it."
    )
