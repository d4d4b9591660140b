"""The lists of MARBLE v2: `<Name>.{train,val,test}.jsonl`, one JSON object per line, with the path of its audio."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiation.datasets.annotation_files import (
    AnnotationError,
    lines_of,
    parse_json,
    read_bytes,
    relative_path,
    shown,
)

LIST_SPLITS = {
    "train": "train",
    "valid": "val",
    "test": "test",
}  # our name -> the one in the name of the file
MAX_LIST_BYTES, MAX_LIST_LINES = 1 << 27, 200_000


@dataclass(frozen=True)
class Record:
    """One line. where: "FILE, line N"."""

    split: str
    fields: dict[str, Any]
    where: str

    def text(self, name: str) -> str:
        value = self.fields.get(name)
        if not isinstance(value, str) or not value or len(value) > 1000:
            raise AnnotationError(f"{self.where}: '{name}' is a text, got {shown(str(value))}")
        return value

    def items(self, name: str) -> list[Any]:
        value = self.fields.get(name)
        if not isinstance(value, list):
            raise AnnotationError(f"{self.where}: '{name}' is a list, got {shown(str(value))}")
        return value

    def audio_path(self, root: Path, folder: str) -> Path:
        """The file below `root`. Paths in the lists begin there, or two folders up: `data/<folder>/...`."""
        return root / relative_path(self.text("audio_path"), self.where).removeprefix(f"data/{folder}/")


def read_lists(root: Path, name: str) -> Iterator[Record]:
    """The records of the three lists `root/<name>.{train,val,test}.jsonl`.

    Raises:
        FileNotFoundError: one of them is missing.
        AnnotationError: a line that is not a JSON object, too many lines or bytes. Names file and line.
    """
    paths = {split: root / f"{name}.{suffix}.jsonl" for split, suffix in LIST_SPLITS.items()}
    for path in paths.values():
        if not path.is_file():
            raise FileNotFoundError(
                f"no {path.name} in {root}. It comes with the audio as MARBLE v2 has it: docs/datasets.md says where."
            )
    for split, path in paths.items():
        content = read_bytes(path, MAX_LIST_BYTES)
        for line in lines_of(content, str(path), max_lines=MAX_LIST_LINES):
            fields = parse_json(line.text.encode(), line.where)
            if not isinstance(fields, dict):
                raise AnnotationError(f"{line.where}: a JSON object was expected, got {shown(line.text)}")
            yield Record(split, fields, line.where)


class UniqueIds:
    """Refuses an id that was there before."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def add(self, track_id: str, where: str) -> None:
        if track_id in self._seen:
            raise AnnotationError(f"{where}: {shown(track_id)} is listed already in {self._seen[track_id]}")
        self._seen[track_id] = where
