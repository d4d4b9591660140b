"""Official weights as facts and files: where they live, how to tell them apart, and how names are spelt in them.

This module knows no backbone; `loading.py` brings the two together, `official_files.py` gets the files, `checkpoints/`
reads them. A checkpoint is data from strangers: all that is wrong with it is a `WeightsError` that names the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from audiation.checkpoints import (
    CHECKPOINT_SUFFIXES,
    CheckpointTensors,
    WeightsError,
    file_sha256,
    read_checkpoint,
)

__all__ = [
    "CHECKPOINT_SUFFIXES",
    "NotOnHubError",
    "OfficialFile",
    "OfficialWeights",
    "UnverifiedWeightsWarning",
    "WeightsError",
    "check_tensors",
    "fetch",
    "file_sha256",
    "find_checkpoint",
    "fuse_weight_norm",
    "normalise_weight_norm",
    "read_checkpoint",
    "read_config",
    "strip_prefix",
    "tensors_hash",
    "verify_file",
]

ALLOW_UNVERIFIED_VARIABLE = "AUDIATION_ALLOW_UNVERIFIED_HASH"


class NotOnHubError(WeightsError):
    """The Hub was reached and has no such file in that repository."""


class UnverifiedWeightsWarning(UserWarning):
    """Weights are used although they are not the file that public records describe."""


@dataclass(frozen=True)
class OfficialFile:
    """One published file: on the Hugging Face Hub, at an address, a wheel on the Python package index, or here.

    repo_id: of the Hub; "" where the file is elsewhere.
    url: address of a file that is not on the Hub.
    package: name==version of a Python package whose wheel this is.
    shipped: it comes with this package (`audiation/data`).
    member: what is meant of a zip archive (a wheel is one): the path of a file, or of a folder, with "/" at its end.
    size_bytes, sha256: of the file as published, so of the archive where there is a member. None where nobody whom we
        can name has recorded them.
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
    shipped: bool = False

    def __post_init__(self) -> None:
        assert sum(map(bool, (self.repo_id, self.url, self.package, self.shipped))) == 1, (
            f"one place of {self.filename}"
        )

    @property
    def place(self) -> str:
        """Where it is published, for people."""
        if self.repo_id:
            return f"Hub repository {self.repo_id}"
        if self.shipped:
            return "this package"
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
    further: prefix -> another checkpoint whose tensors come to those of the first, under names with that prefix.
    not_in_hash: fields of the config that change how the model is computed, and nothing of what.
    unneeded: regular expression of the beginning of official names that no forward pass reads; a conversion to
        safetensors leaves them out (state of optimisers, unused blocks). "" keeps all.
    """

    checkpoint: OfficialFile
    config: OfficialFile | None
    licence: str
    licence_note: str = ""
    default_config: Mapping[str, Any] = field(default_factory=dict)
    revision: str | None = None
    further: Mapping[str, OfficialFile] = field(default_factory=dict)
    not_in_hash: tuple[str, ...] = ()
    unneeded: str = ""

    def __post_init__(self) -> None:
        assert "" not in self.further, f"a prefix for every further file beside {self.checkpoint.filename}"
        re.compile(self.unneeded)

    @property
    def files(self) -> tuple[OfficialFile, ...]:
        config = () if self.config is None else (self.config,)
        return (self.checkpoint, *config, *self.further.values())


# Getting files ---------------------------------------------------------------------------------------


def fetch(file: OfficialFile, revision: str | None = None, local_files_only: bool = False) -> Path:
    """A file of the Hub from the Hugging Face cache, downloaded if need be (`HF_HOME` and `HF_HUB_OFFLINE` count).

    Not verified here: see `verify_file`. Files that may be elsewhere: `official_files.fetch_official`.

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

    Of a file with a member it is the archive that is compared, so `path` is the archive.

    allow_unverified_hash: accept a mismatch with a third-party record, with an `UnverifiedWeightsWarning`.
        The environment variable AUDIATION_ALLOW_UNVERIFIED_HASH=1 does the same.
    others: SHA-256 -> whose file that is; such a file is refused whatever is allowed.

    Raises:
        WeightsError: not that file.
    """
    if expected.sha256 is None and expected.size_bytes is None:
        return
    if not path.is_file():  # reading a pipe would never end
        raise WeightsError(f"{path} is no file; {expected.filename} of {expected.place} is one")
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
    found = sorted(p for p in directory.iterdir() if p.is_file() and p.name.endswith(CHECKPOINT_SUFFIXES))
    if len(found) == 1:
        return found[0]
    what = f"several checkpoints ({', '.join(p.name for p in found[:4])})" if found else "no checkpoint"
    wanted = official_filename or "model.safetensors or pytorch_model.bin"
    raise WeightsError(f"{directory} holds {what}. Expected {wanted}; give the path of the file itself.")


# Configs ----------------------------------------------------------------------------------------


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object from a file; WeightsError if it is anything else."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict):
        raise WeightsError(f"cannot read {path}: expected a JSON object, got {type(config).__name__}")
    return config


OWN_MARK = ("trained_by", "audiation")  # in the header of weights that `pretraining` wrote


def is_own_training(path: Path) -> bool:
    """Whether a file says that it was trained here, so that it is not the official one and need not be."""
    if not path.is_file():  # reading a pipe would never end
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get(OWN_MARK[0]) == OWN_MARK[1]
    except (OSError, SafetensorError):
        return False


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
    """Refuse tensors whose names or shapes are not those of `expected`. No values are read.

    Floating numbers may have another width than expected; whole numbers in their place are no weights (quantised, or
    another model's). Where `expected` is whole itself, and in torch's counts of batches, any type will do.

    Raises:
        WeightsError: names the first missing, unexpected, mis-shaped and whole-numbered tensors.
    """
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    misshaped = [
        f"'{name}' is {_shape(tensors, name)}, expected {tuple(expected[name].shape)}"
        for name in expected
        if name in tensors and _shape(tensors, name) != tuple(expected[name].shape)
    ]
    whole = [
        f"'{name}' is {dtype}, expected {expected[name].dtype}"
        for name in expected
        if name in tensors
        and expected[name].is_floating_point()
        and not name.endswith("num_batches_tracked")  # layouts of shapes alone do not say that it is whole
        and not (dtype := _dtype(tensors, name)).is_floating_point
    ]
    found = [("missing", [f"'{n}'" for n in missing]), ("unexpected", [f"'{n}'" for n in unexpected])]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for kind, names in [*found, ("of another shape", misshaped), ("without floating numbers", whole)]
        if names
    ]
    if problems:
        raise WeightsError(f"these tensors are not {what}: {'; '.join(problems)}")


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """Without reading the tensor where that is possible."""
    return tensors.infos[name].shape if isinstance(tensors, CheckpointTensors) else tuple(tensors[name].shape)


def _dtype(tensors: Mapping[str, Tensor], name: str) -> torch.dtype:
    return tensors.infos[name].dtype if isinstance(tensors, CheckpointTensors) else tensors[name].dtype


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
