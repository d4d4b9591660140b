"""`audiation leaderboard`: results in one table, as a static site, or packed for others to check."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from audiation.maps import ClipMap
    from audiation.results import Result
    from audiation.site.tables import Ranking


def leaderboard(
    results: tyro.conf.Positional[tuple[Path, ...]],
    /,
    html: Path | None = None,
    title: str = "Music representations compared",
    maps: Literal["none", "pca", "umap"] = "none",
    data_root: Path | None = None,
    metadata_root: Path | None = None,
    store: Path | None = None,
    audio_root: Path | None = None,
    card: Path | None = None,
    out: Path | None = None,
) -> None:
    """Compare results: a table in the terminal, and with --html a site that works from disk.

    RESULTS are result files, and folders that are searched for them. Instead:
    `audiation leaderboard new-card CARD.json` writes an empty system card,
    `audiation leaderboard pack RESULTS... --card CARD.json --out BUNDLE.zip` packs a submission,
    `audiation leaderboard verify BUNDLE.zip...` checks some: docs/submitting.md.
    What cannot be read is said at the end, and the exit code is then 1.

    Args:
        results: files and folders; or pack, verify or new-card and what it takes (a folder of such a name: ./pack).
        html: folder to write the site into.
        title: of the site.
        maps: on the site, the clips of every frozen backbone in two dimensions, for tasks with one answer per clip;
            umap needs audiation[maps].
        data_root: folder with one folder per data set, for maps and verify (default: $AUDIATION_DATA_ROOT).
        metadata_root: folder with local copies of official split and annotation files.
        store: feature store that maps read (default: in the cache directory).
        audio_root: folder with the recordings that travels with the site; default: the site plays them from where they
            lie on this machine.
        card: system card of `pack`.
        out: bundle that `pack` writes.
    """
    if not results:
        raise ValueError("nothing to compare: name result files, or folders with results in them")
    word, rest = str(results[0]), results[1:]
    if word in ("pack", "verify", "new-card"):
        given = {"--html": html, "--store": store, "--audio-root": audio_root}
        if word != "verify":
            given |= {"--data-root": data_root, "--metadata-root": metadata_root}
        if word != "pack":
            given |= {"--card": card, "--out": out}
        if unused := [flag for flag, value in given.items() if value is not None]:
            raise ValueError(f"'{word}' does not take {', '.join(unused)}")
        failed = _submission(word, rest, card, out, data_root, metadata_root)
    else:
        if card is not None or out is not None:
            raise ValueError("--card and --out belong to `audiation leaderboard pack RESULTS...`")
        if html is None and (maps != "none" or audio_root is not None):
            raise ValueError("--maps and --audio-root belong to the site: give its folder with --html")
        failed = show(
            results, html=html, title=title, maps=maps, data_root=data_root, metadata_root=metadata_root, store=store,
            audio_root=audio_root,
        )  # fmt: skip
    if failed:
        sys.exit(1)


def show(
    paths: Sequence[Path],
    *,
    html: Path | None = None,
    title: str = "Music representations compared",
    maps: Literal["none", "pca", "umap"] = "none",
    data_root: Path | None = None,
    metadata_root: Path | None = None,
    store: Path | None = None,
    audio_root: Path | None = None,
    console: Console | None = None,
) -> int:
    """Print the table, write the site; returns how many files, maps and results could not be used.

    Raises:
        ValueError: no result in any of the paths.
    """
    from rich.console import Console

    from audiation.output_places import require_writable_folder
    from audiation.result_files import read_results
    from audiation.site import write_site

    console = console or Console()
    found = read_results(paths)
    if not found.results:
        reasons = "".join(f"\n{path}: {reason}" for path, reason in found.problems)
        raise ValueError(f"no result in {', '.join(map(str, paths))}{reasons}")
    _print_tables(found.results, console)
    if html is not None:
        require_writable_folder(html)
    problems = [f"not used: {path}: {reason}" for path, reason in found.problems]
    if html is not None:
        drawn = _draw_maps(found.results, maps, data_root, metadata_root, store)
        problems += drawn.problems
        report = write_site(found.results, html, title=title, maps=drawn.maps, audio_root=audio_root)
        for note in report.notes:
            console.print(note, markup=False, highlight=False, soft_wrap=True)
        if drawn.num_without:
            said = f"{drawn.num_without} results have no map: it takes a frozen backbone, and one answer per clip."
            console.print(said, highlight=False, soft_wrap=True)
        if drawn.maps and audio_root is None:
            said = "Maps play recordings from where they lie on this machine. To publish the site, give --audio-root."
            console.print(said, highlight=False, soft_wrap=True)
        console.print(f"Site: {report.index}", markup=False, highlight=False, soft_wrap=True)
    for problem in problems:
        console.print(problem, style="red", markup=False, highlight=False, soft_wrap=True)
    return len(problems)


def _print_tables(results: Sequence[Result], console: Console) -> None:
    """A table for everything that may be compared, as on the site."""
    from audiation.site.systems import systems_of, without_repeats
    from audiation.site.tables import rankings_of

    shown, _ = without_repeats(results)
    for ranking in rankings_of(systems_of(shown)):
        console.print(_table(ranking))
        for column, why in ranking.unranked.items():
            console.print(f"{column.task} lacks ranks: {why}", markup=False, highlight=False, soft_wrap=True)
        for average, why in ranking.unaveraged.items():
            console.print(f"{average}: {why}", markup=False, highlight=False, soft_wrap=True)


def _table(ranking: Ranking) -> Table:
    """A row per system and task, by rank; then, set apart and labelled in words, the published numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from audiation.site.index_page import ranking_title
    from audiation.site.markup import printable
    from audiation.site.words import interval_text, paper_title, score_text, unit_text

    title = Text(printable(ranking_title(ranking)))
    table = Table(
        title=title, title_justify="left", box=box.HORIZONTALS, padding=(0, 1, 0, 0), pad_edge=False
    )
    for name in ("task", "system"):
        table.add_column(name, overflow="fold")
    for name in ("score", "95 % interval", "rank"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("to know", overflow="fold")
    for column in ranking.columns:
        there = [row for row in ranking.rows if column in row.entries]
        for row in sorted(there, key=lambda r: (r.entries[column].rank or 0, -r.entries[column].score)):
            entry = row.entries[column]
            table.add_row(
                Text(printable(f"{column.task}\n{column.name}")),
                Text(printable(row.system.name)),
                Text(f"{score_text(entry.score, column)} {unit_text(column)}", style="bold"),
                "-" if entry.interval is None else interval_text(entry.interval, column),
                "-" if entry.rank is None else str(entry.rank),
                Text(", ".join(mark.label for mark in entry.marks), style="red"),
            )
        table.add_section()
    for line in (*ranking.published, *ranking.elsewhere):
        for column, score in line.scores.items():
            data = f", other data: {score.dataset}" if score.other_data else ""
            cells = (
                f"{column.task}\n{column.name}",
                f"{line.system}, {line.method}",
                f"{score_text(score.value, column)} {unit_text(column)}",
                "not published",
                "-",
                f"published: {paper_title(line.paper)}, {line.table}{data}",
            )
            table.add_row(*(Text(cell, style="dim italic") for cell in cells))
    notes = []
    for place, name in enumerate(ranking.averages):
        averages = [(row.system.name, row.averages[place].value) for row in ranking.rows]
        said = [f"{system} {value:.1f}" for system, value in averages if value is not None]
        notes.append(printable(f"{name}: {'; '.join(said)}"))
    table.caption, table.caption_justify = Text("\n".join(notes)) if notes else None, "left"
    return table


@dataclass(frozen=True)
class DrawnMaps:
    """problems: of maps that could not be drawn. num_without: results that have none by their nature."""

    maps: tuple[ClipMap, ...]
    problems: tuple[str, ...]
    num_without: int


def _draw_maps(
    results: Sequence[Result],
    method: Literal["none", "pca", "umap"],
    data_root: Path | None,
    metadata_root: Path | None,
    store: Path | None,
) -> DrawnMaps:
    """Maps of every frozen backbone and every task with one answer per clip."""
    from audiation.maps import clip_maps, require_umap
    from audiation.run import Run
    from audiation.tasks import TASKS

    drawn: dict[tuple[str, int], ClipMap] = {}
    problems: list[str] = []
    num_without = 0
    if method == "none":
        return DrawnMaps((), (), 0)
    if method == "umap":
        require_umap()
    for result in results:
        run = Run.of(result)
        task = TASKS[run.task] if run.task in TASKS else None
        if run.method != "probe" or (task and (task.target.per_frame or task.task_type == "separation")):
            num_without += 1
            continue
        try:
            maps = clip_maps(
                run, method=method, data_root=data_root, metadata_root=metadata_root, store_dir=store
            )
        except (ValueError, OSError) as error:
            problems.append(f"no map of {run.task} by {run.backbone}: {error}")
            continue
        for one in maps:
            drawn.setdefault((one.title, one.layer), one)
    return DrawnMaps(tuple(drawn.values()), tuple(dict.fromkeys(problems)), num_without)


def _submission(
    word: str,
    rest: Sequence[Path],
    card: Path | None,
    out: Path | None,
    data_root: Path | None,
    metadata_root: Path | None,
) -> int:
    from audiation.submission_commands import card_command, pack_command, verify_command

    if word == "verify":
        return verify_command(tuple(rest), data_root=data_root, metadata_root=metadata_root)
    if word == "pack":
        if card is None or out is None or not rest:
            raise ValueError(
                "to pack a submission: leaderboard pack RESULTS... --card CARD.json --out BUNDLE.zip"
            )
        return pack_command(tuple(rest), card=card, out=out)
    if len(rest) != 1:
        raise ValueError(f"new-card takes one path, got {len(rest)}")
    return card_command(rest[0])
