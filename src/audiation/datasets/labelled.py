"""Labelled audio of a user's own: a CSV or JSONL file, or a folder with one folder per class -> checked tracks.

docs/datasets/labelled.md is the page for users: formats, rules, and every error with its cure. Whatever would make
training meaningless is refused before it begins, with file and line; files that are not there are counted as skipped.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import hashlib
import io
import itertools
import json
import math
import os
import re
import stat
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, cast, get_args

import numpy as np

from audiation.annotations import Key, Label, Tags, Values
from audiation.datasets.base import SPLITS, Dataset, DatasetInfo, Skipped, Track
from audiation.music_files import AUDIO_SUFFIXES, find_music

Kind = Literal["class", "tags", "regression", "key"]
COLUMN_OF_KIND: dict[Kind, str] = {"class": "label", "tags": "labels", "regression": "value", "key": "key"}
OTHER_COLUMNS = ("path", "split", "group")
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid", "development": "valid",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
SHARES = {"train": 0.70, "valid": 0.15, "test": 0.15}  # of splits that are made here
SHARES_OF_TRAIN = {"train": 0.85, "valid": 0.15}  # where splits are given, but none to validate on
IMBALANCE = 10  # largest to smallest class, above which the report says so
LARGEST = 1e100  # of numbers to be learned; their squares must not overflow
SHOWN_PLACES, SHOWN_NAMES = 5, 40


class LabelError(ValueError):
    """Labels that cannot be trained on. The message names the file, the lines, and what to do."""


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
            reasons = _some([s.reason for s in self.skipped])
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
        listing = _read_folder(source, kind)
    else:
        listing = _read_file(source, kind, audio_root or source.parent, ignore_columns)
    _check_rows(source, listing.rows)
    usable = [row for row in listing.rows if not row.missing]
    if not usable:
        raise LabelError(
            f"{source}: none of the {len(listing.rows)} audio files can be used: {listing.rows[0].missing}. "
            "Relative paths begin at the folder of the file; name another one with audio_root."
        )
    _check_differences(source, listing.kind, usable, "")
    splits, how_split = _splits(source, listing, usable, seed)
    return _checked(source, listing, usable, splits, how_split)


# What the readers give -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Row:
    """One recording as listed. missing: why its file cannot be used, "" where it can.

    labels: its class, its tags, or its key. values: numbers in the order of the dimensions. One of them is empty.
    """

    line: int
    track_id: str
    path: str
    real_path: str
    missing: str
    labels: tuple[str, ...]
    values: tuple[float, ...] = ()
    split: str = ""
    group: str = ""

    @property
    def where(self) -> str:
        return f"line {self.line}" if self.line else self.track_id


@dataclass(frozen=True)
class _Listing:
    """dimensions: names of the numbers. unread: skipped before they became rows, with reasons."""

    kind: Kind
    rows: list[_Row]
    dimensions: tuple[str, ...] = ()
    unread: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()


class _Problems:
    """Faults of the same sort, gathered, so that one error tells of all lines."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._places: dict[tuple[str, str], list[str]] = {}
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, what: str, where: str, cure: str) -> None:
        places = self._places.setdefault((what, cure), [])
        self._counts[what, cure] += 1
        if len(places) < SHOWN_PLACES:
            places.append(where)

    def raise_any(self) -> None:
        lines = []
        for (what, cure), places in self._places.items():
            more = self._counts[what, cure] - len(places)
            lines.append(
                f"{self._source}: {what}: {', '.join(places)}{f' and {more} more' if more else ''}. {cure}"
            )
        if lines:
            raise LabelError("\n".join(lines))


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # also halves of characters
_CONTROL_CURE = "Write plain text without tabs, line breaks and other control characters."


class _Place(NamedTuple):
    track_id: str
    path: str
    real_path: str
    missing: str


class _Files:
    """Where paths lead. Only names are looked at; nothing is opened or decoded."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._inside = os.path.join(os.path.abspath(root), "")
        # Resolving the folder of every file again would take most of the time.
        self._real_folders: dict[str, str] = {}

    def place(self, text: str) -> _Place | None:
        """None for a relative path that leaves the root. `..` is taken out by name and never followed."""
        normal = os.path.normpath(text)
        if os.path.isabs(text):
            path, track_id = text, normal.removeprefix(self._inside)
        elif normal == os.pardir or normal.startswith(os.pardir + os.sep):
            return None
        else:
            path, track_id = self._inside + normal, normal
        folder, slash, name = path.rpartition(os.sep)
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(folder + slash)
        real_path, missing = self._real_folders[folder] + slash + name, ""
        try:
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                status, real_path = os.stat(path), os.path.realpath(path)
            if not stat.S_ISREG(status.st_mode):
                missing = f"{path} is not a file"
        except FileNotFoundError:
            missing = f"{path} is not there"
        except OSError as error:
            missing = f"{path} cannot be used ({error.strerror})"
        return _Place(track_id.replace(os.sep, "/"), path, real_path, missing)


# CSV and JSONL ---------------------------------------------------------------------------------------------


class _Record(NamedTuple):
    line: int
    fields: dict[str, Any]


@dataclass(frozen=True)
class _Layout:
    """Which columns hold the labels. dimensions: the names behind them, of numbers only."""

    kind: Kind
    columns: tuple[str, ...]
    dimensions: tuple[str, ...]
    allowed: frozenset[str]


def _read_file(
    source: Path, kind: str | None, root: str | os.PathLike[str], ignored: Sequence[str]
) -> _Listing:
    problems = _Problems(source)
    is_csv = source.suffix.lower() == ".csv"
    if not is_csv and source.suffix.lower() not in (".jsonl", ".ndjson"):
        raise LabelError(
            f"{source} is not a .csv or .jsonl file, nor a folder with one folder per class. Give one of these."
        )
    records = (_csv_records if is_csv else _json_records)(source, _text_of(source), problems)
    first = next(records, None)
    if first is None:
        problems.raise_any()
        raise LabelError(f"{source}: no recording is listed. Write one per line, for example a.wav,jazz.")
    layout = _layout(source, list(first.fields), kind, ignored)
    reader = _RowReader(layout, _Files(root), problems, is_csv)
    rows: list[_Row] = []
    columns: set[str] = set()
    for record in itertools.chain([first], records):
        columns.update(record.fields)
        for name in ignored:
            record.fields.pop(name, None)
        row = reader.read(record)
        if row is not None:
            rows.append(row)
    if absent := [name for name in ignored if name not in columns]:
        raise LabelError(
            f"{source}: there is no column '{absent[0]}' to ignore. Columns: {', '.join(sorted(columns))}."
        )
    problems.raise_any()
    return _Listing(layout.kind, rows, layout.dimensions)


def _text_of(source: Path) -> str:
    data = source.read_bytes()
    cure = "Save the file as plain text in UTF-8."
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise LabelError(f"{source}, line 1: this is UTF-16. {cure}")
    if b"\0" in data:
        raise LabelError(f"{source}, line {_line_of(data, data.index(0))}: a NUL character. {cure}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = _line_of(data, error.start)
        raise LabelError(f"{source}, line {line}: the text is not UTF-8. {cure}") from None


def _line_of(data: bytes, position: int) -> int:
    return len(re.findall(rb"\r\n?|\n", data[:position])) + 1


def _csv_records(source: Path, text: str, problems: _Problems) -> Iterator[_Record]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    blank, line = 0, 1
    try:
        for fields in reader:
            this_line, line = line, reader.line_num + 1  # a quoted field may go over several lines
            if not "".join(fields).strip() and len(fields) < 2:
                blank = blank or this_line
                continue
            _note_blank(blank, problems)
            blank = 0
            if not header:
                header = _header(source, this_line, fields)
            elif len(fields) != len(header):
                problems.add(
                    f"not {len(header)} fields as in the first line",
                    f"line {this_line} ({len(fields)})",
                    "Put a field that has a comma into double quotes.",
                )
            else:
                yield _Record(this_line, dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise LabelError(
            f"{source}, line {line}: not CSV: {error}. Look for a double quote that is not closed or not doubled."
        ) from None


def _header(source: Path, line: int, fields: list[str]) -> list[str]:
    header = [name.strip() for name in fields]
    if len(header) == 1 and (mark := next((m for m in ";\t|" if m in header[0]), "")):
        raise LabelError(f"{source}, line {line}: fields are separated by commas, not by {mark!r}.")
    if doubled := [name for name, count in Counter(header).items() if count > 1]:
        raise LabelError(f"{source}, line {line}: the column '{doubled[0]}' is there twice. Rename one.")
    return header


def _json_records(source: Path, text: str, problems: _Problems) -> Iterator[_Record]:
    decoder = json.JSONDecoder(object_pairs_hook=_unique_names, parse_constant=_refuse_constant)
    blank = 0
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if not stripped:
            blank = blank or number
            continue
        _note_blank(blank, problems)
        blank = 0
        try:
            record = decoder.decode(stripped)
        except json.JSONDecodeError as error:
            reason = f"{error.msg}, column {error.colno}"
        except (ValueError, RecursionError) as error:
            reason = "too deep" if isinstance(error, RecursionError) else str(error)
        else:
            if isinstance(record, dict):
                yield _Record(number, record)
                continue
            reason = f"a {type(record).__name__}"
        problems.add(
            "not a JSON object",
            f"line {number} ({reason})",
            'A line is like {"path": "a.wav", "label": "jazz"}.',
        )


def _note_blank(line: int, problems: _Problems) -> None:
    """A blank line that something follows."""
    if line:
        problems.add("a blank line", f"line {line}", "Only the end of the file may have blank lines.")


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a name is there twice")
    return record


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a finite number")


def _layout(source: Path, columns: list[str], kind: str | None, ignored: Sequence[str]) -> _Layout:
    """Decide what the columns mean. Unknown ones first: a misspelt column is the reason of what else is missing."""
    left = [name for name in columns if name not in ignored]
    for name in left:
        if name not in OTHER_COLUMNS and _kind_of(name) is None:
            raise LabelError(f"{source}: {_unknown_column(name)}")
    given = f"Columns: {', '.join(columns)}."
    if "path" not in left:
        raise LabelError(f"{source}: there is no column 'path' with the audio files. {given}")
    found = list(dict.fromkeys(k for k in map(_kind_of, left) if k is not None))
    if kind is None and len(found) != 1:
        what = f"columns of several kinds ({', '.join(found)})" if found else "no column with labels"
        cure = "Say which with kind" if found else "Name one label, labels, value, value:NAME or key"
        raise LabelError(f"{source}: {what}. {cure}. {given}")
    chosen = cast(Kind, kind or found[0])
    own = tuple(name for name in left if _kind_of(name) == chosen)
    if not own:
        raise LabelError(f"{source}: kind '{chosen}' needs a column '{COLUMN_OF_KIND[chosen]}'. {given}")
    dimensions: tuple[str, ...] = ()
    if chosen == "regression":
        dimensions = tuple(name.partition(":")[2].strip() or "value" for name in own)
        if (len(own) > 1 and "value" in own) or "value:" in own or len(set(dimensions)) < len(dimensions):
            raise LabelError(
                f"{source}: numbers are in one column value, or in columns value:NAME with different names, "
                f"not in {', '.join(own)}"
            )
    # With `kind` given, columns of other kinds may be there and are not read.
    others = [c for k in get_args(Kind) for c in (COLUMN_OF_KIND[k],) if k != chosen and kind is not None]
    return _Layout(chosen, own, dimensions, frozenset((*OTHER_COLUMNS, *own, *others, *left)))


def _kind_of(column: str) -> Kind | None:
    """The kind of labels a column holds."""
    if column.startswith("value:"):
        return "regression"
    return next((kind for kind, name in COLUMN_OF_KIND.items() if name == column), None)


def _unknown_column(name: str) -> str:
    allowed = [*OTHER_COLUMNS, *COLUMN_OF_KIND.values()]
    near = difflib.get_close_matches(name.lower(), allowed, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return (
        f"unknown column '{name}'.{hint} Columns are {', '.join(allowed)}, value:NAME; leave others out with "
        "ignore_columns"
    )


class _RowReader:
    """Checks a record and turns it into a row. What is wrong goes to the problems, and there is no row then."""

    def __init__(self, layout: _Layout, files: _Files, problems: _Problems, is_csv: bool) -> None:
        self._layout, self._files, self._problems, self._is_csv = layout, files, problems, is_csv

    def read(self, record: _Record) -> _Row | None:
        where, fields = f"line {record.line}", record.fields
        if not fields.keys() <= self._layout.allowed:
            name = next(n for n in fields if n not in self._layout.allowed)
            self._problems.add(_unknown_column(name), where, "The first object says which columns there are.")
            return None
        text = self._text(where, fields, "path")
        split = self._text(where, fields, "split")
        group = self._text(where, fields, "group")
        labels = () if self._layout.dimensions else self._labels(where, fields)
        values = self._values(where, fields) if self._layout.dimensions else ()
        if text is None or split is None or group is None or labels is None or values is None:
            return None
        if not text.strip():
            self._problems.add("no path", where, "Every row names an audio file.")
            return None
        if split and split.lower() not in SPLIT_NAMES:
            cure = f"A split is one of {', '.join(SPLITS)}."
            self._problems.add("an unknown split", f"{where} ({split!r:.40})", cure)
            return None
        place = self._files.place(text)
        if place is None:
            self._problems.add(
                "a relative path that leaves the data folder",
                f"{where} ({text!r:.60})",
                "Write an absolute path, or set audio_root to a folder further up.",
            )
            return None
        return _Row(
            record.line,
            place.track_id,
            place.path,
            place.real_path,
            place.missing,
            labels,
            values,
            SPLIT_NAMES[split.lower()] if split else "",
            group,
        )

    def _text(self, where: str, fields: Mapping[str, Any], column: str) -> str | None:
        """ "" where there is none. Blanks around a text do not count, except in a path: file names may have them."""
        value = fields.get(column)
        if value is None:
            return ""
        if not isinstance(value, str):
            cure = "Put it into double quotes."
            self._problems.add(f"'{column}' is not a text", f"{where} ({value!r:.40})", cure)
            return None
        text = value if column == "path" else value.strip()
        if _CONTROL.search(text):
            self._problems.add(f"a control character in '{column}'", f"{where} ({text!r:.40})", _CONTROL_CURE)
            return None
        return text

    def _no_label(self, where: str) -> None:
        self._problems.add("no label", where, "Every row needs one; write it, or take the row out.")

    def _labels(self, where: str, fields: Mapping[str, Any]) -> tuple[str, ...] | None:
        (column,) = self._layout.columns
        if self._layout.kind == "tags":
            return self._tags(where, fields, column)
        text = self._text(where, fields, column)
        if text is None:
            return None
        if not text:
            self._no_label(where)
            return None
        if self._layout.kind == "class":
            return (text,)
        try:
            return (str(Key.parse(text)),)
        except ValueError:
            cure = "Write '<tonic> major' or '<tonic> minor', like 'C# minor'."
            self._problems.add("not a key", f"{where} ({text!r:.40})", cure)
            return None

    def _tags(self, where: str, fields: Mapping[str, Any], column: str) -> tuple[str, ...] | None:
        value = fields.get(column)
        if value is None:
            self._no_label(where)
            return None
        if self._is_csv:
            value = value.split("|") if value.strip() else []
        if not isinstance(value, list) or not all(isinstance(tag, str) for tag in value):
            cure = "Tags are a list of texts; [] says that none applies."
            self._problems.add(f"'{column}' is not a list of texts", f"{where} ({value!r:.40})", cure)
            return None
        tags = [tag.strip() for tag in value]
        if "" in tags or len(set(tags)) < len(tags):
            cure = "Name each tag once, and leave nothing between separators."
            self._problems.add("an empty or repeated tag", f"{where} ({'|'.join(tags)!r:.40})", cure)
            return None
        if any(_CONTROL.search(tag) for tag in tags):
            self._problems.add(f"a control character in '{column}'", where, _CONTROL_CURE)
            return None
        return tuple(sorted(tags))

    def _values(self, where: str, fields: Mapping[str, Any]) -> tuple[float, ...] | None:
        numbers = []
        for column in self._layout.columns:
            value = fields.get(column)
            if value is None or (isinstance(value, str) and not value.strip()):
                self._no_label(where)
                return None
            number = _number(value, self._is_csv)
            if number is None or not math.isfinite(number):
                what = "not a number" if number is None else "not a finite number"
                cure = "Write a number with a decimal point, like 0.5; take rows without one out."
                self._problems.add(what, f"{where} ({value!r:.40})", cure)
                return None
            numbers.append(number)
        return tuple(numbers)


def _number(value: Any, is_csv: bool) -> float | None:
    """None for what is no number, such as Python's own 1_000."""
    if "_" in value or not value.isascii() if is_csv else isinstance(value, bool | str):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        return None


# Folders ---------------------------------------------------------------------------------------------------


def _read_folder(source: Path, kind: str | None) -> _Listing:
    """`CLASS/FILE`, or `SPLIT/CLASS/FILE`; below a class folder files may lie as deep as they like."""
    if kind not in (None, "class", "key"):
        raise LabelError(f"{source}: folders name a class or a key, not '{kind}'. Write a CSV or JSONL file.")
    notes: Counter[str] = Counter()
    top = _subfolders(source, notes)
    homes = {folder: SPLIT_NAMES.get(folder.name.lower(), "") for folder in top}
    if any(homes.values()) and not all(homes.values()):
        split, other = (next(f.name for f in top if bool(homes[f]) is named) for named in (True, False))
        raise LabelError(
            f"{source}: '{split}' is the name of a split and '{other}' is not. Either all folders are splits that hold "
            "folders of classes, or all are classes."
        )
    if doubled := [s for s, count in Counter(homes.values()).items() if s and count > 1]:
        names = ", ".join(f.name for f in top if homes[f] == doubled[0])
        raise LabelError(f"{source}: several folders are the split '{doubled[0]}': {names}. Keep one.")
    if any(homes.values()):
        classes = [(split, c) for folder, split in homes.items() for c in _subfolders(folder, notes)]
    else:
        classes = [("", folder) for folder in top]
    problems, files = _Problems(source), _Files(source)
    rows: list[_Row] = []
    unread: list[Skipped] = []
    empty: list[tuple[str, Path]] = []
    for split, folder in classes:
        label = _folder_label(folder, kind, problems)
        found = find_music([folder])
        notes.update({_OTHER: found.num_other, _HIDDEN: found.num_hidden})
        unread += [Skipped(_printable(path, source), reason, split) for path, reason in found.problems]
        if not found.files:
            empty.append((label, folder))
        for path in found.files:
            text = path.relative_to(source).as_posix()
            place = files.place(text)
            assert place is not None  # found below the folder
            if _CONTROL.search(text):
                reason = f"its name {_printable(path, source)} has characters that a name should not have"
                unread.append(Skipped(_printable(path, source), reason, split))
            else:
                rows.append(
                    _Row(0, place.track_id, place.path, place.real_path, place.missing, (label,), (), split)
                )
    known = {name for row in rows for name in row.labels}
    warnings = [f"Not read: {count} {what}." for what, count in sorted(notes.items()) if count]
    for label, folder in empty:
        where = _printable(folder, source)
        if label in known:
            warnings.append(f"The folder {where} has no audio file.")
        else:
            problems.add("a class without an audio file", where, "Add recordings, or remove the folder.")
    problems.raise_any()
    if not rows:
        reasons = _some([s.reason for s in unread])
        raise LabelError(f"{source}: no audio file can be used: {reasons}. Rename or replace the files.")
    return _Listing("key" if kind == "key" else "class", rows, unread=tuple(unread), warnings=tuple(warnings))


_OTHER, _HIDDEN = "files that are not audio", "hidden files and folders"


def _subfolders(folder: Path, notes: Counter[str]) -> list[Path]:
    """Folders to be read as classes or splits, by name. Audio beside them belongs to no class and is refused."""
    entries = sorted(folder.iterdir())
    seen = [p for p in entries if not p.name.startswith(".")]
    folders = [p for p in seen if os.path.isdir(p)]
    loose = [p.name for p in seen if p not in folders and p.suffix.lower() in AUDIO_SUFFIXES]
    if loose:
        raise LabelError(
            f"{folder}: {len(loose)} audio files are in no folder of a class: {_some(loose)}. Move them into one, or "
            "name their labels in a CSV file."
        )
    if not folders:
        tables = [p.name for p in seen if p.suffix.lower() in (".csv", ".jsonl", ".ndjson")]
        hint = f"give the file {folder / tables[0]}" if tables else "or write a CSV file"
        raise LabelError(f"{folder}: no folder of a class. Lay recordings out as CLASS/FILE, {hint}.")
    notes.update({_OTHER: len(seen) - len(folders), _HIDDEN: len(entries) - len(seen)})
    return folders


def _folder_label(folder: Path, kind: str | None, problems: _Problems) -> str:
    name = folder.name
    if _CONTROL.search(name):
        problems.add("a control character in the name of a class", ascii(name), "Rename the folder.")
    if kind != "key":
        return name
    try:
        return str(Key.parse(name))
    except ValueError:
        problems.add("not a key", ascii(name), "Name folders '<tonic> major' or '<tonic> minor'.")
        return name


def _printable(path: Path, source: Path) -> str:
    """A name that can be shown and stored, whatever bytes it is made of."""
    text = path.relative_to(source).as_posix() if path != source else path.name
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


# Splits ----------------------------------------------------------------------------------------------------


def _splits(source: Path, listing: _Listing, usable: list[_Row], seed: int) -> tuple[dict[str, str], str]:
    """(track id -> split, how they were made)."""
    kind = listing.kind
    given = {row.split for row in listing.rows}
    by = "group" if any(row.group for row in usable) else "recording"
    if given == {""}:
        return _split(source, usable, SHARES, kind, seed), f"split 70/15/15 by {by}, seed {seed}"
    if "train" not in given:
        raise LabelError(
            f"{source}: no recording is in the training split, only in {', '.join(sorted(given))}. "
            "Give some rows the split train, or leave the splits out."
        )
    splits = {row.track_id: row.split for row in usable}
    if lost := [s for s in SPLITS if s in given and s not in splits.values()]:
        first = next(row.missing for row in listing.rows if row.split == lost[0])
        raise LabelError(f"{source}: no file of the split {lost[0]} can be used: {first}. Correct the paths.")
    if "valid" in given:
        return splits, "splits as given"
    train = [row for row in usable if row.split == "train"]
    return (
        splits | _split(source, train, SHARES_OF_TRAIN, kind, seed),
        f"splits as given, and validation is 15 % of training by {by}, seed {seed}",
    )


class _Group(NamedTuple):
    """Recordings that stay together. labels: how many of them have each."""

    track_ids: tuple[str, ...]
    labels: dict[str, int]


def _split(
    source: Path, rows: Sequence[_Row], shares: Mapping[str, float], kind: Kind, seed: int
) -> dict[str, str]:
    """Track id -> split: iterative stratification (Sechidis et al. 2011) over groups.

    Label by label, the one with the fewest groups first: one group to training, then one to each other split that has
    none with that label, then each to the split that is furthest behind its share of the label. So a class with one
    group is in training, and one with a group for every split is in all of them, unless groups mix classes.
    """
    groups = _groups(rows, seed)
    of_label: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        for label in group.labels:
            of_label[label].append(index)
    least = _least_tracks(kind)
    have: dict[str, Counter[str]] = {split: Counter() for split in shares}
    total = Counter(label for row in rows for label in row.labels or ("",))
    num_tracks: Counter[str] = Counter()
    home: dict[int, str] = {}

    def behind(split: str) -> float:
        return shares[split] * len(rows) - num_tracks[split]

    def put(index: int, split: str, sign: int = 1) -> None:
        home[index] = split
        num_tracks[split] += sign * len(groups[index].track_ids)
        for label, count in groups[index].labels.items():
            have[split][label] += sign * count

    def choice(label: str) -> str:
        lacking = [split for split in shares if have[split][label] < least]
        if "train" in lacking:
            return "train"
        if lacking:
            return max(lacking, key=behind)
        return max(shares, key=lambda s: (shares[s] * total[label] - have[s][label], behind(s)))

    for label in sorted(of_label, key=lambda name: (len(of_label[name]), name)):
        waiting = [i for i in of_label[label] if i not in home]
        for index in sorted(waiting, key=lambda i: -len(groups[i].track_ids)):
            put(index, choice(label))
    for label in sorted(of_label):  # where groups mix labels, others may have taken all of one's groups
        if not have["train"][label]:
            index = of_label[label][0]
            put(index, home[index], -1)
            put(index, "train")
    what = "groups" if any(row.group for row in rows) else "recordings"
    for split in shares:
        if num_tracks[split] < least:
            of = {"regression": "", "tags": " with one tag"}.get(kind, " of one class")
            raise LabelError(
                f"{source}: {len(groups)} {what} are too few to make {', '.join(shares)}: {split} would have "
                f"{num_tracks[split]} recordings. At least {least * len(shares)} {what}{of} are needed, or splits of "
                "your own."
            )
    return {track_id: home[i] for i, group in enumerate(groups) for track_id in group.track_ids}


def _least_tracks(kind: Kind) -> int:
    """Recordings that a split needs for its score to be defined."""
    return 2 if kind == "regression" else 1


def _groups(rows: Sequence[_Row], seed: int) -> list[_Group]:
    """In an order that is random and depends on the seed and the track ids alone."""
    members: dict[tuple[str, str], list[_Row]] = defaultdict(list)
    for row in rows:
        members["group" if row.group else "track", row.group or row.track_id].append(row)
    groups = []
    for together in members.values():
        labels: dict[str, int] = {}
        for label in (label for row in together for label in row.labels or ("",)):
            labels[label] = labels.get(label, 0) + 1
        groups.append(_Group(tuple(sorted(row.track_id for row in together)), labels))
    return sorted(groups, key=lambda g: hashlib.sha256(f"{seed}\t{g.track_ids[0]}".encode()).digest())


# Checks ----------------------------------------------------------------------------------------------------


def _check_rows(source: Path, rows: Sequence[_Row]) -> None:
    """Rows against each other, also those whose file is missing."""
    problems = _Problems(source)
    first_of: dict[str, _Row] = {}
    home: dict[str, _Row] = {}
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
    source: Path, listing: _Listing, usable: Sequence[_Row], splits: Mapping[str, str], how_split: str
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
            warnings.append(f"No file can be used of: {_some(lost)}.")
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


def _check_differences(
    source: Path, kind: Kind, rows: Sequence[_Row], part: Literal["", "training "]
) -> None:
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
    usable: Sequence[_Row],
    train: Sequence[_Row],
    splits: Mapping[str, str],
) -> list[str]:
    problems = _Problems(source)
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
        if split == "valid" and len(rows) < _least_tracks("regression"):
            problems.add(
                "too few recordings to validate numbers on", f"{len(rows)}", "Have 2 or more in valid."
            )
        constant = [name for i, name in enumerate(names) if len({row.values[i] for row in rows}) == 1]
        if constant:
            warnings.append(f"The same number in all of {split}: {_some(constant)}. R2 says nothing there.")
    problems.raise_any()
    return warnings


def _check_labels(
    source: Path,
    kind: Kind,
    names: Sequence[str],
    usable: Sequence[_Row],
    train: Sequence[_Row],
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
            warnings.append(f"No training recording has, so nothing can learn: {_some(never)}.")
        if always := [name for name in names if learned[name] == len(train)]:
            warnings.append(f"Every training recording has, so nothing can learn: {_some(always)}.")
    else:
        strangers = [name for name in names if not learned[name]]
        if (
            strangers and kind == "key"
        ):  # a closed list: a key that is not learned stays an answer that never comes
            warnings.append(f"No training recording is in: {_some(strangers)}.")
        elif strangers:
            rows = [row for row in usable if row.labels[0] in strangers]
            raise LabelError(
                f"{source}: training lacks a class of valid or test: {_some([repr(n) for n in strangers])} "
                f"({_some([f'{row.where}: {row.path}' for row in rows])}). Move some of these recordings to training, "
                "or take them out."
            )
    for split in ("valid", "test"):
        lacking = [name for name in names if learned[name] and not found[split][name]]
        if split in present and lacking:
            warnings.append(f"No {split} recording of: {_some(lacking)}.")
    return warnings + _lookalikes(names)


def _lookalikes(names: Iterable[str]) -> list[str]:
    """Labels that differ in case or in how an accent is encoded are probably one."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        alike[unicodedata.normalize("NFKC", name).casefold()].append(name)
    pairs = [" and ".join(map(repr, same)) for same in alike.values() if len(same) > 1]
    return [f"Read as different, though they look alike: {_some(pairs)}."] if pairs else []


def _annotation(kind: Kind, names: Sequence[str], row: _Row) -> Label | Tags | Values | Key:
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


def _some(texts: Sequence[str]) -> str:
    more = len(texts) - SHOWN_PLACES
    return ", ".join(texts[:SHOWN_PLACES]) + (f" and {more} more" if more > 0 else "")
