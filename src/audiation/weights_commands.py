"""`audiation weights list|get|verify|where`: which weights there are, fetching them, checking them, where they lie."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.text import Text

from audiation.backbones import BACKBONES, BackboneSpec
from audiation.fetching import FetchProgress
from audiation.loading import load_backbone, mapped_file
from audiation.official_files import checkpoint_in, fetch_official, folder_of
from audiation.weights import OfficialFile, OfficialWeights, WeightsError, verify_file


def weights(
    action: tyro.conf.Positional[Literal["list", "get", "verify", "where"]],
    name: tyro.conf.Positional[str | None] = None,
    /,
    allow_unverified_hash: bool = False,
) -> None:
    """Say which official weights there are and what one may do with them, fetch some, check them, say where they lie.

    list: file, size, licence, commercial use, and whether it is here. get: fetch from the official place, resumed after
    a stop, check, and convert to safetensors where the format cannot be mapped into memory. verify: size and SHA-256
    where they are known, then every tensor's name and shape; the exit code is 1 if something is missing or differs.
    where: the paths in the caches, one a line, of what is here.

    Args:
        action: list, get, verify or where.
        name: backbone as in `audiation list backbones`.
        allow_unverified_hash: accept a file that differs from a third party's record of it, with a warning.
    """
    if action == "list":
        if name is not None or allow_unverified_hash:
            raise ValueError("weights list takes neither a name nor --allow-unverified-hash")
        list_weights()
    elif name is None:
        raise ValueError(f"weights {action} needs a name from `audiation weights list`")
    elif action == "get":
        get(name, allow_unverified_hash)
    elif action == "verify":
        if verify(name, allow_unverified_hash):
            sys.exit(1)
    elif allow_unverified_hash:
        raise ValueError("weights where does not take --allow-unverified-hash")
    else:
        where(name)


def list_weights(console: Console | None = None) -> None:
    """Every backbone with its files."""
    console = console or Console()
    for name in BACKBONES:
        spec = BACKBONES[name]
        official: OfficialWeights | None = spec.weights
        console.print(f"{name}: {spec.summary}", highlight=False, markup=False)
        if official is None:
            _indented(console, "no published weights" if spec.from_published else "needs no weights")
            continue
        for file in official.files:
            size = f"{file.size_bytes:,} bytes" if file.size_bytes else "size not known"
            here = "here" if _path_here(file, official.revision) else "not here"
            _indented(console, f"{file.filename}, {size}, {here} ({file.place})")
        use = "commercial use allowed" if spec.commercial_use else "no commercial use"
        _indented(console, f"{official.licence} ({use}). {official.licence_note}".strip())


def get(name: str, allow_unverified_hash: bool = False, console: Console | None = None) -> list[Path]:
    """Fetch, verify and convert the official files of a backbone; returns what `load_backbone` will read.

    Raises:
        UnknownNameError: no such backbone.
        WeightsError: it has no official files, or they cannot be had or are not what was published.
    """
    console = console or Console()
    spec, official = _official(name)
    use = "allowed" if spec.commercial_use else "NOT allowed"
    notice = f"{name}: weights under {official.licence}; commercial use {use}. {official.licence_note}"
    console.print(notice.strip(), highlight=False, markup=False, soft_wrap=True)
    made = []
    for file in official.files:
        path = _fetch(file, official.revision, allow_unverified_hash, console)
        if not file.member:
            verify_file(path, file, allow_unverified_hash)
        if file != official.config:
            path = mapped_file(spec, checkpoint_in(path))
        console.print(f"{file.filename}: {path}", highlight=False, markup=False, soft_wrap=True)
        made.append(path)
    return made


def verify(name: str, allow_unverified_hash: bool = False, console: Console | None = None) -> list[str]:
    """Check what is here of a backbone's official files, and that it is this backbone; returns what is wrong.

    Sizes and SHA-256 are compared as `load_backbone` does, then the whole model is made from all tensors.

    Raises:
        UnknownNameError: no such backbone.
        WeightsError: it has no official files.
    """
    console = console or Console()
    _, official = _official(name)
    problems = [
        f"{file.filename} is not here. Get it: audiation weights get {name}"
        for file in official.files
        if _path_here(file, official.revision) is None
    ]
    if not problems:
        try:
            backbone = load_backbone(name, allow_unverified_hash=allow_unverified_hash)
            published = BACKBONES[name].published_parameters
            count = sum(p.numel() for p in backbone.parameters()) if published is None else published
            console.print(
                f"{name}: {len(official.files)} files, {count:,} parameters, weights {backbone.weights_hash[:16]}",
                highlight=False,
            )
        except WeightsError as error:
            problems.append(str(error))
    for line in problems:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    console.print("all right" if not problems else f"{len(problems)} missing or different", highlight=False)
    return problems


def where(name: str, console: Console | None = None) -> list[Path]:
    """Print the path of every official file that is here, and of nothing else.

    Raises: as `verify`; also WeightsError where nothing is here, with the place where a copy would be taken.
    """
    console = console or Console()
    _, official = _official(name)
    found = [path for file in official.files if (path := _path_here(file, official.revision))]
    if not found:
        takes = "; ".join(_wanted_places(official))
        raise WeightsError(
            f"no file of {name} is here. Get them: audiation weights get {name}. A copy goes to: {takes}"
        )
    for path in found:
        console.print(str(path), highlight=False, markup=False, soft_wrap=True)
    return found


def _official(name: str) -> tuple[BackboneSpec, OfficialWeights]:
    spec = BACKBONES[name]
    if spec.weights is None:
        reason = (
            "no official weights of it are known" if spec.from_published else "it is computed by a formula"
        )
        raise WeightsError(f"'{name}' has no files: {reason}. See `audiation weights list`.")
    return spec, spec.weights


def _path_here(file: OfficialFile, revision: str | None) -> Path | None:
    try:
        return checkpoint_in(fetch_official(file, revision, local_files_only=True))
    except WeightsError:
        return None


def _wanted_places(official: OfficialWeights) -> Iterator[str]:
    for file in official.files:
        if file.repo_id:
            yield f"the Hugging Face cache ({file.repo_id}, {file.filename})"
        elif file.shipped:
            yield f"this package ({file.filename})"
        else:
            yield str(folder_of(file) / file.filename)


def _fetch(file: OfficialFile, revision: str | None, allow_unverified_hash: bool, console: Console) -> Path:
    columns = (TextColumn("{task.description}"), BarColumn(24), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not file.url) as bar:
        row = bar.add_task(Path(file.filename).name, total=file.size_bytes)

        def show(state: FetchProgress) -> None:
            bar.update(row, completed=state.done_bytes, total=state.total_bytes)

        return fetch_official(file, revision, allow_unverified_hash=allow_unverified_hash, progress=show)


def _indented(console: Console, text: str) -> None:
    console.print(Padding(Text(text), (0, 0, 0, 4)))
