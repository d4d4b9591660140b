"""Labelled audio of a user's own: a CSV or JSONL file, or a folder with one folder per class -> checked tracks.

docs/datasets/labelled.md is the page for users: formats, rules, and every error with its cure. Whatever would make
training meaningless is refused before it begins, with file and line; files that are not there are counted as skipped.
"""

from __future__ import annotations

import itertools
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from audiation.annotations import Key, Label, Tags, Values
from audiation.datasets.base import SPLITS, Dataset, DatasetInfo, Skipped, Track
from audiation.datasets.label_files import (
    COLUMN_OF_KIND,
    Kind,
    LabelError,
    Listing,
    Problems,
    Row,
    read_file,
    read_folder,
    some_of,
)
from audiation.datasets.label_splits import least_tracks, make_splits

__all__ = ["Kind", "LabelError", "LabelledAudio", "LabelledTrack", "read_labelled"]

IMBALANCE = 10  # largest to smallest class, above which the report says so
LARGEST = 1e100  # of numbers to be learned; their squares must not overflow
SHOWN_NAMES = 40


@dataclass(frozen=True)
class LabelledTrack(Track):
    """A recording of the user's own.

    track_id: the path relative to the data folder; the absolute path where it lies outside.
    annotation: what the labels say. `Tags` has every tag of the data set, 1.0 or 0.0.
    line: of the file that lists it; 0 where it was found in a folder.
    """

    annotation: Label | Tags | Values | Key = field(
        kw_only=True, hash=False
    )  # tags and values cannot be hashed
    line: int = field(default=0, kw_only=True)


@dataclass(frozen=True, eq=False)
class LabelledAudio(Dataset):
    """What `read_labelled` gives: recordings with annotations and splits, checked.

    source: the file or folder that was read.
    names: classes or tags, sorted; dimensions in the order of the columns; all 24 keys.
    tracks: in the order of their ids, whatever the order of the rows.
    skipped: listed files that are not there. Their split is "" where splits were made without them.
    how_split: for people, for example "split 70/15/15 by group, seed 0".
    warnings: what does not prevent training but may surprise, one sentence each.
    """

    name: ClassVar[str] = "labelled"
    info: ClassVar[DatasetInfo] = DatasetInfo(
        title="labelled audio of your own",
        where="a CSV or JSONL file, or a folder with one folder per class",
        size="yours",
        licence="yours",
        commercial_use=True,
        citation="",
    )

    source: Path
    kind: Kind
    names: tuple[str, ...]
    tracks: tuple[LabelledTrack, ...]
    skipped: tuple[Skipped, ...]
    how_split: str
    warnings: tuple[str, ...] = ()

    def report(self) -> list[str]:
        """Lines for people: counts, balance, how the splits were made, what is left out, warnings."""
        counts = self.counts
        lines = [
            f"{self.source}: {len(self.tracks)} recordings, {self.kind}: "
            + ", ".join(f"{counts[s]} {s}" for s in SPLITS)
            + f" ({self.how_split})"
        ]
        lines += self._spread() if self.kind == "regression" else self._balance()
        if not counts["test"]:
            lines.append(
                "There is no test split, so nothing will say how good the result is on new recordings."
            )
        if self.skipped:
            reasons = some_of([s.reason for s in self.skipped])
            lines.append(f"{len(self.skipped)} listed recordings are left out: {reasons}")
        return lines + list(self.warnings)

    def _balance(self) -> list[str]:
        found = {s: Counter(n for t in self.tracks if t.split == s for n in _names_of(t)) for s in SPLITS}
        total = Counter(n for t in self.tracks for n in _names_of(t))
        ranked = sorted(total, key=lambda name: (-total[name], name))
        lines = [
            f"  {name}: {total[name]} ({total[name] / len(self.tracks):.0%}): "
            + ", ".join(f"{found[s][name]} {s}" for s in SPLITS)
            for name in ranked[:SHOWN_NAMES]
        ]
        if hidden := ranked[SHOWN_NAMES:]:
            lines.append(f"  and {len(hidden)} more, with {total[hidden[0]]} recordings each at most")
        most, least = max(found["train"].values()), min(found["train"].values())
        if most > IMBALANCE * least:
            names = [next(n for n in ranked if found["train"][n] == count) for count in (most, least)]
            lines.append(
                f"Imbalanced: '{names[0]}' is {most / least:.0f} times as frequent as '{names[1]}' in training. "
                + (
                    "The mean over tags counts both alike."
                    if self.kind == "tags"
                    else "Accuracy tells mostly about the frequent ones; look at every class, or add rare ones."
                )
            )
        return lines

    def _spread(self) -> list[str]:
        lines = []
        for name, split in itertools.product(self.names, SPLITS):
            numbers = [t.annotation.values[name] for t in self.tracks if t.split == split]  # type: ignore[union-attr]
            if numbers:
                lines.append(
                    f"  {name}, {split}: {min(numbers):g} to {max(numbers):g}, "
                    f"mean {np.mean(numbers):g}, deviation {np.std(numbers):g}"
                )
        return lines


def read_labelled(
    path: str | os.PathLike[str],
    kind: str | None = None,
    *,
    audio_root: str | os.PathLike[str] | None = None,
    ignore_columns: Sequence[str] = (),
    seed: int = 0,
) -> LabelledAudio:
    """Read and check labels, and split them where no splits are given.

    Splits that are made here follow from the seed, the track ids, and who shares a class or group; the order of rows
    does not matter. Files that are not there are skipped before the splits are made.

    Args:
        path: `.csv` or `.jsonl`, or a folder with one folder per class.
        kind: "class", "tags", "regression" or "key"; None: as the columns say.
        audio_root: what relative paths in a file begin at; None: the folder of the file.
        ignore_columns: columns of the file that are not read.
        seed: of the splits that are made here.

    Raises:
        LabelError: says what is wrong, where, and what to do. docs/datasets/labelled.md lists all of them.
        FileNotFoundError: no such file or folder.
    """
    source = Path(path)
    if kind is not None and kind not in COLUMN_OF_KIND:
        raise LabelError(f"kind is one of {', '.join(COLUMN_OF_KIND)}, got '{kind}'")
    if not os.path.exists(source):
        raise FileNotFoundError(f"{source} is neither a file nor a folder")
    if audio_root is not None and not os.path.isdir(audio_root):
        raise FileNotFoundError(f"audio_root {os.fspath(audio_root)} is not a folder")
    if source.is_dir():
        if audio_root is not None or ignore_columns:
            raise LabelError(
                f"{source} is a folder; audio_root and ignore_columns are for CSV and JSONL files. Leave them out."
            )
        listing = read_folder(source, kind)
    else:
        listing = read_file(source, kind, audio_root or source.parent, ignore_columns)
    _check_rows(source, listing.rows)
    usable = [row for row in listing.rows if not row.missing]
    if not usable:
        raise LabelError(
            f"{source}: none of the {len(listing.rows)} audio files can be used: {listing.rows[0].missing}. "
            "Relative paths begin at the folder of the file; name another one with audio_root."
        )
    _check_differences(source, listing.kind, usable, "")
    splits, how_split = make_splits(source, listing, usable, seed)
    return _checked(source, listing, usable, splits, how_split)


# Checks ----------------------------------------------------------------------------------------------------


def _check_rows(source: Path, rows: Sequence[Row]) -> None:
    """Rows against each other, also those whose file is missing."""
    problems = Problems(source)
    first_of: dict[str, Row] = {}
    home: dict[str, Row] = {}
    crossing: set[str] = set()
    some_have_splits = any(row.split for row in rows)
    for row in rows:
        first = first_of.setdefault(row.real_path, row)
        if first is not row:
            where = f"{first.where} and {row.where}"
            if first.split != row.split:
                problems.add("the same file in two splits", where, "Keep it in one of them.")
            elif (first.labels, first.values) != (row.labels, row.values):
                problems.add("the same file with two labels", where, "Keep one, or give it several tags.")
            else:
                problems.add("the same file twice", where, "It would count double; keep one row.")
        if some_have_splits and not row.split:
            problems.add("no split, while others have one", row.where, "Give all rows a split, or none.")
        same = home.setdefault(row.group, row) if row.group else row
        if same.split != row.split and row.group not in crossing:
            crossing.add(row.group)
            where = f"'{row.group}' ({same.where}: {same.split}, {row.where}: {row.split})"
            problems.add("a group in two splits", where, "Recordings of a group must share a split.")
    problems.raise_any()


def _checked(
    source: Path, listing: Listing, usable: Sequence[Row], splits: Mapping[str, str], how_split: str
) -> LabelledAudio:
    """What can only be said when the splits are known; then the data set."""
    kind = listing.kind
    usable = sorted(usable, key=lambda row: row.track_id)
    train = [row for row in usable if splits[row.track_id] == "train"]
    if len(train) < 2:
        raise LabelError(f"{source}: training has {len(train)} recording; at least 2 are needed.")
    warnings = list(listing.warnings)
    names: tuple[str, ...]
    if kind == "regression":
        names = listing.dimensions
        warnings += _check_numbers(source, names, usable, train, splits)
    else:
        names = tuple(sorted({label for row in usable for label in row.labels}))
        _check_differences(source, kind, train, "training ")
        warnings += _check_labels(source, kind, names, usable, train, splits)
        lost = sorted({label for row in listing.rows for label in row.labels} - set(names))
        if lost:
            warnings.append(f"No file can be used of: {some_of(lost)}.")
        if kind == "key":
            names = tuple(str(Key.from_index(i)) for i in range(24))
    made: dict[tuple[tuple[str, ...], tuple[float, ...]], Label | Tags | Values | Key] = {}
    tracks = []
    for row in usable:
        said = row.labels, row.values
        if said not in made:  # rows that say the same share one
            made[said] = _annotation(kind, names, row)
        track_id = row.track_id
        tracks.append(
            LabelledTrack(
                track_id, Path(row.path), splits[track_id], row.group, annotation=made[said], line=row.line
            )
        )
    skipped = [Skipped(row.track_id, row.missing, row.split) for row in listing.rows if row.missing]
    return LabelledAudio(
        source, kind, names, tuple(tracks), (*listing.unread, *skipped), how_split, tuple(warnings)
    )


def _check_differences(source: Path, kind: Kind, rows: Sequence[Row], part: Literal["", "training "]) -> None:
    """That the labels tell the recordings apart. Numbers are looked at one by one, in training only."""
    found = Counter(label for row in rows for label in row.labels)
    if kind == "tags" and all(count == len(rows) for count in found.values()):
        raise LabelError(
            f"{source}: no tag tells the {part}recordings apart: each is on all of them or on none. Add recordings "
            "with other tags."
        )
    if kind in ("class", "key") and len(found) < 2:
        raise LabelError(
            f"{source}: all {part}recordings are '{next(iter(found))}'. At least two classes are needed."
        )


def _check_numbers(
    source: Path,
    names: Sequence[str],
    usable: Sequence[Row],
    train: Sequence[Row],
    splits: Mapping[str, str],
) -> list[str]:
    problems = Problems(source)
    warnings = []
    for i, name in enumerate(names):
        learned = {row.values[i] for row in train}
        if len(learned) == 1:
            problems.add(
                "the same number in all of training", f"'{name}' is {learned.pop():g}", "Leave it out."
            )
        elif max(map(abs, learned)) > LARGEST:
            problems.add("numbers too large to learn", f"'{name}'", "Use another unit.")
    for split in ("valid", "test"):
        rows = [row for row in usable if splits[row.track_id] == split]
        if split == "valid" and len(rows) < least_tracks("regression"):
            problems.add(
                "too few recordings to validate numbers on", f"{len(rows)}", "Have 2 or more in valid."
            )
        constant = [name for i, name in enumerate(names) if len({row.values[i] for row in rows}) == 1]
        if constant:
            warnings.append(f"The same number in all of {split}: {some_of(constant)}. R2 says nothing there.")
    problems.raise_any()
    return warnings


def _check_labels(
    source: Path,
    kind: Kind,
    names: Sequence[str],
    usable: Sequence[Row],
    train: Sequence[Row],
    splits: Mapping[str, str],
) -> list[str]:
    found = {
        split: Counter(n for row in usable if splits[row.track_id] == split for n in row.labels)
        for split in SPLITS
    }
    present = {split for split in SPLITS if split in splits.values()}
    learned = found["train"]
    warnings = []
    if kind == "tags":
        if not found["valid"]:
            raise LabelError(
                f"{source}: no recording of the split valid has a tag, so nothing can be validated. Add some with "
                "tags, or give splits of your own."
            )
        if never := [name for name in names if not learned[name]]:
            warnings.append(f"No training recording has, so nothing can learn: {some_of(never)}.")
        if always := [name for name in names if learned[name] == len(train)]:
            warnings.append(f"Every training recording has, so nothing can learn: {some_of(always)}.")
    else:
        strangers = [name for name in names if not learned[name]]
        if (
            strangers and kind == "key"
        ):  # a closed list: a key that is not learned stays an answer that never comes
            warnings.append(f"No training recording is in: {some_of(strangers)}.")
        elif strangers:
            rows = [row for row in usable if row.labels[0] in strangers]
            raise LabelError(
                f"{source}: training lacks a class of valid or test: {some_of([repr(n) for n in strangers])} "
                f"({some_of([f'{row.where}: {row.path}' for row in rows])}). Move some of these recordings to "
                "training, or take them out."
            )
    for split in ("valid", "test"):
        lacking = [name for name in names if learned[name] and not found[split][name]]
        if split in present and lacking:
            warnings.append(f"No {split} recording of: {some_of(lacking)}.")
    return warnings + _lookalikes(names)


def _lookalikes(names: Iterable[str]) -> list[str]:
    """Labels that differ in case or in how an accent is encoded are probably one."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        alike[unicodedata.normalize("NFKC", name).casefold()].append(name)
    pairs = [" and ".join(map(repr, same)) for same in alike.values() if len(same) > 1]
    return [f"Read as different, though they look alike: {some_of(pairs)}."] if pairs else []


def _annotation(kind: Kind, names: Sequence[str], row: Row) -> Label | Tags | Values | Key:
    if kind == "regression":
        return Values(dict(zip(names, row.values, strict=True)))
    if kind == "tags":
        return Tags({name: float(name in row.labels) for name in names})
    return Label(row.labels[0]) if kind == "class" else Key.parse(row.labels[0])


def _names_of(track: LabelledTrack) -> list[str]:
    """The class, the key, or the tags that apply."""
    if isinstance(track.annotation, Tags):
        return [tag for tag, score in track.annotation.scores.items() if score]
    return [str(track.annotation)]
