"""What `audiation corpus` does and shows: builds with progress, statistics, checks, copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from audiation.corpora import CORPORA
from audiation.corpus import Corpus
from audiation.corpus_build import BuildSettings, build_corpus
from audiation.corpus_copy import BuildProgress, write_lance
from audiation.corpus_sources import Sources, find_sources
from audiation.corpus_table import Form, Status
from audiation.output_places import require_writable_folder
from audiation.step_bars import StepBars, step_bars
from audiation.teacher_commands import targets

__all__ = [
    "BuildSettings",
    "build",
    "choose_sources",
    "list_recipes",
    "show",
    "targets",
    "to_lance",
    "verify",
]

SHOWN_LINES = 20


def build(
    sources: Sources,
    directory: Path,
    name: str,
    settings: BuildSettings,
    form: Form = "packed",
    workers: int | None = None,
    console: Console | None = None,
) -> Corpus:
    """Build with progress, then print what `show` does. Raises as `corpus_build.build_corpus`."""
    console = console or Console()
    require_writable_folder(directory)
    with step_bars(console) as bars:
        built = build_corpus(
            sources, directory, name, settings, form=form, workers=workers, progress=_shown_on(bars)
        )
    show(str(directory), console)
    return built


def show(location: str, console: Console | None = None) -> None:
    """Print what is in a corpus, what is odd about it, and what is not in it. CorpusError where there is none."""
    console = console or Console()
    held = Corpus(location)
    facts = held.header.statistics
    files, hours = facts["files"], held.hours
    lines = [
        f"{held.name}: {len(held.recordings):,} recordings, {hours:,.2f} h at {held.sample_rate_hz} Hz, {held.form}",
        f"hash {held.hash}",
        f"lengths {facts['shortest_seconds']:.1f} to {facts['longest_seconds']:.1f} s",
        f"source rates: {', '.join(f'{n:,} at {rate} Hz' for rate, n in facts['source_rates_hz'].items())}",
        f"silence {facts['silent_share']:.2%} of the time",
        f"clipping {facts['clipped_share']:.4%} of samples, in {facts['clipped_recordings']:,} recordings",
        f"DC of 0.01 or more in {facts['dc_recordings']:,} recordings",
        f"exact duplicates, left out: {files.get('duplicate', 0):,} ({facts['duplicate_hours']:.2f} h)",
        f"near duplicates, kept: {facts['near_duplicates']:,} ({facts['near_duplicate_hours']:.2f} h)",
        *(f"left out, {reason}: {n:,}" for reason, n in facts["left_out"].items()),
        f"failed: {files.get('failed', 0):,}",
        f"files of other kinds: {facts['files_of_other_kinds']:,}, hidden: {facts['hidden_files']:,}",
    ]
    if facts["licences"]:
        lines.append("licences: " + ", ".join(f"{text} ({n:,})" for text, n in facts["licences"].items()))
    lines.append(f"targets: {', '.join(held.targets) or 'none'}")
    for i, line in enumerate(lines):
        console.print(Padding(Text(line), (0, 0, 0, 4 if i else 0)))
    near = [f"{e.name}: sounds like {e.near_duplicate_of}" for e in held.recordings.near_duplicates()]
    _list(console, "near duplicates", near)
    kinds: tuple[tuple[str, Status], ...] = (
        ("exact duplicates", "duplicate"),
        ("left out", "left out"),
        ("failed", "failed"),
    )
    for title, status in kinds:
        entries = held.recordings.with_status(status)
        _list(console, title, [f"{e.name}: {e.reason or f'same as {e.duplicate_of}'}" for e in entries])


def verify(location: str, console: Console | None = None) -> int:
    """Compare all samples with their hashes; prints and counts the recordings that differ."""
    console = console or Console()
    held = Corpus(location)
    with step_bars(console) as bars:
        differing = held.verify(lambda done, total: bars.show("checking", done, total))
    _list(console, "differ", differing)
    what = (
        f"{len(differing)} of {len(held.recordings)} differ; build them again" if differing else "all right"
    )
    console.print(what, highlight=False)
    return len(differing)


def to_lance(location: str, out: str, console: Console | None = None) -> Corpus:
    """Copy a corpus and its targets into the Lance form. Raises as `corpus_copy.write_lance`."""
    console = console or Console()
    with step_bars(console) as bars:
        copied = write_lance(Corpus(location), out, progress=_shown_on(bars))
    console.print(f"{copied.name}: {copied.hours:,.2f} h in {out}", highlight=False, soft_wrap=True)
    return copied


def list_recipes(console: Console | None = None) -> None:
    """Collections whose tables are understood: hours, licence, place, layout."""
    console = console or Console()
    for name in CORPORA:
        known = CORPORA[name]
        console.print(f"{name}: {known.title}, {known.hours}", highlight=False, markup=False)
        for line in (known.licence, known.where, f"layout: {known.layout}"):
            console.print(Padding(Text(line), (0, 0, 0, 4)))


def choose_sources(
    paths: Sequence[str], recipe: str | None, licences: tuple[str, ...], metadata: Path | None
) -> Sources:
    """The files below the paths; with a recipe, those that its tables name. ValueError for what makes no sense."""
    if recipe is None:
        if licences or metadata is not None:
            raise ValueError("--licences and --metadata go with --recipe, whose tables say what they mean")
        return find_sources(paths)
    if len(paths) != 1:
        raise ValueError(f"--recipe {recipe} needs the one folder of the collection, got {len(paths)} paths")
    return CORPORA[recipe].select(Path(paths[0]), metadata, licences)


def _list(console: Console, title: str, lines: Sequence[str]) -> None:
    if lines:
        console.print(f"{title}:", highlight=False, markup=False)
    for line in lines[:SHOWN_LINES]:
        console.print(f"    {line}", highlight=False, markup=False, soft_wrap=True)
    if len(lines) > SHOWN_LINES:
        console.print(f"    and {len(lines) - SHOWN_LINES:,} more; files.parquet has all", highlight=False)


def _shown_on(bars: StepBars) -> Callable[[BuildProgress], None]:
    def show_progress(p: BuildProgress) -> None:
        failed = f", {p.failures} failed" if p.failures else ""
        bars.show(p.what, p.done, p.total, f"{p.hours:,.1f} h{failed}")

    return show_progress
