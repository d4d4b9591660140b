"""The folder from which a killed grid goes on: a file per stack, replaced as a whole.

grid.json               what the grid is: configurations, data, versions
stack-0003.safetensors  tensors of a stack; how its configurations are doing is in the header
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

SAVE_EVERY_SECONDS = 120.0

Snapshot = tuple[dict[str, Tensor], dict[str, Any]]


class GridFiles:
    """Files of one grid. A folder of another grid, or of other data, is begun anew."""

    def __init__(self, directory: Path, key: str) -> None:
        """key: everything that decides the numbers."""
        self.directory = directory
        digest = hashlib.sha256(key.encode()).hexdigest()
        note = directory / "grid.json"
        try:
            known = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
        except (ValueError, OSError):
            known = None
        if known != {"key": digest}:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            self._replace(note, json.dumps({"key": digest}))
        self._saved = time.monotonic()

    def is_due(self) -> bool:
        """Whether the last file is old enough for a new one."""
        return time.monotonic() - self._saved >= SAVE_EVERY_SECONDS

    def save_stack(self, number: int, snapshot: Snapshot) -> None:
        tensors, values = snapshot
        path = self._path(number)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        contiguous = {name: x.cpu().contiguous() for name, x in tensors.items()}
        save_file(contiguous, str(partial), metadata={"course": json.dumps(values)})
        partial.replace(path)
        self._saved = time.monotonic()

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
        shutil.rmtree(self.directory, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.directory / f"stack-{number:04}.safetensors"

    def _replace(self, path: Path, text: str) -> None:
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
