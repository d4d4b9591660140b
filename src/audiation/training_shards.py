"""Checkpoints that all ranks write together, each its share, with `torch.distributed.checkpoint`.

    shards/step-N/__R_0.distcp   tensors of rank R
    shards/step-N/.metadata      which part of which tensor lies where
    shards/step-N/training.json  step, counters, validations; size and checksum of the files above; its own checksum

Any number of ranks reads what any other has written, and one process reads it whole. A checkpoint is written as
step-N.part and gets its name when all of it is on the disk, so that a killed run never finds half of one. The last two
are kept. All ranks need the folder on a file system that they share.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from audiation.distributed import this_rank, value_from_first, values_of_all
from audiation.training_state import RunFolderError, sync_folder

RECORD, KEPT, FORMAT = "training.json", 2, 1
STEP, PART = "step-", ".part"
READ_BYTES = 2**24


def write_shards(
    directory: Path, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Write a checkpoint, all ranks together; those before the last two are removed.

    tensors: the same names on all ranks; sharded ones, or the same tensor everywhere.
    values: what else is to be known, JSON values of rank 0.
    """
    rank, target = this_rank(), directory / f"{STEP}{step}"
    part = target.with_name(target.name + PART)
    if rank.is_first:
        directory.mkdir(exist_ok=True)
        for old in directory.glob(f"{STEP}*{PART}"):  # of a killed run
            shutil.rmtree(old)
        part.mkdir()
    values_of_all(None)  # the folder is there
    dcp.save(dict(tensors), storage_writer=FileSystemWriter(part, sync_files=True))
    mine = sorted(part.glob(f"__{rank.index}_*"))
    if rank.is_first:
        mine.append(part / ".metadata")
    checksums: dict[str, list[int]] = {}
    for found in values_of_all({path.name: _checksum(path) for path in mine}):
        checksums |= found
    if not rank.is_first:
        return
    record = {"format": FORMAT, "step": step, **values, "files": checksums}
    with (part / RECORD).open("w", encoding="utf-8") as stream:
        stream.write(json.dumps({"record": record, "checksum": _checksum_of(record)}) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    sync_folder(part)
    shutil.rmtree(target, ignore_errors=True)  # of the same run, from before it was put back
    os.replace(part, target)
    sync_folder(directory)
    for old in _checkpoints(directory)[:-KEPT]:
        shutil.rmtree(old)


def newest_shards(directory: Path) -> Path | None:
    """The checkpoint after the most steps; None if there is none."""
    found = _checkpoints(directory)
    return found[-1] if found else None


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(STEP))


def read_record(checkpoint: Path) -> dict[str, Any]:
    """The values of a checkpoint, after all of its files were checked.

    Raises:
        RunFolderError: a file is missing or damaged, or the checkpoint is of another format.
    """
    try:
        content = json.loads((checkpoint / RECORD).read_text(encoding="utf-8"))
        record = dict(content["record"])
        if _checksum_of(record) != content["checksum"]:
            raise ValueError(f"the checksum of {RECORD} differs")
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']}, expected {FORMAT}")
        for name, checksum in record["files"].items():
            if _checksum(checkpoint / name) != list(checksum):
                raise ValueError(f"the checksum of {name} differs")
        _Reader(checkpoint).read_metadata()
    except (OSError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise RunFolderError(
            f"cannot read {checkpoint}: truncated or damaged ({error}). Delete it to go on from the checkpoint before, "
            "if there is one."
        ) from error
    return record


def read_shards(checkpoint: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors from a checkpoint, all ranks together, each its share however it was shared out before.

    The record must have been read, which checks the files.
    """
    dcp.load(dict(tensors), storage_reader=_Reader(checkpoint))


def read_whole(checkpoint: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, on the CPU, by this process alone. The record must have been read."""
    held = _Reader(checkpoint).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in held.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings():  # that it reads alone
        warnings.simplefilter("ignore", UserWarning)
        dcp.load(dict(tensors), storage_reader=_Reader(checkpoint), no_dist=True)
    return tensors


def record_from_first(checkpoint: Path) -> dict[str, Any]:
    """`read_record` by rank 0 for all ranks, which raise together."""
    found: tuple[dict[str, Any] | None, str] = (None, "")
    if this_rank().is_first:
        try:
            found = read_record(checkpoint), ""
        except RunFolderError as error:
            found = None, str(error)
    record, message = value_from_first(found)
    if record is None:
        raise RunFolderError(message)
    return record


class _Reader(FileSystemReader):
    """Reads metadata, which torch pickles, without running anything: only its own kinds of values are made."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        content = Path(self.path, ".metadata").read_bytes()
        metadata = _MetadataUnpickler(io.BytesIO(content)).load()
        assert isinstance(metadata, Metadata)
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    KINDS = {
        "torch.distributed.checkpoint.metadata": None,  # all of it: dataclasses
        "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
        "torch.serialization": {"_get_layout"},
        "torch": {"Size"},
        "collections": {"OrderedDict"},
        "pathlib": {"PosixPath", "Path"},
        "pathlib._local": {"PosixPath", "Path"},
    }

    def find_class(self, module: str, name: str) -> Any:
        names = self.KINDS.get(module, set())
        is_known = names is None or name in names
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            is_known = True
        if not is_known or "." in name:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong into the metadata of a checkpoint")
        return super().find_class(module, name)


def _checkpoints(directory: Path) -> list[Path]:
    """In the order of their steps."""
    found = [path for path in directory.glob(f"{STEP}*") if path.name.removeprefix(STEP).isdecimal()]
    return sorted(found, key=step_of)


def _checksum_of(record: Mapping[str, Any]) -> int:
    """CRC-32 of JSON values, the same before and after they were written."""
    return zlib.crc32(json.dumps(json.loads(json.dumps(record))).encode())


def _checksum(path: Path) -> list[int]:
    """Size and CRC-32."""
    size = checksum = 0
    with path.open("rb") as stream:
        while content := stream.read(READ_BYTES):
            size, checksum = size + len(content), zlib.crc32(content, checksum)
    return [size, checksum]
