"""MagnaTagATune: 25,863 clips of 29 s from 230 artists, with tags that players of a game agreed on.

Source: Law, West, Mandel, Bay & Downie 2009. Split by folder, 0-b / c / d-f: 18,706 / 1,825 / 5,329 clips without three
corrupt ones; of these 15,247 / 1,529 / 4,332 have at least one of the 50 most frequent tags.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from audiation.annotations import Tags
from audiation.datasets.annotation_files import (
    AnnotationError,
    identifier,
    read_bytes,
    relative_path,
    shown,
    table_rows,
)
from audiation.datasets.base import (
    DATASETS,
    SPLITS,
    Dataset,
    DatasetInfo,
    Skipped,
    Track,
    keep_present,
    warn_of_skipped,
)
from audiation.datasets.metadata import MetadataFile, read_metadata_file

TAGS = (
    *("guitar", "classical", "slow", "techno", "strings", "drums", "electronic", "rock", "fast", "piano"),
    *("ambient", "beat", "violin", "vocal", "synth", "female", "indian", "opera", "male", "singing"),
    *(
        "vocals",
        "no vocals",
        "harpsichord",
        "loud",
        "quiet",
        "flute",
        "woman",
        "male vocal",
        "no vocal",
        "pop",
    ),
    *("soft", "sitar", "solo", "man", "classic", "choir", "voice", "new age", "dance", "male voice"),
    *(
        "female vocal",
        "beats",
        "harp",
        "cello",
        "no voice",
        "weird",
        "country",
        "metal",
        "female voice",
        "choral",
    ),
)
"""The 50 most frequent of the 188 tags, in the order of jukemir. `top_tags` computes them."""

FOLDERS = {
    **dict.fromkeys("0123456789ab", "train"),
    "c": "valid",
    **dict.fromkeys("def", "test"),
}
"""Folder of a clip -> its split."""

CORRUPT = ("35644", "55753", "57881")
"""Clips whose official files are empty: in no split."""

NOT_IN_MSD_LIST = ("29", "11268", "11269")
"""Clips of folder 0 that the published list (jongpillee/music_dataset_split) lacks."""

ANNOTATIONS = MetadataFile(
    path="magnatagatune/annotations_final.csv",
    url="https://mirg.city.ac.uk/datasets/magnatagatune/annotations_final.csv",
    num_bytes=21_517_373,  # as it is sent, with CRLF
    sha256="64cc7e8c8410bf2a9782fe0c574838d6549792b3c8e184885a33e5a25fd9bbdd",
)

MAX_BYTES, MAX_CLIPS = 1 << 26, 100_000  # the official file has 22 MB and 25,863 rows

SplitRule = Literal["folders", "msd_published"]


@dataclass(frozen=True)
class MagnatagatuneTrack(Track):
    """One clip. track_id: the clip's number, '11268'. group: its recording; clips of one recording share a folder.

    present: those of `TAGS` that it has.
    """

    present: tuple[str, ...] = field(kw_only=True, repr=False, compare=False)

    @property
    def tags(self) -> Tags:
        """All 50, in the order of `TAGS`, 1.0 where players gave the tag. All 0.0 for about every fifth clip."""
        return Tags({**dict.fromkeys(TAGS, 0.0), **dict.fromkeys(self.present, 1.0)})

    @property
    def has_top50_tag(self) -> bool:
        """What musicfm and PETL ask of a clip; jukemir and MARBLE take all clips (D8)."""
        return bool(self.present)


@DATASETS.register("mtt")
class Magnatagatune(Dataset):
    """MagnaTagATune as its three archive parts unpack: sixteen folders `0/` ... `f/` of MP3, with all annotated clips.

    A clip without any of the 50 tags is kept, with all of them 0 (D8): `MagnatagatuneTrack.has_top50_tag` tells.
    `annotations_final.csv`, quoted or not, is taken from the data folder where it is there, else as `datasets.metadata`
    says. `clip_info_final.csv` is not needed.

    Args:
        root: the data folder with the sixteen folders, or with a folder `mp3` that has them.
        metadata_root: folder with a local copy of the official `magnatagatune/annotations_final.csv`.
        split: "folders": all clips. "msd_published": without the three clips that the published list lacks; with the
            clips that have a tag it is that list, 15,244 / 1,529 / 4,332.

    Raises:
        FileNotFoundError: no audio, or annotations that are neither here nor to be fetched.
        AnnotationError: annotations that are no such table (names file and line).
        MetadataError: a copy of the official annotations that is not as published.
        ValueError: a split that there is not.

    Warns:
        UserWarning: the corrupt clips, and recordings that are missing; `skipped` has each of them.
    """

    name = "mtt"
    folders = ("MagnaTagATune", "magnatagatune")
    info = DatasetInfo(
        title="MagnaTagATune: clips with tags from a game",
        where="mirg.city.ac.uk/datasets/magnatagatune: mp3.zip.001 to .003, to be joined into one zip archive",
        size="25,863 clips of 29 s at 16 kHz, 3 GB",
        licence="CC BY-NC-SA 3.0",
        commercial_use=False,
        citation="E. Law, K. West, M. Mandel, M. Bay, J. S. Downie: Evaluation of algorithms using games: the case of "
        "music tagging, ISMIR 2009",
    )

    def __init__(
        self,
        root: str | Path,
        *,
        metadata_root: str | Path | None = None,
        split: SplitRule = "folders",
    ) -> None:
        _check_rule(split)
        folder = _audio_folder(Path(root))
        table = _table([Path(root), folder], metadata_root)
        self.official_annotations = ANNOTATIONS.matches(table.content)
        clips = _clips_of(table, split)
        present = keep_present(
            self.name,
            (
                MagnatagatuneTrack(c.clip_id, folder / c.path, c.split, _recording(c.path), present=c.present)
                for c in clips
                if c.clip_id not in CORRUPT
            ),
        )
        corrupt = [_corrupt(c, folder) for c in clips if c.clip_id in CORRUPT]
        self.tracks, self.skipped = present.tracks, (*present.skipped, *corrupt)
        warn_of_skipped(self.name, len(clips), corrupt)

    def verify(self) -> list[str]:
        own = [] if self.official_annotations else ["annotations_final.csv is not the published one"]
        return super().verify() + own


def official_split(
    metadata_root: str | Path | None = None, split: SplitRule = "folders", *, with_tag_only: bool = False
) -> dict[str, list[str]]:
    """Split -> clip ids, without the corrupt ones, from the official annotations; no audio is needed.

    with_tag_only: leave out clips without any of the 50 tags.

    Raises: as `Magnatagatune`.
    """
    _check_rule(split)
    split_of: dict[str, list[str]] = {name: [] for name in SPLITS}
    for clip in _clips_of(_table([], metadata_root), split):
        if clip.clip_id not in CORRUPT and (clip.present or not with_tag_only):
            split_of[clip.split].append(clip.clip_id)
    return split_of


def top_tags(content: bytes, k: int = len(TAGS)) -> tuple[str, ...]:
    """The `k` most frequent tags of an `annotations_final.csv`, most frequent first, counted over all its rows.

    Of tags that are equally frequent the one whose column comes first comes first. Of the official file the 50 are
    those of `TAGS`: the same set, of which metal and female voice change places.

    Raises:
        AnnotationError: no such table.
        ValueError: it has fewer tags than `k`, or `k` is not positive.
    """
    counts: Counter[str] = Counter()
    for row in _rows(content, "annotations_final.csv", ()):
        if not counts:
            counts.update(dict.fromkeys(row.tags, 0))
        counts.update(row.present)
    if not 0 < k <= len(counts):
        raise ValueError(f"the annotations have {len(counts)} tags; k is from 1 to that, got {k}")
    return tuple(sorted(counts, key=lambda tag: -counts[tag])[:k])  # stable: columns in order


# Audio -----------------------------------------------------------------------------------------------------


def _audio_folder(root: Path) -> Path:
    for folder in (root, root / "mp3"):
        if any((folder / name).is_dir() for name in FOLDERS):
            return folder
    raise FileNotFoundError(
        f"mtt not found at {root} (looked for folders 0 to f, here and in mp3). "
        "docs/datasets/magnatagatune.md says where to get it."
    )


def _recording(path: str) -> str:
    """'0/<artist>-<album>-<no>-<title>-<start>-<end>.mp3' without start and end: what the clip is cut from."""
    return path.removesuffix(".mp3").rsplit("-", 2)[0]


# annotations_final.csv -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    name: str
    content: bytes


@dataclass(frozen=True)
class _Clip:
    clip_id: str
    path: str
    split: str
    present: tuple[str, ...]


@dataclass(frozen=True)
class _Row:
    """tags: of the table, in the order of its columns; present: those that the clip has."""

    clip_id: str
    path: str
    tags: tuple[str, ...]
    present: tuple[str, ...]
    where: str


def _check_rule(split: str) -> None:
    if split not in get_args(SplitRule):
        raise ValueError(f"split is one of {', '.join(get_args(SplitRule))}, got {split!r}")


def _table(folders: list[Path], metadata_root: str | Path | None) -> _Table:
    for folder in folders:
        path = folder / "annotations_final.csv"
        if path.is_file():
            return _Table(str(path), read_bytes(path, MAX_BYTES))
    return _Table(ANNOTATIONS.path, read_metadata_file(ANNOTATIONS, metadata_root))


def _clips_of(table: _Table, split: SplitRule) -> list[_Clip]:
    left_out = NOT_IN_MSD_LIST if split == "msd_published" else ()
    wanted = frozenset(TAGS)
    clips = []
    seen: dict[str, str] = {}
    for row in _rows(table.content, table.name, TAGS):
        for name in (row.clip_id, row.path):
            if name in seen:
                raise AnnotationError(f"{row.where}: {name} is listed already in {seen[name]}")
            seen[name] = row.where
        if row.clip_id not in left_out:
            present = tuple(tag for tag in row.present if tag in wanted)
            clips.append(_Clip(row.clip_id, row.path, FOLDERS[row.path[0]], present))
    return clips


def _rows(content: bytes, name: str, tags: tuple[str, ...]) -> Iterator[_Row]:
    """All rows, checked; a column for each of `tags` is required, and there may be others."""
    columns = ("clip_id", *tags, "mp3_path")
    for row, where in table_rows(content, name, columns, delimiter="\t", max_lines=MAX_CLIPS):
        cells = dict(row)
        clip_id = identifier(cells.pop("clip_id"), where, "[0-9]{1,6}")
        path = _mp3_path(cells.pop("mp3_path"), where)
        present = tuple(tag for tag, cell in cells.items() if cell == "1")
        if len(present) + list(cells.values()).count("0") != len(cells):
            tag = next(tag for tag, cell in cells.items() if cell not in ("0", "1"))
            raise AnnotationError(
                f"{where}: tag {shown(tag)} of clip {clip_id} is 0 or 1, got {shown(cells[tag])}"
            )
        yield _Row(clip_id, path, tuple(cells), present, where)


def _mp3_path(text: str, where: str) -> str:
    folder, _, file = relative_path(text, where).partition("/")
    if folder not in FOLDERS or "/" in file or not file.endswith(".mp3"):
        raise AnnotationError(
            f"{where}: {shown(text)} is not a clip like '0/artist-album-01-title-30-59.mp3'"
        )
    return text


def _corrupt(clip: _Clip, folder: Path) -> Skipped:
    reason = f"{folder / clip.path}: the official file is empty, so this clip is in no split"
    return Skipped(clip.clip_id, reason, clip.split)
