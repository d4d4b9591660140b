"""`audiation datasets list|get|verify|match`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from audiation.datasets import DATASETS
from audiation.datasets.base import DatasetInfo
from audiation.fetching import FetchProgress, fetch
from audiation.listing import render
from audiation.splits import load_dataset

SHOWN_LINES = 20


def list_datasets(console: Console | None = None) -> None:
    """What there is, with size, licence, and whether it can be fetched."""
    render("datasets", console)


def get(name: str, data_root: Path | None, *, agreed: bool, console: Console | None = None) -> Path:
    """Fetch the files of a data set into `data_root/name`; returns the folder.

    Raises:
        UnknownNameError: no data set of that name.
        ValueError: it cannot be fetched, nobody agreed, or there is no place to put it.
        FetchError: see `fetching.fetch`.
    """
    console = console or Console()
    kind = DATASETS[name]
    info = kind.info
    console.print(_describe(info), highlight=False, soft_wrap=True, markup=False)
    if not info.downloads:
        raise ValueError(
            f"{name} cannot be fetched by a program: {info.where}. docs/datasets.md says where its files go; then "
            f"`audiation datasets verify {name}` checks them."
        )
    root = _data_root(data_root) / name
    if not agreed and not _agrees(console, root):
        raise ValueError("not fetched. With --yes nobody is asked.")
    columns = (TextColumn("{task.description}"), BarColumn(24), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as bar:
        for download in info.downloads:
            row = bar.add_task(download.path, total=download.num_bytes)

            def show(state: FetchProgress, row: int = row) -> None:
                bar.update(row, completed=state.done_bytes, total=state.total_bytes)  # type: ignore[arg-type]

            if not fetch(download, root, progress=show):
                console.print(f"{download.path}: there already", highlight=False)
    console.print(
        f"Fetched into {root}. Check it: audiation datasets verify {name}", highlight=False, soft_wrap=True
    )
    return root


def verify(
    name: str, data_root: Path | None, metadata_root: Path | None, console: Console | None = None
) -> int:
    """Print what is there, and every file that is missing or differs; returns how many."""
    console = console or Console()
    data = load_dataset(name, data_root, metadata_root)
    counts = ", ".join(f"{count} {split}" for split, count in data.counts.items())
    console.print(f"{name}: {counts}; {len(data.skipped)} listed recordings left out", highlight=False)
    console.print(f"split {data.split_hash[:16]}", highlight=False)
    lines = data.verify()
    for line in lines[:SHOWN_LINES]:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    if len(lines) > SHOWN_LINES:
        console.print(f"  and {len(lines) - SHOWN_LINES} more", highlight=False)
    console.print("all there" if not lines else f"{len(lines)} missing or different", highlight=False)
    return len(lines)


def _describe(info: DatasetInfo) -> str:
    use = "commercial use allowed" if info.commercial_use else "no commercial use"
    return (
        f"{info.title}\nsize: {info.size}\nlicence: {info.licence} ({use})\nwhere: {info.where}\n"
        f"cite: {info.citation}"
    )


def _agrees(console: Console, root: Path) -> bool:
    if not sys.stdin.isatty():
        return False
    return console.input(f"Fetch into {root}? [y/N] ").strip().lower() in ("y", "yes")


def _data_root(data_root: Path | None) -> Path:
    root = data_root or os.environ.get("AUDIATION_DATA_ROOT")
    if not root:
        raise ValueError("say where data sets lie: --data-root DIR, or $AUDIATION_DATA_ROOT")
    return Path(root).expanduser()
