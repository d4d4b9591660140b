"""The folder from which a killed grid goes on: a file per stack, replaced as a whole.

grid.json               what the grid is: configurations, data, versions
stack-0003.safetensors  tensors of a stack; how its configurations are doing is in the header
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from audiation.store import WriterLock

SAVE_EVERY_SECONDS = 10.0
SAVE_SHARE = 0.05  # of the time, at the most, where there is much to write

Snapshot = tuple[dict[str, Tensor], dict[str, Any]]


class GridFiles:
    """Files of one grid, written by one process at a time; close them, or use them as a context manager."""

    def __init__(self, directory: Path, key: str) -> None:
        """What another grid, or the same on other data, has left in the folder is removed.

        key: everything that decides the numbers.

        Raises:
            ValueError: a folder that holds something else; StoreLockedError where another process trains this grid.
        """
        self.directory = directory
        foreign = [p.name for p in directory.iterdir() if not self._is_ours(p)] if directory.is_dir() else []
        if foreign or (directory.exists() and not directory.is_dir()):
            why = f"holds {foreign[0]}" if foreign else "is a file"
            raise ValueError(
                f"{directory} is not the folder of a grid: it {why}. Give an empty folder, or none."
            )
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = WriterLock(directory / "writer.lock")
        digest = hashlib.sha256(key.encode()).hexdigest()
        note = directory / "grid.json"
        try:
            known = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
        except (ValueError, OSError):
            known = None
        if known != {"key": digest}:
            self._clear()
            self._replace(note, json.dumps({"key": digest}))
        self._saved, self._pause_seconds = time.monotonic(), SAVE_EVERY_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def is_due(self) -> bool:
        """Whether the last file is old enough for a new one."""
        return time.monotonic() - self._saved >= self._pause_seconds

    def save_stack(self, number: int, snapshot: Snapshot) -> None:
        started = time.monotonic()
        tensors, values = snapshot
        path = self._path(number)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        contiguous = {name: x.cpu().contiguous() for name, x in tensors.items()}
        save_file(contiguous, str(partial), metadata={"course": json.dumps(values)})
        partial.replace(path)
        self._saved = time.monotonic()
        self._pause_seconds = max(SAVE_EVERY_SECONDS, (self._saved - started) / SAVE_SHARE)

    def load_stack(self, number: int) -> Snapshot | None:
        """What was saved last; None where there is nothing, or nothing that can be read."""
        try:
            with safe_open(str(self._path(number)), framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, json.loads(
                    file.metadata()["course"]
                )
        except (FileNotFoundError, SafetensorError, KeyError, ValueError, OSError):
            return None

    def remove(self) -> None:
        """After the end: the same grid again computes again."""
        self._clear()
        (self.directory / "writer.lock").unlink(missing_ok=True)
        self.directory.rmdir()

    def _clear(self) -> None:
        for path in self.directory.iterdir():
            if path.name != "writer.lock":
                path.unlink()

    @staticmethod
    def _is_ours(path: Path) -> bool:
        return path.is_file() and (
            path.name in ("grid.json", "writer.lock") or path.name.startswith(("stack-", "grid.json."))
        )

    def _path(self, number: int) -> Path:
        return self.directory / f"stack-{number:04}.safetensors"

    def _replace(self, path: Path, text: str) -> None:
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
