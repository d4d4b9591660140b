"""Hidden states on disk: Lance tables with a row per clip window and a column per layer.

A store is a folder of tables, one per backbone, weights, chunk length, precision, pooling and layers
(`TableSpec`). A table is a folder with `features.lance`, `failures.lance` and the writer's lock. Lance
commits atomically but neither refuses a key it has nor survives a fork, so there is one writing process,
which knows every key there is: a run that is killed at any moment resumes with neither a lost nor a doubled
row. Other processes open the table by themselves after they start (spawn, never fork), and when the writer is
done, because it removes old versions.

Shape letters: `N` rows, `T` frames, `D` model width.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Self

import lance
import numpy as np
import pyarrow as pa

from audiation.folder_lock import LockHeldError, take_lock
from audiation.store_rows import (
    FAILURE_SCHEMA,
    Failure,
    FeatureRow,
    Pooling,
    RowInfo,
    TableSpec,
    cut_name,
    layer_column,
    printable,
    row_schema,
    rows_table,
    spec_of,
    storable,
)

COMMIT_ROWS = 512
COMMIT_SECONDS = 10.0
COMMIT_BYTES = 8 * 2**20  # a commit holds them several times over
COMPACT_EVERY_COMMITS = 200  # every manifest names every fragment, so thousands of small commits add up
FRAGMENT_BYTES = 2**30
READ_BYTES = 16 * 2**20


class StoreError(ValueError):
    """A table that is missing, of another kind, cannot be written, or does not hold what was asked for."""


class StoreLockedError(StoreError):
    """Another process writes to this table."""


class FeatureStore:
    """One table. `open` reads it, `create` also writes; close it, or use it as a context manager.

    spec: what the rows hold. directory: the table's folder.
    """

    def __init__(self, directory: Path, spec: TableSpec, lock: WriterLock | None) -> None:
        """Use `open` or `create`."""
        self.directory, self.spec, self._lock = directory, spec, lock
        self._pending: list[FeatureRow] = []
        self._pending_bytes, self._commits, self._last_commit = 0, 0, time.monotonic()
        self._dataset = lance.dataset(_features(directory))
        self._reload()
        self._failures = {f.path: f for f in _read_failures(directory)}
        self._failures_changed = False

    @classmethod
    def open(cls, directory: str | Path) -> FeatureStore:
        """The table in `directory` (`ExtractReport.table`), to read. StoreError if there is none."""
        return cls(Path(directory), _read_spec(Path(directory)), None)

    @classmethod
    def create(cls, store_dir: str | Path, spec: TableSpec) -> FeatureStore:
        """The table for `spec` in `store_dir`, to read and write; made if it is not there.

        A table that has all these layers and more is used instead of a new one, so `.spec` says what rows
        must hold. Raises StoreLockedError while another process writes it.
        """
        directory = Path(store_dir) / spec.folder
        if not _committed(directory / "features.lance"):
            covering = [d for d, held in list_tables(store_dir) if held.covers(spec)]
            directory = covering[0] if covering else directory
        with _disk_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            lock = WriterLock(directory / "writer.lock")
        try:
            if not _committed(directory / "features.lance"):
                with _disk_errors(directory):
                    lance.write_dataset(row_schema(spec).empty_table(), _features(directory))
            held = _read_spec(directory)
            if not held.covers(spec):
                raise StoreError(f"{directory} holds {held}, not {spec}. Use another store folder.")
            return cls(directory, held, lock)
        except BaseException:
            lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Commit what is pending and let the next writer in."""
        if self._lock is not None:
            try:
                self.flush()
            finally:
                self._lock.release()
                self._lock = None

    # What there is ------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._position)

    def __contains__(self, key: object) -> bool:
        return key in self._position

    def keys(self) -> list[str]:
        """Keys of all rows, in the order they are stored."""
        return list(self._position)

    def keys_by_file(self, clip_seconds: float | None) -> dict[str, list[str]]:
        """Content hash -> keys of its windows in time order, for files cut this way and stored to the end."""
        cut = cut_name(clip_seconds)
        return {
            file.content_hash: [f"{file.content_hash}:{cut}:{start}" for start in sorted(starts, key=float)]
            for file, starts in self._starts.items()
            if file.cut == cut and file in self._complete
        }

    def is_complete(self, content_hash: str, clip_seconds: float | None) -> bool:
        """Whether every window of the file is stored."""
        return _CutFile(content_hash, cut_name(clip_seconds)) in self._complete

    def keys_of(self, content_hash: str, clip_seconds: float | None) -> frozenset[str]:
        """Keys of the windows of one file that are stored so far."""
        file = _CutFile(content_hash, cut_name(clip_seconds))
        return frozenset(f"{content_hash}:{file.cut}:{start}" for start in self._starts.get(file, ()))

    def failures(self) -> list[Failure]:
        """Files that gave no features at their last try, sorted by path."""
        return sorted(self._failures.values(), key=lambda f: f.path)

    # Reading ------------------------------------------------------------------------------------------------

    def read(self, layer: int, keys: Sequence[str] | None = None) -> np.ndarray:
        """One layer of a "mean" table, `(N, D)` float32 in the order of `keys` (default: all rows).

        No other layer is read from disk. StoreError for a layer or key that is not there.
        """
        self._check_readable(layer, "mean")
        column = self._take(keys, [layer_column(layer)])[layer_column(layer)].combine_chunks()
        return column.flatten().to_numpy().reshape(-1, self.spec.dim)

    def read_frames(self, layer: int, keys: Sequence[str] | None = None) -> Iterator[np.ndarray]:
        """One layer of a "frames" table, each `(T, D)` float16 in the order of `keys` (default: all rows).

        A few rows are in memory at a time. Times are in `infos`. Raises as `read` does.
        """
        self._check_readable(layer, "frames")
        wanted = self.keys() if keys is None else list(keys)
        step = max(1, READ_BYTES * len(self.spec.layers) // self._row_bytes())
        for start in range(0, len(wanted), step):
            for frames in self._take(wanted[start : start + step], [layer_column(layer)])[
                layer_column(layer)
            ]:
                yield frames.values.to_numpy().reshape(-1, self.spec.dim)

    def infos(self, keys: Sequence[str] | None = None) -> list[RowInfo]:
        """What is known about rows beside their features, in the order of `keys` (default: all rows)."""
        rows = self._take(keys, list(RowInfo.__dataclass_fields__))
        return [RowInfo(**row) for row in rows.to_pylist()]

    # Writing ------------------------------------------------------------------------------------------------

    def append(self, rows: Iterable[FeatureRow]) -> int:
        """Add rows; those whose keys are there already are left out. Returns how many were new.

        Commits every now and then. FeatureRangeError for a row that cannot be stored; earlier ones are kept.
        """
        self._check_writable()
        added = 0
        for row in rows:
            if row.key in self._position:
                continue
            stored = storable(row, self.spec)
            self._pending.append(stored)
            self._pending_bytes += sum(x.nbytes for x in stored.layers.values())
            self._note(row.key, row.last)
            added += 1
            if len(self._pending) >= COMMIT_ROWS or self._pending_bytes >= COMMIT_BYTES:
                self.flush()
        self._flush_when_due()
        return added

    def discard(self, content_hash: str, clip_seconds: float | None) -> None:
        """Remove the windows of a file, because it failed half-way."""
        self._check_writable()
        file = _CutFile(content_hash, cut_name(clip_seconds))
        if file in self._starts:
            self.flush()
            with _disk_errors(self.directory):
                self._dataset.delete(f"key LIKE '{file.content_hash}:{file.cut}:%'")
            self._reload()

    def record_failure(self, path: str | Path, reason: str) -> Failure:
        """Remember that a file failed, in place of what was known about this path."""
        self._check_writable()
        failure = Failure(printable(path), printable(reason))
        self._failures[failure.path] = failure
        self._failures_changed = True
        self._flush_when_due()
        return failure

    def clear_failure(self, path: str | Path) -> None:
        """Forget a failure after a retry that worked."""
        self._check_writable()
        self._failures_changed |= self._failures.pop(printable(path), None) is not None

    def flush(self) -> None:
        """Commit pending rows and failures."""
        self._check_writable()
        if self._pending:
            # Emptied first: an interrupted commit may have happened, and must not be tried twice.
            rows, self._pending, self._pending_bytes = self._pending, [], 0
            with _disk_errors(self.directory):
                self._dataset = lance.write_dataset(rows_table(rows, self.spec), self._dataset, mode="append")
            self._commits += 1
            if self._commits % COMPACT_EVERY_COMMITS == 0:
                self.compact()
        if self._failures_changed:
            self._failures_changed = False
            with _disk_errors(self.directory):
                _write_failures(self.directory, self.failures())
        self._last_commit = time.monotonic()

    def compact(self) -> None:
        """Merge the small files of many commits; remove old versions and what killed writers left behind."""
        self.flush()
        with _disk_errors(self.directory):
            self._dataset.optimize.compact_files(
                target_rows_per_fragment=max(1, FRAGMENT_BYTES // self._row_bytes()),
                batch_size=max(1, READ_BYTES // self._row_bytes()),
                num_threads=1,
                compaction_mode="try_binary_copy",  # re-encoding takes several times the memory
            )
            # The lock makes this the only writer, so unverified files are nobody's work in progress.
            self._dataset.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
        self._reload()

    # Inside -------------------------------------------------------------------------------------------------

    def _reload(self) -> None:
        """Learn which rows there are; reads the keys and the marks of last windows only."""
        self._position: dict[str, int] = {}
        self._starts: dict[_CutFile, set[str]] = {}
        self._complete: set[_CutFile] = set()
        for batch in self._dataset.scanner(columns=["key", "last"], scan_in_order=True).to_batches():
            for key, last in zip(batch["key"].to_pylist(), batch["last"].to_pylist(), strict=True):
                self._note(key, last)

    def _note(self, key: str, last: bool) -> None:
        assert key not in self._position, f"{self.directory} holds {key} twice"
        content_hash, cut, start = key.split(":")
        file = _CutFile(content_hash, cut)
        self._position[key] = len(self._position)
        self._starts.setdefault(file, set()).add(start)
        if last:  # windows are written in time order
            self._complete.add(file)

    def _take(self, keys: Sequence[str] | None, columns: list[str]) -> pa.Table:
        if self._pending:
            self.flush()
        if keys is None:
            return self._dataset.to_table(columns=columns, scan_in_order=True)
        missing = [key for key in keys if key not in self._position]
        if missing:
            raise StoreError(f"{self.directory} lacks {len(missing)} of {len(keys)} rows, as {missing[0]}")
        return self._dataset.take([self._position[key] for key in keys], columns=columns)

    def _check_readable(self, layer: int, pooling: Pooling) -> None:
        if self.spec.pooling != pooling:
            reader = "read_frames" if self.spec.pooling == "frames" else "read"
            raise StoreError(f"{self.directory} holds pooling='{self.spec.pooling}'. Use {reader}().")
        if layer not in self.spec.layers:
            raise StoreError(f"{self.directory} holds layers {list(self.spec.layers)}, not {layer}")

    def _check_writable(self) -> None:
        if self._lock is None:
            raise StoreError(f"{self.directory} is open for reading. Use FeatureStore.create to write.")

    def _flush_when_due(self) -> None:
        if time.monotonic() - self._last_commit >= COMMIT_SECONDS:
            self.flush()

    def _row_bytes(self) -> int:
        size = sum(file.stat().st_size for file in (self.directory / "features.lance" / "data").glob("*"))
        return max(1, size // max(1, len(self._position)))


def list_tables(store_dir: str | Path) -> list[tuple[Path, TableSpec]]:
    """The tables in a store, sorted by name."""
    folders = sorted(p.parent for p in Path(store_dir).glob("*/features.lance") if _committed(p))
    return [(folder, _read_spec(folder)) for folder in folders]


@dataclass(frozen=True)
class _CutFile:
    content_hash: str
    cut: str


def _features(directory: Path) -> str:
    return str(directory / "features.lance")


def _committed(dataset: Path) -> bool:
    """Whether a version was ever committed; a writer may have been killed while it made the folder."""
    return any((dataset / "_versions").glob("*.manifest"))


def _read_spec(directory: Path) -> TableSpec:
    if not _committed(directory / "features.lance"):
        raise StoreError(
            f"{directory} is not a feature table. `list_tables(store_dir)` gives those of a store."
        )
    spec = spec_of(lance.dataset(_features(directory)).schema)
    if spec is None:
        raise StoreError(f"{directory} is a Lance table, but was not written by this package")
    return spec


def _read_failures(directory: Path) -> list[Failure]:
    folder = directory / "failures.lance"
    rows = lance.dataset(str(folder)).to_table().to_pylist() if _committed(folder) else []
    return [Failure(**row) for row in rows]


def _write_failures(directory: Path, failures: Sequence[Failure]) -> None:
    folder = directory / "failures.lance"
    table = pa.Table.from_pylist([asdict(f) for f in failures], schema=FAILURE_SCHEMA)
    mode = "overwrite" if _committed(folder) else "create"
    lance.write_dataset(table, str(folder), mode=mode).cleanup_old_versions(
        older_than=timedelta(0), delete_unverified=True
    )


@contextmanager
def _disk_errors(directory: Path) -> Iterator[None]:
    """What the operating system answers (full, read-only, no folder), with the table's name and a way out."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{directory} cannot be written ({error.strerror or error}). Make room, check the folder and its "
            "permissions, or use another store, and start again: what is committed stays."
        ) from error


class WriterLock:
    """Held by the one process that writes a table. The kernel drops it however that process ends."""

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor = take_lock(path)
        except LockHeldError as error:
            raise StoreLockedError(
                f"{path.parent} is being written by {error.holder}. Wait until it is done, or stop it."
            ) from None

    def release(self) -> None:
        os.close(self._descriptor)
