"""Files and folders of labels -> rows, every problem with its line."""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import itertools
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

from audiation.annotations import Key
from audiation.datasets.base import SPLITS, Skipped
from audiation.music_files import AUDIO_SUFFIXES, find_music

Kind = Literal["class", "tags", "regression", "key"]
COLUMN_OF_KIND: dict[Kind, str] = {"class": "label", "tags": "labels", "regression": "value", "key": "key"}
OTHER_COLUMNS = ("path", "split", "group")
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid", "development": "valid",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
SHOWN_PLACES = 5


class LabelError(ValueError):
    """Labels that cannot be trained on. The message names the file, the lines, and what to do."""


@dataclass(slots=True)
class Row:
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
class Listing:
    """dimensions: names of the numbers. unread: skipped before they became rows, with reasons."""

    kind: Kind
    rows: list[Row]
    dimensions: tuple[str, ...] = ()
    unread: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()


class Problems:
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


def read_file(
    source: Path, kind: str | None, root: str | os.PathLike[str], ignored: Sequence[str]
) -> Listing:
    problems = Problems(source)
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
    rows: list[Row] = []
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
    return Listing(layout.kind, rows, layout.dimensions)


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


def _csv_records(source: Path, text: str, problems: Problems) -> Iterator[_Record]:
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


def _json_records(source: Path, text: str, problems: Problems) -> Iterator[_Record]:
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


def _note_blank(line: int, problems: Problems) -> None:
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

    def __init__(self, layout: _Layout, files: _Files, problems: Problems, is_csv: bool) -> None:
        self._layout, self._files, self._problems, self._is_csv = layout, files, problems, is_csv

    def read(self, record: _Record) -> Row | None:
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
        return Row(
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


def read_folder(source: Path, kind: str | None) -> Listing:
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
    problems, files = Problems(source), _Files(source)
    rows: list[Row] = []
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
                    Row(0, place.track_id, place.path, place.real_path, place.missing, (label,), (), split)
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
        reasons = some_of([s.reason for s in unread])
        raise LabelError(f"{source}: no audio file can be used: {reasons}. Rename or replace the files.")
    return Listing("key" if kind == "key" else "class", rows, unread=tuple(unread), warnings=tuple(warnings))


_OTHER, _HIDDEN = "files that are not audio", "hidden files and folders"


def _subfolders(folder: Path, notes: Counter[str]) -> list[Path]:
    """Folders to be read as classes or splits, by name. Audio beside them belongs to no class and is refused."""
    entries = sorted(folder.iterdir())
    seen = [p for p in entries if not p.name.startswith(".")]
    folders = [p for p in seen if os.path.isdir(p)]
    loose = [p.name for p in seen if p not in folders and p.suffix.lower() in AUDIO_SUFFIXES]
    if loose:
        raise LabelError(
            f"{folder}: {len(loose)} audio files are in no folder of a class: {some_of(loose)}. Move them into one, or "
            "name their labels in a CSV file."
        )
    if not folders:
        tables = [p.name for p in seen if p.suffix.lower() in (".csv", ".jsonl", ".ndjson")]
        hint = f"give the file {folder / tables[0]}" if tables else "or write a CSV file"
        raise LabelError(f"{folder}: no folder of a class. Lay recordings out as CLASS/FILE, {hint}.")
    notes.update({_OTHER: len(seen) - len(folders), _HIDDEN: len(entries) - len(seen)})
    return folders


def _folder_label(folder: Path, kind: str | None, problems: Problems) -> str:
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


def some_of(texts: Sequence[str]) -> str:
    more = len(texts) - SHOWN_PLACES
    return ", ".join(texts[:SHOWN_PLACES]) + (f" and {more} more" if more > 0 else "")
