"""Official weights as facts and files: where they live, how to read them safely, how to tell them apart.

This module knows no backbone; `loading.py` brings the two together. A checkpoint is data from strangers:
it is never unpickled with code, and all that is wrong with it is a `WeightsError` that names the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

ALLOW_UNVERIFIED_VARIABLE = "AUDIATION_ALLOW_UNVERIFIED_HASH"
CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".bin", ".pth", ".ckpt")


class WeightsError(ValueError):
    """Weights that cannot be used. The message names the file, the reason, and what to do next."""


class NotOnHubError(WeightsError):
    """The Hub was reached and has no such file in that repository."""


class UnverifiedWeightsWarning(UserWarning):
    """Weights are used although they are not the file that public records describe."""


@dataclass(frozen=True)
class OfficialFile:
    """One published file: on the Hugging Face Hub, at an address, or a wheel on the Python package index.

    repo_id: of the Hub; "" where the file is elsewhere.
    url: address of a file that is not on the Hub.
    package: name==version of a Python package whose wheel this is.
    member: what is meant of an archive: a path in it, or the beginning of several.
    size_bytes, sha256: None where nobody whom we can name has recorded them.
    hash_source: who vouches for size and hash. "spec": the content was rebuilt and matched, so a mismatch
        is final. "third-party": read in public records only, so a user may override a mismatch, loudly.
    mismatch_hint: what a mismatch most likely means, added to the message.
    """

    repo_id: str
    filename: str
    size_bytes: int | None = None
    sha256: str | None = None
    hash_source: Literal["spec", "third-party"] = "third-party"
    mismatch_hint: str = ""
    url: str = ""
    package: str = ""
    member: str = ""

    def __post_init__(self) -> None:
        assert sum(map(bool, (self.repo_id, self.url, self.package))) == 1, f"one place of {self.filename}"

    @property
    def place(self) -> str:
        """Where it is published, for people."""
        if self.repo_id:
            return f"Hub repository {self.repo_id}"
        return self.url or f"the Python package {self.package}"


@dataclass(frozen=True)
class OfficialWeights:
    """What a published model consists of.

    checkpoint: the tensors.
    config: the published JSON beside it (`config.json`, or MusicFM's statistics); None: there is none.
    default_config: the fields of that JSON that decide the result, as this package knows them. Used when only
        a checkpoint is given; a JSON beside a checkpoint that says otherwise is another model's and refused.
    licence, licence_note: of the weights; shown once per machine.
    revision: git revision on the Hub; None: its main branch.
    """

    checkpoint: OfficialFile
    config: OfficialFile | None
    licence: str
    licence_note: str = ""
    default_config: Mapping[str, Any] = field(default_factory=dict)
    revision: str | None = None

    @property
    def files(self) -> tuple[OfficialFile, ...]:
        return (self.checkpoint,) if self.config is None else (self.checkpoint, self.config)


# Getting files ---------------------------------------------------------------------------------------


def fetch(file: OfficialFile, revision: str | None = None, local_files_only: bool = False) -> Path:
    """The file from the Hugging Face cache, downloaded if need be (`HF_HOME` and `HF_HUB_OFFLINE` count).

    Not verified here: see `verify_file`.

    Raises:
        NotOnHubError: the repository has no such file.
        WeightsError: the Hub is out of reach, or does not give the file; says which file to put where.
    """
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(
            huggingface_hub.hf_hub_download(
                file.repo_id, file.filename, revision=revision, local_files_only=local_files_only
            )
        )
    except (OSError, EntryNotFoundError, ValueError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise NotOnHubError(f"Hub repository {file.repo_id} has no file {file.filename}") from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        size = f" ({file.size_bytes:,} bytes)" if file.size_bytes else ""
        raise WeightsError(
            f"cannot get {file.filename} of Hub repository {file.repo_id}: {reason.rstrip('.')}. "
            f"Where the Hub is in reach, run `hf download {file.repo_id} {file.filename}`; then either "
            f"copy {file.filename}{size} here and give its path (weights=PATH, --weights PATH), or copy the "
            f"folder models--{file.repo_id.replace('/', '--')} into {constants.HF_HUB_CACHE}."
        ) from error


def verify_file(
    path: Path,
    expected: OfficialFile,
    allow_unverified_hash: bool = False,
    others: Mapping[str, str] | None = None,
) -> None:
    """Compare size and SHA-256 with what is known of the official file; nothing known: nothing compared.

    allow_unverified_hash: accept a mismatch with a third-party record, with an `UnverifiedWeightsWarning`.
        The environment variable AUDIATION_ALLOW_UNVERIFIED_HASH=1 does the same.
    others: SHA-256 -> whose file that is; such a file is refused whatever is allowed.

    Raises:
        WeightsError: not that file.
    """
    if expected.sha256 is None and expected.size_bytes is None:
        return
    digest, size = file_sha256(path), path.stat().st_size
    if expected.sha256 is not None and digest == expected.sha256:
        return
    if others and digest in others:
        raise WeightsError(f"{path} is {others[digest]}, not {expected.filename} of {expected.place}")
    if expected.size_bytes is not None and size != expected.size_bytes:
        known = f"{expected.size_bytes:,}"
        reason = f"it has {size:,} of {known} bytes" + (
            ": truncated, or another file" if size < expected.size_bytes else ""
        )
    elif expected.sha256 is not None:
        reason = f"its SHA-256 is {digest}, known is {expected.sha256}"
    else:
        return
    problem = f"{path} is not the official {expected.filename} of {expected.place}: {reason}."
    if expected.mismatch_hint:
        problem += f" {expected.mismatch_hint}"
    if expected.hash_source == "spec":
        raise WeightsError(f"{problem} Delete it and fetch it again.")
    source = "That record is a third party's: nobody of this project has had the official file."
    allowed = allow_unverified_hash or os.environ.get(ALLOW_UNVERIFIED_VARIABLE, "") not in ("", "0")
    if not allowed:
        raise WeightsError(
            f"{problem} {source} Delete it and fetch it again; if you are sure that it is right, pass "
            f"allow_unverified_hash=True or set {ALLOW_UNVERIFIED_VARIABLE}=1."
        )
    warnings.warn(f"USED ALL THE SAME, as asked: {problem} {source}", UnverifiedWeightsWarning, stacklevel=2)


def find_checkpoint(directory: Path, official_filename: str | None = None) -> Path:
    """The one checkpoint in a directory: the official name, else the Hub's usual names, else the only one.

    Raises:
        WeightsError: none, several, or a sharded one.
    """
    for name in (official_filename, "model.safetensors", "pytorch_model.bin"):
        if name is not None and (directory / name).is_file():
            return directory / name
    if shards := sorted(directory.glob("*.index.json")):
        raise WeightsError(
            f"{directory} holds a sharded checkpoint ({shards[0].name}); no model here is published that "
            "way. Save its tensors into one model.safetensors."
        )
    found = sorted(p for p in directory.iterdir() if p.is_file() and p.suffix in CHECKPOINT_SUFFIXES)
    if len(found) == 1:
        return found[0]
    what = f"several checkpoints ({', '.join(p.name for p in found[:4])})" if found else "no checkpoint"
    wanted = official_filename or "model.safetensors or pytorch_model.bin"
    raise WeightsError(f"{directory} holds {what}. Expected {wanted}; give the path of the file itself.")


# Reading files ---------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Name -> tensor, on the CPU, memory-mapped where the format allows.

    Reads safetensors and torch files (content decides, not the suffix), torch files with `weights_only=True`.
    A dictionary below `state_dict` or `model` is unwrapped.

    Raises:
        WeightsError: missing, truncated, a web page or LFS pointer, a pickle that wants to run code, other
            things than tensors, or nothing at all.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    kind = _kind_of_file(path, head)
    try:
        if kind == "zip":
            _check_sums(path)
        if kind == "safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's remarks on pickle protocols help nobody here
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "zip")
    except (
        Exception
    ) as error:  # bytes from strangers: whatever goes wrong in decoding them is the file's fault
        raise WeightsError(f"cannot read {path}: {_why_unreadable(error)}") from error
    return _only_tensors(path, content)


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object from a file; WeightsError if it is anything else."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict):
        raise WeightsError(f"cannot read {path}: expected a JSON object, got {type(config).__name__}")
    return config


def _kind_of_file(path: Path, head: bytes) -> Literal["zip", "pickle", "safetensors"]:
    text = head.lstrip()
    if not head:
        reason = "it is empty"
    elif path.suffix == ".safetensors" and head.startswith((b"PK", b"\x80")):
        reason = "it is a torch file; name it .pt"
    elif head.startswith(b"PK\x03\x04"):
        if zipfile.is_zipfile(path):
            return "zip"
        reason = "it is truncated: the end of the zip archive is missing. Fetch it again"
    elif head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return "safetensors"
    elif head[0] == 0x80:
        return "pickle"
    elif text.startswith(b"version https://git-lfs"):
        reason = "it is a Git LFS pointer, not the file it points to. Fetch it again with `hf download`"
    elif text.startswith(b"<"):
        reason = "it is a web page saved under this name. Fetch it again with `hf download`"
    else:
        reason = "it is neither a safetensors nor a torch file"
    raise WeightsError(f"cannot read {path}: {reason}")


def _check_sums(path: Path) -> None:
    """Compare every record of a torch file with its CRC, which torch writes but does not read."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"the checksum of {damaged} differs. Fetch it again")


def _why_unreadable(error: Exception) -> str:
    text = str(error)
    if isinstance(error, pickle.UnpicklingError):  # torch's own text advises to load it unsafely
        wanted = re.search(r"(?:GLOBAL|[Ii]mport)\s+`?([\w.]+\.\w+)", text)
        what = f" ({wanted[1]})" if wanted else ""
        return (
            f"it is damaged, or holds more than plain tensors{what}. Nothing was executed. "
            "Use the file published for inference (pytorch_model.bin, model.safetensors)"
        )
    first = text.strip().splitlines()[0] if text.strip() else "no reason given"
    return f"it is truncated, damaged or no checkpoint ({type(error).__name__}: {first[:200]})"


def _only_tensors(path: Path, content: Any) -> dict[str, Tensor]:
    where = "top level"
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content, where = content[wrapper], f"'{wrapper}'"
            break
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, expected a dictionary of tensors")
    if not content:
        raise WeightsError(f"{path} holds no tensors (its {where} is empty)")
    tensors: dict[str, Tensor] = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(
                f"{path} is no plain checkpoint: {name!r} in its {where} is a {type(value).__name__}, "
                "expected a tensor (tensors may also lie below 'state_dict' or 'model')"
            )
        if (
            value.layout is not torch.strided
            or value.is_quantized
            or value.is_complex()
            or value.device.type != "cpu"
        ):
            raise WeightsError(
                f"{path}: '{name}' is sparse, quantised, complex or without data; dense real tensors are read"
            )
        tensors[name] = value.detach()
    return tensors


# Spelling and identity -------------------------------------------------------------------------------


def strip_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Names without `prefix` if all have it, unchanged if none has; WeightsError if only some have."""
    having = [name for name in tensors if name.startswith(prefix)]
    if not having:
        return dict(tensors)
    if len(having) < len(tensors):
        other = next(name for name in tensors if not name.startswith(prefix))
        raise WeightsError(
            f"'{having[0]}' begins with '{prefix}' but '{other}' does not: two models in one file?"
        )
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


_GAIN_SPELLINGS = (".weight_g", ".parametrizations.weight.original0")
_DIRECTION_SPELLINGS = (".weight_v", ".parametrizations.weight.original1")


def normalise_weight_norm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Both spellings of weight norm as the old one, `weight_g` and `weight_v`; all else unchanged."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for old, new in (_GAIN_SPELLINGS, _DIRECTION_SPELLINGS):
            name = name.removesuffix(new) + old if name.endswith(new) else name
        if name in renamed:
            raise WeightsError(f"'{name}' is there twice, in both spellings of weight norm")
        renamed[name] = tensor
    return renamed


def fuse_weight_norm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every weight-normed tensor as the plain `weight = g * v / ||v||` it stands for, in any spelling.

    The norm runs over the axes along which the gain `g` has length 1 (MERT: `(1, 1, 128)`, one per tap).

    Raises:
        WeightsError: a gain without direction or the reverse, or a plain weight beside them.
    """
    fused = normalise_weight_norm(tensors)
    gain_suffix, direction_suffix = _GAIN_SPELLINGS[0], _DIRECTION_SPELLINGS[0]
    stems = {n.removesuffix(gain_suffix) for n in fused if n.endswith(gain_suffix)}
    stems |= {n.removesuffix(direction_suffix) for n in fused if n.endswith(direction_suffix)}
    for stem in sorted(stems):
        if stem + gain_suffix not in fused or stem + direction_suffix not in fused:
            raise WeightsError(f"'{stem}' has only one of weight_g and weight_v")
        if stem + ".weight" in fused:
            raise WeightsError(f"'{stem}' has a plain weight and a weight-normed one")
        gain, direction = fused.pop(stem + gain_suffix), fused.pop(stem + direction_suffix)
        if gain.ndim != direction.ndim:
            raise WeightsError(
                f"'{stem}': weight_g {tuple(gain.shape)} does not fit {tuple(direction.shape)}"
            )
        axes = [axis for axis, length in enumerate(gain.shape) if length == 1]
        fused[stem + ".weight"] = direction * (gain / direction.norm(dim=axes, keepdim=True))
    return fused


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors whose names or shapes are not those of `expected` (its values are not read).

    Raises:
        WeightsError: names the first missing, unexpected and mis-shaped tensors.
    """
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    misshaped = [
        f"'{name}' is {tuple(tensors[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in expected
        if name in tensors and tensors[name].shape != expected[name].shape
    ]
    found = [("missing", [f"'{n}'" for n in missing]), ("unexpected", [f"'{n}'" for n in unexpected])]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for kind, names in [*found, ("of another shape", misshaped)]
        if names
    ]
    if problems:
        raise WeightsError(f"these tensors are not {what}: {'; '.join(problems)}")


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, dtype, shape and bytes of every tensor, in the order of names.

    Given the state dict of a backbone, two files that spell the same weights differently agree.
    """
    names = sorted(tensors)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # hashing releases the interpreter lock
        digests = list(pool.map(lambda name: _bytes_hash(tensors[name]), names))
    total = hashlib.sha256()
    for name, digest in zip(names, digests, strict=True):
        tensor = tensors[name]
        header = json.dumps([name, str(tensor.dtype), list(tensor.shape)])
        total.update(header.encode() + digest)
    return total.hexdigest()


def _bytes_hash(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).digest()
