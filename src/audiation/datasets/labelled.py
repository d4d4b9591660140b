"""A user's own labelled audio: a CSV or JSONL file of paths and labels, or a folder with one folder per class.

The page docs/datasets/labelled.md is for users. Everything that would make training meaningless is refused before it
begins, with file and line; files that are not there are counted as skipped.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from audiation.annotations import Key, Label, Tags, Values
from audiation.datasets.base import SPLITS, Dataset, DatasetInfo, Skipped, Track
from audiation.music_files import AUDIO_SUFFIXES

Kind = Literal["class", "tags", "regression", "key"]
COLUMN_OF_KIND = {"class": "label", "tags": "labels", "regression": "value", "key": "key"}
OTHER_COLUMNS = ("path", "split", "group")
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid", "development": "valid",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
SHARES = {"train": 0.70, "valid": 0.15, "test": 0.15}  # of splits that are made here
IMBALANCE = 10  # largest to smallest class, from which the report says so
SHOWN = 5


class LabelError(ValueError):
    """Labels that cannot be trained on. Names the file, and the line where there is one."""


@dataclass(frozen=True)
class LabelledTrack(Track):
    """A recording of the user's with its annotation (`Label`, `Tags`, `Values` or `Key`). line: 0 for folders."""

    annotation: Any = None
    line: int = 0


class LabelledAudio(Dataset):
    """What `read_labelled` gives. kind: of the labels. names: classes, tags or dimensions, in order."""

    name = "labelled"
    info = DatasetInfo(
        title="your own labelled audio",
        where="a CSV or JSONL file, or a folder with one folder per class",
        size="yours",
        licence="yours",
        commercial_use=True,
        citation="",
    )

    def __init__(
        self,
        source: Path,
        kind: Kind,
        tracks: Sequence[LabelledTrack],
        skipped: Sequence[Skipped],
        how_split: str,
    ) -> None:
        self.source, self.kind, self.how_split = source, kind, how_split
        self.tracks, self.skipped = tuple(tracks), tuple(skipped)
        self.names = tuple(_names(kind, [t.annotation for t in tracks]))

    def report(self) -> list[str]:
        """Lines for people: counts, imbalance, how the splits were made, what is left out."""
        counts = self.counts
        lines = [
            f"{self.source}: {len(self.tracks)} recordings, {self.kind}: "
            + ", ".join(f"{counts[s]} {s}" for s in SPLITS)
            + f" ({self.how_split})"
        ]
        if self.kind != "regression":
            lines += self._balance()
        if not counts["test"]:
            lines.append(
                "There is no test split, so nothing will say how good the result is on new recordings."
            )
        if self.skipped:
            lines.append(
                f"{len(self.skipped)} recordings are left out: {_some([s.reason for s in self.skipped])}"
            )
        return lines

    def _balance(self) -> list[str]:
        train = Counter(n for t in self.split("train") for n in _classes(t.annotation))  # type: ignore[attr-defined]
        total = sum(t.split == "train" for t in self.tracks)
        shares = [f"{name} {train[name]} ({train[name] / total:.0%})" for name in self.names if train[name]]
        lines = [f"training: {_some(shares, 30)}"]
        present = {name: count for name, count in train.items() if count}
        most, least = max(present, key=present.__getitem__), min(present, key=present.__getitem__)
        ratio = present[most] / present[least]
        if ratio > IMBALANCE:
            lines.append(
                f"Imbalanced: '{most}' is {ratio:.0f} times as frequent as '{least}' in training. Accuracy will mostly "
                "tell about the frequent ones; look at the class-macro score, or add recordings of the rare ones."
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

    Args:
        path: `.csv`, `.jsonl`, or a folder.
        kind: "class", "tags", "regression" or "key"; None: as the columns say.
        audio_root: what relative paths in a file begin at; None: the folder of the file.
        ignore_columns: columns of the file that are not read.
        seed: of the splits that are made here.

    Raises:
        LabelError: says what is wrong, where, and what to do.
        FileNotFoundError: no such file or folder.
    """
    source = Path(path)
    if kind is not None and kind not in COLUMN_OF_KIND:
        raise LabelError(f"kind is one of {', '.join(COLUMN_OF_KIND)}, got '{kind}'")
    if not source.exists():
        raise FileNotFoundError(f"{source} is neither a file nor a folder")
    if source.is_dir():
        if kind not in (None, "class"):
            raise LabelError(f"{source} is a folder with one folder per class, which has no kind '{kind}'")
        rows, found_kind = _rows_of_folder(source), "class"
    else:
        root = source.parent if audio_root is None else Path(audio_root)
        records = _records(source)
        found_kind = _kind(source, records.columns, kind, ignore_columns)
        rows = [_row(source, root, found_kind, record) for record in records.rows]
    _check_duplicates(source, rows)
    _check_annotations(source, found_kind, rows)
    there = [row for row in rows if _is_file(row.audio_path)]
    if not there:
        raise LabelError(
            f"{source}: none of the {len(rows)} audio files is there; the first was looked for at "
            f"{rows[0].audio_path}. Relative paths begin at the folder of the file, or at audio_root."
        )
    if _check_splits(source, rows) == "given":
        there, how = _with_valid(source, there, seed)
    else:
        splits = _split_by_group(source, there, seed)
        there = [replace(row, split=splits[row.group or row.track_id]) for row in there]
        how = (
            f"split by group, seed {seed}"
            if any(row.group for row in there)
            else f"split at random, seed {seed}"
        )
    present = {row.track_id for row in there}
    skipped = [
        Skipped(row.track_id, f"{row.audio_path} is not there", row.split)
        for row in rows
        if row.track_id not in present
    ]
    there.sort(key=lambda row: row.track_id)
    data = LabelledAudio(source, found_kind, there, skipped, how)  # type: ignore[arg-type]
    _check_trainable(data)
    data.check_groups()
    return data


# Files ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Record:
    line: int
    fields: dict[str, Any]


@dataclass(frozen=True)
class _Records:
    columns: tuple[str, ...]
    rows: tuple[_Record, ...]


def _records(source: Path) -> _Records:
    readers: dict[str, Callable[[Path, str], _Records]] = {".csv": _csv, ".jsonl": _jsonl, ".ndjson": _jsonl}
    reader = readers.get(source.suffix.lower())
    if reader is None:
        raise LabelError(f"{source}: labels are a .csv or .jsonl file, or a folder with one folder per class")
    try:
        text = source.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = source.read_bytes()[: error.start].count(b"\n") + 1
        raise LabelError(f"{source}, line {line}: not UTF-8. Save the file as UTF-8.") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise LabelError(f"{source}, line {line}: a NUL character. Save the file as plain text.")
    records = reader(source, text)
    if not records.rows:
        raise LabelError(f"{source}: no recording is listed")
    return records


def _csv(source: Path, text: str) -> _Records:
    lines = csv.reader(text.splitlines(keepends=True), strict=True)
    rows: list[_Record] = []
    try:
        header = [name.strip() for name in next(lines, [])]
        if not any(header):
            raise LabelError(f"{source}: the first line must name the columns, like path,label")
        if doubled := [name for name, count in Counter(header).items() if count > 1]:
            raise LabelError(f"{source}: the column '{doubled[0]}' is there twice")
        for fields in lines:
            if not fields:
                continue  # an empty line
            if len(fields) != len(header):
                raise LabelError(
                    f"{source}, line {lines.line_num}: {len(fields)} fields, the first line names {len(header)}. "
                    "Put a field with a comma into double quotes."
                )
            rows.append(_Record(lines.line_num, dict(zip(header, fields, strict=True))))
    except csv.Error as error:
        raise LabelError(f"{source}, line {lines.line_num}: not CSV ({error})") from None
    return _Records(tuple(header), tuple(rows))


def _jsonl(source: Path, text: str) -> _Records:
    rows: list[_Record] = []
    columns: dict[str, None] = {}
    for number, line in enumerate(text.rstrip().split("\n"), start=1):
        where = f"{source}, line {number}"
        try:
            record = json.loads(line, parse_constant=partial(_no_constant, where))
        except (json.JSONDecodeError, RecursionError) as error:
            reason = "too deep" if isinstance(error, RecursionError) else error.msg
            raise LabelError(f"{where}: not JSON ({reason}). Every line is one object.") from None
        if not isinstance(record, dict):
            raise LabelError(f'{where}: every line is an object, like {{"path": "a.wav", "label": "jazz"}}')
        columns.update(dict.fromkeys(record))
        rows.append(_Record(number, record))
    return _Records(tuple(columns), tuple(rows))


def _no_constant(where: str, name: str) -> None:
    raise LabelError(f"{where}: {name} is not a number one can learn")


def _kind(source: Path, columns: Sequence[str], kind: str | None, ignored: Sequence[str]) -> str:
    if missing := [name for name in ignored if name not in columns]:
        raise LabelError(
            f"{source}: there is no column '{missing[0]}' to ignore. Columns: {', '.join(columns)}."
        )
    left = [name for name in columns if name not in ignored]
    found = {k for k, column in COLUMN_OF_KIND.items() for name in left if name.partition(":")[0] == column}
    if "path" not in left:
        raise LabelError(f"{source}: there is no column 'path'. Columns: {', '.join(columns)}.")
    if kind is None and len(found) != 1:
        what = (
            "no column with labels" if not found else f"columns of several kinds ({', '.join(sorted(found))})"
        )
        raise LabelError(
            f"{source}: {what}. Name one of label (one class), labels (tags), value or value:NAME (numbers), key; "
            f"or say which with kind. Columns: {', '.join(columns)}."
        )
    chosen = kind or found.pop()
    wanted = COLUMN_OF_KIND[chosen]
    own = [n for n in left if n == wanted or (chosen == "regression" and n.startswith("value:"))]
    if not own:
        raise LabelError(
            f"{source}: kind '{chosen}' needs a column '{wanted}'. Columns: {', '.join(columns)}."
        )
    allowed = [*OTHER_COLUMNS, wanted]
    for name in left:
        if name not in (*OTHER_COLUMNS, *own):
            near = difflib.get_close_matches(name, allowed, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise LabelError(
                f"{source}: unknown column '{name}'.{hint} Columns are {', '.join(allowed)}; leave others out with "
                "ignore_columns."
            )
    return chosen


def _row(source: Path, root: Path, kind: str, record: _Record) -> LabelledTrack:
    where, fields = f"{source}, line {record.line}", record.fields
    for name in OTHER_COLUMNS:
        if not isinstance(fields.get(name, ""), str):
            raise LabelError(f"{where}: '{name}' is a text, got {fields[name]!r}")
    text = fields.get("path", "").strip()
    if not text:
        raise LabelError(f"{where}: the path is missing")
    if not text.isprintable():
        raise LabelError(f"{where}: the path {text!r} has characters that no file name should have")
    path = Path(text)
    if not path.is_absolute() and ".." in path.parts:
        raise LabelError(
            f"{where}: the path {text} leaves the folder it begins at; write it out, or set audio_root"
        )
    given = fields.get("split", "").strip()
    if given and given.lower() not in SPLIT_NAMES:
        raise LabelError(f"{where}: split is train, valid or test, got '{given}'")
    return LabelledTrack(
        track_id=path.as_posix(),
        audio_path=root / path,
        split=SPLIT_NAMES.get(given.lower(), ""),
        group=fields.get("group", "").strip(),
        annotation=_annotation(where, kind, fields),
        line=record.line,
    )


def _annotation(where: str, kind: str, fields: dict[str, Any]) -> Any:
    if kind == "regression":
        names = [name for name in fields if name.partition(":")[0] == "value"]
        return Values({name.partition(":")[2] or name: _value(where, name, fields[name]) for name in names})
    column = COLUMN_OF_KIND[kind]
    value = fields.get(column)
    if kind == "tags":
        tags = value.split("|") if isinstance(value, str) else value
        if not isinstance(tags, list) or not all(isinstance(t, str) for t in tags):
            raise LabelError(
                f"{where}: labels are texts joined by '|', or a JSON list of texts, got {value!r}"
            )
        cleaned = [t.strip() for t in tags if t.strip()]
        if len(set(cleaned)) < len(cleaned):
            raise LabelError(f"{where}: a label is there twice: {value!r}")
        return Tags(dict.fromkeys(cleaned, 1.0))
    if not isinstance(value, str) or not value.strip():
        reason = f"'{column}' is a text, got {value!r}" if value else f"the {column} is missing"
        raise LabelError(f"{where}: {reason}")
    if kind == "class":
        return Label(value.strip())
    try:
        return Key.parse(value)
    except ValueError as error:
        raise LabelError(f"{where}: {error}") from None


def _value(where: str, name: str, value: Any) -> float:
    try:
        number = (
            float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
        )
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise LabelError(f"{where}: '{name}' is {value!r}, not a finite number")
    return number


# Folders ----------------------------------------------------------------------------------------------------


def _rows_of_folder(source: Path) -> list[LabelledTrack]:
    folders = _subfolders(source)
    split_folders = [f for f in folders if f.name.lower() in SPLIT_NAMES]
    if split_folders and len(split_folders) < len(folders):
        other = next(f for f in folders if f not in split_folders)
        raise LabelError(
            f"{source}: '{split_folders[0].name}' is the name of a split and '{other.name}' is not. Either all folders "
            "are splits that hold folders of classes, or all are classes."
        )
    if not split_folders:
        return list(_rows_of_classes(source, source, ""))
    return [row for f in split_folders for row in _rows_of_classes(source, f, SPLIT_NAMES[f.name.lower()])]


def _rows_of_classes(source: Path, folder: Path, split: str) -> Iterator[LabelledTrack]:
    classes = _subfolders(folder)
    if not classes:
        raise LabelError(f"{folder}: no folder of a class. Lay recordings out as {folder.name}/CLASS/FILE.")
    for class_folder in classes:
        empty = True
        for path in sorted(class_folder.rglob("*")):
            if path.suffix.lower() in AUDIO_SUFFIXES and not any(
                part.startswith(".") for part in path.relative_to(class_folder).parts
            ):
                empty = False
                track_id = path.relative_to(source).as_posix()
                yield LabelledTrack(track_id, path, split, annotation=Label(class_folder.name))
        if empty:
            raise LabelError(
                f"{class_folder}: this class has no audio file. Remove the folder, or add recordings."
            )


def _subfolders(folder: Path) -> list[Path]:
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    if loose := [p for p in entries if p.is_file() and p.suffix.lower() in AUDIO_SUFFIXES]:
        raise LabelError(
            f"{folder}: {len(loose)} audio files are in no folder of a class, the first is {loose[0].name}. Move them "
            "into one, or name their labels in a CSV file."
        )
    return [p for p in entries if p.is_dir()]


# Checks ----------------------------------------------------------------------------------------------------


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # Path.is_file raises where a name is too long or may not be looked at


def _check_duplicates(source: Path, rows: Sequence[LabelledTrack]) -> None:
    seen: dict[str, LabelledTrack] = {}
    for row in rows:
        real = os.path.realpath(row.audio_path)
        first = seen.setdefault(real, row)
        if first is row:
            continue
        if first.split != row.split:
            what = f"is in '{first.split or 'no split'}' and in '{row.split or 'no split'}'"
        else:
            what = "is there twice, so it would count double"
        raise LabelError(f"{source}: {row.audio_path} {what} ({_where(first)} and {_where(row)}). Keep one.")


def _where(row: LabelledTrack) -> str:
    return f"line {row.line}" if row.line else row.track_id


def _check_annotations(source: Path, kind: str, rows: Sequence[LabelledTrack]) -> None:
    """That the labels say anything at all."""
    if kind == "regression":
        names = {tuple(row.annotation.values) for row in rows}
        if len(names) > 1:
            raise LabelError(
                f"{source}: every recording needs the same values, got {_some(map(', '.join, names))}"
            )
        return
    found = Counter(name for row in rows for name in _classes(row.annotation))
    if kind == "tags":
        if not any(0 < count < len(rows) for count in found.values()):
            raise LabelError(f"{source}: no label tells recordings apart: all have the same labels")
    elif len(found) < 2:
        raise LabelError(
            f"{source}: all {len(rows)} recordings are '{next(iter(found))}'. At least two classes are needed."
        )


def _check_splits(source: Path, rows: Sequence[LabelledTrack]) -> Literal["given", "made"]:
    without = [row for row in rows if not row.split]
    if len(without) == len(rows):
        return "made"
    if without:
        raise LabelError(
            f"{source}: {len(without)} of {len(rows)} recordings have no split, the first is {_where(without[0])}. "
            "Give all of them one, or none."
        )
    home: dict[str, LabelledTrack] = {}
    for row in rows:
        first = home.setdefault(row.group, row) if row.group else row
        if first.split != row.split:
            raise LabelError(
                f"{source}: group '{row.group}' is in '{first.split}' ({_where(first)}) and '{row.split}' "
                f"({_where(row)}). Recordings of one group must share a split."
            )
    if not any(row.split == "train" for row in rows):
        raise LabelError(f"{source}: no recording is in the training split")
    return "given"


def _check_trainable(data: LabelledAudio) -> None:
    train = data.split("train")
    if len(train) < 2:
        raise LabelError(f"{data.source}: {len(train)} recordings are left for training; two are the least")
    annotations = [t.annotation for t in train]  # type: ignore[attr-defined]
    if data.kind == "regression":
        for name in data.names:
            if len({a.values[name] for a in annotations}) == 1:
                raise LabelError(
                    f"{data.source}: '{name}' is the same in all {len(train)} training recordings"
                )
        return
    known = Counter(n for a in annotations for n in _classes(a))
    if data.kind != "tags" and len(known) < 2:
        raise LabelError(f"{data.source}: all training recordings are '{next(iter(known))}'")
    strangers: dict[str, list[str]] = defaultdict(list)
    for track in data.tracks:
        for name in _classes(track.annotation):  # type: ignore[attr-defined]
            if name not in known:
                strangers[name].append(track.track_id)
    if strangers and data.kind != "key":  # keys are one closed list, whichever of them occur
        name, tracks = next(iter(strangers.items()))
        raise LabelError(
            f"{data.source}: {_some([f'{n!r}' for n in strangers])} occur in validation or test but not in training "
            f"('{name}': {_some(tracks)}). Move some of these recordings to training, or leave them out."
        )


# Splits ----------------------------------------------------------------------------------------------------


def _with_valid(source: Path, rows: list[LabelledTrack], seed: int) -> tuple[list[LabelledTrack], str]:
    """Given splits; a missing validation split is taken out of training."""
    if any(row.split == "valid" for row in rows):
        return rows, "splits as given"
    train = [row for row in rows if row.split == "train"]
    share = SHARES["valid"] / (SHARES["train"] + SHARES["valid"])
    splits = _split_by_group(source, train, seed, {"train": 1 - share, "valid": share})
    moved = [
        replace(row, split=splits[row.group or row.track_id]) if row.split == "train" else row for row in rows
    ]
    return moved, f"splits as given, validation taken out of training, seed {seed}"


def _split_by_group(
    source: Path, rows: Sequence[LabelledTrack], seed: int, shares: dict[str, float] = SHARES
) -> dict[str, str]:
    """Group (a recording without one is its own) -> split, whatever the order of rows.

    Class by class, the rarest first: one group to training, one to every other split where there are enough, and the
    rest to the split that is furthest behind its share of that class.
    """
    members: dict[str, list[LabelledTrack]] = defaultdict(list)
    for row in rows:
        members[row.group or row.track_id].append(row)
    if len(members) < len(shares) + 1:
        raise LabelError(
            f"{source}: {len(members)} groups of recordings cannot be split into {', '.join(shares)}; "
            f"{len(shares) + 1} are the least"
        )
    groups = sorted(members, key=lambda g: hashlib.sha256(f"{seed}:{g}".encode()).digest())
    of_class: dict[str, list[str]] = defaultdict(list)
    for group in groups:
        for name in {n for row in members[group] for n in _strata(row.annotation)}:
            of_class[name].append(group)
    splits: dict[str, str] = {}
    for name in sorted(of_class, key=lambda n: (len(of_class[n]), n)):
        counts = Counter(splits[g] for g in of_class[name] if g in splits)
        everywhere = len(of_class[name]) >= len(shares)
        for group in of_class[name]:
            if group in splits:
                continue
            total = sum(counts.values()) + 1
            lacking = [s for s in shares if not counts[s]] if everywhere or not counts["train"] else []
            choice = lacking[0] if lacking else max(shares, key=lambda s: shares[s] * total - counts[s])
            splits[group] = choice
            counts[choice] += 1
    # A split may be empty where all classes are rare, or where there is one stratum of few groups.
    for split in shares:
        if split not in splits.values():
            donor = Counter(splits.values()).most_common(1)[0][0]
            group = next(g for g in reversed(groups) if splits[g] == donor)
            splits[group] = split
    return splits


def _strata(annotation: Any) -> list[str]:
    """What should be spread evenly over the splits."""
    names = _classes(annotation)
    return names if names else [""]


def _classes(annotation: Any) -> list[str]:
    if isinstance(annotation, Tags):
        return list(annotation.scores)
    return [] if isinstance(annotation, Values) else [str(annotation)]


def _names(kind: str, annotations: Sequence[Any]) -> list[str]:
    if kind == "regression":
        return list(annotations[0].values)
    if kind == "key":
        return [str(Key.from_index(i)) for i in range(24)]
    return sorted({name for a in annotations for name in _classes(a)})


def _some(texts: Any, most: int = SHOWN) -> str:
    texts = list(texts)
    shown = ", ".join(map(str, texts[:most]))
    return shown + (f" and {len(texts) - most} more" if len(texts) > most else "")
