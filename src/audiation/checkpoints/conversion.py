"""Any checkpoint -> safetensors, one tensor in memory at a time; once per file, kept in the cache directory."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from audiation.cache import cache_dir, keep_text
from audiation.checkpoints import checkpoint_files, checkpoint_kind, file_sha256, read_checkpoint
from audiation.checkpoints.tensors import PIECE_BYTES, CheckpointTensors, WeightsError

CONVERTED = "model.safetensors"
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
    from: names, sizes and SHA-256 of the source, date, version of this package, and what was left out, and why.

    Args:
        keep: whether a tensor, by its name in the checkpoint, is written; None: all.
        rename: name in the checkpoint -> name in `out`.

    Raises:
        WeightsError: the checkpoint cannot be read, nothing is kept, two tensors get one name, or the disk is too full.
    """
    path, out = Path(path), Path(out)
    return _convert(path, out, keep, rename, _sources(path), "keep")


def cached_conversion(
    path: str | Path, leave_out: Callable[[str], bool] | None = None, rule: str = ""
) -> Path:
    """The checkpoint as safetensors in the cache directory, made at the first call for these bytes and this rule.

    Args:
        leave_out: names of tensors that are not written.
        rule: says `leave_out` in words; another rule is another file.

    Raises: WeightsError as `convert`; OSError where the cache directory cannot be written.
    """
    path = Path(path)
    sources = _sources(path)
    text = json.dumps(
        [[s["name"], s["sha256"]] for s in sources] if len(sources) > 1 else sources[0]["sha256"]
    )
    folder = hashlib.sha256(f"{text}\n{rule}".encode()).hexdigest()[:32]
    out = cache_dir("converted", folder, CONVERTED)
    if out.is_file() and _record_of(out).is_file():
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
    sources: list[dict[str, Any]],
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
    out.parent.mkdir(parents=True, exist_ok=True)
    _write_safetensors(tensors, names, out)
    record = {
        "sources": sources,
        "converted": datetime.now(UTC).isoformat(timespec="seconds"),
        "audiation": _package_version(),
        "num_tensors": len(names),
        "renamed": {old: new for new, old in names.items() if old != new},
        "left_out": left_out,
    }
    keep_text(_record_of(out), json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return out


def _record_of(out: Path) -> Path:
    return out.with_name(out.name + ".json")


def _write_safetensors(tensors: CheckpointTensors, names: Mapping[str, str], out: Path) -> None:
    """Header, then one tensor after another. Wide types first, so that every tensor is aligned."""
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
    handle, partial = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for new in order:
                octets = tensors[names[new]].detach().contiguous().reshape(-1).view(torch.uint8).numpy()
                for start in range(0, len(octets), PIECE_BYTES):
                    stream.write(octets[start : start + PIECE_BYTES].data)
        os.replace(partial, out)
    except BaseException:
        os.unlink(partial)
        raise


def _sources(path: Path) -> list[dict[str, Any]]:
    return [
        {"name": file.name, "num_bytes": file.stat().st_size, "sha256": _remembered_sha256(file)}
        for file in checkpoint_files(path)
    ]


def _remembered_sha256(path: Path) -> str:
    """Hashing 10 GB takes as long as loading them: what was hashed is known by place, size and time of change."""
    state = path.stat()
    identity = f"{path.resolve()}\n{state.st_size}\n{state.st_mtime_ns}\n{state.st_ino}"
    known = cache_dir("converted", "hashes", hashlib.sha256(identity.encode()).hexdigest()[:32])
    if known.is_file() and len(text := known.read_text(encoding="utf-8")) == 64:
        return text
    digest = file_sha256(path)
    keep_text(known, digest)
    return digest


def _package_version() -> str:
    try:
        return importlib.metadata.version("audiation")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
