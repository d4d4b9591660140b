"""GTZAN: 1,000 excerpts of 30 s in ten genres, with the fault-filtered split, keys by A. Lerch, tempo and beats.

Sources: audio, Tzanetakis & Cook 2002. Split, Kereliuk, Sturm & Larsen 2015 ("fault-filtered": repetitions,
distortions and artists on both sides removed): 443 / 197 / 290 tracks. Keys, Kraft, Lerch & Zoelzer 2013: 837 of the
1,000 labelled, 364 / 165 / 240 in that split. Tempo and beats, gtzan_tempo_beat: 999 of the 1,000, all of that split.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from audiation.annotations import Beats, Key, Label, Tempo
from audiation.audio import AudioError, audio_info
from audiation.datasets.annotation_files import AnnotationError, shown
from audiation.datasets.base import (
    DATASETS,
    SPLITS,
    Dataset,
    DatasetInfo,
    Present,
    Skipped,
    Track,
    warn_of_skipped,
)
from audiation.datasets.gtzan_annotations import GENRES, KeyAnnotations, TempoBeatAnnotations
from audiation.datasets.metadata import MetadataFile, read_metadata_file

_LISTS_COMMIT = "bdad579ea6cb37b665ea6019fe1026a6ce20cbc7"


def _list(split: str, num_bytes: int, sha256: str) -> MetadataFile:
    name = f"gtzan/{split}_filtered.txt"
    url = f"https://raw.githubusercontent.com/coreyker/dnn-mgr/{_LISTS_COMMIT}/{name}"
    return MetadataFile(f"gtzan-fault-filtered/{name}", url, num_bytes, sha256)


SPLIT_LISTS = {
    "train": _list("train", 10152, "2b04966cef1486f1a7767b74271533fa23e220388db804a1937835e1fc4fa3fa"),
    "valid": _list("valid", 4522, "f8fbee7c52397a0e0f3a91dc54fedecb2e27f5bdc9a9daeab8cb10d077e26956"),
    "test": _list("test", 6616, "09cafa6a89ce0a27f30ed250d56ecb4d03c22fffb5a693f96c7ae655ee02ac72"),
}


@dataclass(frozen=True)
class GtzanTrack(Track):
    """track_id: 'blues.00029'."""

    keys: KeyAnnotations | None = field(default=None, repr=False, compare=False)
    tempo_beat: TempoBeatAnnotations | None = field(default=None, repr=False, compare=False)

    @property
    def genre(self) -> Label:
        return Label(self.track_id.partition(".")[0])

    @cached_property
    def key(self) -> Key | None:
        """None where the annotator found a modulation or no key. Read, and if need be fetched, when asked for.

        Raises `metadata.MetadataError` or `MetadataUnavailableError` where the annotations are not to be had.
        """
        return self.keys.of(self.track_id) if self.keys else None

    @cached_property
    def tempo(self) -> Tempo | None:
        """None for reggae.00086, which is not annotated. Read when asked for, as `key`, with the same errors."""
        return self.tempo_beat.tempo_of(self.track_id) if self.tempo_beat else None

    @cached_property
    def beats(self) -> Beats | None:
        """None for reggae.00086. Some beats lie after the end of the audio. Six tracks of jazz have no beat numbers:
        all their positions are 0. Read when asked for, as `key`, with the same errors.
        """
        return self.tempo_beat.beats_of(self.track_id) if self.tempo_beat else None


@DATASETS.register("gtzan")
class Gtzan(Dataset):
    """GTZAN as it comes: `genres/<genre>/<genre>.<5 digits>.wav`, or the re-host's `Data/genres_original/...`.

    Split lists and annotations are taken from the data folder where it has its own (`train_filtered.txt`, ...,
    `gtzan_key/`, `gtzan_tempo_beat/`; not compared with the published ones, see `official_split`), else as
    `datasets.metadata` says.

    Args:
        root: the data folder, or the folder of genres in it.
        metadata_root: folder with local copies of the official lists and annotations.
        jazz_00054: the re-host's copy of this training track is not audio. "keep" (jukemir; the original archive)
            has it in the training split where it can be read and counts it as skipped where it cannot, "drop"
            (MARBLE v1, PETL) leaves it out everywhere (D12).

    Raises:
        FileNotFoundError: no audio, or split lists that are neither here nor to be fetched.
        ValueError: a list that is not a list of GTZAN tracks (names file and line), or not the published one.

    Warns:
        UserWarning: listed recordings are missing or unreadable; `skipped` has each of them with its reason.
    """

    name = "gtzan"
    info = DatasetInfo(
        title="GTZAN genre collection, fault-filtered split, keys, tempo and beats",
        where="marsyas.info/downloads/datasets.html, or a re-host: huggingface.co/datasets/marsyas/gtzan, "
        "kaggle.com/datasets/andradaolteanu/gtzan-dataset-music-genre-classification",
        size="1.2 GB, 1,000 x 30 s",
        licence="none stated; excerpts of commercial recordings, for research",
        commercial_use=False,
        citation="G. Tzanetakis, P. Cook: Musical genre classification of audio signals, IEEE TSAP 10(5), 2002",
    )

    def __init__(
        self,
        root: str | Path,
        *,
        metadata_root: str | Path | None = None,
        jazz_00054: Literal["keep", "drop"] = "keep",
    ) -> None:
        if jazz_00054 not in ("keep", "drop"):
            raise ValueError(f"jazz_00054 is 'keep' or 'drop', got {jazz_00054!r}")
        audio = find_audio_folder(self.name, Path(root))
        folders = list(dict.fromkeys([Path(root), audio, audio.parent]))
        lists = read_split_lists(folders, metadata_root)
        self.official_split = all(SPLIT_LISTS[s].matches(listed.content) for s, listed in lists.items())
        keys = self._keys = KeyAnnotations(tuple(folders), metadata_root)
        tempo_beat = self._tempo_beat = TempoBeatAnnotations(tuple(folders), metadata_root)
        listed = [
            GtzanTrack(track_id, audio_path(audio, track_id), split, keys=keys, tempo_beat=tempo_beat)
            for split, track_id in parse_split_lists(lists)
            if track_id != "jazz.00054" or jazz_00054 == "keep"
        ]
        readable = keep_readable(self.name, audio, listed)
        self.tracks, self.skipped = readable.tracks, readable.skipped

    def verify(self) -> list[str]:
        own = [] if self.official_split else ["the split lists in the data folder are not the published ones"]
        return super().verify() + own + self._keys.differences() + self._tempo_beat.differences()


# What other readers of the same audio use ------------------------------------------------------------------


def find_audio_folder(name: str, root: Path) -> Path:
    """The folder of genres in the data folder; FileNotFoundError, with the data set's name, where there is none."""
    for folder in (root / "genres", root / "Data" / "genres_original", root / "genres_original", root):
        if any((folder / genre).is_dir() for genre in GENRES):
            return folder
    raise FileNotFoundError(
        f"{name} not found at {root} (looked for genres/blues/blues.00000.wav and "
        "Data/genres_original/blues/blues.00000.wav). docs/datasets.md says where to get it."
    )


def audio_path(folder: Path, track_id: str) -> Path:
    return folder / track_id.partition(".")[0] / f"{track_id}.wav"


def keep_readable(name: str, folder: Path, listed: Sequence[Track]) -> Present:
    """Leave out the tracks whose headers cannot be read: the re-host has a jazz.00054.wav that is no audio.

    Raises:
        FileNotFoundError: none can be read.

    Warns:
        UserWarning: some cannot.
    """
    tracks: list[Track] = []
    skipped: list[Skipped] = []
    for track in listed:
        try:
            audio_info(track.audio_path)
        except AudioError as error:
            skipped.append(Skipped(track.track_id, str(error), track.split))
        else:
            tracks.append(track)
    if not tracks:
        first = f", for example: {skipped[0].reason}" if skipped else ""
        raise FileNotFoundError(f"none of the listed {name} tracks can be read from {folder}{first}")
    warn_of_skipped(name, len(listed), skipped)
    return Present(tuple(tracks), tuple(skipped))


# Split lists -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SplitList:
    """where: the file or address it is from, for messages."""

    where: str
    content: bytes


def read_split_lists(folders: Sequence[Path], metadata_root: str | Path | None) -> dict[str, SplitList]:
    """The lists of the first folder that has them, else the published ones, by split."""
    for folder in folders:
        paths = {split: folder / f"{split}_filtered.txt" for split in SPLITS}
        present = [p for p in paths.values() if p.is_file()]
        if present and len(present) < len(paths):
            missing = ", ".join(p.name for p in paths.values() if p not in present)
            raise ValueError(
                f"{folder} has {present[0].name} but not {missing}; put all three there, or none"
            )
        if present:
            return {split: SplitList(str(p), p.read_bytes()) for split, p in paths.items()}
    return {
        s: SplitList(item.url, read_metadata_file(item, metadata_root)) for s, item in SPLIT_LISTS.items()
    }


def parse_split_lists(lists: dict[str, SplitList]) -> Iterator[tuple[str, str]]:
    """(split, track id) per entry. A list is text somebody else wrote and its entries become paths: checked."""
    pattern = re.compile(rf"({'|'.join(GENRES)})/(\1\.[0-9]{{5}})\.wav")
    seen: dict[str, str] = {}
    for split, listed in lists.items():
        for number, line in enumerate(listed.content.decode("utf-8-sig", "replace").splitlines(), start=1):
            if not line.strip():
                continue
            here = f"{listed.where}, line {number}"
            match = pattern.fullmatch(line.strip())
            if not match:
                raise AnnotationError(
                    f"{here}: {shown(line.strip())} is not an entry like 'blues/blues.00029.wav'"
                )
            track_id = match[2]
            if track_id in seen:
                raise AnnotationError(f"{here}: {track_id} is listed already in {seen[track_id]}")
            seen[track_id] = here
            yield split, track_id
