"""VocalSet: 20 professional singers, 17 vocal techniques, about ten hours of unaccompanied singing.

Source: Wilkins, Seetharaman, Wahl & Pardo 2018. Two questions with a split each: which of ten techniques (other singers
in the test), and which singer (the same 20 singers everywhere, other recordings in the test).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from audiation.annotations import Label
from audiation.audio import AudioError, audio_info, stream_audio
from audiation.datasets.annotation_files import AnnotationError, identifier, read_lines
from audiation.datasets.base import (
    DATASETS,
    Dataset,
    DatasetInfo,
    Download,
    Skipped,
    Track,
    keep_present,
    warn_of_skipped,
)

SINGERS = (*(f"female{i}" for i in range(1, 10)), *(f"male{i}" for i in range(1, 12)))
"""The 20 singers in the order of their class: female1 0 ... female9 8, male1 9 ... male11 19."""

TECHNIQUES = (
    "belt",
    "breathy",
    "inhaled",
    "lip_trill",
    "spoken",
    "straight",
    "trill",
    "trillo",
    "vibrato",
    "vocal_fry",
)
"""The ten techniques that are told apart."""

OTHER_TECHNIQUES = ("fast_forte", "fast_piano", "forte", "messa", "pp", "slow_forte", "slow_piano")
CONTEXTS = ("arpeggios", "excerpts", "long_tones", "scales")

TEST_SINGERS = ("female2", "female8", "male10", "male3", "male5")
"""The official test singers of the technique task; the other 15 are for training and validation."""

MIR_REF_VALID_SINGERS = ("female9", "male11", "male9")

Valid = Literal["singers", "mir_ref"]
Silence = Literal["keep", "trim"]

SILENCE_DB = -40.0  # below the loudest frame of the recording
SILENCE_FRAME_SECONDS = 0.01


@dataclass(frozen=True)
class VocalSetTrack(Track):
    """One recording. track_id: 'female1/arpeggios/belt/f1_arpeggios_belt_c_a'.

    silence: "trim": the track begins where its leading silence ends.
    """

    silence: Silence = field(default="keep", repr=False, compare=False)

    @property
    def technique(self) -> Label | None:
        """One of `TECHNIQUES`; None for the seven others."""
        name = self.track_id.split("/")[2]
        return Label(name) if name in TECHNIQUES else None

    @property
    def singer(self) -> Label:
        """One of `SINGERS`, from the folder: some file names lack the singer."""
        return Label(_singer(self.track_id))

    @cached_property
    def span_seconds(self) -> tuple[float, float] | None:  # type: ignore[override]
        """With silence="trim": from the first frame of 10 ms that is louder than 40 dB below the loudest, to the end.

        None where nothing is cut, and where the file cannot be read: whoever reads it says why.
        """
        if self.silence == "keep":
            return None
        try:
            silent = leading_silence_seconds(self.audio_path)
            return (silent, audio_info(self.audio_path).duration_seconds) if silent else None
        except AudioError:
            return None

    def load(
        self, sample_rate_hz: int, start_seconds: float = 0.0, duration_seconds: float | None = None
    ) -> Tensor:
        """As `Track.load`; times count from the end of the leading silence where that is cut."""
        if self.span_seconds and start_seconds >= 0:  # a negative start is refused below
            start_seconds += self.span_seconds[0]
        return super().load(sample_rate_hz, start_seconds, duration_seconds)


def leading_silence_seconds(path: Path) -> float:
    """How long a recording stays more than 40 dB below its loudest frame of 10 ms; 0.0 where it is silent throughout.

    Raises `audio.AudioError` where it cannot be read.
    """
    rate = audio_info(path).sample_rate_hz
    frame = round(SILENCE_FRAME_SECONDS * rate)
    powers = []
    for block in stream_audio(path, rate, window_seconds=1000 * frame / rate):
        samples = block.samples.numpy().astype(np.float64)
        padded = np.pad(samples, (0, -len(samples) % frame))
        powers.append((padded.reshape(-1, frame) ** 2).mean(1))
    power = np.concatenate(powers)
    loud = power > power.max() * 10 ** (SILENCE_DB / 10)
    return int(loud.argmax()) * frame / rate


_INFO = DatasetInfo(
    title="VocalSet: 20 singers, 17 vocal techniques",
    where="zenodo.org/records/1442513 (VocalSet11.zip; earlier records 1193957, 1203819)",
    size="2.1 GB packed, about 10 hours",
    licence="CC BY 4.0",
    commercial_use=True,
    citation="J. Wilkins, P. Seetharaman, A. Wahl, B. Pardo: VocalSet: A Singing Voice Dataset, ISMIR 2018",
    downloads=(
        Download(
            "https://zenodo.org/records/1442513/files/VocalSet11.zip",
            "VocalSet11.zip",
            num_bytes=2_077_243_579,
            checksum="md5:0c09396242f946e7111ad7d8fc649b81",
            unpack=True,
        ),
    ),
)


class _VocalSet(Dataset):
    """What both have in common: the recordings of a folder, each with its split and its group."""

    folders = ("VocalSet", "vocalset", "VocalSet11", "VocalSet1-2")
    info = _INFO

    def _read(self, found: Recordings, home_of: Callable[[str], _Home], silence: Silence) -> None:
        listed = []
        for track_id in found.track_ids:
            home, path = home_of(track_id), found.folder / f"{track_id}.wav"
            listed.append(VocalSetTrack(track_id, path, home.split, home.group, silence=silence))
        present = keep_present(self.name, listed)
        self.tracks = present.tracks
        self.skipped = (*present.skipped, *found.unknown)
        warn_of_skipped(self.name, len(listed) + len(found.unknown), found.unknown)


@dataclass(frozen=True)
class _Home:
    split: str
    group: str


@DATASETS.register("vocalset_technique")
class VocalSetTechnique(_VocalSet):
    """VocalSet for "which technique?": no singer is in two splits.

    Layout: `FULL/<singer>/<context>/<technique>/<file>.wav` (or `data_by_singer/...` of version 1.2), with
    `train_singers_technique.txt` and `test_singers_technique.txt` beside that folder. Where these lists are missing,
    the official ones of this file are used. Recordings of the seven other techniques have no `technique`.

    Args:
        root: the data folder, or the folder of singers in it.
        metadata_root: not used; the lists come with the audio.
        valid: who is in validation (D21). "singers": of the listed training singers of either sex 40 %, which makes
            the 9 and 6 of the MARBLE thesis; those whose names have the smallest SHA-256. "mir_ref": female9, male9 and
            male11, as in mir_ref. (MARBLE's released code has all 15 singers on both sides: not offered.)
        silence: "keep": a track is its file. "trim": it begins where its leading silence ends, as MARBLE prepares it
            (with a voice activity detector; here by `leading_silence_seconds`). A protocol that stores features of
            whole files refuses such tracks.

    Raises:
        FileNotFoundError: no audio.
        AnnotationError: a list that is not a list of singers (names file and line).
        ValueError: a choice that there is not, or a recording by a singer who is in no list.

    Warns:
        UserWarning: empty files, or files in folders that are not of VocalSet; `skipped` has each of them.
    """

    name = "vocalset_technique"

    def __init__(
        self,
        root: str | Path,
        *,
        metadata_root: str | Path | None = None,
        valid: Valid = "singers",
        silence: Silence = "keep",
    ) -> None:
        _check_choice("valid", valid, get_args(Valid))
        _check_choice("silence", silence, get_args(Silence))
        found = find_recordings(Path(root), self.name)
        lists = _singer_lists(found.folder)
        self.official_lists = lists == _Lists(_others(TEST_SINGERS), TEST_SINGERS)
        singers = technique_split(lists.train, lists.test, valid)
        split_of = {singer: split for split, names in singers.items() for singer in names}
        if unlisted := [i for i in found.track_ids if _singer(i) not in split_of]:
            raise ValueError(
                f"{self.name}: {unlisted[0]} is there, but its singer is in neither of train_singers_technique.txt "
                "and test_singers_technique.txt. Complete the lists, or remove both for the official ones."
            )
        self._read(found, lambda i: _Home(split_of[_singer(i)], _singer(i)), silence)

    def verify(self) -> list[str]:
        own = [] if self.official_lists else ["the lists of singers are not the published ones"]
        return super().verify() + own


@DATASETS.register("vocalset_singer")
class VocalSetSinger(_VocalSet):
    """VocalSet for "which singer?": all 20 singers and 17 techniques in every split, other recordings in each.

    Layout as for `vocalset_technique`. MARBLE draws 12 : 8 : 5 at random and has not published its lists; here the
    split of a recording follows from its name alone (`singer_split`), so it is the same on every machine.

    Args:
        root, metadata_root, silence: as `VocalSetTechnique`.

    Raises, warns: as `VocalSetTechnique`.
    """

    name = "vocalset_singer"

    def __init__(
        self, root: str | Path, *, metadata_root: str | Path | None = None, silence: Silence = "keep"
    ) -> None:
        _check_choice("silence", silence, get_args(Silence))
        found = find_recordings(Path(root), self.name)
        self._read(found, lambda i: _Home(singer_split(i), recording_group(i)), silence)


def technique_split(
    train: tuple[str, ...], test: tuple[str, ...], valid: Valid = "singers"
) -> dict[str, tuple[str, ...]]:
    """Split -> singers, sorted. train, test: the official lists; validation is taken from the first (D21).

    Raises ValueError where the singers of "mir_ref" are not all in `train`.
    """
    if valid == "mir_ref":
        chosen = set(MIR_REF_VALID_SINGERS)
        if not chosen <= set(train):
            raise ValueError(
                f"valid='mir_ref' needs {', '.join(MIR_REF_VALID_SINGERS)} in train_singers_technique.txt, which has "
                f"{', '.join(train)}. Take valid='singers'."
            )
    else:
        chosen = set()
        for sex in ("female", "male"):
            ranked = sorted((s for s in train if s.startswith(sex)), key=_digest)
            chosen |= set(ranked[: round(0.4 * len(ranked))])
    kept = tuple(sorted(set(train) - chosen))
    return {"train": kept, "valid": tuple(sorted(chosen)), "test": tuple(sorted(test))}


def singer_split(track_id: str) -> str:
    """48 : 32 : 20 by the SHA-256 of the recording's group: the first 8 bytes as a fraction of 2**64."""
    fraction = int.from_bytes(_digest(recording_group(track_id))[:8], "big") / 2**64
    return "train" if fraction < 0.48 else "valid" if fraction < 0.80 else "test"


def recording_group(track_id: str) -> str:
    """The recording that a file is of: copies with a number in brackets, 'f2_scales_vibrato_a(1)', belong to it."""
    return re.sub(r"\([0-9]+\)$", "", track_id)


def _singer(track_id: str) -> str:
    return track_id.partition("/")[0]


def _digest(name: str) -> bytes:
    return hashlib.sha256(f"vocalset\t{name}".encode()).digest()


def _check_choice(choice: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{choice} is one of {', '.join(map(repr, allowed))}, got {value!r}")


# Files -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recordings:
    """What lies below the folder of singers.

    track_ids: '<singer>/<context>/<technique>/<file without .wav>', sorted.
    unknown: WAV files in other places.
    """

    folder: Path
    track_ids: tuple[str, ...]
    unknown: tuple[Skipped, ...]


def find_recordings(root: Path, name: str = "vocalset") -> Recordings:
    """All WAV files of the singers' folders; names that begin with a dot are leftovers of an archive, not recordings.

    Raises FileNotFoundError where there is no folder of singers.
    """
    folder = _singers_folder(root, name)
    pattern = re.compile(
        rf"({'|'.join(SINGERS)})/({'|'.join(CONTEXTS)})/({'|'.join(TECHNIQUES + OTHER_TECHNIQUES)})/[^/]+"
    )
    known, unknown = [], []
    for singer in sorted(p for p in folder.iterdir() if p.name in SINGERS):
        for track_id in sorted(_wavs(singer, folder)):
            if pattern.fullmatch(track_id):
                known.append(track_id)
            else:
                reason = (
                    f"{folder / track_id}.wav is not in a folder of VocalSet (<singer>/<context>/<technique>)"
                )
                unknown.append(Skipped(track_id, reason))
    return Recordings(folder, tuple(known), tuple(unknown))


def _wavs(singer: Path, folder: Path) -> Iterator[str]:
    for path in singer.rglob("*"):
        if path.suffix == ".wav" and not path.name.startswith("."):
            yield path.relative_to(folder).as_posix()[: -len(".wav")]


def _singers_folder(root: Path, name: str) -> Path:
    tops = [root / top for top in ("", "VocalSet", "VocalSet11", "VocalSet1-2")]
    for folder in (top / part for top in tops for part in ("FULL", "data_by_singer", "")):
        if any((folder / singer).is_dir() for singer in SINGERS):
            return folder
    raise FileNotFoundError(
        f"{name} not found at {root} (looked for FULL/female1 and data_by_singer/female1). "
        "docs/datasets/vocalset.md says where to get it."
    )


@dataclass(frozen=True)
class _Lists:
    """Official singers of the technique task, sorted."""

    train: tuple[str, ...]
    test: tuple[str, ...]


def _others(singers: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set(SINGERS) - set(singers)))


def _singer_lists(folder: Path) -> _Lists:
    names = ("train_singers_technique.txt", "test_singers_technique.txt")
    for place in (folder.parent, folder):
        paths = [place / name for name in names]
        present = [p for p in paths if p.is_file()]
        if len(present) == 1:
            missing = next(p.name for p in paths if p not in present)
            raise ValueError(f"{place} has {present[0].name} but not {missing}; put both there, or none")
        if present:
            return _parse_lists(*paths)
    return _Lists(_others(TEST_SINGERS), TEST_SINGERS)


def _parse_lists(train: Path, test: Path) -> _Lists:
    seen: dict[str, str] = {}
    found: list[tuple[str, ...]] = []
    for path in (train, test):
        singers = []
        for line in read_lines(path, max_lines=1000):
            singer = identifier(line.text.strip(), line.where, "|".join(SINGERS))
            if singer in seen:
                raise AnnotationError(f"{line.where}: {singer} is listed already in {seen[singer]}")
            seen[singer] = line.where
            singers.append(singer)
        found.append(tuple(sorted(singers)))
    return _Lists(*found)
