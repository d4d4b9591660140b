"""Outputs of a frozen part on disk: a Lance table per key, appended to by one process at a time."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import lance
import pyarrow as pa
import torch
from torch import Tensor

from audiation.store import StoreLockedError, WriterLock

COMMIT_BYTES = 16 * 2**20
COMMIT_SECONDS = 10.0
CLEAN_EVERY_COMMITS = 50  # every manifest names every file, so those of thousands of commits add up
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_SCHEMA = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("num_frames", pa.int32()),
        pa.field("dtype", pa.string()),
        pa.field("num_bytes", pa.int64()),
        pa.field("crc32", pa.uint32()),
        pa.field("values", pa.large_binary()),
    ]
)


class OutputTableError(ValueError):
    """A table that is damaged, of another kind, or cannot be written. Names it."""


class OutputTable:
    """Unit -> `(T, D)` tensor. Where another process writes the same table, this one only reads what was there.

    A process that is killed loses what it had not committed: at most 10 s, or 16 MiB.

    `read` and `room` may be asked by any thread; one thread adds.

    Raises:
        OutputTableError: the table cannot be read, or the folder not written.
    """

    def __init__(self, directory: Path, key: str, max_bytes: int) -> None:
        self.path, self.max_bytes = directory / f"{key[:24]}.lance", max_bytes
        self._writer: WriterLock | None = None
        with self._disk_errors():
            directory.mkdir(parents=True, exist_ok=True)
            try:
                self._writer = WriterLock(directory / f"{key[:24]}.lock")
            except StoreLockedError:
                pass
        self._lock = threading.Lock()
        self._pending: dict[str, Tensor] = {}  # to be written
        self._writing: dict[str, Tensor] = {}  # by a commit in progress
        self._commits, self._last_commit = 0, time.monotonic()
        self._dataset: lance.LanceDataset | None = None
        self._position: dict[str, int] = {}
        self._bytes = self._reserved = 0  # of values: written or pending, and promised
        try:
            self._open()
        except BaseException:
            self._release()
            raise

    def _open(self) -> None:
        # A writer may have been killed, or be at work, before the first version of its table is there.
        if not any((self.path / "_versions").glob("*.manifest")):
            return
        with self._damage():
            dataset = lance.dataset(str(self.path))
            if dataset.schema != _SCHEMA:
                raise OutputTableError(f"{self.path} is a table of another kind. Use another folder.")
            rows = dataset.to_table(columns=["unit", "num_bytes"], scan_in_order=True)
        self._dataset = dataset
        self._position = {unit: row for row, unit in enumerate(rows["unit"].to_pylist())}
        self._bytes = sum(rows["num_bytes"].to_pylist())

    def __contains__(self, unit: object) -> bool:
        with self._lock:
            return self._is_known(unit)

    @property
    def room(self) -> int:
        """Bytes that can still be added: none where another process writes."""
        with self._lock:
            return 0 if self._writer is None else max(0, self.max_bytes - self._bytes)

    def reserve(self, num_bytes: int) -> None:
        """Keep room for what is to be added with `reserved=True`, in place of what was reserved before."""
        with self._lock:
            self._reserved = num_bytes

    def read(self, unit: str) -> Tensor | None:
        """The output of a unit, or None. Raises OutputTableError for one that is not what was written."""
        with self._lock:
            if (held := self._pending.get(unit, self._writing.get(unit))) is not None:
                return held
            dataset, row = self._dataset, self._position.get(unit)
        if dataset is None or row is None:
            return None
        with self._damage():
            (record,) = dataset.take([row]).to_pylist()
            values = record["values"]
            if record["unit"] != unit or zlib.crc32(values) != record["crc32"]:
                raise ValueError(f"row {row} is not what was written for '{unit}'")
            flat = torch.frombuffer(bytearray(values), dtype=_DTYPES[record["dtype"]])
            return flat.view(record["num_frames"], -1)

    def add(self, unit: str, output: Tensor, reserved: bool = False) -> None:
        """Keep an output; nothing where the table is full, has it, or another process writes it.

        reserved: room for it was reserved.

        Raises:
            OutputTableError: the folder cannot be written.
        """
        size = output.numel() * output.element_size()
        with self._lock:
            full = self._bytes + (0 if reserved else self._reserved) + size > self.max_bytes
            if self._writer is None or self._is_known(unit) or full:
                return
            if reserved:
                self._reserved = max(0, self._reserved - size)
            self._pending[unit] = output.contiguous()
            self._bytes += size
            pending_bytes = sum(x.numel() * x.element_size() for x in self._pending.values())
            due = time.monotonic() - self._last_commit > COMMIT_SECONDS or pending_bytes > COMMIT_BYTES
        if due:
            self.commit()

    def commit(self) -> None:
        """Write what is pending, all or nothing. Raises OutputTableError where that cannot be done."""
        with self._lock:
            # Emptied first: an interrupted commit may have happened, and must not be tried twice.
            pending, self._pending = self._pending, {}
            self._writing = pending
        if not pending:
            return
        try:
            with self._disk_errors():
                dataset = lance.write_dataset(
                    pa.Table.from_pylist([_record(*item) for item in pending.items()], schema=_SCHEMA),
                    str(self.path) if self._dataset is None else self._dataset,
                    mode="create" if self._dataset is None else "append",
                )
                self._commits += 1
                if self._commits % CLEAN_EVERY_COMMITS == 0:
                    # The lock makes this the only writer, so unverified files are nobody's work in progress.
                    dataset.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
            first = dataset.count_rows() - len(pending)
            with self._lock:
                self._position |= {unit: first + i for i, unit in enumerate(pending)}
                self._dataset = dataset
        finally:
            with self._lock:
                self._writing, self._last_commit = {}, time.monotonic()

    def close(self) -> None:
        """Commit, and let another process write."""
        if self._writer is not None:
            try:
                self.commit()
            finally:
                self._release()

    def _release(self) -> None:
        if self._writer is not None:
            self._writer.release()
            self._writer = None

    def _is_known(self, unit: object) -> bool:
        return unit in self._position or unit in self._pending or unit in self._writing

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except OutputTableError:
            raise
        except BaseException as error:
            # Lance panics on some damage, and its PanicException is no Exception.
            panics = type(error).__name__ == "PanicException"
            if not (panics or isinstance(error, (OSError, ValueError, KeyError, RuntimeError))):
                raise
            raise OutputTableError(
                f"{self.path} is damaged ({_first_line(error)}). Delete it; it is made again."
            ) from error

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputTableError(
                f"{self.path} cannot be written ({error.strerror or _first_line(error)}). Make room, check the folder "
                "and its permissions, or use another one."
            ) from error


def _record(unit: str, output: Tensor) -> dict[str, object]:
    values = output.view(torch.uint8).numpy().tobytes()
    return {
        "unit": unit,
        "num_frames": len(output),
        "dtype": str(output.dtype).removeprefix("torch."),
        "num_bytes": len(values),
        "crc32": zlib.crc32(values),
        "values": values,
    }


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]
