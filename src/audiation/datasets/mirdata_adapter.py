"""Any data set of mirdata as one of ours: its index, its annotations and its splits.

mirdata (Bittner et al. 2019; the optional extra `mirdata`) knows where the files of some sixty data sets lie and reads
their annotations. It is imported inside functions only, and its classes are told apart by what they hold.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from audiation.annotations import (
    Annotation,
    Beats,
    Key,
    Label,
    Segments,
    Tags,
    Tempo,
    Values,
    parse_pitch_class,
)
from audiation.datasets.annotation_files import AnnotationError, shown
from audiation.datasets.base import (
    SPLITS,
    Dataset,
    DatasetInfo,
    Skipped,
    Track,
    keep_present,
    warn_of_skipped,
)

SplitRule = Literal["auto", "official", "hash"]

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
}
"""Names that data sets give their splits -> ours."""

PARSE_ERRORS = (ValueError, LookupError, TypeError, AttributeError, csv.Error)
TIME_UNITS = {"s": 1.0, "ms": 1e-3}


def from_mirdata(
    name: str, data_home: str | Path, *, splits: SplitRule = "auto", audio: str = "audio_path"
) -> MirdataDataset:
    """A data set of mirdata, with tracks of ours.

    Args:
        name: as `mirdata.list_datasets()` has it, for example "beatles".
        data_home: the folder that mirdata would have downloaded it to.
        splits: "official": those that the data set came with, from mirdata; a split that is not of training, validation
            or test is left out and counted as skipped. Where there is none for validation, 15 % of training becomes
            it. "hash": 70 / 15 / 15. "auto": official where there are any, else by hash. What is drawn here follows
            from the SHA-256 of the track id, so that it is the same on every machine; recordings of one artist or one
            song are not kept together.
        audio: the attribute of mirdata's track with the path of the file, where it is not `audio_path`.

    Raises:
        ModuleNotFoundError: mirdata is not installed.
        ValueError: a data set that mirdata does not have, a rule that there is not, or tracks without that attribute.
        FileNotFoundError: mirdata's index or metadata of the data set, or all of its audio, is missing.

    Warns:
        UserWarning: recordings are missing; `skipped` has each of them with its reason.
    """
    if splits not in get_args(SplitRule):
        raise ValueError(f"splits is one of {', '.join(map(repr, get_args(SplitRule)))}, got {splits!r}")
    mirdata = _mirdata()
    if name not in mirdata.list_datasets():
        raise ValueError(
            f"mirdata has no data set '{name}'. It has: {', '.join(sorted(mirdata.list_datasets()))}"
        )
    source = mirdata.initialize(name, data_home=str(Path(data_home).expanduser()))
    try:
        sources = source.load_tracks()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"mirdata cannot read its index of {name} ({error}). Fetch it where there is network: "
            f"mirdata.initialize('{name}').download(partial_download=['index'])"
        ) from error
    divided = _divide(name, source, list(sources), splits)
    listed: list[Track] = []
    skipped: list[Skipped] = []
    for track_id, of_mirdata in sources.items():
        path = _audio_path(of_mirdata, audio, f"{name} {track_id}")
        if reason := divided.left_out.get(track_id):
            skipped.append(Skipped(track_id, reason))
        elif path is None:
            skipped.append(
                Skipped(track_id, "mirdata's index names no audio file", divided.split_of[track_id])
            )
        else:
            listed.append(
                MirdataTrack(track_id, path, divided.split_of[track_id], source=of_mirdata, where=name)
            )
    present = keep_present(name, listed)
    warn_of_skipped(name, len(sources), skipped)
    return MirdataDataset(source, present.tracks, (*present.skipped, *skipped), divided.how)


@dataclass(frozen=True)
class MirdataTrack(Track):
    """A recording, with what mirdata says about it. None where its data set has no such annotation.

    source: mirdata's own track. where: the data set, for messages.

    Annotations raise `AnnotationError` where they are not what mirdata's classes promise, and FileNotFoundError where
    their file is missing.
    """

    source: Any = field(default=None, repr=False, compare=False)
    where: str = field(default="", repr=False, compare=False)

    @cached_property
    def beats(self) -> Beats | None:
        """Positions are those in the bar; 0 where the data set numbers beats in another way."""
        return self._of_kind("beats", Beats)

    @cached_property
    def chords(self) -> Segments | None:
        """Labels as they are, mostly in Harte's syntax."""
        return self._of_kind("chords", Segments)

    @cached_property
    def sections(self) -> Segments | None:
        return self._of_kind("sections", Segments)

    @cached_property
    def keys(self) -> Segments | None:
        """Keys over time, labels as they are; None where there is one text for the whole track."""
        found = self._value(*KEY_ATTRIBUTES)
        return None if found is None or isinstance(found, str) else self._of_kind(KEY_ATTRIBUTES, Segments)

    @cached_property
    def key(self) -> Key | None:
        """The one major or minor key of the track; None where it has several, another mode, or none."""
        found = self._value(*KEY_ATTRIBUTES)
        names = [found] if isinstance(found, str) else self.keys.labels if self.keys else ()
        keys = {parse_key(name) for name in names}
        return keys.pop() if len(keys) == 1 else None

    @cached_property
    def tempo(self) -> Tempo | None:
        """None also where the data set says 0, as some do for "no tempo". Of several, the one of highest confidence."""
        found = self._value("tempo")
        if isinstance(found, str | int | float | np.number):
            return self._converted("tempo", lambda: _tempo(float(found)))
        return None if found is None else self._of_kind("tempo", Tempo)

    def annotation(self, attribute: str) -> Annotation | None:
        """Whatever mirdata's track has under a name: `annotation("genre")`, `annotation("sections_uppercase")`.

        Beats, intervals with labels, tempo; a text becomes a `Label`, a list of texts `Tags` with 1.0 each (a tag that
        is not mentioned counts as 0), a number `Values`.

        Raises:
            ValueError: mirdata's track has no such attribute, or it is of a kind that has no counterpart here.
        """
        if attribute not in dir(self.source):
            names = sorted(n for n in dir(self.source) if not n.startswith("_"))
            raise ValueError(
                f"{self._here(attribute)}: mirdata's track has no such attribute; it has {', '.join(names)}"
            )
        found = self._value(attribute)
        return None if found is None else self._converted(attribute, lambda: convert(found, attribute))

    def _value(self, *attributes: str) -> Any:
        """The first of the attributes that mirdata's track has and that is not None; this reads the file."""
        for attribute in attributes:
            if attribute in dir(self.source):
                found = self._converted(attribute, partial(getattr, self.source, attribute))
                if found is not None:
                    return found
        return None

    def _of_kind(self, attributes: str | Sequence[str], kind: type[Any]) -> Any:
        names = [attributes] if isinstance(attributes, str) else attributes
        found = self._value(*names)
        if found is None:
            return None
        made = self._converted(names[0], lambda: convert(found, names[0]))
        if made is not None and not isinstance(made, kind):
            raise AnnotationError(
                f"{self._here(names[0])}: {kind.__name__} was expected, got {type(found).__name__}; "
                f"see annotation('{names[0]}')"
            )
        return made

    def _converted(self, attribute: str, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except AnnotationError as error:
            raise AnnotationError(f"{self._here(attribute)}: {error}") from None
        except PARSE_ERRORS as error:  # mirdata lets whatever its parsers meet pass
            raise AnnotationError(
                f"{self._here(attribute)}: cannot be read ({type(error).__name__}: {error})"
            ) from error

    def _here(self, attribute: str) -> str:
        return f"{self.where} {self.track_id}, {attribute}"


KEY_ATTRIBUTES = ("key", "keys", "key_mode")


class MirdataDataset(Dataset):
    """What `from_mirdata` gives.

    source: mirdata's own data set; `source.cite()` and `source.license()` print what a user must know.
    how_split: for people, for example "split 70/15/15 by hash of the track id".
    """

    name = "mirdata"
    info = DatasetInfo(
        title="a data set of mirdata",
        where="mirdata.readthedocs.io says where each comes from",
        size="depends on the data set",
        licence="that of the data set: mirdata.initialize(NAME).license()",
        commercial_use=False,
        citation="R. Bittner et al.: mirdata: Software for Reproducible Usage of Datasets, ISMIR 2019; and that of "
        "the data set",
    )

    def __init__(
        self, source: Any, tracks: tuple[Track, ...], skipped: tuple[Skipped, ...], how_split: str
    ) -> None:
        self.source, self.tracks, self.skipped, self.how_split = source, tracks, skipped, how_split

    def verify(self) -> list[str]:
        """Also the checksums of mirdata's index, which takes long."""
        missing, differing = self.source.validate(verbose=False)
        return super().verify() + [
            f"{track_id}: {path} {problem}"
            for problem, files in (("is missing", missing), ("has another checksum", differing))
            for kind in files.values()
            for track_id, paths in kind.items()
            for path in paths
        ]


# Splits --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Divided:
    """left_out: track id -> reason."""

    split_of: dict[str, str]
    left_out: dict[str, str]
    how: str


def hash_split(name: str, track_id: str) -> str:
    """70 / 15 / 15 by the SHA-256 of data set and track id: the first 8 bytes as a fraction of 2**64."""
    fraction = _fraction(name, track_id)
    return "train" if fraction < 0.70 else "valid" if fraction < 0.85 else "test"


def _fraction(name: str, track_id: str) -> float:
    return int.from_bytes(hashlib.sha256(f"{name}\t{track_id}".encode()).digest()[:8], "big") / 2**64


def _divide(name: str, source: Any, track_ids: Sequence[str], rule: SplitRule) -> _Divided:
    official = None if rule == "hash" else _official_splits(source)
    if official is None:
        if rule == "official":
            raise ValueError(f"mirdata knows no official splits of {name}. Take splits='hash'.")
        split_of = {i: hash_split(name, i) for i in track_ids}
        return _Divided(split_of, {}, "split 70/15/15 by hash of the track id")
    split_of, left_out = {}, {}
    for their_name, ids in official.items():
        split = SPLIT_NAMES.get(str(their_name).lower())
        for track_id in map(str, ids):
            if split is None:
                left_out[track_id] = f"mirdata has it in the split {shown(str(their_name))}"
            else:
                split_of[track_id] = split
    left_out |= {i: "in no split of mirdata" for i in track_ids if i not in split_of and i not in left_out}
    missing = [s for s in ("train", "test") if s not in split_of.values()]
    if missing:
        raise ValueError(
            f"the splits that mirdata has of {name} are {', '.join(map(repr, official))}; none is the {missing[0]} "
            "split. Take splits='hash'."
        )
    how = "splits as mirdata has them"
    if "valid" not in split_of.values():
        for track_id, split in split_of.items():
            if split == "train" and _fraction(name, track_id) >= 0.85:
                split_of[track_id] = "valid"
        how += ", and validation is 15 % of training by hash of the track id"
    assert set(split_of.values()) <= set(SPLITS)
    return _Divided(split_of, left_out, how)


def _official_splits(source: Any) -> Mapping[str, Sequence[str]] | None:
    try:
        return source.get_track_splits()
    except (NotImplementedError, AttributeError):  # no `split` on its tracks
        return None


def _audio_path(source: Any, attribute: str, where: str) -> Path | None:
    if attribute not in dir(source):
        candidates = sorted(n for n in dir(source) if n.startswith("audio") and n.endswith(("path", "mono")))
        raise ValueError(
            f"{where}: mirdata's track has no attribute '{attribute}'. Pass audio=NAME, for example one of: "
            f"{', '.join(candidates) or 'none that looks like a path'}"
        )
    path = getattr(source, attribute)
    return None if path is None else Path(path)


def _mirdata() -> Any:
    try:
        return importlib.import_module("mirdata")
    except ImportError:
        raise ModuleNotFoundError(
            "from_mirdata needs the package mirdata: pip install 'audiation[mirdata]'"
        ) from None


# Annotations ---------------------------------------------------------------------------------------------------


def parse_key(text: str) -> Key | None:
    """'D major', 'G#:minor', 'Eb' (major, as mirdata's syntax has it) -> Key; None for other modes and other texts."""
    match = re.fullmatch(r"([A-Ga-g][#b]*)(?:[:\s]\s*(major|minor))?", text.strip(), re.ASCII)
    if not match:
        return None
    return Key(parse_pitch_class(match[1]), "minor" if match[2] == "minor" else "major")


def convert(value: Any, attribute: str) -> Annotation | None:
    """What mirdata's classes hold -> our annotation; None for a list of nothing and a tempo of 0.

    attribute: the name that a number gets in `Values`.

    Raises ValueError for what has no counterpart here, and where our annotation refuses what it is given.
    """
    if isinstance(value, str):
        return Label(value)
    if isinstance(value, bool | int | float | np.number):
        return Values({attribute: float(value)})
    if isinstance(value, list | tuple | set) and all(isinstance(v, str) for v in value):
        return Tags(dict.fromkeys(sorted(value), 1.0)) if value else None
    if _has(value, "times", "positions"):
        return _beats(value)
    if _has(value, "intervals", "tempos"):
        return _best_tempo(value)
    for labels in ("labels", "keys", "events"):
        if _has(value, "intervals", labels):
            return _segments(value, labels)
    hint = "; it holds several annotators, so choose one of them" if _has(value, "annotators") else ""
    raise ValueError(f"{type(value).__name__} has no counterpart here{hint}")


def _has(value: Any, *names: str) -> bool:
    return all(hasattr(value, name) for name in names)


def _seconds(values: Any, unit: str) -> np.ndarray:
    if unit not in TIME_UNITS:
        raise ValueError(f"times are in '{unit}'; only {', '.join(TIME_UNITS)} can be turned into seconds")
    return np.asarray(values, dtype=np.float64) * TIME_UNITS[unit]


def _beats(value: Any) -> Beats:
    times = _seconds(value.times, getattr(value, "time_unit", "s"))
    in_bar = value.positions is not None and getattr(value, "position_unit", None) == "bar_index"
    positions = np.asarray(value.positions if in_bar else np.zeros(len(times)), dtype=np.float64)
    if not np.array_equal(positions, np.round(positions)):
        raise ValueError("positions in the bar are whole numbers")
    return Beats(times, positions.astype(np.int64))


def _segments(value: Any, labels: str) -> Segments:
    """Segments that last no time say nothing and are left out."""
    intervals = _seconds(value.intervals, getattr(value, "interval_unit", "s")).reshape(-1, 2)
    names = getattr(value, labels)
    if names is None:
        names = [""] * len(intervals)
    if len(names) != len(intervals):
        raise ValueError(f"{len(intervals)} intervals but {len(names)} labels")
    lasting = intervals[:, 1] != intervals[:, 0]
    return Segments(intervals[lasting], tuple(str(n) for n, keep in zip(names, lasting, strict=True) if keep))


def _best_tempo(value: Any) -> Tempo | None:
    tempos = np.asarray(value.tempos, dtype=np.float64)
    if not len(tempos):
        return None
    confidence = getattr(value, "confidence", None)
    if confidence is not None:
        return _tempo(float(tempos[int(np.argmax(confidence))]))
    if len(set(tempos.tolist())) > 1:
        raise ValueError(f"{len(tempos)} tempos without a confidence; none of them is that of the track")
    return _tempo(float(tempos[0]))


def _tempo(bpm: float) -> Tempo | None:
    return None if bpm == 0 or math.isnan(bpm) else Tempo(bpm)
