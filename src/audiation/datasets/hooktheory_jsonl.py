"""HookTheory as MARBLE v2 has it: one file per excerpt, with its key or with the part of the song it is.

Splits as in the lists. Some videos have excerpts in more than one split
(23 in the lists of structure, as others counted).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from audiation.annotations import Key, Label, parse_pitch_class
from audiation.datasets.annotation_files import AnnotationError, identifier, shown
from audiation.datasets.base import DATASETS, SPLITS, Dataset, DatasetInfo, Track, keep_present
from audiation.datasets.hooktheory import groups_of_one_split
from audiation.datasets.marble_lists import Record, UniqueIds, read_lists

SECTIONS = ("intro", "verse", "pre-chorus", "chorus", "bridge", "outro", "instrumental")
"""The seven classes in the order of MARBLE v2. Others than those of `harmonix` (D32)."""

SECTION_OF_LABELS = {name: name for name in SECTIONS} | {
    "verse_pre-chorus": "verse",
    "intro_verse": "verse",
    "pre-chorus_chorus": "chorus",
    "intro_chorus": "chorus",
    "solo": "instrumental",
}
"""Names of an excerpt joined by "_" -> class."""

MODES = (
    "major",
    "minor",
    "dorian",
    "phrygian",
    "phrygianDominant",
    "lydian",
    "mixolydian",
    "locrian",
    "harmonicMinor",
)

_FOLDER = "HookTheory"


def _info(what: str, size: str) -> DatasetInfo:
    return DatasetInfo(
        title=f"HookTheory excerpts with {what}, as lists of MARBLE v2",
        where="huggingface.co/datasets/m-a-p/HookTheory (access on request)",
        size=size,
        licence="CC BY-NC-SA 3.0 (annotations); the recordings are commercial",
        commercial_use=False,
        citation="C. Donahue, J. Thickstun, P. Liang: Melody transcription via generative pre-training, ISMIR 2022; "
        "R. Yuan et al.: MARBLE: Music audio representation benchmark for universal evaluation, NeurIPS 2023",
    )


@dataclass(frozen=True)
class ExcerptTrack(Track):
    """track_id: the HookTheory id. song_id: the YouTube id; MARBLE v2 gives one answer to all excerpts of a video.

    group: the song_id, where the video is in one split, else "".
    """

    song_id: str = ""


@dataclass(frozen=True)
class KeyExcerptTrack(ExcerptTrack):
    """tonic_and_mode: as listed, 'C major', 'D dorian'."""

    tonic_and_mode: str = ""

    @property
    def label(self) -> Label:
        return Label(self.tonic_and_mode)

    @property
    def key(self) -> Key | None:
        """None in other modes than major and minor."""
        mode = self.tonic_and_mode.partition(" ")[2]
        return Key.parse(self.tonic_and_mode) if mode in ("major", "minor") else None


@dataclass(frozen=True)
class SectionExcerptTrack(ExcerptTrack):
    """section_name: one of `SECTIONS`."""

    section_name: str = ""

    @property
    def section(self) -> Label:
        return Label(self.section_name)


@DATASETS.register("hooktheory_key_jsonl")
class HooktheoryKeyJsonl(Dataset):
    """`HookTheoryKey.{train,val,test}.jsonl` with `hooktheory_clips/<id>.mp3`, one key per excerpt.

    Args:
        root: the folder with the three lists.
        metadata_root: not used; the lists come with the audio.
        modes: "major_minor": excerpts in other modes are no part of the data set, as in MARBLE v2 by default;
            `num_other_modes` counts them per split. "all": they are, and their `key` is None.

    Raises:
        FileNotFoundError: no list, or none of the audio.
        AnnotationError: a line that is not as expected, or an excerpt that is listed twice. Names file and line.

    Warns:
        UserWarning: listed excerpts are missing; `skipped` has each of them.
    """

    name = "hooktheory_key_jsonl"
    folders = (_FOLDER,)
    info = _info("a key", "9,429 / 920 / 1,084 excerpts, as others counted the lists")

    def __init__(
        self,
        root: str | Path,
        *,
        metadata_root: str | Path | None = None,
        modes: Literal["major_minor", "all"] = "major_minor",
    ) -> None:
        if modes not in ("major_minor", "all"):
            raise ValueError(f"modes is 'major_minor' or 'all', got {modes!r}")
        self.num_other_modes = dict.fromkeys(SPLITS, 0)
        listed = []
        for e in _excerpts(self.name, Path(root), "HookTheoryKey"):
            label = _key_label(e.record)
            track = KeyExcerptTrack(e.track_id, e.audio_path, e.record.split, e.group, e.song_id, label)
            if modes == "major_minor" and track.key is None:
                self.num_other_modes[track.split] += 1
            else:
                listed.append(track)
        present = keep_present(self.name, listed)
        self.tracks, self.skipped = present.tracks, present.skipped


@DATASETS.register("hooktheory_structure")
class HooktheoryStructure(Dataset):
    """`HookTheoryStructure.{train,val,test}.jsonl` with `hooktheory_clips/<id>.mp3`, one part of the song per excerpt.

    Args, Raises, Warns: as `HooktheoryKeyJsonl`, without `modes`. A name that is in no class is an error.
    """

    name = "hooktheory_structure"
    folders = (_FOLDER,)
    info = _info("the part of the song", "9,498 / 927 / 1,090 excerpts, as others counted the lists")

    def __init__(self, root: str | Path, *, metadata_root: str | Path | None = None) -> None:
        listed = []
        for e in _excerpts(self.name, Path(root), "HookTheoryStructure"):
            label = _section(e.record)
            listed.append(
                SectionExcerptTrack(e.track_id, e.audio_path, e.record.split, e.group, e.song_id, label)
            )
        present = keep_present(self.name, listed)
        self.tracks, self.skipped = present.tracks, present.skipped


# Lines of the lists ------------------------------------------------------------------------------------------


class _Excerpt(NamedTuple):
    track_id: str
    audio_path: Path
    group: str
    song_id: str
    record: Record


def _excerpts(name: str, root: Path, lists: str) -> list[_Excerpt]:
    if not root.is_dir():
        raise FileNotFoundError(
            f"{name} not found at {root} (looked for {lists}.train.jsonl). "
            "docs/datasets/hooktheory_jsonl.md says where to get it."
        )
    ids = UniqueIds()
    excerpts = []
    for record in read_lists(root, lists):
        path = record.audio_path(root, _FOLDER)
        ids.add(path.stem, record.where)
        song_id = identifier(record.text("ori_uid"), record.where, r"[A-Za-z0-9_-]{1,64}")
        excerpts.append(_Excerpt(path.stem, path, "", song_id, record))
    of_one_split = groups_of_one_split((e.song_id, e.record.split) for e in excerpts)
    return [e._replace(group=e.song_id) if e.song_id in of_one_split else e for e in excerpts]


def _key_label(record: Record) -> str:
    label = record.text("label")
    tonic, _, mode = label.partition(" ")
    try:
        if mode not in MODES:
            raise ValueError
        parse_pitch_class(tonic)
    except ValueError:
        raise AnnotationError(
            f"{record.where}: {shown(label)} is not a tonic and one of {', '.join(MODES)}"
        ) from None
    return label


def _section(record: Record) -> str:
    names = record.items("label")
    joined = "_".join(names) if all(isinstance(n, str) for n in names) else ""
    if joined not in SECTION_OF_LABELS:
        raise AnnotationError(
            f"{record.where}: the names {shown(str(names))} are in no class (known: {', '.join(SECTION_OF_LABELS)})"
        )
    return SECTION_OF_LABELS[joined]
