"""`load_backbone`: a name and weights -> a backbone that is what it says it is.

Real weights are checked four times: size and SHA-256 where they are known, config against the model that was
asked for, names and shapes of every tensor, and what is computed against the fingerprint of the first load.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiation.backbones import BACKBONES, Backbone, BackboneSpec
from audiation.backbones.precision import Precision, set_precision
from audiation.cache import cache_dir, keep_text
from audiation.checkpoints import CheckpointTensors
from audiation.checkpoints.conversion import cached_conversion, is_mapped_as_it_is
from audiation.fingerprint import check_fingerprint
from audiation.official_files import check_unpacked, checkpoint_in, fetch_official
from audiation.own_backbones import is_own_backbone, load_own_backbone, name_in_file, own_file_sha256
from audiation.weights import (
    CHECKPOINT_SUFFIXES,
    NotOnHubError,
    OfficialFile,
    OfficialWeights,
    WeightsError,
    fetch,
    find_checkpoint,
    is_own_training,
    read_checkpoint,
    read_config,
    tensors_hash,
    verify_file,
)

CONVENTION_MARK = "@"  # between a hash and the convention, where it is not the default


def load_backbone(
    name: str,
    weights: str | Path | None = None,
    *,
    num_layers: int | None = None,
    seed: int = 0,
    precision: Precision = "fp32",
    device: str | torch.device = "cpu",
    config: Mapping[str, Any] | None = None,
    convention: str = "default",
    allow_unverified_hash: bool = False,
) -> Backbone:
    """A backbone in eval mode, with `weights_hash` (for stores and results) and `weights_source` set.

    Args:
        name: as in `audiation list backbones`, or "path/to/file.py:name", which executes that file
            (`own_backbones.load_own_backbone`).
        weights: None: the official file, fetched from its official place once. "random": fresh weights
            drawn from `seed`. Otherwise a local file, a local directory (checkpoint and its JSON), or a Hub
            id "owner/name".
        num_layers: keep the first blocks only.
        seed: read only with weights="random"; the global generator is neither read nor moved.
        precision: "bf16" computes stem and encoder in bfloat16.
        config: fields of the published config that replace those found or known.
        convention: how clips are cut and normalised, one of the backbone's `conventions`; another than "default" is
            part of `weights_hash`, so that features of two conventions never meet.
        allow_unverified_hash: accept a file that differs from a third party's record of it, with a warning.

    Raises:
        UnknownNameError: no such backbone.
        OwnBackboneError: a file that is not there, cannot be executed, or defines no such backbone.
        WeightsError: weights that are missing, damaged, or another model's; says what to do.
        ValueError: arguments that do not go together.
    """
    spec = load_own_backbone(name) if is_own_backbone(name) else BACKBONES[name]
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision is 'fp32' or 'bf16', got {precision!r}")
    if num_layers is not None and (type(num_layers) is not int or num_layers < 0):
        raise ValueError(f"num_layers is a whole number >= 0 or None, got {num_layers!r}")
    if convention not in spec.conventions:
        raise ValueError(f"'{name}' has the conventions {', '.join(spec.conventions)}, got '{convention}'")
    check_device(device)
    with torch.random.fork_rng(devices=[]):  # whatever a constructor draws, the caller's generator stays
        if spec.from_published is None:
            backbone = _build_without_weights(spec, weights, num_layers, config)
        elif weights == "random":
            backbone = _build_random(spec, num_layers, seed, config)
        else:
            found = _find(spec, weights, config, allow_unverified_hash)
            backbone = _build_published(spec, found, num_layers)
    backbone.name = name
    if convention != "default":
        backbone.use_convention(convention)
        backbone.weights_hash = f"{backbone.weights_hash}{CONVENTION_MARK}{convention}"
    backbone.eval().to(device)
    set_precision(backbone, precision)
    return backbone


def published_checkpoint(name: str, weights: str | Path | None = None) -> Mapping[str, Tensor]:
    """All tensors of a checkpoint under their published names, also heads and codebooks, which no forward pass reads.

    Args:
        weights: as in `load_backbone`, but not "random".

    Raises:
        UnknownNameError, WeightsError: as `load_backbone`.
        ValueError: a backbone without weights.
    """
    spec = BACKBONES[name]
    if spec.from_published is None or weights == "random":
        raise ValueError(f"there is no checkpoint of '{name}' with weights={weights!r}")
    return _read_all(spec, _find(spec, weights, None, False))


def convention_of(weights_hash: str) -> str:
    """The convention that a recorded hash was made under."""
    return weights_hash.partition(CONVENTION_MARK)[2] or "default"


def check_device(device: str | torch.device) -> None:
    """ValueError for a device that there is not, also where a backbone has nothing to put on it."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch: an unknown name, or a build without it
        reason = str(error).partition("\n")[0][:120]
        usable = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ValueError(
            f"device '{device}' cannot be used here ({reason}). There is: {', '.join(usable)}."
        ) from error


def mapped_file(spec: BackboneSpec, path: Path) -> Path:
    """The checkpoint itself where its format can be mapped into memory, else its conversion in the cache directory.

    A conversion is made once, without what the model does not need (`OfficialWeights.unneeded`). Where the cache
    directory cannot be written there is a warning, and the checkpoint is read as it is.

    Raises:
        WeightsError: it cannot be read.
    """
    if is_mapped_as_it_is(path):
        return path
    official: OfficialWeights | None = spec.weights
    rule = official.unneeded if official is not None else ""
    unneeded = re.compile(rule)
    try:
        return cached_conversion(
            path, (lambda name: unneeded.match(name) is not None) if rule else None, rule
        )
    except OSError as error:
        text = f"cannot keep a conversion of {path} ({error}); it is read anew. $AUDIATION_CACHE may name another place"
        warnings.warn(text, stacklevel=2)
        return path


def _build_without_weights(
    spec: BackboneSpec, weights: str | Path | None, num_layers: int | None, config: Mapping[str, Any] | None
) -> Backbone:
    given = {"weights": weights, "num_layers": num_layers, "config": config}
    for argument, value in given.items():
        if value is not None:
            raise ValueError(
                f"'{spec.name}' is computed by a formula and has no {argument}, got {argument}={value!r}. "
                f"Leave {argument} away."
            )
    backbone = spec.build()
    if own_file_sha256(spec.name) is not None:
        # nobody else vouches for the tensors that its `build` may read from somewhere
        known = f"{backbone.weights_hash} {tensors_hash(backbone.state_dict())}"
        backbone.weights_hash = _with_file(spec, known)
    return backbone


def _with_file(spec: BackboneSpec, weights_hash: str) -> str:
    """The hash of weights together with that of the user's file that computes with them: an edited file never meets
    features of the old one. As it is for backbones that come with this package."""
    sha256 = own_file_sha256(spec.name)
    if sha256 is None:
        return weights_hash
    return hashlib.sha256(f"{weights_hash} {name_in_file(spec.name)} {sha256}".encode()).hexdigest()


def _build_random(
    spec: BackboneSpec, num_layers: int | None, seed: int, config: Mapping[str, Any] | None
) -> Backbone:
    if config is not None:
        raise ValueError("config describes published weights; with weights='random' leave it away")
    backbone = spec.build(num_layers=num_layers, generator=torch.Generator().manual_seed(seed))
    backbone.weights_hash = _with_file(spec, tensors_hash(backbone.state_dict()))
    backbone.weights_source = f"random:seed={seed}"
    return backbone


# Published weights: find, verify, build --------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """A checkpoint on this machine.

    config: published fields, with the known ones filled in and the caller's put on top.
    changed: fields in which `config` differs from what this package knows; part of the weights hash.
    further: prefix -> a further checkpoint.
    source: for people and results; no machine paths.
    """

    checkpoint: Path
    config: Mapping[str, Any]
    changed: Mapping[str, Any]
    source: str
    further: Mapping[str, Path] = field(default_factory=dict)


def _find(
    spec: BackboneSpec,
    weights: str | Path | None,
    config: Mapping[str, Any] | None,
    allow_unverified_hash: bool,
) -> _Found:
    official: OfficialWeights | None = spec.weights
    if weights is None and official is None:
        raise WeightsError(
            f"no official weights of '{spec.name}' are known. Give a path, a Hub id or 'random' as weights."
        )
    if official is not None:
        show_licence_once(spec)
    if weights is None:
        assert official is not None
        checkpoint = _fetch_official(official.checkpoint, official.revision, allow_unverified_hash)
        config_path = None
        if official.config:
            config_path = _fetch_official(official.config, official.revision, allow_unverified_hash)
        place = official.checkpoint
        source = (
            f"hub:{place.repo_id}" if place.repo_id else f"{place.url or place.package or place.filename}"
        )
    elif (path := _existing(weights)) is not None:
        checkpoint = (
            find_checkpoint(path, official.checkpoint.filename if official else None)
            if path.is_dir()
            else path
        )
        _refuse_siblings_checkpoint(spec, checkpoint)
        config_path = _config_beside(spec, checkpoint)
        source = f"file:{checkpoint.name}"
    elif re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(weights)) and not str(weights).endswith(
        CHECKPOINT_SUFFIXES
    ):
        checkpoint, config_path = _fetch_repository(spec, str(weights))
        source = f"hub:{weights}"
    else:
        shown = str(weights) if len(str(weights)) <= 300 else f"{str(weights)[:300]}..."
        raise WeightsError(
            f"weights='{shown}' is no file or directory here and no Hub id (owner/name). "
            f"Leave it away for the official weights of {spec.name}, or use 'random'."
        )
    further = _further(spec, None if weights is None else checkpoint, allow_unverified_hash)
    if official is not None:
        pairs = [(checkpoint, official.checkpoint), (config_path, official.config)]
        pairs += [(further[prefix], official.further[prefix]) for prefix in further]
        for path_or_none, file in pairs:
            if path_or_none is None or file is None:
                continue
            if weights is not None and is_own_training(path_or_none):  # a user's, which nobody has published
                continue
            _verify(path_or_none, file, weights is None, allow_unverified_hash, _known_hashes(spec))
    merged, changed = _merge_config(spec, config_path, config)
    return _Found(checkpoint, merged, changed, source, further)


def _existing(weights: str | Path) -> Path | None:
    """The path that is meant, if anything is there; texts that no path can be are none."""
    try:
        path = Path(weights).expanduser()
        return path if str(weights) and path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, with a null byte, the home of nobody
        return None


def _fetch_official(file: OfficialFile, revision: str | None, allow_unverified_hash: bool) -> Path:
    """From the cache without asking the Hub: it would be asked in vain for half a minute offline."""
    allowed = allow_unverified_hash
    try:
        path = fetch_official(file, revision, local_files_only=True, allow_unverified_hash=allowed)
    except WeightsError:
        path = fetch_official(file, revision, allow_unverified_hash=allowed)
    return checkpoint_in(path)


def _further(spec: BackboneSpec, beside: Path | None, allow_unverified_hash: bool) -> dict[str, Path]:
    """The further checkpoints of a model, by prefix: official ones, or beside the checkpoint that was given.

    Not beside it: the given checkpoint has to hold the tensors of all, under names with the prefix.
    """
    official: OfficialWeights | None = spec.weights
    if official is None:
        return {}
    if beside is None:
        return {
            prefix: _fetch_official(file, official.revision, allow_unverified_hash)
            for prefix, file in official.further.items()
        }
    places = {prefix: beside.parent / Path(file.filename).name for prefix, file in official.further.items()}
    return {prefix: path for prefix, path in places.items() if path.is_file()}


def _verify(
    path: Path, file: OfficialFile, fetched: bool, allow_unverified_hash: bool, others: Mapping[str, str]
) -> None:
    """A file against its record; what was unpacked of an archive against what it was then."""
    if not file.member:
        verify_file(path, file, allow_unverified_hash, others)
    elif fetched and (problems := check_unpacked(file)):
        raise WeightsError(f"{problems[0]}. Delete {path.parent} and fetch it again.")


def _fetch_repository(spec: BackboneSpec, repo_id: str) -> tuple[Path, Path | None]:
    """Checkpoint and config of any Hub repository, under the official names or the Hub's usual ones."""
    official: OfficialWeights | None = spec.weights
    if official is None or official.checkpoint.repo_id != repo_id:
        for other, theirs in _others(spec):
            if theirs.checkpoint.repo_id == repo_id:
                raise WeightsError(f"Hub repository {repo_id} holds {other}, not {spec.name}")
    names = ["model.safetensors", "pytorch_model.bin"]
    if official is not None:
        names = [official.checkpoint.filename, *(n for n in names if n != official.checkpoint.filename)]
    checkpoint, failure = None, None
    for filename in names:
        unreachable = failure is not None and not isinstance(failure, NotOnHubError)
        try:
            checkpoint = fetch(OfficialFile(repo_id, filename), local_files_only=unreachable)
            break
        except WeightsError as error:
            failure = failure or error
    if checkpoint is None:
        assert failure is not None
        raise failure
    config_name = official.config.filename if official is not None and official.config else "config.json"
    try:
        return checkpoint, fetch(OfficialFile(repo_id, config_name))
    except NotOnHubError:
        return checkpoint, None


def _others(spec: BackboneSpec) -> Iterator[tuple[str, OfficialWeights]]:
    for other in BACKBONES:
        if other != spec.name and BACKBONES[other].weights is not None:
            yield other, BACKBONES[other].weights


def _config_beside(spec: BackboneSpec, checkpoint: Path) -> Path | None:
    """The published JSON in the checkpoint's directory; a sibling's there instead is a swap and refused."""
    official: OfficialWeights | None = spec.weights
    name = official.config.filename if official is not None and official.config is not None else "config.json"
    if (path := checkpoint.parent / name).is_file():
        return path
    for other, theirs in _siblings(spec):
        if theirs.config is not None and (path := checkpoint.parent / theirs.config.filename).is_file():
            raise WeightsError(
                f"{path} belongs to {other}; {spec.name} needs {name}. With the wrong one every feature "
                f"would silently be wrong. Put {name} there, or neither: its values are known."
            )
    return None


def _refuse_siblings_checkpoint(spec: BackboneSpec, checkpoint: Path) -> None:
    for other, theirs in _siblings(spec):
        if checkpoint.name == theirs.checkpoint.filename != spec.weights.checkpoint.filename:
            raise WeightsError(
                f"{checkpoint} is {other}'s file; {spec.name} is {spec.weights.checkpoint.filename}"
            )


def _siblings(spec: BackboneSpec) -> Iterator[tuple[str, OfficialWeights]]:
    """Models published in the same Hub repository, whose files are easily swapped."""
    if spec.weights is not None:
        for other, theirs in _others(spec):
            if theirs.checkpoint.repo_id and theirs.checkpoint.repo_id == spec.weights.checkpoint.repo_id:
                yield other, theirs


def _known_hashes(spec: BackboneSpec) -> dict[str, str]:
    return {
        file.sha256: f"{file.filename} of {other}"
        for other, theirs in _others(spec)
        for file in theirs.files
        if file.sha256 is not None
    }


def _merge_config(
    spec: BackboneSpec, path: Path | None, given: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config to build from, and the fields in which the caller departs from what is published."""
    known = dict(spec.weights.default_config) if spec.weights is not None else {}
    given = dict(given or {})
    if given and spec.weights is not None and spec.weights.config is None and not known:
        raise ValueError(f"'{spec.name}' has nothing to configure, got config={given!r}. Leave config away.")
    found = read_config(path) if path is not None else {}
    for key, value in known.items():
        if key in found and key not in given and not _same(found[key], value):
            raise WeightsError(
                f"{path} is not {spec.name}'s: it says {key} = {found[key]!r}, {spec.name} has {value!r}. "
                f"Give the directory of {spec.name}, or config={{'{key}': ...}} if you mean it."
            )
    published = {**known, **found}
    without_effect = spec.weights.not_in_hash if spec.weights is not None else ()
    changed = {
        k: v
        for k, v in given.items()
        if k not in without_effect and (k not in published or not _same(published[k], v))
    }
    return {**published, **given}, changed


def _same(a: Any, b: Any) -> bool:
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True) or (
        isinstance(a, (int, float)) and isinstance(b, (int, float)) and float(a) == float(b)
    )


def _build_published(spec: BackboneSpec, found: _Found, num_layers: int | None) -> Backbone:
    assert spec.from_published is not None
    tensors = _read_all(spec, found)
    try:
        backbone = spec.from_published(tensors, found.config, num_layers=num_layers)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:  # TypeError: from a config's values
        reason = f"no {error}" if type(error) is KeyError else str(error)
        raise WeightsError(f"cannot make {spec.name} from {found.checkpoint}: {reason}") from error
    rate = _declared_rate(found)
    if rate is not None and rate != backbone.sample_rate_hz:
        raise WeightsError(
            f"the files beside {found.checkpoint} say {rate} Hz, {spec.name} takes "
            f"{backbone.sample_rate_hz} Hz: another model of that family?"
        )
    backbone.name = name_in_file(spec.name)  # its fingerprint is the same wherever the file lies
    backbone.weights_hash = tensors_hash(backbone.state_dict())
    if found.changed:
        text = backbone.weights_hash + json.dumps(found.changed, sort_keys=True)
        backbone.weights_hash = hashlib.sha256(text.encode()).hexdigest()
    backbone.weights_hash = _with_file(spec, backbone.weights_hash)
    backbone.weights_source = found.source
    check_fingerprint(backbone)
    return backbone


def _read_all(spec: BackboneSpec, found: _Found) -> Mapping[str, Tensor]:
    """Official name -> tensor, over all checkpoints of the model, mapped into memory."""
    tensors = read_checkpoint(mapped_file(spec, found.checkpoint))
    if not found.further:
        return tensors
    # Not a dictionary of tensors: of a format that is not mapped it would be all of them in memory.
    places = {name: (tensors, name) for name in tensors}
    for prefix, path in found.further.items():
        part = read_checkpoint(mapped_file(spec, path))
        for name in part:
            if prefix + name in places:
                raise WeightsError(f"{found.checkpoint} and {path} both hold '{prefix + name}'")
            places[prefix + name] = (part, name)

    def read(name: str) -> Tensor:
        part, inside = places[name]
        return part[inside]

    infos = {name: part.infos[inside] for name, (part, inside) in places.items()}
    return CheckpointTensors(found.checkpoint, infos, read)


def _declared_rate(found: _Found) -> int | None:
    """Sample rate that the published files state, which tells MERT v0 from v1: their tensors look alike."""
    preprocessor = found.checkpoint.parent / "preprocessor_config.json"
    if preprocessor.is_file():
        return read_config(preprocessor).get("sampling_rate")
    return found.config.get("sample_rate")


def show_licence_once(spec: BackboneSpec) -> None:
    """Print the licence of official weights to stderr, the first time on this machine."""
    official: OfficialWeights = spec.weights
    use = "allowed" if spec.commercial_use else "NOT allowed"
    notice = f"{spec.name}: weights under {official.licence}; commercial use {use}. {official.licence_note}"
    notice = notice.strip()
    marker = cache_dir("licences", f"{Path(spec.name).name}.txt")
    if marker.is_file() and marker.read_text(encoding="utf-8") == notice:
        return
    print(notice, file=sys.stderr)
    keep_text(marker, notice)
