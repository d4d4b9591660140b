"""What a feature table and its rows are, and how they become Arrow columns. `store.py` reads and writes them.

Shape letters: `T` frames, `D` model width.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

Pooling = Literal["mean", "frames"]

_METADATA_KEY = b"audiation.table"


class FeatureRangeError(ValueError):
    """A hidden state that cannot be stored: NaN, infinite, or beyond float16."""


@dataclass(frozen=True)
class TableSpec:
    """What all rows of a table share: everything that changes a number in it.

    chunk_seconds: how much audio the model saw at a time; None: whole clips.
    pooling: "mean" over time, float32 `(D,)` per layer and row; "frames", float16 `(T, D)`.
    """

    backbone: str
    weights_hash: str
    precision: str
    chunk_seconds: float | None
    pooling: Pooling
    layers: tuple[int, ...]
    dim: int
    sample_rate_hz: int
    normalisation: str

    @property
    def policy(self) -> str:
        """How long a piece the model saw at a time: "chunk5s" or "whole"."""
        return "whole" if self.chunk_seconds is None else f"chunk{self.chunk_seconds:g}s"

    @property
    def folder(self) -> str:
        """Name of the table in its store, for example "mert-v1-95m_1a2b3c4d5e6f_chunk5s_fp32_mean_L0-12"."""
        first, last = self.layers[0], self.layers[-1]
        consecutive = len(self.layers) == last - first + 1 > 1
        layers = f"{first}-{last}" if consecutive else ".".join(map(str, self.layers))
        weights = self.weights_hash
        if re.fullmatch("[0-9a-f]{12,}", weights):
            weights = weights[:12]
        parts = [self.backbone, weights, self.policy, self.precision, self.pooling, f"L{layers}"]
        return "_".join(re.sub(r"[^A-Za-z0-9.-]+", "-", part) for part in parts)

    def covers(self, other: TableSpec) -> bool:
        """Same kind, and every layer of `other`."""
        return replace(self, layers=other.layers) == other and set(other.layers) <= set(self.layers)


@dataclass(frozen=True)
class FeatureRow:
    """One clip window.

    content_hash: of the file (`audio.content_hash`). path: where it was found, for people.
    start_seconds, duration_seconds: of the window; the last one of a file may be shorter than `clip_seconds`.
    clip_seconds: how the file was cut; None: the whole file is one row.
    chunk_seconds: what the model really saw at a time (a short window is one chunk of its own length).
    last: no window of this file follows.
    layers: per layer `(D,)` or `(T, D)`.
    """

    content_hash: str
    path: str
    start_seconds: float
    duration_seconds: float
    clip_seconds: float | None
    chunk_seconds: float
    last: bool
    layers: Mapping[int, np.ndarray]
    frame_rate_hz: float | None = None
    first_frame_seconds: float = 0.0

    @property
    def key(self) -> str:
        return row_key(self.content_hash, self.start_seconds, self.clip_seconds)


def row_key(content_hash: str, start_seconds: float, clip_seconds: float | None) -> str:
    """Identifies a window within a table, whatever its file is called: "<hash>:<cut>:<start>"."""
    return f"{content_hash}:{cut_name(clip_seconds)}:{start_seconds:.6f}"


def cut_name(clip_seconds: float | None) -> str:
    """How a file is cut into windows, as a key says it."""
    return "whole" if clip_seconds is None else f"{clip_seconds:.6f}"


def printable(path: str | Path) -> str:
    """A path, or a message with one in it, as valid text: bytes of a file name that are not UTF-8 become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class RowInfo:
    """A row without its features. `frame_rate_hz` is None where a row is one vector per layer."""

    key: str
    path: str
    start_seconds: float
    duration_seconds: float
    chunk_seconds: float
    num_frames: int
    frame_rate_hz: float | None
    first_frame_seconds: float


@dataclass(frozen=True)
class Failure:
    """A file that gave no features, and why."""

    path: str
    reason: str
    time: datetime = field(default_factory=lambda: datetime.now(UTC))


FAILURE_SCHEMA = pa.schema(
    [("path", pa.string()), ("reason", pa.string()), ("time", pa.timestamp("us", tz="UTC"))]
)


def layer_column(layer: int) -> str:
    return f"layer_{layer}"


def row_schema(spec: TableSpec) -> pa.Schema:
    """Arrow schema of a table, with its spec in the metadata."""
    vector = pa.list_(pa.float32(), spec.dim) if spec.pooling == "mean" else pa.large_list(pa.float16())
    columns = {
        "key": pa.string(),
        "path": pa.string(),
        "start_seconds": pa.float64(),
        "duration_seconds": pa.float64(),
        "chunk_seconds": pa.float64(),
        "last": pa.bool_(),
        "num_frames": pa.int64(),
        "frame_rate_hz": pa.float64(),
        "first_frame_seconds": pa.float64(),
        **{layer_column(layer): vector for layer in spec.layers},
    }
    fields = [pa.field(name, kind, nullable=name == "frame_rate_hz") for name, kind in columns.items()]
    return pa.schema(fields, metadata={_METADATA_KEY: json.dumps(asdict(spec)).encode()})


def spec_of(schema: pa.Schema) -> TableSpec | None:
    """The spec a table was made with; None for a table of somebody else."""
    metadata = schema.metadata or {}
    if _METADATA_KEY not in metadata:
        return None
    values = json.loads(metadata[_METADATA_KEY])
    return TableSpec(**{**values, "layers": tuple(values["layers"])})


def storable(row: FeatureRow, spec: TableSpec) -> FeatureRow:
    """The row with exactly the table's layers, checked and in their stored type. Raises FeatureRangeError."""
    return replace(row, layers={layer: _storable_layer(row, layer, spec) for layer in spec.layers})


def rows_table(rows: Sequence[FeatureRow], spec: TableSpec) -> pa.Table:
    """Storable rows as an Arrow table."""
    schema = row_schema(spec)
    columns: dict[str, Any] = {
        "key": [r.key for r in rows],
        "num_frames": [1 if spec.pooling == "mean" else len(r.layers[spec.layers[0]]) for r in rows],
    }
    for layer in spec.layers:
        values = [r.layers[layer].reshape(-1) for r in rows]
        flat = pa.array(np.concatenate(values))
        if spec.pooling == "mean":
            columns[layer_column(layer)] = pa.FixedSizeListArray.from_arrays(flat, spec.dim)
        else:
            offsets = np.cumsum([0, *(len(v) for v in values)], dtype=np.int64)
            columns[layer_column(layer)] = pa.LargeListArray.from_arrays(pa.array(offsets), flat)
    for name in schema.names:
        if name not in columns:  # the others are called as the row's fields
            columns[name] = [getattr(row, name) for row in rows]
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def _storable_layer(row: FeatureRow, layer: int, spec: TableSpec) -> np.ndarray:
    """float32 `(D,)` or float16 `(T, D)`."""
    values = np.asarray(row.layers[layer], dtype=np.float32)
    assert values.ndim == (1 if spec.pooling == "mean" else 2) and values.shape[-1] == spec.dim
    where = f"{spec.backbone}, layer {layer}, {row.path} at {row.start_seconds:g} s"
    if not np.isfinite(values).all():
        raise FeatureRangeError(f"{where}: a feature is NaN or infinite")
    if spec.pooling == "mean":
        return values
    largest, limit = float(np.abs(values).max(initial=0.0)), float(np.finfo(np.float16).max)
    if largest > limit:
        raise FeatureRangeError(
            f"{where}: a value of {largest:g} does not fit the float16 that frames are stored in (at most "
            f"{limit:g}). Leave this layer out, or store pooling='mean' (float32)."
        )
    return values.astype(np.float16)
