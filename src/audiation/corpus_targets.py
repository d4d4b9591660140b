"""Stored targets: what a teacher says about whole recordings, computed once, cropped in training.

    targets/NAME/targets.json     name, rate, codebooks
    targets/NAME/journal.jsonl    a line per commit: which recordings lie where
    targets/NAME/codes-00000.s16  codes, `(N, Q)` per recording

Codes are kept by the content of a recording, so a corpus that has grown needs only those of what is new. The Lance form
has `targets/NAME.lance` instead.

Shape letters: `Q` codebooks, `N` frames.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from audiation.cache import write_text
from audiation.corpus_lance import LanceArrays
from audiation.corpus_packed import ITEM, CorpusError, PackedArrays, PackedWriter, Piece, Place
from audiation.corpus_table import FileTable
from audiation.json_lines import append_line, read_lines

COMMIT_BYTES = 2**26
COMMIT_SECONDS = 10.0
MAX_CODES = 2**15
MAX_FRAMES_OFF = 8  # that a teacher may give more or fewer than length times rate
SPEC_FILE, JOURNAL_FILE, STEM = "targets.json", "journal.jsonl", "codes"


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


class StoredTargets:
    """Codes of every recording of a corpus, to read.

    name, rate_hz, num_codes: as in `TargetsSpec`.
    """

    def __init__(
        self,
        spec: TargetsSpec,
        arrays: PackedArrays | LanceArrays,
        places: Sequence[Place | None],
    ) -> None:
        """places: of each recording, where its codes lie. CorpusError where one has none."""
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

    directory: `targets/NAME`. ValueError where it holds targets of another kind.
    """

    def __init__(self, directory: Path, spec: TargetsSpec) -> None:
        self._spec, self._journal = spec, directory / JOURNAL_FILE
        _keep_spec(directory, spec)
        lines = read_lines(self._journal, counted_by="commit")
        self._commits, self._end_byte = len(lines), lines[-1].end_byte if lines else 0
        self.places = _places(directory)
        self._arrays = PackedWriter(directory, STEM, len(spec.num_codes), self.places.values())
        self._pending: dict[str, Place] = {}
        self._pending_bytes, self._last_commit = 0, time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.commit()
        self._arrays.__exit__()

    def append(self, content_hash: str, codes: Tensor, expected_frames: float) -> None:
        """Codes `(Q, N)` of a recording. ValueError where they are not what the targets are said to be."""
        self._check(codes, expected_frames)
        items = np.ascontiguousarray(codes.cpu().numpy().T.astype(ITEM))
        self._pending[content_hash] = self._arrays.append(items)
        self._pending_bytes += items.nbytes
        if self._pending_bytes >= COMMIT_BYTES or time.monotonic() - self._last_commit >= COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """What was appended is there after a kill."""
        if self._pending:
            self._arrays.sync()
            entries = [[key, p.file, p.start, p.length] for key, p in self._pending.items()]
            append_line(self._journal, {"commit": self._commits, "places": entries}, self._end_byte)
            self._end_byte = self._journal.stat().st_size
            self.places |= self._pending
            self._commits, self._pending, self._pending_bytes = self._commits + 1, {}, 0
        self._last_commit = time.monotonic()

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
    places = _places(folder)
    return StoredTargets(spec, arrays, [places.get(key) for key in recordings.content_hashes()])


def _keep_spec(directory: Path, spec: TargetsSpec) -> None:
    if (directory / SPEC_FILE).exists():
        if (held := _read_spec(directory)) != spec:
            raise ValueError(f"{directory} holds {held}, not {spec}. Delete the folder, or use another name.")
        return
    write_text(directory / SPEC_FILE, json.dumps(asdict(spec), indent=1) + "\n")


def _read_spec(directory: Path) -> TargetsSpec:
    path = directory / SPEC_FILE
    try:
        return TargetsSpec.from_values(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorpusError(
            f"{path} cannot be read ({error}). Delete its folder and compute the targets again."
        ) from error


def _places(directory: Path) -> dict[str, Place]:
    return {
        key: Place(file, start, length)
        for line in read_lines(directory / JOURNAL_FILE, counted_by="commit")
        for key, file, start, length in line.values["places"]
    }
