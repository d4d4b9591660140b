"""Stored targets: what a teacher says about whole recordings, computed once, cropped in training.

    targets/NAME/targets.json     name, rate, codebooks
    targets/NAME/teacher.json     what the codes are computed with, where a teacher says so
    targets/NAME/journal.jsonl    a line per commit: which recordings lie where
    targets/NAME/codes-00000.s16  codes, `(N, Q)` per recording

Codes are kept by the content of a recording, so a corpus that has grown needs only those of what is new. The Lance form
has `targets/NAME.lance` instead.

Shape letters: `Q` codebooks, `N` frames.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from audiation.cache import write_text
from audiation.corpus_commits import Commits
from audiation.corpus_lance import LanceArrays
from audiation.corpus_packed import ITEM, CorpusError, PackedArrays, PackedWriter, Piece, Place
from audiation.corpus_table import FileTable

MAX_CODES = 2**15
MAX_FRAMES_OFF = 8  # that a teacher may give more or fewer than length times rate
SPEC_FILE, TEACHER_FILE, JOURNAL_FILE, STEM = "targets.json", "teacher.json", "journal.jsonl", "codes"


@dataclass(frozen=True)
class TargetsSpec:
    """What all codes of one name are.

    rate_hz: frames per second. num_codes: of each codebook, so there are Q of them.
    """

    name: str
    rate_hz: float
    num_codes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(
                f"targets may be named with letters, digits, '.', '_' and '-', got {self.name!r}"
            )
        if not self.rate_hz > 0.0:
            raise ValueError(f"rate_hz must be above 0, got {self.rate_hz}")
        if not self.num_codes or not all(1 <= n <= MAX_CODES for n in self.num_codes):
            raise ValueError(f"num_codes are from 1 to {MAX_CODES} per codebook, got {self.num_codes}")

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> TargetsSpec:
        """From what `asdict` and JSON made of one."""
        return cls(values["name"], float(values["rate_hz"]), tuple(values["num_codes"]))


@dataclass(frozen=True)
class LanceTargets:
    """What the Lance form notes about targets. window_frames: of a row. table: its place below the corpus. record: as
    in `StoredTargets`."""

    spec: TargetsSpec
    window_frames: int
    table: str
    record: dict[str, Any] | None

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> LanceTargets:
        """From what `to_values` and JSON made of one."""
        record = values.get("record")
        table = values.get("table", f"targets/{values['name']}.lance")
        return cls(
            TargetsSpec.from_values(values), int(values["window_frames"]), table, record and dict(record)
        )

    def to_values(self) -> dict[str, Any]:
        spec = self.spec
        return {
            "name": spec.name, "rate_hz": spec.rate_hz, "num_codes": spec.num_codes,
            "window_frames": self.window_frames, "table": self.table, "record": self.record,
        }  # fmt: skip


class StoredTargets:
    """Codes of every recording of a corpus, to read.

    name, rate_hz, num_codes: as in `TargetsSpec`.
    record: what the codes were computed with (`Teacher.record`); None: nobody said.
    """

    def __init__(
        self,
        spec: TargetsSpec,
        arrays: PackedArrays | LanceArrays,
        places: Sequence[Place | None],
        record: dict[str, Any] | None = None,
    ) -> None:
        """places: of each recording, where its codes lie. CorpusError where one has none."""
        self.record = record
        self.name, self.rate_hz, self.num_codes = spec.name, spec.rate_hz, spec.num_codes
        self.spec, self._arrays = spec, arrays
        self._places = [place for place in places if place is not None]
        if len(self._places) < len(places):
            raise CorpusError(
                f"targets '{spec.name}' are there for {len(self._places)} of {len(places)} recordings. Call what "
                "computes them again: it goes on where it stopped."
            )

    @property
    def num_streams(self) -> int:
        """Q."""
        return len(self.num_codes)

    def num_frames(self, recording: int) -> int:
        """N of a whole recording."""
        return self._places[recording].length

    def read(self, recording: int, first_frame: int, num_frames: int) -> Tensor:
        """Codes `(Q, N)` int64 of the asked frames; fewer where the recording ends."""
        return self.read_many([(recording, first_frame)], num_frames)[0]

    def read_many(self, starts: Sequence[tuple[int, int]], num_frames: int) -> list[Tensor]:
        """The same for several (recording, first_frame), in one request."""
        pieces = []
        for recording, first in starts:
            place = self._places[recording]
            if not 0 <= first <= place.length:
                raise ValueError(
                    f"frame {first} of targets '{self.name}' was asked for, and there are {place.length}"
                )
            pieces.append(Piece(place, first, min(num_frames, place.length - first)))
        return [torch.from_numpy(codes.T.astype(np.int64)) for codes in self._arrays.read(pieces)]


class TargetsWriter:
    """Writes codes, recording after recording; what is committed survives a kill at any moment. One process at a time.

    directory: `targets/NAME`. record: what the codes are computed with, for JSON; None: nobody says.
    places: content hash -> where the codes lie that were there before.

    ValueError where the folder holds targets of another kind, or computed with something else.
    """

    def __init__(self, directory: Path, spec: TargetsSpec, record: Mapping[str, Any] | None = None) -> None:
        self._spec = spec
        _keep_spec(directory, spec, record)
        self._commits = _commits(directory)
        self.places = dict(self._commits.entries)
        self._arrays = PackedWriter(directory, STEM, len(spec.num_codes), self.places.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.commit()  # also where a later recording failed: what was appended is whole
        finally:
            self._arrays.__exit__()

    def append(self, content_hash: str, codes: Tensor, expected_frames: float) -> None:
        """Codes `(Q, N)` of a recording. ValueError where they are not what the targets are said to be."""
        self._check(codes, expected_frames)
        items = np.ascontiguousarray(codes.cpu().numpy().T.astype(ITEM))
        place = self._arrays.append(items)
        self._commits.add([content_hash, place.file, place.start, place.length], items.nbytes)
        if self._commits.is_due:
            self.commit()

    def commit(self) -> None:
        """What was appended is there after a kill."""
        self._commits.commit(self._arrays.sync)

    def _check(self, codes: Tensor, expected_frames: float) -> None:
        num_codes, name = self._spec.num_codes, self._spec.name
        if codes.ndim != 2 or len(codes) != len(num_codes) or codes.is_floating_point():
            raise ValueError(
                f"targets '{name}' are whole numbers of shape ({len(num_codes)}, N), got {tuple(codes.shape)} of "
                f"{codes.dtype}"
            )
        if codes.shape[1] < 1 or abs(codes.shape[1] - expected_frames) > MAX_FRAMES_OFF:
            raise ValueError(
                f"targets '{name}' at {self._spec.rate_hz:g} Hz should be about {expected_frames:.0f} frames here, got "
                f"{codes.shape[1]}"
            )
        low, high = codes.min(dim=1).values, codes.max(dim=1).values
        for q, (least, most, number) in enumerate(zip(low.tolist(), high.tolist(), num_codes, strict=True)):
            if least < 0 or most >= number:
                raise ValueError(
                    f"codebook {q} of targets '{name}' has codes from 0 to {number - 1}, got {least} to {most}"
                )


def list_packed_targets(directory: Path) -> list[str]:
    """Names of the targets below the folder of a corpus, also those that are not complete."""
    return sorted(path.parent.name for path in directory.glob(f"targets/*/{SPEC_FILE}"))


def open_packed_targets(directory: Path, name: str, recordings: FileTable) -> StoredTargets:
    """Targets below the folder of a corpus. CorpusError where they are damaged or not complete."""
    folder = directory / "targets" / name
    spec = _read_spec(folder)
    arrays = PackedArrays(folder, STEM, len(spec.num_codes))
    places = dict(_commits(folder).entries)
    found = [places.get(key) for key in recordings.content_hashes()]
    return StoredTargets(spec, arrays, found, _read_record(folder))


def _keep_spec(directory: Path, spec: TargetsSpec, record: Mapping[str, Any] | None) -> None:
    record = None if record is None else json.loads(json.dumps(record))
    if (directory / SPEC_FILE).exists():
        if (held := _read_spec(directory)) != spec:
            raise ValueError(f"{directory} holds {held}, not {spec}. Delete the folder, or use another name.")
        if (computed_with := _read_record(directory)) != record:
            raise ValueError(
                f"{directory} has codes of {computed_with or 'an unknown teacher'}, not of "
                f"{record or 'an unknown teacher'}. Delete the folder to compute them anew, or use another name."
            )
        return
    if record is not None:
        write_text(directory / TEACHER_FILE, json.dumps(record, indent=1) + "\n")
    write_text(directory / SPEC_FILE, json.dumps(asdict(spec), indent=1) + "\n")


def _read_spec(directory: Path) -> TargetsSpec:
    path = directory / SPEC_FILE
    try:
        return TargetsSpec.from_values(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorpusError(
            f"{path} cannot be read ({error}). Delete its folder and compute the targets again."
        ) from error


def _read_record(directory: Path) -> dict[str, Any] | None:
    path = directory / TEACHER_FILE
    if not path.exists():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CorpusError(
            f"{path} cannot be read ({error}). Delete its folder and compute the targets again."
        ) from error


def _commits(directory: Path) -> Commits[tuple[str, Place]]:
    return Commits(directory / JOURNAL_FILE, "places", _placed)


def _placed(entry: list[Any]) -> tuple[str, Place]:
    key, *numbers = entry
    return key, Place(*map(int, numbers))
