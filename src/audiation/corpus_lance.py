"""Lance form: a table with a row per window of a recording, which can be read over the network.

The same arrays as in the packed form (`corpus_packed.py`), cut into windows of equal length; the last one of a
recording may be shorter. A row is small enough that reading a crop fetches little else, and everything that is needed
for many crops is asked for at once. Places like `s3://bucket/corpus` and `gs://bucket/corpus` are read as folders are,
with the credentials that the environment has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import lance
import numpy as np
import pyarrow as pa

from audiation.corpus_packed import ITEM, CorpusError, Piece, Place

COMMIT_BYTES = 2**32  # what a kill may cost; each commit adds to what later readers have to list
BATCH_BYTES = 2**25  # in memory at a time
FILE_BYTES = 2**30
IDENTITY_KEY = b"audiation.windows"

SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # content hash of the recording
        ("first_item", pa.int64()),  # of the window in its recording
        ("length", pa.int64()),  # of the recording, in items
        ("items", pa.large_binary()),
    ]
)


@dataclass(frozen=True, eq=False)
class KeyedArray:
    """An array `(N, C)` int16, N >= 1, to be stored under the content hash of its recording; `read` gives it."""

    key: str
    length: int
    read: Callable[[], np.ndarray]


class LanceArrays:
    """The arrays of one table, to read.

    uri: of the table. num_columns: C. window_items: of every row but the last of an array.
    """

    def __init__(self, uri: str, num_columns: int, window_items: int) -> None:
        self._dataset = open_table(uri)
        self._num_columns, self._window = num_columns, window_items

    def read(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        """Each `(count, C)` int16. All rows are fetched in one request. ValueError for a piece beyond its array."""
        spans = [self._rows(piece) for piece in pieces]
        wanted = sorted({row for span in spans for row in span})
        column = self._dataset.take(wanted, columns=["items"])["items"].combine_chunks() if wanted else []
        at = {row: i for i, row in enumerate(wanted)}
        found = []
        for piece, span in zip(pieces, spans, strict=True):
            parts = [np.frombuffer(column[at[row]].as_buffer(), ITEM) for row in span]
            items = np.concatenate([np.zeros(0, ITEM), *parts]).reshape(-1, self._num_columns)
            first = piece.first % self._window
            found.append(items[first : first + piece.count])
        return found

    def _rows(self, piece: Piece) -> range:
        piece.check()
        if piece.count == 0:
            return range(0)
        last = (piece.first + piece.count - 1) // self._window
        return range(piece.place.start + piece.first // self._window, piece.place.start + last + 1)


def write_windows(
    uri: str,
    arrays: Sequence[KeyedArray],
    num_columns: int,
    window_items: int,
    identity: str,
    *,
    commit_bytes: int = COMMIT_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> list[Place]:
    """Write arrays in their order as windows; can be killed and called again. Returns where each lies.

    Args:
        identity: of the arrays together; a table that was begun for another one is refused.
        commit_bytes: after so much a kill costs nothing that was before.
        progress: (arrays written, all arrays).

    Raises:
        CorpusError: the table holds something else.
    """
    places = row_places([array.length for array in arrays], window_items)
    num_rows = -(-places[-1].length // window_items) if places else 0
    ends = [*(place.start for place in places), places[-1].start + num_rows if places else 0]
    dataset = try_table(uri)
    if dataset is not None and (dataset.schema.metadata or {}).get(IDENTITY_KEY) != identity.encode():
        raise CorpusError(f"{uri} holds something else. Remove it, or choose another place.")
    written = 0 if dataset is None else dataset.count_rows()
    if written not in ends:
        raise CorpusError(f"{uri} does not end with a whole recording, so it is damaged. Remove it.")
    schema = SCHEMA.with_metadata({IDENTITY_KEY: identity.encode()})
    done = ends.index(written)
    if dataset is None:
        dataset = lance.write_dataset(schema.empty_table(), uri)
    item_bytes = num_columns * ITEM.itemsize
    for group in _groups(arrays[done:], item_bytes, commit_bytes):
        dataset = _append(dataset, schema, _batches(group, window_items, schema))
        done += len(group)
        if progress is not None:
            progress(done, len(arrays))
    dataset.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
    return places


def row_places(lengths: Sequence[int], window_items: int) -> list[Place]:
    """Where arrays of these lengths lie that were written one after the other."""
    rows = np.cumsum([0, *(-(-length // window_items) for length in lengths)]).tolist()
    return [Place(0, row, int(length)) for row, length in zip(rows, lengths, strict=False)]


def open_table(uri: str) -> lance.LanceDataset:
    """CorpusError where there is none, or it cannot be reached."""
    try:
        return lance.dataset(uri)
    except (ValueError, OSError) as error:
        raise CorpusError(
            f"{uri} is not a Lance table that can be opened ({str(error).splitlines()[0]}). Check the place and the "
            "credentials in the environment."
        ) from error


def try_table(uri: str) -> lance.LanceDataset | None:
    """None where there is none."""
    try:
        return lance.dataset(uri)
    except (ValueError, FileNotFoundError):
        return None


def _append(
    dataset: lance.LanceDataset, schema: pa.Schema, batches: Iterator[pa.RecordBatch]
) -> lance.LanceDataset:
    """One commit. What reading a recording raises comes out as it is, which Lance would wrap."""
    raised: list[BaseException] = []

    def watched() -> Iterator[pa.RecordBatch]:
        try:
            yield from batches
        except (Exception, KeyboardInterrupt) as error:
            raised.append(error)
            raise

    reader = pa.RecordBatchReader.from_batches(schema, watched())
    try:
        return lance.write_dataset(
            reader, dataset.uri, mode="append", max_bytes_per_file=FILE_BYTES, schema=schema
        )
    except OSError:
        if raised:
            raise raised[0] from None
        raise


def _groups(arrays: Sequence[KeyedArray], item_bytes: int, commit_bytes: int) -> Iterator[list[KeyedArray]]:
    group: list[KeyedArray] = []
    num_bytes = 0
    for array in arrays:
        group.append(array)
        num_bytes += array.length * item_bytes
        if num_bytes >= commit_bytes:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group


def _batches(arrays: Iterable[KeyedArray], window_items: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    rows: list[dict[str, object]] = []
    num_bytes = 0
    for array in arrays:
        items = array.read()
        assert len(items) == array.length >= 1
        for first in range(0, array.length, window_items):
            window = items[first : first + window_items].tobytes()
            rows.append({"key": array.key, "first_item": first, "length": array.length, "items": window})
            num_bytes += len(window)
            if num_bytes >= BATCH_BYTES:
                yield pa.RecordBatch.from_pylist(rows, schema=schema)
                rows, num_bytes = [], 0
    if rows:
        yield pa.RecordBatch.from_pylist(rows, schema=schema)
