"""Submissions: results, what is known of the system, and hashes in one file; and the check that refuses what does not
match.

A bundle is a zip of `manifest.json`, `card.json` and `results/*.json`. It comes from strangers: nothing is unpacked to
disk, sizes and counts are bounded before anything is read, and no number in it is believed that can be computed again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from audiation.results import Result, ResultError
from audiation.submission_checks import SHOWN, Findings, OfficialSplits, check_result

BUNDLE_VERSION = 1
MAX_MEMBERS = 500
MAX_MEMBER_BYTES = 64 << 20
MAX_TOTAL_BYTES = 256 << 20
MAX_SMALL_BYTES = 1 << 20  # manifest and card

_MANIFEST, _CARD = "manifest.json", "card.json"
_RESULT_NAME = re.compile(r"results/[A-Za-z0-9][A-Za-z0-9._+-]{0,150}\.json")


class SubmissionError(ValueError):
    """A card, a bundle or results that cannot be submitted. Says what to change."""


# The card -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SystemCard:
    """What a reader of a leaderboard wants to know of a system, in its authors' words.

    system: its name.
    backbone: what the representation is: architecture, training objective, context; a paragraph.
    licence: of the weights.
    pretraining_data: names of the data sets; none for a system that was not pre-trained.
    pretraining_hours: of audio; None: not known.
    parameters: of the backbone.
    url, notes: "" for none.

    Raises:
        SubmissionError: a field that is empty, of another type, or contradicts another.
    """

    system: str
    backbone: str
    licence: str
    pretraining_data: tuple[str, ...]
    pretraining_hours: float | None
    parameters: int
    authors: tuple[str, ...] = ()
    url: str = ""
    notes: str = ""

    def __post_init__(self) -> None:
        for name in ("system", "backbone", "licence", "url", "notes"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise SubmissionError(f"{name} of a card is a text, got {value!r}")
            if not value.strip() and name not in ("url", "notes"):
                raise SubmissionError(f"{name} of the card is empty. {_FILL_IN[name]}")
        for name in ("pretraining_data", "authors"):
            value = getattr(self, name)
            if not isinstance(value, list | tuple) or not all(
                isinstance(v, str) and v.strip() for v in value
            ):
                raise SubmissionError(f'{name} of a card is a list of texts like ["..."], got {value!r}')
            object.__setattr__(self, name, tuple(value))
        if type(self.parameters) is not int or self.parameters < 0:
            raise SubmissionError(
                f"parameters of a card is a whole number from 0, got {self.parameters!r}. {_FILL_IN['parameters']}"
            )
        hours = self.pretraining_hours
        if hours is not None and (type(hours) not in (int, float) or not 0 <= hours < math.inf):
            raise SubmissionError(f"pretraining_hours of a card is a number from 0, or null, got {hours!r}")
        if bool(self.pretraining_data) != (hours != 0):
            raise SubmissionError(
                "a system that was pre-trained names its data, and has hours above 0 or null where they are not known; "
                f"one that was not has no data and 0 hours. Got {list(self.pretraining_data)} and {hours!r}."
            )
        if self.url and not re.fullmatch(r"https?://[^\s<>\"]+", self.url):
            raise SubmissionError(f"url of a card begins with https:// or http://, got {self.url[:80]!r}")

    def to_json(self) -> str:
        record = {"schema_version": BUNDLE_VERSION} | asdict(self)
        return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> SystemCard:
        """Inverse of `to_json`. Raises SubmissionError naming the field that is missing, unknown or wrong."""
        record = _object(text, "a system card")
        if record.pop("schema_version", None) != BUNDLE_VERSION:
            raise SubmissionError(
                f"schema_version of a card must be {BUNDLE_VERSION}; begin with the template of this version"
            )
        names = {f.name for f in fields(cls)}
        required = names - {"authors", "url", "notes"}
        for problem, differing in (
            ("lacks", required - record.keys()),
            ("has unknown", record.keys() - names),
        ):
            if differing:
                raise SubmissionError(f"the card {problem} {', '.join(sorted(differing))}")
        return cls(**record)

    @classmethod
    def load(cls, path: Path) -> SystemCard:
        """Read a card. Raises FileNotFoundError, or SubmissionError naming the file."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (SubmissionError, UnicodeDecodeError) as error:
            raise SubmissionError(f"{path}: {error}") from None


_FILL_IN = {
    "system": "Write the name that the leaderboard shall show.",
    "backbone": "Describe the representation in a few sentences: architecture, objective, context.",
    "licence": "Name the licence of the weights, or write that there are none.",
    "parameters": "Count those of the backbone; 0 for hand-crafted features.",
}


def new_card(path: Path) -> Path:
    """Write a card with empty fields, to be filled in. Raises FileExistsError rather than replace one."""
    template: dict[str, Any] = {f.name: "" for f in fields(SystemCard)}
    template |= {"pretraining_data": [], "pretraining_hours": None, "parameters": None, "authors": []}
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} is there already. Fill it in, or choose another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"schema_version": BUNDLE_VERSION} | template, indent=1) + "\n", encoding="utf-8"
    )
    return path


# Packing --------------------------------------------------------------------------------------------------------


def pack(results: Sequence[Result], card: SystemCard, out: Path) -> Path:
    """Write results of one system, its card and a manifest of hashes into one zip; the same input, the same bytes.

    Raises:
        SubmissionError: no results, one without predictions, one run twice, results of several systems, or more than a
            bundle may hold.
        FileExistsError: `out` is there.
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out} is there already. Choose another name, or remove it.")
    if not results:
        raise SubmissionError("a submission has one result or more")
    problems = _set_problems(results)
    for result in results:
        if not result.predictions:
            problems.append(
                f"{_label(result)} keeps no predictions, so nobody can compute its scores. Run it again."
            )
    if problems:
        raise SubmissionError("; ".join(problems))
    members = {_CARD: card.to_json().encode()}
    for result in results:
        content = result.to_json().encode()
        members[_member_name(result, content)] = content
    members[_MANIFEST] = _manifest(members)
    largest = max(members, key=lambda name: len(members[name]))
    if (
        len(members) > MAX_MEMBERS
        or len(members[largest]) > MAX_MEMBER_BYTES
        or sum(map(len, members.values())) > MAX_TOTAL_BYTES
    ):
        raise SubmissionError(
            f"a bundle holds {MAX_MEMBERS} files of {MAX_MEMBER_BYTES >> 20} MiB and {MAX_TOTAL_BYTES >> 20} MiB in "
            f"all; the largest here is {largest}. Submit tasks apart."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.name}.{os.getpid()}.partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as bundle:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system = 3  # or the bytes would tell the system
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            bundle.writestr(info, members[name])
    partial.replace(out)
    return out


def _manifest(members: Mapping[str, bytes]) -> bytes:
    listed = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "num_bytes": len(content)}
        for name, content in sorted(members.items())
    }
    return (json.dumps({"schema_version": BUNDLE_VERSION, "members": listed}, indent=1) + "\n").encode()


def _member_name(result: Result, content: bytes) -> str:
    words = re.sub(r"[^A-Za-z0-9._+-]+", "-", f"{result.run['task']}.{result.run['backbone']}").lstrip("._+-")
    return f"results/{words[:100] or 'result'}.{hashlib.sha256(content).hexdigest()[:12]}.json"


_SAME_SYSTEM = ("backbone", "method", "num_layers", "weights", "precision", "weights_hash")
_RUN_FIELDS = (
    "backbone",
    "task",
    "method",
    "protocol",
    "weights",
    "num_layers",
    "precision",
    "train",
    "seed",
)


def _set_problems(results: Sequence[Result]) -> list[str]:
    """What is wrong with results as those of one system."""
    problems = []
    for name in _SAME_SYSTEM:
        if name == "weights_hash" and all(r.run.get("weights") == "random" for r in results):
            continue  # random ones follow from the seed
        values = list(dict.fromkeys(str(r.run.get(name)) for r in results))
        if len(values) > 1:
            problems.append(
                f"a submission is of one system, and its results have several values of {name}: "
                f"{', '.join(values[:SHOWN])}. Pack each system by itself."
            )
    # A layer that was named makes another run; one that was searched follows from it.
    runs = Counter(
        json.dumps(
            [r.run.get(n) for n in _RUN_FIELDS] + ([r.run.get("layer")] if len(r.layer_profile) < 2 else [])
        )
        for r in results
    )
    for run, count in runs.items():
        if count > 1:
            problems.append(f"{count} results of the same run {run}: only one of them can be submitted")
    return problems


def _label(result: Result) -> str:
    return f"{result.run['backbone']} on {result.run['task']}"


# Verifying ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VerifyReport:
    """What a bundle is worth.

    problems: why it is refused; none: it is accepted.
    warnings: what could not be checked, and what a reader has to know (partial results, departures).
    results: those that could be read, whatever is wrong with them.
    """

    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    results: tuple[Result, ...]
    card: SystemCard | None

    @property
    def accepted(self) -> bool:
        return not self.problems


def verify(
    bundle: Path, *, data_root: str | Path | None = None, metadata_root: str | Path | None = None
) -> VerifyReport:
    """Check a bundle: its container, hashes, card, and of each result whether its scores follow from its predictions,
    its predictions answer the official split, and its run followed the rules of its protocol.

    Args:
        data_root, metadata_root: as in `evaluate`. Where neither they nor their environment variables are there, split
            and references cannot be checked, and a warning says so.

    Raises:
        FileNotFoundError: there is no such bundle. Whatever is wrong inside is a problem of the report.
    """
    bundle = Path(bundle)
    if not bundle.exists():
        raise FileNotFoundError(f"{bundle} is not there")
    try:
        members = _read_bundle(bundle)
    except SubmissionError as error:
        return VerifyReport((str(error),), (), (), None)
    found = Findings()
    card, results = None, {}
    for name, content in members.items():
        try:
            if name == _CARD:
                card = SystemCard.from_json(_text(content))
            elif name != _MANIFEST:
                results[name] = _result(_text(content))
        except SubmissionError as error:
            found.problems.append(f"{name}: {error}")
    if not any(name.startswith("results/") for name in members):
        found.problems.append("the bundle holds no result")
    found.problems += _set_problems(list(results.values()))
    splits = OfficialSplits(data_root, metadata_root)
    for name, result in results.items():
        own = check_result(result, splits)
        found.problems += [f"{name}: {p}" for p in own.problems]
        found.warnings += [f"{name}: {w}" for w in own.warnings]
    return VerifyReport(tuple(found.problems), tuple(found.warnings), tuple(results.values()), card)


# The container --------------------------------------------------------------------------------------------------


def _read_bundle(path: Path) -> dict[str, bytes]:
    """Name -> content of every member, listed in the manifest with its hash. Raises SubmissionError."""
    if not path.is_file() or path.stat().st_size > MAX_TOTAL_BYTES:
        raise SubmissionError(
            f"a bundle is a file of {MAX_TOTAL_BYTES >> 20} MiB at most; {path.name} is not"
        )
    try:
        with zipfile.ZipFile(path) as bundle:
            infos = bundle.infolist()
            _check_directory(infos)
            members = {info.filename: _member(bundle, info) for info in infos}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise SubmissionError(f"{path.name} is no zip file, or a damaged one: {error}") from None
    except (UnicodeDecodeError, ValueError) as error:
        if isinstance(error, SubmissionError):
            raise
        raise SubmissionError(f"{path.name} is a damaged zip file: {error}") from None
    _check_manifest(members)
    return members


def _check_directory(infos: Sequence[zipfile.ZipInfo]) -> None:
    """Names, kinds and declared sizes, before anything is read."""
    if len(infos) > MAX_MEMBERS:
        raise SubmissionError(f"the bundle holds {len(infos)} files; {MAX_MEMBERS} are allowed")
    for info in infos:
        name = info.filename
        shown = repr(name[:80])
        if info.orig_filename != name or not (name in (_MANIFEST, _CARD) or _RESULT_NAME.fullmatch(name)):
            raise SubmissionError(
                f"the bundle holds {shown}; allowed are {_MANIFEST}, {_CARD} and results/NAME.json"
            )
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG) or info.is_dir():
            raise SubmissionError(f"{shown} is no plain file")
        if info.flag_bits & 0x1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise SubmissionError(f"{shown} is encrypted, or compressed in another way than deflate")
        limit = MAX_MEMBER_BYTES if name.startswith("results/") else MAX_SMALL_BYTES
        if info.file_size > limit:
            raise SubmissionError(f"{shown} has {info.file_size} bytes; {limit} are allowed")
    names = Counter(info.filename.lower() for info in infos)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise SubmissionError(f"the bundle holds {twice[0][:80]!r} twice")
    total = sum(info.file_size for info in infos)
    if total > MAX_TOTAL_BYTES:
        raise SubmissionError(f"the bundle unpacks to {total} bytes; {MAX_TOTAL_BYTES} are allowed")
    for name in (_MANIFEST, _CARD):
        if name not in names:
            raise SubmissionError(f"the bundle lacks {name}. `pack` writes it.")


def _member(bundle: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with bundle.open(info) as member:
        content = member.read(info.file_size + 1)  # no more than was declared, whatever the stream holds
    if len(content) != info.file_size:
        raise SubmissionError(f"{info.filename!r} declares {info.file_size} bytes and holds another number")
    return content


def _check_manifest(members: Mapping[str, bytes]) -> None:
    record = _object(_text(members[_MANIFEST]), _MANIFEST)
    if record.get("schema_version") != BUNDLE_VERSION or not isinstance(record.get("members"), dict):
        raise SubmissionError(f"{_MANIFEST} must have schema_version {BUNDLE_VERSION} and its members")
    listed = record["members"]
    differing = listed.keys() ^ (members.keys() - {_MANIFEST})
    if differing:
        raise SubmissionError(f"manifest and bundle differ in: {', '.join(sorted(differing)[:SHOWN])}")
    expected = json.loads(_manifest({n: c for n, c in members.items() if n != _MANIFEST}))["members"]
    for name in listed:
        if listed[name] != expected[name]:
            raise SubmissionError(f"{name} is not the file that the manifest lists: another hash or size")


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SubmissionError(f"is no UTF-8 text: {error}") from None


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SubmissionError(f"{what} is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise SubmissionError(f"{what} is a JSON object, got {type(record).__name__}")
    return record


def _result(text: str) -> Result:
    try:
        return Result.from_json(text)
    except ResultError as error:
        raise SubmissionError(str(error)) from None
    except (
        ValueError,
        TypeError,
        OverflowError,
        RecursionError,
    ) as error:  # numbers of a thousand digits, say
        raise SubmissionError(f"is no usable result: {error}") from None
