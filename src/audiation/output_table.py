"""Outputs of a frozen part on disk: a Lance table per key, appended to by one process at a time."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import lance
import pyarrow as pa
import torch
from torch import Tensor

from audiation.store import StoreLockedError, WriterLock

COMMIT_BYTES = 64 * 2**20
COMMIT_SECONDS = 10.0
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_SCHEMA = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("num_frames", pa.int32()),
        pa.field("dtype", pa.string()),
        pa.field("values", pa.large_binary()),
    ]
)


class OutputTableError(ValueError):
    """A table that is damaged or of another kind. Names it."""


class OutputTable:
    """Unit -> `(T, D)` tensor. Where another process writes the same table, this one only reads what was there.

    A process that is killed loses what it had not committed: at most 10 s, or 64 MiB.

    Raises:
        OutputTableError: the table cannot be read.
    """

    def __init__(self, directory: Path, key: str, max_bytes: int) -> None:
        self.path, self.max_bytes = directory / f"{key[:24]}.lance", max_bytes
        directory.mkdir(parents=True, exist_ok=True)
        try:
            self._writer: WriterLock | None = WriterLock(directory / f"{key[:24]}.lock")
        except StoreLockedError:
            self._writer = None
        self._lock = threading.Lock()
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes, self._last_commit = 0, time.monotonic()
        self._dataset: lance.LanceDataset | None = None
        self._position: dict[str, int] = {}
        self._bytes = 0
        self._open()

    def _open(self) -> None:
        if not self.path.exists():
            return
        try:
            dataset = lance.dataset(str(self.path))
            if dataset.schema != _SCHEMA:
                raise OutputTableError(f"{self.path} is a table of another kind. Use another folder.")
            units = dataset.to_table(columns=["unit"])["unit"].to_pylist()
        except (OSError, ValueError, RuntimeError) as error:
            if isinstance(error, OutputTableError):
                raise
            reason = str(error).partition("\n")[0][:200]
            raise OutputTableError(
                f"{self.path} is damaged ({reason}). Delete it; it is made again."
            ) from error
        self._dataset, self._position = dataset, {unit: row for row, unit in enumerate(units)}
        self._bytes = sum(file.stat().st_size for file in self.path.rglob("*.lance"))

    def read(self, unit: str) -> Tensor | None:
        """The output of a unit, or None."""
        with self._lock:
            if unit in self._pending:
                return self._pending[unit]
            dataset, row = self._dataset, self._position.get(unit)
        if dataset is None or row is None:
            return None
        try:
            (record,) = dataset.take([row]).to_pylist()
            flat = torch.frombuffer(bytearray(record["values"]), dtype=_DTYPES[record["dtype"]])
            if record["unit"] != unit or not record["num_frames"] or len(flat) % record["num_frames"]:
                raise ValueError(f"row {row} does not hold '{unit}'")
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).partition("\n")[0][:200]
            raise OutputTableError(
                f"{self.path} is damaged ({reason}). Delete it; it is made again."
            ) from error
        return flat.view(record["num_frames"], -1)

    def add(self, unit: str, output: Tensor) -> None:
        """Keep an output; nothing where the table is full, has it, or another process writes it."""
        size = output.numel() * output.element_size()
        with self._lock:
            known = unit in self._position or unit in self._pending
            full = self._bytes + self._pending_bytes + size > self.max_bytes
            if self._writer is None or known or full:
                return
            self._pending[unit] = output.contiguous()
            self._pending_bytes += size
            due = time.monotonic() - self._last_commit > COMMIT_SECONDS
        if due or self._pending_bytes > COMMIT_BYTES:
            self.commit()

    def commit(self) -> None:
        """Write what is pending, all or nothing."""
        with self._lock:
            pending = dict(self._pending)
        if not pending:
            return
        rows = [
            {
                "unit": unit,
                "num_frames": len(output),
                "dtype": str(output.dtype).removeprefix("torch."),
                "values": output.view(torch.uint8).numpy().tobytes(),
            }
            for unit, output in pending.items()
        ]
        dataset = lance.write_dataset(
            pa.Table.from_pylist(rows, schema=_SCHEMA),
            str(self.path),
            mode="append" if self.path.exists() else "create",
        )
        with self._lock:
            for unit, output in pending.items():
                self._position[unit] = len(self._position)
                self._pending_bytes -= output.numel() * output.element_size()
                self._bytes += output.numel() * output.element_size()
                del self._pending[unit]
            self._dataset, self._last_commit = dataset, time.monotonic()

    def close(self) -> None:
        """Commit, and let another process write."""
        if self._writer is not None:
            try:
                self.commit()
            finally:
                self._writer.release()
                self._writer = None
