"""The leaderboard as a static site: opened from disk, it asks nobody for anything."""

from __future__ import annotations

import importlib.resources
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from audiation.maps import ClipMap
from audiation.results import Result
from audiation.site.index_page import index_body
from audiation.site.map_page import map_body
from audiation.site.markup import GENERATOR, escape, file_name, page
from audiation.site.system_page import system_body
from audiation.site.systems import systems_of, without_repeats
from audiation.site.tables import rankings_of


@dataclass(frozen=True)
class SiteReport:
    """What was written. pages: all of them, the index first. notes: results that are not shown, and why."""

    index: Path
    pages: tuple[Path, ...]
    notes: tuple[str, ...]


def write_site(
    results: Sequence[Result],
    out: Path,
    *,
    title: str = "Music representations compared",
    maps: Sequence[ClipMap] = (),
    audio_root: Path | None = None,
) -> SiteReport:
    """Write a leaderboard as HTML files that need no server: `out/index.html`, a page per system, a page per map.

    Equal results give equal bytes. Pages that an earlier call wrote are replaced; those of systems that are gone are
    removed, and nothing else in `out` is touched. Of results of the same run the newest is shown.

    Args:
        maps: those whose titles differ in the layer only share a page, where it is chosen.
        audio_root: folder with the recordings of the maps, that travels with the site: they are named relative to it.
            None: recordings are named by their place on this machine, and play on it alone.

    Raises:
        ValueError: no results, `out` is a file, or a map without clips.
        OSError: `out` cannot be written.
    """
    if not results:
        raise ValueError("there are no results to show: give at least one result file")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; the site needs a folder")
    shown, notes = without_repeats(results)
    systems = systems_of(shown)
    by_title: defaultdict[str, list[ClipMap]] = defaultdict(list)
    for one in maps:
        _check_map(one)
        by_title[_place(one)].append(one)
    style, table_script, map_script = map(_asset, ("site.css", "leaderboard.js", "map.js"))
    map_pages = [(name, "maps/" + file_name(name, name)) for name in sorted(by_title)]
    files: dict[str, str] = {}
    body = index_body(title, rankings_of(systems), systems, map_pages, notes)
    files["index.html"] = page(title, body, style=style, scripts=(table_script,))
    for system in systems:
        files[system.page] = page(f"{system.name} - {title}", system_body(system), style=style)
    for name, address in map_pages:
        body = map_body(name, by_title[name], out / "maps", audio_root)
        files[address] = page(f"{name} - {title}", body, style=style, scripts=(map_script,), plays_audio=True)
    return SiteReport(out / "index.html", tuple(_write(out, files)), tuple(notes))


def _check_map(one: ClipMap) -> None:
    if not one.points:
        raise ValueError(f"the map '{one.title}' has no clips; leave it out")


def _place(one: ClipMap) -> str:
    """The title of the page of a map: without the layer, which is chosen there."""
    return one.title.removesuffix(f", layer {one.layer}")


def _asset(name: str) -> str:
    return importlib.resources.files("audiation.site").joinpath(f"assets/{name}").read_text(encoding="utf-8")


def _write(out: Path, files: dict[str, str]) -> list[Path]:
    """Write pages, each at once; remove those of an earlier site that this one does not have."""
    own_mark = f'<meta name="generator" content="{escape(GENERATOR)}">'
    for folder in ("systems", "maps"):
        for old in sorted((out / folder).glob("*.html")):
            if f"{folder}/{old.name}" in files:
                continue
            with old.open(encoding="utf-8", errors="replace") as file:
                if own_mark in file.read(4000):
                    old.unlink()
    written = []
    for address, text in files.items():
        path = out / address
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
        written.append(path)
    return written
