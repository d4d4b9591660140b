"""GTZAN: 1,000 excerpts of 30 s in ten genres, with the fault-filtered split, and keys by A. Lerch.

Sources: audio, Tzanetakis & Cook 2002. Split, Kereliuk, Sturm & Larsen 2015 ("fault-filtered": repetitions,
distortions and artists on both sides removed): 443 / 197 / 290 tracks. Keys, Kraft, Lerch & Zoelzer 2013: 837 of the
1,000 labelled, 364 / 165 / 240 in that split.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from audiation.annotations import Key, Label
from audiation.audio import AudioError, audio_info
from audiation.datasets.base import DATASETS, SPLITS, Dataset, DatasetInfo, Skipped, Track, warn_of_skipped
from audiation.datasets.metadata import MetadataFile, MetadataFolder, read_metadata_file, read_metadata_folder

GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")

_LISTS_COMMIT = "bdad579ea6cb37b665ea6019fe1026a6ce20cbc7"
_KEYS_COMMIT = "9ef1591f81ee2f7821c7ce41e774ea7ac7f94cbe"


def _list(split: str, num_bytes: int, sha256: str) -> MetadataFile:
    name = f"gtzan/{split}_filtered.txt"
    url = f"https://raw.githubusercontent.com/coreyker/dnn-mgr/{_LISTS_COMMIT}/{name}"
    return MetadataFile(f"gtzan-fault-filtered/{name}", url, num_bytes, sha256)


SPLIT_LISTS = {
    "train": _list("train", 10152, "2b04966cef1486f1a7767b74271533fa23e220388db804a1937835e1fc4fa3fa"),
    "valid": _list("valid", 4522, "f8fbee7c52397a0e0f3a91dc54fedecb2e27f5bdc9a9daeab8cb10d077e26956"),
    "test": _list("test", 6616, "09cafa6a89ce0a27f30ed250d56ecb4d03c22fffb5a693f96c7ae655ee02ac72"),
}
KEY_FOLDER = MetadataFolder(
    path="gtzan_key/gtzan_key/genres",
    url=f"https://github.com/alexanderlerch/gtzan_key/archive/{_KEYS_COMMIT}.zip",
    folder_in_archive="gtzan_key/genres",
    pattern=rf"(?P<genre>{'|'.join(GENRES)})/(?P=genre)\.\d{{5}}\.lerch\.txt",
    num_files=1000,
    sha256="4acc159cf089efe113c7ea426023ca154d4d827b8b705e0d95ce3ec22f9c5f81",
)


@dataclass(frozen=True)
class GtzanTrack(Track):
    """track_id: 'blues.00029'."""

    keys: KeyAnnotations | None = field(default=None, repr=False, compare=False)

    @property
    def genre(self) -> Label:
        return Label(self.track_id.partition(".")[0])

    @cached_property
    def key(self) -> Key | None:
        """None where the annotator found a modulation or no key. Read, and if need be fetched, when asked for.

        Raises `metadata.MetadataError` or `MetadataUnavailableError` where the annotations are not to be had.
        """
        return self.keys.of(self.track_id) if self.keys else None


@DATASETS.register("gtzan")
class Gtzan(Dataset):
    """GTZAN as it comes: `genres/<genre>/<genre>.<5 digits>.wav`, or the re-host's `Data/genres_original/...`.

    Split lists and key annotations are taken from the data folder where it has its own (`train_filtered.txt`, ...,
    `gtzan_key/`; not compared with the published ones, see `official_split`), else as `datasets.metadata` says.

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
        title="GTZAN genre collection, fault-filtered split, keys by A. Lerch",
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
        audio = _audio_folder(Path(root))
        folders = list(dict.fromkeys([Path(root), audio, audio.parent]))
        lists = _split_lists(folders, metadata_root)
        self.official_split = all(SPLIT_LISTS[s].matches(listed.content) for s, listed in lists.items())
        keys = KeyAnnotations(tuple(folders), metadata_root)
        tracks, skipped = [], []
        for split, track_id in _parse_lists(lists):
            if track_id == "jazz.00054" and jazz_00054 == "drop":
                continue
            path = audio / track_id.partition(".")[0] / f"{track_id}.wav"
            try:
                audio_info(path)
            except AudioError as error:
                skipped.append(Skipped(track_id, str(error), split))
            else:
                tracks.append(GtzanTrack(track_id, path, split, keys=keys))
        if not tracks:
            first = f", for example: {skipped[0].reason}" if skipped else ""
            raise FileNotFoundError(f"none of the listed gtzan tracks can be read from {audio}{first}")
        self.tracks, self.skipped = tuple(tracks), tuple(skipped)
        warn_of_skipped("gtzan", len(tracks) + len(skipped), skipped)

    def verify(self) -> list[str]:
        own = [] if self.official_split else ["the split lists in the data folder are not the published ones"]
        return super().verify() + own


def _audio_folder(root: Path) -> Path:
    for folder in (root / "genres", root / "Data" / "genres_original", root / "genres_original", root):
        if any((folder / genre).is_dir() for genre in GENRES):
            return folder
    raise FileNotFoundError(
        f"gtzan not found at {root} (looked for genres/blues/blues.00000.wav and "
        "Data/genres_original/blues/blues.00000.wav). docs/datasets.md says where to get it."
    )


# Split lists -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _List:
    where: str
    content: bytes


def _split_lists(folders: list[Path], metadata_root: str | Path | None) -> dict[str, _List]:
    for folder in folders:
        paths = {split: folder / f"{split}_filtered.txt" for split in SPLITS}
        present = [p for p in paths.values() if p.is_file()]
        if present and len(present) < len(paths):
            missing = ", ".join(p.name for p in paths.values() if p not in present)
            raise ValueError(
                f"{folder} has {present[0].name} but not {missing}; put all three there, or none"
            )
        if present:
            return {split: _List(str(p), p.read_bytes()) for split, p in paths.items()}
    return {s: _List(item.url, read_metadata_file(item, metadata_root)) for s, item in SPLIT_LISTS.items()}


def _parse_lists(lists: dict[str, _List]) -> Iterator[tuple[str, str]]:
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
                raise ValueError(
                    f"{here}: {line.strip()[:80]!r} is not an entry like 'blues/blues.00029.wav'"
                )
            track_id = match[2]
            if track_id in seen:
                raise ValueError(f"{here}: {track_id} is listed already in {seen[track_id]}")
            seen[track_id] = here
            yield split, track_id


# Keys --------------------------------------------------------------------------------------------------------


class KeyAnnotations:
    """The key files of A. Lerch, looked for when the first key is asked for.

    folders: data folders that may hold `gtzan_key/genres/<genre>/<track id>.lerch.txt` or a clone of the repository.
    """

    def __init__(self, folders: tuple[Path, ...], metadata_root: str | Path | None) -> None:
        self._folders, self._metadata_root = folders, metadata_root

    def of(self, track_id: str) -> Key | None:
        name = f"{track_id.partition('.')[0]}/{track_id}.lerch.txt"
        if self._local is None:
            content = self._official.get(name)
        else:
            path = self._local / name
            content = path.read_bytes() if path.is_file() else None
        return (
            None if content is None else parse_lerch_key(content, f"{self._local or KEY_FOLDER.path}/{name}")
        )

    @cached_property
    def _local(self) -> Path | None:
        places = (f / p for f in self._folders for p in ("gtzan_key/genres", "gtzan_key/gtzan_key/genres"))
        return next((p for p in places if p.is_dir()), None)

    @cached_property
    def _official(self) -> dict[str, bytes]:
        return read_metadata_folder(KEY_FOLDER, self._metadata_root)


def parse_lerch_key(content: bytes, where: str) -> Key | None:
    """One integer: 0..11 major on A, A#, ..., G#; 12..23 minor on the same tonics; -1 modulating or unknown."""
    text = content.decode("utf-8", "replace").strip()
    if not re.fullmatch(r"-?[0-9]{1,2}", text) or not -1 <= int(text) <= 23:
        raise ValueError(f"{where}: a key is one integer from -1 to 23, got {text[:20]!r}")
    number = int(text)
    return None if number == -1 else Key((number + 9) % 12, "major" if number < 12 else "minor")
