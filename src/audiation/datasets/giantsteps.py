"""GiantSteps: previews of electronic dance music with their keys (test; training and validation) and tempo.

Sources: test set of keys (604 tracks) and tempo (664), Knees et al. 2015; tempo, version 2, Schreiber & Mueller 2018.
Training set of keys (1,486 tracks, "GiantSteps-MTG"), Faraldo 2017; its division by artist, Castellon, Donahue & Liang
2021 ("jukemir"): 923 / 236.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from audiation.annotations import Key, Tempo
from audiation.datasets.annotation_files import (
    AnnotationError,
    Line,
    identifier,
    lines_of,
    number,
    read_bytes,
    shown,
    table_rows,
    whole_number,
)
from audiation.datasets.annotation_folder import AnnotationFolder
from audiation.datasets.base import DATASETS, Dataset, DatasetInfo, Track, keep_present
from audiation.datasets.metadata import MetadataFile, MetadataFolder, read_metadata_file

MIN_BPM, MAX_BPM = 10.0, 1000.0
MAX_TRACKS = 20_000
TRACK_ID = r"[0-9]{1,8}"

SHORT_TEMPO_TRACKS = ("906760", "1327052", "1855660", "3419452", "3577631", "4416506")
"""The tracks of the tempo set that do not last 120 s."""

_KEY_COMMIT = "6bcd492c825ac9b8597bc650a5f6fd18b6c43d2b"
_MTG_COMMIT = "fd7b8c584f7bd6d720d170c325a6d42c9bf75a6b"
_TEMPO_COMMIT = "d51ab2422e76abacfaa86616a57054bc222ec9fd"
_GITHUB = "https://github.com/GiantSteps"
_JKU = "www.cp.jku.at/datasets/giantsteps"

KEY_FOLDER = MetadataFolder(
    path="giantsteps-key-dataset/annotations/key",
    url=f"{_GITHUB}/giantsteps-key-dataset/archive/{_KEY_COMMIT}.zip",
    folder_in_archive="annotations/key",
    pattern=rf"{TRACK_ID}\.LOFI\.key",
    num_files=604,
    sha256="17448ed2ad6280331a728259f7ad695724cf16b51cef66280d6bd9a021cd0b7a",
)


def _mtg_file(name: str, num_bytes: int, sha256: str) -> MetadataFile:
    url = f"https://raw.githubusercontent.com/GiantSteps/giantsteps-mtg-key-dataset/{_MTG_COMMIT}/annotations/{name}"
    return MetadataFile(f"giantsteps-mtg-key-dataset/annotations/{name}", url, num_bytes, sha256)


MTG_FILES = {
    "annotations.txt": _mtg_file(
        "annotations.txt", 26694, "0cdc4480a74e3eb2be6a38ad474bbf82434874ce2d419d718117080e82944550"
    ),
    "beatport_metadata.txt": _mtg_file(
        "beatport_metadata.txt", 132015, "56c92617e72669e82189de0e4f774d57f23d078b45d67734f716835432ab7182"
    ),
}


def _tempo_folder(folder: str, pattern: str, num_files: int, sha256: str) -> MetadataFolder:
    url = f"{_GITHUB}/giantsteps-tempo-dataset/archive/{_TEMPO_COMMIT}.zip"
    return MetadataFolder(f"giantsteps-tempo-dataset/{folder}", url, folder, pattern, num_files, sha256)


TEMPO_FOLDERS = {
    "v1": _tempo_folder(
        "annotations/tempo",
        rf"{TRACK_ID}\.LOFI\.bpm",
        664,
        "1b7230ac55f98fb083083efae4eb24d51338a6440a60821f9df7975ab5725668",
    ),
    "v2": _tempo_folder(
        "annotations_v2/tempo",
        rf"{TRACK_ID}\.LOFI\.bpm",
        664,
        "60b5ca9da854efb7a9d969529e1372b5f1728df9d1c84c01e98cea01598cb95d",
    ),
}
FOLDS = _tempo_folder(
    "splits",
    r"fold(0[1-9]|10)\.txt",
    10,
    "332d4856ea65acb11dd79773b33443d5b6f5a11025cd0c0dbb80f46d0a95df72",
)


@dataclass(frozen=True)
class KeyTrack(Track):
    """track_id: the number of the recording at Beatport, '10089'."""

    key: Key | None = None


@dataclass(frozen=True)
class TempoTrack(Track):
    """track_id: the number of the recording at Beatport."""

    tempo: Tempo | None = None


class _GiantSteps(Dataset):
    """What the three have in common: `audio/<id>.LOFI.mp3`, `md5/<id>.LOFI.md5`, and the repository around them."""

    def _check_root(self, root: Path) -> None:
        if not (root / "audio").is_dir():
            raise FileNotFoundError(
                f"{self.name} not found at {root} (looked for audio/<number>.LOFI.mp3). "
                "docs/datasets/giantsteps.md says where to get it."
            )

    def _keep_present(self, listed: Iterable[Track]) -> None:
        present = keep_present(self.name, listed)
        self.tracks, self.skipped = present.tracks, present.skipped

    def verify(self) -> list[str]:
        """Also compares every recording with its MD5 in `md5/` where the data folder has that: reads all the audio."""
        return super().verify() + [line for t in self.tracks for line in _md5_difference(t)]


# Key, test ---------------------------------------------------------------------------------------------------


@DATASETS.register("giantsteps_key")
class GiantStepsKey(_GiantSteps):
    """The 604 test tracks of key estimation, `giantsteps-key-dataset/`; artists are not known.

    PETL leaves out the four that do not last 120 s (D14): 1224698, 1442809, 3424038, 4452003.

    Args:
        root: the folder with `audio/<id>.LOFI.mp3`.
        metadata_root: folder with local copies of the official annotations, for where `root` has none of its own in
            `annotations/key/`.

    Raises:
        FileNotFoundError: no audio, or annotations that are neither here nor to be fetched.
        AnnotationError: a file that does not hold a key (names file and line).
        MetadataError: a copy of the official annotations that is not as published.

    Warns:
        UserWarning: recordings are missing; `skipped` has each of them.
    """

    name = "giantsteps_key"
    folders = ("giantsteps-key-dataset",)
    info = DatasetInfo(
        title="GiantSteps key: test set of keys in electronic dance music",
        where=f"github.com/GiantSteps/giantsteps-key-dataset; its audio_dl.sh gets the audio from {_JKU}/backup/",
        size="604 previews, nearly all of 120 s; 0.85 GB of MP3",
        licence="none stated; previews of commercial recordings, for research",
        commercial_use=False,
        citation="P. Knees et al.: Two data sets for tempo estimation and key detection in electronic dance music "
        "annotated from user corrections, ISMIR 2015",
    )

    def __init__(self, root: str | Path, *, metadata_root: str | Path | None = None) -> None:
        root = Path(root)
        self._check_root(root)
        self._files = AnnotationFolder([root / "annotations" / "key"], KEY_FOLDER, metadata_root)
        self._keep_present(
            KeyTrack(track_id, _audio(root, track_id), "test", key=key)
            for track_id, key in _test_keys(self._files).items()
        )

    def verify(self) -> list[str]:
        return super().verify() + self._files.differences()


def key_test_set(metadata_root: str | Path | None = None) -> dict[str, Key]:
    """The official 604 keys by track id; no audio is needed."""
    return _test_keys(AnnotationFolder([], KEY_FOLDER, metadata_root))


def _test_keys(files: AnnotationFolder) -> dict[str, Key]:
    keys = {}
    for name in files.names():
        lines = lines_of(files.read(name) or b"", files.where(name))
        if len(lines) != 1:
            raise AnnotationError(
                f"{files.where(name)}, line 1: one key was expected, got {len(lines)} lines"
            )
        keys[name.partition(".")[0]] = _key(lines[0].text, lines[0].where)
    return keys


# Key, training and validation ------------------------------------------------------------------------------


@DATASETS.register("giantsteps_mtg_key")
class GiantStepsMtgKey(_GiantSteps):
    """Training and validation tracks of key estimation, `giantsteps-mtg-key-dataset/`: 923 / 236.

    Args:
        root: the folder with `audio/<id>.LOFI.mp3`.
        metadata_root: folder with local copies of the official annotations, for where `root` has none of its own:
            `annotations/annotations.txt` and `annotations/beatport_metadata.txt`.
        split: "jukemir" (also MARBLE): by artist, see `divide_by_artist`. PETL's other division of the same tracks,
            925 / 234 (D14), is not published and so not here.
        filter: "confident": the annotator's confidence is 2 and there is one key, 1,159 of 1,486 tracks. The thesis
            says 1,077, but the code it shares with jukemir gives 1,159 (D13).

    Raises:
        FileNotFoundError: no audio, or annotations that are neither here nor to be fetched.
        AnnotationError: a table that is not such a table (names file and line).
        MetadataError: a copy of the official annotations that is not as published.

    Warns:
        UserWarning: recordings are missing; `skipped` has each of them.
    """

    name = "giantsteps_mtg_key"
    folders = ("giantsteps-mtg-key-dataset",)
    info = DatasetInfo(
        title="GiantSteps-MTG key: training set of keys in electronic dance music",
        where="github.com/GiantSteps/giantsteps-mtg-key-dataset; its audio_dl.sh gets the audio, now from "
        f"{_JKU}/mtg_key_backup/",
        size="1,486 previews of 120 s; 2 GB of MP3",
        licence="none stated; previews of commercial recordings, for research",
        commercial_use=False,
        citation="A. Faraldo: Tonality estimation in electronic dance music, PhD thesis, UPF Barcelona 2017",
    )

    def __init__(
        self,
        root: str | Path,
        *,
        metadata_root: str | Path | None = None,
        split: Literal["jukemir"] = "jukemir",
        filter: Literal["confident"] = "confident",
    ) -> None:
        if split != "jukemir":
            raise ValueError(f"split is 'jukemir', got {split!r}. PETL's division is not published (D14).")
        if filter != "confident":
            raise ValueError(f"filter is 'confident', got {filter!r}. 1,077 tracks come from no rule (D13).")
        root = Path(root)
        self._check_root(root)
        tables = {n: _mtg_table(n, root / "annotations", metadata_root) for n in MTG_FILES}
        self._differing = [t.name for n, t in tables.items() if not MTG_FILES[n].matches(t.content)]
        self._keep_present(
            KeyTrack(t.track_id, _audio(root, t.track_id), t.split, t.group, t.key)
            for t in _mtg_tracks(tables)
        )

    def verify(self) -> list[str]:
        return super().verify() + [f"{name} is not as published" for name in self._differing]


@dataclass(frozen=True)
class MtgTrack:
    """A confident track. group: one of the artists that it and others share, directly or through a third track."""

    track_id: str
    key: Key
    split: str
    group: str


def mtg_key_set(metadata_root: str | Path | None = None) -> list[MtgTrack]:
    """The official training and validation tracks, in the order of `annotations.txt`; no audio is needed."""
    return _mtg_tracks({n: _mtg_table(n, None, metadata_root) for n in MTG_FILES})


def divide_by_artist(artists: Sequence[Sequence[str]]) -> list[str]:
    """ "train" or "valid" for each track, from the names of its artists. The rule of jukemir.

    By itself an artist is in training where the SHA-1 of the lower-cased name, as an integer modulo 116, is below
    100. Then, twice, in order: where any artist of a track is in validation, all of its artists go there.
    """
    valid = {name: _sha1(name.lower()) % 116 >= 100 for names in artists for name in names}
    for _ in range(2):
        for names in artists:
            if any(valid[name] for name in names):
                valid.update(dict.fromkeys(names, True))
    return ["valid" if any(valid[name] for name in names) else "train" for names in artists]


@dataclass(frozen=True)
class _Table:
    name: str
    content: bytes


def _mtg_table(name: str, folder: Path | None, metadata_root: str | Path | None) -> _Table:
    if folder and (folder / name).is_file():
        return _Table(str(folder / name), read_bytes(folder / name))
    return _Table(MTG_FILES[name].path, read_metadata_file(MTG_FILES[name], metadata_root))


def _mtg_tracks(tables: dict[str, _Table]) -> list[MtgTrack]:
    artists = _artists(tables["beatport_metadata.txt"])
    split = dict(zip(artists, divide_by_artist(list(artists.values())), strict=True))
    keys = _confident_keys(tables["annotations.txt"], artists.keys())
    group = _linked([artists[track_id] for track_id in keys])
    return [MtgTrack(i, key, split[i], group[artists[i][0]]) for i, key in keys.items()]


def _artists(table: _Table) -> dict[str, list[str]]:
    """Track id -> names, in the order of the table, which the rule depends on."""
    artists: dict[str, list[str]] = {}
    for row, where in table_rows(
        table.content, table.name, ("ID", "ARTIST"), delimiter="\t", max_lines=MAX_TRACKS
    ):
        track_id = _new_id(row["ID"], where, artists)
        artists[track_id] = [name.strip() for name in row["ARTIST"].split(",")]
    return artists


def _confident_keys(table: _Table, known: Iterable[str]) -> dict[str, Key]:
    keys: dict[str, Key] = {}
    seen: set[str] = set()
    known = set(known)
    for row, where in table_rows(
        table.content, table.name, ("ID", "MANUAL KEY", "C"), delimiter="\t", max_lines=MAX_TRACKS
    ):
        track_id = _new_id(row["ID"], where, seen)
        seen.add(track_id)
        if track_id not in known:
            raise AnnotationError(f"{where}: track {track_id} is not in beatport_metadata.txt")
        if whole_number(row["C"], where, at_least=0, at_most=2) == 2 and "/" not in row["MANUAL KEY"]:
            keys[track_id] = _key(row["MANUAL KEY"], where)
    return keys


def _linked(artists: Iterable[Sequence[str]]) -> dict[str, str]:
    """Artist -> the first of all artists that share tracks with him, directly or through others."""
    first: dict[str, str] = {}
    members: dict[str, list[str]] = {}
    for names in artists:
        groups = list(dict.fromkeys(first.setdefault(name, name) for name in names))
        together = [m for g in groups for m in members.pop(g, [g])]
        members[groups[0]] = together
        first.update(dict.fromkeys(together, groups[0]))
    return first


# Tempo -------------------------------------------------------------------------------------------------------


@DATASETS.register("giantsteps_tempo")
class GiantStepsTempo(_GiantSteps):
    """Tracks of tempo estimation, `giantsteps-tempo-dataset/`: ten published folds, 1-6 / 7-8 / 9-10; artists unknown.

    PETL divides 3:1:1 in a way that is not published. Version 2 says of three tracks that they have no tempo (0.0);
    they are no part of it: 398 / 132 / 131. Version 1 has a number for each of the 664: 399 / 133 / 132.

    Args:
        root: the folder with `audio/<id>.LOFI.mp3`.
        metadata_root: folder with local copies of the official annotations and folds, for where `root` has none of
            its own in `annotations/tempo/`, `annotations_v2/tempo/` and `splits/`.
        annotations: "v2" (crowd-sourced, 2018) or "v1" (user corrections, 2015); they agree within 4 % on 541 of 664.
        length: "any", or "120s": without the six tracks of another length, which is probably PETL's filter.

    Raises:
        FileNotFoundError: no audio, or annotations that are neither here nor to be fetched.
        AnnotationError: a file that does not hold a tempo, or a fold that is not a list (names file and line).
        MetadataError: a copy of the official files that is not as published.

    Warns:
        UserWarning: recordings are missing; `skipped` has each of them.
    """

    name = "giantsteps_tempo"
    folders = ("giantsteps-tempo-dataset",)
    info = DatasetInfo(
        title="GiantSteps tempo: electronic dance music",
        where=f"github.com/GiantSteps/giantsteps-tempo-dataset; its audio_dl.sh gets the audio from {_JKU}/backup/",
        size="664 previews, nearly all of 120 s; 1 GB of MP3",
        licence="none stated; previews of commercial recordings, for research",
        commercial_use=False,
        citation="P. Knees et al., ISMIR 2015; version 2: H. Schreiber, M. Mueller: A crowdsourced experiment for "
        "tempo estimation of electronic dance music, ISMIR 2018",
    )

    def __init__(
        self,
        root: str | Path,
        *,
        metadata_root: str | Path | None = None,
        annotations: Literal["v2", "v1"] = "v2",
        length: Literal["any", "120s"] = "any",
    ) -> None:
        if annotations not in TEMPO_FOLDERS:
            raise ValueError(f"annotations is 'v2' or 'v1', got {annotations!r}")
        if length not in ("any", "120s"):
            raise ValueError(f"length is 'any' or '120s', got {length!r}")
        root = Path(root)
        self._check_root(root)
        version = {"v1": "annotations", "v2": "annotations_v2"}[annotations]
        self._tempos = AnnotationFolder([root / version / "tempo"], TEMPO_FOLDERS[annotations], metadata_root)
        self._folds = AnnotationFolder([root / "splits"], FOLDS, metadata_root)
        self._keep_present(
            TempoTrack(t.track_id, _audio(root, t.track_id), t.split, tempo=t.tempo)
            for t in _tempo_tracks(self._tempos, self._folds)
            if length == "any" or t.track_id not in SHORT_TEMPO_TRACKS
        )

    def verify(self) -> list[str]:
        return super().verify() + self._tempos.differences() + self._folds.differences()


@dataclass(frozen=True)
class TempoEntry:
    track_id: str
    tempo: Tempo
    split: str


def tempo_set(
    metadata_root: str | Path | None = None, annotations: Literal["v2", "v1"] = "v2"
) -> list[TempoEntry]:
    """The official tracks with a tempo, of any length, in the order of the folds; no audio is needed."""
    tempos = AnnotationFolder([], TEMPO_FOLDERS[annotations], metadata_root)
    return list(_tempo_tracks(tempos, AnnotationFolder([], FOLDS, metadata_root)))


def _tempo_tracks(tempos: AnnotationFolder, folds: AnnotationFolder) -> Iterator[TempoEntry]:
    names = folds.names()
    if len(names) != FOLDS.num_files:
        raise AnnotationError(f"{folds.where('')} holds {len(names)} lists, 10 were expected: fold01.txt ...")
    seen: set[str] = set()
    for fold, name in enumerate(names, 1):
        split = "train" if fold <= 6 else "valid" if fold <= 8 else "test"
        for line in lines_of(folds.read(name) or b"", folds.where(name)):
            track_id = _new_id(re.sub(r"\.LOFI(\.mp3)?$", "", line.text.strip()), line.where, seen)
            seen.add(track_id)
            tempo = _tempo(tempos, track_id, line)
            if tempo:
                yield TempoEntry(track_id, tempo, split)


def _tempo(tempos: AnnotationFolder, track_id: str, listed: Line) -> Tempo | None:
    """None where the file says 0: no tempo."""
    name = f"{track_id}.LOFI.bpm"
    content = tempos.read(name)
    if content is None:
        raise AnnotationError(f"{listed.where}: track {track_id} has no file {tempos.where(name)}")
    lines = lines_of(content, tempos.where(name))
    if len(lines) != 1:
        raise AnnotationError(f"{tempos.where(name)}, line 1: one tempo was expected, got {len(lines)} lines")
    (line,) = lines
    if number(line.text, line.where) == 0:
        return None
    return Tempo(number(line.text, line.where, at_least=MIN_BPM, at_most=MAX_BPM))


# Shared ------------------------------------------------------------------------------------------------------


def _audio(root: Path, track_id: str) -> Path:
    return root / "audio" / f"{track_id}.LOFI.mp3"


def _key(text: str, where: str) -> Key:
    try:
        return Key.parse(text)
    except ValueError:
        raise AnnotationError(f"{where}: a key like 'D# minor' was expected, got {shown(text)}") from None


def _new_id(text: str, where: str, seen: Iterable[str]) -> str:
    track_id = identifier(text, where, TRACK_ID)
    if track_id in seen:
        raise AnnotationError(f"{where}: track {track_id} is listed already")
    return track_id


def _sha1(text: str) -> int:
    return int(hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), 16)


def _md5_difference(track: Track) -> list[str]:
    folder = track.audio_path.parent.parent / "md5"
    if not folder.is_dir():
        return []
    path = folder / f"{track.track_id}.LOFI.md5"
    try:
        expected = read_bytes(path, 200).decode("ascii", "replace").split()
        with track.audio_path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except (OSError, AnnotationError) as error:
        return [f"{track.track_id}: {error}"]
    if not expected or not re.fullmatch(r"[0-9a-fA-F]{32}", expected[0]):
        return [f"{track.track_id}: {path} does not hold an MD5"]
    return (
        [] if expected[0].lower() == found else [f"{track.track_id}: {track.audio_path} differs from {path}"]
    )
