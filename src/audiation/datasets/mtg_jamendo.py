"""MTG-Jamendo: 55,000 full recordings with tags by their uploaders, in four subsets: top 50, genre, instrument, mood.

Source: Bogdanov, Won, Tovstogan, Porter & Serra 2019. Five official splits by artist; published results use split 0.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, get_args

from audiation.annotations import Tags
from audiation.datasets.annotation_files import AnnotationError, read_lines, shown
from audiation.datasets.base import DATASETS, Dataset, DatasetInfo, Track, keep_present
from audiation.datasets.mtg_jamendo_lists import (
    MAX_BYTES,
    MAX_TRACKS,
    REPOSITORY,
    SPLIT_LISTS,
    TAGS,
    SplitNumber,
    listed_tracks,
    read_split_lists,
)

AudioSet = Literal["auto", "audio", "audio-low"]


@dataclass(frozen=True)
class MtgJamendoTrack(Track):
    """One recording. track_id: 'track_0003524'. group: its artist, 'artist_000014'.

    present: the tags that it has. vocabulary: all tags of the data set.
    """

    present: tuple[str, ...] = field(kw_only=True, repr=False, compare=False)
    vocabulary: tuple[str, ...] = field(kw_only=True, repr=False, compare=False)

    @property
    def tags(self) -> Tags:
        """All of the data set's tags, in the order of `TAGS`, 1.0 where the recording has the tag."""
        return Tags({**dict.fromkeys(self.vocabulary, 0.0), **dict.fromkeys(self.present, 1.0)})


class MtgJamendo(Dataset):
    """What the four subsets share.

    Split lists: `data/splits/split-<k>/` in the data folder or in a clone `mtg-jamendo-dataset/` in it, else as
    `datasets.metadata` says (split 0), or in the folder `mtg-jamendo-dataset` below the metadata root.
    Audio: `audio/NN/ID.mp3` (320 kbit/s) or `audio-low/NN/ID.low.mp3` (mono), in the data folder, in a folder `raw_30s`
    or `autotagging_moodtheme` of it, or beside the data folder where that is the clone; `NN/` alone will do.

    Args:
        root: the data folder, or the clone.
        metadata_root: folder with local copies of the official lists.
        audio: which of the two sets of audio. "auto": `audio` where it is there, else `audio-low`.
        split: number of the official split, "0" for all published results. Split 0 is fetched; the others are read from
            a clone of the repository.

    Raises:
        FileNotFoundError: no audio, or lists that are neither here nor to be fetched.
        AnnotationError: a list that is no such list (names file and line).
        MetadataError: a copy of the official lists that is not as published.
        ValueError: a choice that there is not, or a clone that lacks one of the three lists.

    Warns:
        UserWarning: recordings are missing; `skipped` has each of them.
    """

    folders: ClassVar[tuple[str, ...]] = (REPOSITORY, "mtg_jamendo")

    def __init__(
        self,
        root: str | Path,
        *,
        metadata_root: str | Path | None = None,
        audio: AudioSet = "auto",
        split: SplitNumber = "0",
    ) -> None:
        if audio not in get_args(AudioSet):
            raise ValueError(f"audio is one of {', '.join(get_args(AudioSet))}, got {audio!r}")
        self._root = Path(root)
        self.audio = _find_audio(self.name, self._root, audio)
        lists = read_split_lists(self.name, split, _clones(self._root), metadata_root)
        self._differing = [
            f"{listed.where} is not as published"
            for s, listed in lists.items()
            if split == "0" and not SPLIT_LISTS[self.name][s].matches(listed.content)
        ]
        present = keep_present(
            self.name,
            (
                MtgJamendoTrack(
                    t.track_id,
                    self.audio.path(t.path),
                    t.split,
                    t.artist_id,
                    present=t.tags,
                    vocabulary=TAGS[self.name],
                )
                for t in listed_tracks(self.name, lists)
            ),
        )
        self.tracks, self.skipped = present.tracks, present.skipped

    def verify(self) -> list[str]:
        """Also compares recordings with their SHA-256 where a clone has these in `data/download`: reads all audio."""
        return super().verify() + self._differing + self._wrong_audio()

    def _wrong_audio(self) -> list[str]:
        expected = _published_hashes(_clones(self._root), self.audio.kind)
        lines = []
        for track in self.tracks:
            name = track.audio_path.relative_to(self.audio.folder).as_posix()
            if name in expected and track.audio_path.is_file():
                with track.audio_path.open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != expected[name]:
                        lines.append(f"{track.track_id}: {track.audio_path} is not the published recording")
        return lines


def _info(what: str, counts: str) -> DatasetInfo:
    return DatasetInfo(
        title=f"MTG-Jamendo, {what}",
        where="github.com/MTG/mtg-jamendo-dataset; its scripts/download/download.py gets the audio, no account needed",
        size=f"{counts}; 508 GB of MP3 (audio) or 156 GB (audio-low)",
        licence="audio: Creative Commons, another one per track, many non-commercial; annotations: CC BY-NC-SA 4.0",
        commercial_use=False,
        citation="D. Bogdanov, M. Won, P. Tovstogan, A. Porter, X. Serra: The MTG-Jamendo dataset for automatic music "
        "tagging, ML4MD workshop at ICML 2019",
    )


@DATASETS.register("mtg_top50")
class MtgTop50(MtgJamendo):
    """MTG-Jamendo with its 50 most frequent tags of all sorts. Layout, choices and errors: `MtgJamendo`."""

    name = "mtg_top50"
    info = _info("the 50 most frequent tags", "54,380 tracks")


@DATASETS.register("mtg_genre")
class MtgGenre(MtgJamendo):
    """MTG-Jamendo with 87 genres. Layout, choices and errors: `MtgJamendo`."""

    name = "mtg_genre"
    info = _info("genre tags", "55,094 tracks")


@DATASETS.register("mtg_instrument")
class MtgInstrument(MtgJamendo):
    """MTG-Jamendo with 40 instruments. Layout, choices and errors: `MtgJamendo`."""

    name = "mtg_instrument"
    info = _info("instrument tags", "24,976 tracks")


@DATASETS.register("mtg_moodtheme")
class MtgMoodtheme(MtgJamendo):
    """MTG-Jamendo with 56 moods and themes. Layout, choices and errors: `MtgJamendo`."""

    name = "mtg_moodtheme"
    info = _info("mood and theme tags", "17,982 tracks; 152 GB of the audio are enough")


# Audio -----------------------------------------------------------------------------------------------------


def _clones(root: Path) -> list[Path]:
    """Where a clone of the repository is looked for."""
    return [root, root / REPOSITORY]


@dataclass(frozen=True)
class AudioFolder:
    """Where the recordings lie, `folder/NN/ID.mp3`, and which of the two sets they are."""

    folder: Path
    kind: Literal["audio", "audio-low"]

    def path(self, listed: str) -> Path:
        """Of a path as the lists have it, 'NN/ID.mp3'."""
        low = self.kind == "audio-low"
        return self.folder / (listed.removesuffix(".mp3") + ".low.mp3" if low else listed)


def _find_audio(name: str, root: Path, wanted: AudioSet) -> AudioFolder:
    places = [root, root / "raw_30s", root / "autotagging_moodtheme"]
    if (root / "data" / "splits").is_dir():  # the clone: audio may lie beside it
        places.append(root.parent)
    kinds: list[Literal["audio", "audio-low"]] = ["audio", "audio-low"] if wanted == "auto" else [wanted]
    for kind in kinds:
        for place in places:
            for folder in (place / kind, place):
                if _holds(folder, kind):
                    return AudioFolder(folder, kind)
    looked_for = {"audio": "audio/NN/ID.mp3", "audio-low": "audio-low/NN/ID.low.mp3"}
    raise FileNotFoundError(
        f"{name} not found at {root} (looked for {' and '.join(looked_for[kind] for kind in kinds)}). "
        "docs/datasets/mtg_jamendo.md says where to get it."
    )


def _holds(folder: Path, kind: str) -> bool:
    """Whether a folder '00' to '99' below it has a recording of that set."""
    pattern = r"[0-9]+\.low\.mp3" if kind == "audio-low" else r"[0-9]+\.mp3"
    for i in range(100):
        inside = folder / f"{i:02d}"
        if inside.is_dir():
            with os.scandir(inside) as entries:
                if any(re.fullmatch(pattern, entry.name) for entry in entries):
                    return True
    return False


def _published_hashes(clones: list[Path], kind: str) -> dict[str, str]:
    """'NN/ID.mp3' -> SHA-256, from the lists of a clone; empty where there is none."""
    hashes: dict[str, str] = {}
    for clone in clones:
        for download in ("raw_30s", "autotagging_moodtheme"):
            path = clone / "data" / "download" / f"{download}_{kind}_sha256_tracks.txt"
            if path.is_file():
                for line in read_lines(path, max_bytes=MAX_BYTES, max_lines=MAX_TRACKS):
                    match = re.fullmatch(r"([0-9a-f]{64}) +([0-9]{2}/[0-9]+(\.low)?\.mp3)", line.text.strip())
                    if not match:
                        raise AnnotationError(
                            f"{line.where}: a SHA-256 and a path like 24/3524.mp3 were expected, got {shown(line.text)}"
                        )
                    hashes[match[2]] = match[1]
    return hashes
