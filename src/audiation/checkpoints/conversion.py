"""Any checkpoint -> safetensors, one tensor in memory at a time; once per file, kept in the cache directory."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from audiation.cache import cache_dir, keep_text, whole_file, write_text
from audiation.checkpoints import checkpoint_files, checkpoint_kind, file_sha256, read_checkpoint
from audiation.checkpoints.tensors import PIECE_BYTES, CheckpointTensors, WeightsError

CONVERTED = "model.safetensors"
FORMAT = 1  # one more where the same source and rule give other bytes
SPARE_BYTES = 1 << 26  # left free on the disk
SAFETENSORS_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64",
}  # fmt: skip


def convert(
    path: str | Path,
    out: str | Path,
    *,
    keep: Callable[[str], bool] | None = None,
    rename: Callable[[str], str] | None = None,
) -> Path:
    """Write the tensors of a checkpoint as safetensors; returns `out`.

    Tensors go through memory one by one. The file appears when it is whole. Beside it, `OUT.json` says where it came
    from: names, sizes and SHA-256 of the source and of `out`, date, version of this package, and what was left out, and
    why.

    Args:
        keep: whether a tensor, by its name in the checkpoint, is written; None: all.
        rename: name in the checkpoint -> name in `out`.

    Raises:
        WeightsError: the checkpoint cannot be read, or changes meanwhile; nothing is kept, two tensors get one name,
            tensors share numbers so that they would outgrow the checkpoint, or the disk is too full.
    """
    path, out = Path(path), Path(out)
    return _convert(path, out, keep, rename, _sources(path), "keep")


def cached_conversion(
    path: str | Path, leave_out: Callable[[str], bool] | None = None, rule: str = ""
) -> Path:
    """The checkpoint as safetensors in the cache directory, made at the first call for these bytes and this rule.

    What is there is compared with the size and SHA-256 that it had when it was made, and made anew if they differ.

    Args:
        leave_out: names of tensors that are not written.
        rule: says `leave_out` in words; another rule is another file.

    Raises: WeightsError as `convert`; OSError where the cache directory cannot be written.
    """
    path = Path(path)
    sources = _sources(path)
    text = json.dumps([[s.path.name, s.sha256] for s in sources] if len(sources) > 1 else sources[0].sha256)
    folder = hashlib.sha256(f"{FORMAT}\n{text}\n{rule}".encode()).hexdigest()[:32]
    out = cache_dir("converted", folder, CONVERTED)
    if _is_as_recorded(out):
        return out
    keep = None if leave_out is None else (lambda name: not leave_out(name))
    return _convert(path, out, keep, None, sources, rule)


def is_mapped_as_it_is(path: Path) -> bool:
    """Whether a format needs no conversion to be mapped into memory."""
    return checkpoint_kind(path) in ("safetensors", "torch")


def _convert(
    path: Path,
    out: Path,
    keep: Callable[[str], bool] | None,
    rename: Callable[[str], str] | None,
    sources: list[_Source],
    rule: str,
) -> Path:
    tensors = read_checkpoint(path)
    left_out = dict(tensors.left_out)
    names: dict[str, str] = {}  # in the new file -> in the checkpoint
    for name in tensors:
        if keep is not None and not keep(name):
            left_out[name] = f"not wanted ({rule})"
            continue
        new = rename(name) if rename is not None else name
        if new == "__metadata__":
            raise WeightsError(
                f"'{name}' of {path} would be called '{new}', which safetensors keeps for itself"
            )
        if new in names:
            raise WeightsError(f"'{names[new]}' and '{name}' of {path} would both be called '{new}'")
        names[new] = name
    if not names:
        raise WeightsError(f"nothing of {path} would be kept: none of its {len(tensors)} tensors is wanted")
    kept = sum(tensors.infos[name].num_bytes for name in names.values())
    available = sum(source.num_bytes for source in sources)
    if kept > available:  # else a small file could fill the disk
        raise WeightsError(
            f"the tensors of {path} have {kept:,} bytes and the file {available:,}: several share their numbers. Keep "
            "one of each (keep=...), or save it with a torch since 1.6, whose files need no conversion."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    sha256 = _write_safetensors(tensors, names, out, sources)
    record = {
        "sources": [{"name": s.path.name, "num_bytes": s.num_bytes, "sha256": s.sha256} for s in sources],
        "num_bytes": out.stat().st_size,
        "sha256": sha256,
        "converted": datetime.now(UTC).isoformat(timespec="seconds"),
        "audiation": _package_version(),
        "num_tensors": len(names),
        "renamed": {old: new for new, old in names.items() if old != new},
        "left_out": left_out,
    }
    _remember(out, sha256)
    keep_text(_record_of(out), json.dumps(record, indent=1) + "\n")
    return out


def _is_as_recorded(out: Path) -> bool:
    """Whether a conversion is there and is what was written."""
    try:
        record = json.loads(_record_of(out).read_text(encoding="utf-8"))
        size, sha256 = record["num_bytes"], record["sha256"]
        return out.is_file() and out.stat().st_size == size and _remembered_sha256(out) == sha256
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # missing or damaged: made anew
        return False


def _record_of(out: Path) -> Path:
    return out.with_name(out.name + ".json")


def _write_safetensors(
    tensors: CheckpointTensors, names: Mapping[str, str], out: Path, sources: list[_Source]
) -> str:
    """Header, then one tensor after another; returns the SHA-256. Wide types first, so that every tensor is aligned."""
    infos = {new: tensors.infos[old] for new, old in names.items()}
    order = sorted(names, key=lambda new: (-infos[new].dtype.itemsize, new))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for new in order:
        info = infos[new]
        header[new] = {
            "dtype": SAFETENSORS_DTYPES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [end, end + info.num_bytes],
        }
        end += info.num_bytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    free = shutil.disk_usage(out.parent).free
    if free < end + SPARE_BYTES:
        raise WeightsError(
            f"{out} needs {end / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free. Make room, or name another place in "
            "$AUDIATION_CACHE."
        )
    digest = hashlib.sha256()
    with whole_file(out) as stream:
        head = len(text).to_bytes(8, "little") + text
        digest.update(head)
        stream.write(head)
        for new in order:
            octets = tensors[names[new]].detach().contiguous().reshape(-1).view(torch.uint8).numpy()
            for start in range(0, len(octets), PIECE_BYTES):
                piece = octets[start : start + PIECE_BYTES].data
                digest.update(piece)
                stream.write(piece)
        for source in sources:
            if _state(source.path) != source.state:
                raise WeightsError(f"{source.path} changed while it was converted. Convert it again.")
    return digest.hexdigest()


# Sources and hashes ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """A file of a checkpoint. state: tells that it changed since it was hashed."""

    path: Path
    num_bytes: int
    sha256: str
    state: str


def _sources(path: Path) -> list[_Source]:
    found = []
    for file in checkpoint_files(path):
        if not file.is_file():
            raise WeightsError(f"cannot read {path}: its file {file.name} is missing, or is none")
        try:
            state = _state(file)  # before it is hashed
            found.append(_Source(file, file.stat().st_size, _remembered_sha256(file), state))
        except OSError as error:
            raise WeightsError(f"cannot read {file}: {error.strerror or error}") from error
    return found


def _state(path: Path) -> str:
    state = path.stat()
    times = f"{state.st_mtime_ns}\n{state.st_ctime_ns}"  # the second one cannot be set back
    return f"{path.resolve()}\n{state.st_size}\n{times}\n{state.st_ino}"


def _hash_file(path: Path) -> Path:
    return cache_dir("converted", "hashes", hashlib.sha256(os.fsencode(_state(path))).hexdigest()[:32])


def _remembered_sha256(path: Path) -> str:
    """Hashing 10 GB takes as long as loading them: what was hashed is known by place, size, times of change, inode."""
    known = _hash_file(path)
    try:
        if len(text := known.read_text(encoding="utf-8")) == 64:
            return text
    except (OSError, UnicodeError):  # not hashed yet, or damaged
        pass
    digest = file_sha256(path)
    if known == _hash_file(path):  # else it changed meanwhile
        _remember(path, digest)
    return digest


def _remember(path: Path, sha256: str) -> None:
    """Where the cache cannot be written it is hashed again each time; whoever writes the conversion says so."""
    with contextlib.suppress(OSError):
        write_text(_hash_file(path), sha256)


def _package_version() -> str:
    try:
        return importlib.metadata.version("audiation")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
