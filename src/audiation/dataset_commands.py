"""`audiation datasets list|get|verify|match`: what there is, fetching, checking, fitting one's own recordings."""

from __future__ import annotations

import csv
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from audiation.audio import load_audio
from audiation.datasets import DATASETS, harmonix
from audiation.datasets.alignment import estimate_offset
from audiation.datasets.base import DatasetInfo
from audiation.datasets.own_recordings import recordings_in
from audiation.fetching import FetchProgress, fetch
from audiation.splits import load_dataset

SHOWN_LINES = 20
MATCH_RATE_HZ = 22_050
MAX_OFFSET_SECONDS, MAX_SPAN_OFFSET_SECONDS = 30.0, 5.0
MIN_EVENTS = 8
CLEAR_CORRELATION, CLEAR_LEAD = 0.15, 0.02  # of the best shift, and before the next best


def list_datasets(console: Console | None = None) -> None:
    """What there is, with size, licence, and whether it can be fetched."""
    console = console or Console()
    for name in DATASETS:
        info = DATASETS[name].info
        use = "commercial use allowed" if info.commercial_use else "no commercial use"
        how = f"audiation datasets get {name}" if info.downloads else info.where
        console.print(f"{name}: {info.title}", highlight=False, markup=False)
        for line in (info.size, f"{info.licence} ({use})", how):
            console.print(Padding(Text(line), (0, 0, 0, 4)))


def get(name: str, data_root: Path | None, *, agreed: bool, console: Console | None = None) -> Path:
    """Fetch the files of a data set into `data_root/name`; returns the folder.

    Raises:
        UnknownNameError: no data set of that name.
        ValueError: it cannot be fetched, nobody agreed, or there is no place to put it.
        FetchError: see `fetching.fetch`.
    """
    console = console or Console()
    name = name.partition(":")[0]  # variants share their files
    kind = DATASETS[name]
    info = kind.info
    console.print(_describe(info), highlight=False, soft_wrap=True, markup=False)
    if not info.downloads:
        raise ValueError(
            f"{name} cannot be fetched by a program: {info.where}. docs/datasets.md says where its files go; then "
            f"`audiation datasets verify {name}` checks them."
        )
    # Data sets that share their files share a folder.
    root = _data_root(data_root) / next(iter(kind.folders), name)
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


@dataclass(frozen=True)
class Match:
    """How the annotations of a track fit its audio. problem: why nothing can be said, "" otherwise.

    is_clear: the best shift stands out, so that it can be used.
    """

    track_id: str
    offset_seconds: float = 0.0
    correlation: float = 0.0
    second_best: float = 0.0
    problem: str = ""

    @property
    def is_clear(self) -> bool:
        return not self.problem and self.correlation >= CLEAR_CORRELATION and self.lead >= CLEAR_LEAD

    @property
    def lead(self) -> float:
        return self.correlation - self.second_best


def match(
    name: str,
    audio: Path | None,
    data_root: Path | None,
    metadata_root: Path | None,
    console: Console | None = None,
) -> list[Match]:
    """Fit the annotated beats, or chord changes, of a data set to the attacks in one's own recordings.

    For harmonix, recordings in `audio` that are called like its songs (`0001_12step.mp3`, or `12step.mp3`) are linked
    into its folder first, and clear offsets are written to `offsets.csv` there, which the reader adds. For other data
    sets the offsets are reported only.

    Raises:
        ValueError: `audio` for another data set, or one whose tracks have neither beats nor chords.
        FileNotFoundError: no recording.
    """
    console = console or Console()
    root = _data_root(data_root)
    if audio is not None:
        if name != "harmonix":
            raise ValueError(
                f"--audio links recordings for harmonix; put those of {name} where its reader looks"
            )
        folder = _harmonix_folder(root)
        linked = _link_recordings(audio, folder, metadata_root)
        console.print(
            f"{linked} recordings of {audio} are linked into {folder / 'audio'}",
            highlight=False,
            soft_wrap=True,
        )
    data = load_dataset(name, root, metadata_root)
    if not any(hasattr(type(track), kind) for track in data.tracks for kind in ("beats", "chords")):
        raise ValueError(f"the tracks of {name} have neither beats nor chords that could be fitted")
    found = []
    with Progress(
        TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), console=console
    ) as bar:
        for track in bar.track(data.tracks, description=f"fitting {name}"):
            found.append(_match(track))
    _show_matches(found, console)
    if name == "harmonix":
        path = _harmonix_folder(root) / "offsets.csv"
        offsets = _offsets_in(path) | {m.track_id: f"{m.offset_seconds:.4f}" for m in found if m.is_clear}
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["File", "offset_seconds"])
            writer.writerows(offsets.items())
        console.print(f"Written: {path}", highlight=False, soft_wrap=True)
    return found


def _match(track: Any) -> Match:
    try:
        events, reach = _event_times(track), MAX_OFFSET_SECONDS
        if len(events) < MIN_EVENTS:
            raise ValueError(f"has {len(events)} events; {MIN_EVENTS} are needed to tell")
        start, seconds = 0.0, None
        if track.span_seconds is not None:  # what surrounds an excerpt would drown it
            reach = MAX_SPAN_OFFSET_SECONDS
            start = max(0.0, track.span_seconds[0] - reach)
            seconds = track.span_seconds[1] + reach - start
        samples = load_audio(
            track.audio_path, MATCH_RATE_HZ, start_seconds=start, duration_seconds=seconds
        ).samples
        fit = estimate_offset(samples, MATCH_RATE_HZ, events - start, max_offset_seconds=reach)
    except (ValueError, OSError) as error:  # of one recording; the others go on
        return Match(track.track_id, problem=str(error))
    return Match(track.track_id, fit.offset_seconds, fit.correlation, fit.second_best)


def _event_times(track: Any) -> np.ndarray:
    """Annotated attacks in seconds of the annotations' own time, before any offset."""
    start = 0.0 if track.span_seconds is None else track.span_seconds[0]
    if getattr(track, "beats", None) is not None:
        return track.beats.times_seconds + start - getattr(track, "offset_seconds", 0.0)
    chords = getattr(track, "chords", None)
    if chords is None:
        raise ValueError("has neither beats nor chords that could be fitted")
    return (
        np.array(
            [
                s
                for s, label in zip(chords.intervals_seconds[:, 0], chords.labels, strict=True)
                if label != "N"
            ]
        )
        + start
    )


def _show_matches(found: list[Match], console: Console) -> None:
    table = Table(title="annotations against audio", title_justify="left")
    for column in ("track", "offset s", "correlation", "next best", "verdict"):
        table.add_column(column, overflow="fold")
    for m in found[:SHOWN_LINES]:
        numbers = [f"{m.offset_seconds:+.3f}", f"{m.correlation:.2f}", f"{m.second_best:.2f}"]
        verdict = m.problem or ("clear" if m.is_clear else "doubtful: another recording?")
        table.add_row(m.track_id, *(["-"] * 3 if m.problem else numbers), verdict)
    console.print(table)
    if len(found) > SHOWN_LINES:
        console.print(f"and {len(found) - SHOWN_LINES} more", highlight=False)
    clear = sum(m.is_clear for m in found)
    console.print(f"{clear} of {len(found)} are clear", highlight=False)


def _harmonix_folder(root: Path) -> Path:
    """Where the reader finds the data; a new folder where there is none."""
    for name in ("harmonix", *DATASETS["harmonix"].folders):
        if (root / name).is_dir():
            return root / name
    return root if (root / "audio").is_dir() or (root / "dataset").is_dir() else root / "harmonix"


def _offsets_in(path: Path) -> dict[str, str]:
    """What is known of songs already, by earlier matches or by hand. The reader has checked it."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        return {row["File"].strip(): row["offset_seconds"].strip() for row in csv.DictReader(file)}


def _link_recordings(audio: Path, folder: Path, metadata_root: Path | None) -> int:
    """Link files that are called like a song; one that is there already stays."""
    ids = {song.file.lower(): song.file for song in harmonix.songs(metadata_root, folder)}
    # Short names that several songs have say nothing.
    short = Counter(name.partition("_")[2] for name in ids)
    ids |= {n.partition("_")[2]: song for n, song in ids.items() if short[n.partition("_")[2]] == 1}
    recordings = recordings_in([audio])
    if not recordings:
        raise FileNotFoundError(f"no audio file in {audio}")
    target = folder / "audio"
    target.mkdir(parents=True, exist_ok=True)
    have, linked = recordings_in([target]), 0
    for stem, path in recordings.items():
        song = ids.get(stem.lower())
        if song is not None and song not in have:
            (target / f"{song}{path.suffix}").symlink_to(path.resolve())
            linked += 1
    return linked


def _describe(info: DatasetInfo) -> str:
    use = "commercial use allowed" if info.commercial_use else "no commercial use"
    return (
        f"{info.title}\nsize: {info.size}\nlicence: {info.licence} ({use})\nwhere: {info.where}\n"
        f"cite: {info.citation}"
    )


def _agrees(console: Console, root: Path) -> bool:
    if not sys.stdin.isatty():
        return False
    return console.input(f"Fetch into {root}? [y/N] ", markup=False).strip().lower() in ("y", "yes")


def _data_root(data_root: Path | None) -> Path:
    root = data_root or os.environ.get("AUDIATION_DATA_ROOT")
    if not root:
        raise ValueError("say where data sets lie: --data-root DIR, or $AUDIATION_DATA_ROOT")
    return Path(root).expanduser()
