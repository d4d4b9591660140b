"""Reading weights without the frameworks that wrote them, and without running anything that they hold.

`read_checkpoint` is the entry. One file per format: `torch_files.py` (with `pickles.py`), `hdf5.py`, `tensor_bundle.py`
(with `crc32c.py`); `conversion.py` writes safetensors.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from audiation.checkpoints.hdf5 import SIGNATURE, WEIGHTS_IN_KERAS, read_hdf5, read_keras
from audiation.checkpoints.pickle_records import UnsafePickleError
from audiation.checkpoints.tensor_bundle import MAGIC, bundle_files, index_of, read_bundle
from audiation.checkpoints.tensors import (
    CheckpointTensors,
    DamagedError,
    TensorInfo,
    UnsupportedError,
    WeightsError,
    file_sha256,
)
from audiation.checkpoints.torch_files import read_legacy, read_zip

__all__ = [
    "CHECKPOINT_SUFFIXES",
    "CheckpointKind",
    "CheckpointTensors",
    "TensorInfo",
    "WeightsError",
    "checkpoint_files",
    "checkpoint_kind",
    "file_sha256",
    "read_checkpoint",
]

CHECKPOINT_SUFFIXES = (
    ".safetensors", ".pt", ".bin", ".pth", ".ckpt", ".pth.tar", ".h5", ".hdf5", ".keras", ".index",
)  # fmt: skip

CheckpointKind = Literal["safetensors", "torch", "torch-legacy", "hdf5", "keras", "tensor-bundle"]
_READERS = {
    "torch": read_zip,
    "torch-legacy": read_legacy,
    "hdf5": read_hdf5,
    "keras": read_keras,
    "tensor-bundle": read_bundle,
}


def read_checkpoint(path: str | Path) -> CheckpointTensors:
    """Name -> tensor, on the CPU. A tensor is read, or mapped into memory, when it is asked for; nothing is kept.

    Content decides, not the suffix: safetensors; torch files of both ages, which Lightning (`.ckpt`) and fairseq
    (`.pt`) write as well; Keras (`.h5`, `.hdf5`, `.keras`: names are paths in the HDF5 file); TensorFlow 1 (the prefix,
    its `.index` file, or a directory with one). In torch files a dictionary below `state_dict` or `model` is unwrapped,
    and whatever lies beside it is not looked at. No pickle is executed.

    Raises:
        WeightsError: missing, truncated, a web page or LFS pointer, a pickle that holds more than data, other
            things than dense real tensors, or nothing at all. Names the file. Changed bytes of data are noticed where
            the format has checksums (torch zip, TensorFlow, the archive of `.keras`) and else only by a SHA-256.
    """
    path = Path(path)
    kind = checkpoint_kind(path)
    try:
        if kind == "safetensors":
            return _read_safetensors(path)
        return _READERS[kind](index_of(path) or path if kind == "tensor-bundle" else path)
    except WeightsError:
        raise
    except (
        Exception
    ) as error:  # bytes from strangers: whatever goes wrong in decoding them is the file's fault
        raise WeightsError(f"cannot read {path}: {_why_unreadable(error)}") from error


def checkpoint_kind(path: Path) -> CheckpointKind:
    """The format of a file, or of a TensorFlow checkpoint named by prefix or directory. Raises WeightsError."""
    try:
        if not path.is_file() and (index := index_of(path)) is not None:
            path = index
        if path.exists() and not path.is_file() and not path.is_dir():
            raise WeightsError(
                f"cannot read {path}: it is a pipe or a device. Write it to a file and give its path"
            )
        with path.open("rb") as stream:
            head = stream.read(512)
            stream.seek(max(0, stream.seek(0, 2) - len(MAGIC)))
            tail = stream.read()
    except OSError as error:
        raise WeightsError(f"cannot read {str(path)[:300]}: {error.strerror or error}") from error
    except WeightsError:
        raise
    except ValueError as error:  # a name that no file can have
        raise WeightsError(f"cannot read {str(path)!r}: {error}") from error
    text = head.lstrip()
    if not head:
        reason = "it is empty"
    # The length of a safetensors header may end in either mark; its text begins behind it.
    elif path.suffix == ".safetensors" and head.startswith((b"PK", b"\x80")) and head[8:9] != b"{":
        reason = "it is a torch file; name it .pt"
    elif head.startswith(b"PK\x03\x04"):
        return _kind_of_archive(path)
    elif head.startswith(SIGNATURE):
        return "hdf5"
    elif head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return "safetensors"
    elif head[0] == 0x80:
        return "torch-legacy"
    elif tail == MAGIC or path.name.endswith(".index"):
        return "tensor-bundle"
    elif head[257:262] == b"ustar":
        reason = "it is a tar archive. Unpack it and give the path of the file in it"
    elif text.startswith(b"version https://git-lfs"):
        reason = "it is a Git LFS pointer, not the file it points to. Fetch it again with `hf download`"
    elif text.startswith(b"<"):
        reason = "it is a web page saved under this name. Fetch it again with `hf download`"
    else:
        reason = "it is neither a safetensors nor a torch file, nor one of Keras or TensorFlow 1"
    raise WeightsError(f"cannot read {path}: {reason}")


def checkpoint_files(path: Path) -> list[Path]:
    """Every file that a checkpoint consists of: one, but index and data files for TensorFlow 1."""
    if checkpoint_kind(path) != "tensor-bundle":
        return [path]
    try:
        return bundle_files(index_of(path) or path)
    except (DamagedError, UnsupportedError, OSError) as error:
        raise WeightsError(f"cannot read {path}: {_why_unreadable(error)}") from error


def _kind_of_archive(path: Path) -> CheckpointKind:
    try:
        if not zipfile.is_zipfile(path):
            raise DamagedError("the end of the zip archive is missing")
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception as error:  # as in `read_checkpoint`
        raise WeightsError(f"cannot read {path}: {_why_unreadable(error)}") from error
    if WEIGHTS_IN_KERAS in names:
        return "keras"
    if any(name.endswith("constants.pkl") for name in names):
        raise WeightsError(
            f"cannot read {path}: it is a TorchScript program. Use the file with the state dict."
        )
    if any(name.endswith("data.pkl") for name in names):
        return "torch"
    inside = ", ".join(names[:3])[:200]
    raise WeightsError(
        f"cannot read {path}: it is a zip archive, but neither torch nor Keras wrote it (it holds "
        f"{inside or 'nothing'}). Unpack it and give the path of the checkpoint in it."
    )


def _read_safetensors(path: Path) -> CheckpointTensors:
    from safetensors.torch import load_file

    tensors = load_file(path)  # mapped into memory
    if not tensors:
        raise WeightsError(f"{path} holds no tensors (its top level is empty)")
    for name, tensor in tensors.items():
        if tensor.is_complex():
            raise WeightsError(f"{path}: '{name}' is complex; dense real tensors are read")
    infos = {name: TensorInfo(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    return CheckpointTensors(path, infos, tensors.__getitem__)


def _why_unreadable(error: Exception) -> str:
    if isinstance(error, UnsafePickleError):
        return (
            f"it is damaged, or holds more than plain tensors ({error.what}). Nothing was executed. "
            "Use the file published for inference (pytorch_model.bin, model.safetensors)"
        )
    text = str(error)
    if isinstance(error, UnsupportedError):
        return text[:500]
    first = text.strip().splitlines()[0] if text.strip() else "no reason given"
    if isinstance(error, DamagedError):
        return f"it is truncated, damaged or no checkpoint ({first[:300]}). Fetch it again"
    return f"it is truncated, damaged or no checkpoint ({type(error).__name__}: {first[:200]})"
