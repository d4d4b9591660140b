"""`audiation-mini`: 28 h of freely licensed music from Debian packages, and renderings of scores, to pre-train on.

Nothing of it is shipped. `python -m audiation.mini_corpus list` names packages, licences and hours, `fetch DIR` gets
the music, `render DIR` plays scores of the music21 corpus that are not in the data set `scores`. docs/mini-corpus.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tyro

from audiation.mini_fetching import CommandError, Failure, ToolMissingError, fetch_packages
from audiation.mini_packages import MusicPackage, mini_packages
from audiation.mini_renderings import render_scores

__all__ = [
    "CommandError",
    "Failure",
    "MusicPackage",
    "ToolMissingError",
    "fetch_packages",
    "mini_packages",
    "render_scores",
]


def list_() -> None:
    """The packages: version, licences of the music, files, hours, size of the download."""
    from rich.console import Console
    from rich.table import Table

    packages = mini_packages()
    table = Table(title="audiation-mini, from Debian 12 (bookworm)", title_justify="left")
    for column in ("package", "version", "licences of the music"):
        table.add_column(column, overflow="fold")
    for column in ("files", "hours", "MB"):
        table.add_column(column, justify="right")
    for p in packages:
        size = f"{p.num_bytes / 1e6:,.0f}"
        table.add_row(p.name, p.version, ", ".join(p.licences), str(p.num_files), f"{p.hours:.2f}", size)
    files, hours = sum(p.num_files for p in packages), sum(p.hours for p in packages)
    table.add_section()
    table.add_row(
        "all", "", "", str(files), f"{hours:.2f}", f"{sum(p.num_bytes for p in packages) / 1e6:,.0f}"
    )
    Console().print(table)


def fetch(directory: tyro.conf.Positional[Path], /, packages: tuple[str, ...] = ()) -> None:
    """Get the music of the packages into DIRECTORY/music. The same command goes on after a stop.

    Args:
        directory: also keeps the .deb files (debs) and the statements on copyright (licences).
        packages: only these.
    """
    failures = fetch_packages(directory, mini_packages(packages or None), progress=_show)
    for failure in failures:
        print(f"{failure.package}: {failure.reason}", file=sys.stderr)
    if failures:
        sys.exit(1)


def render_(
    directory: tyro.conf.Positional[Path], /, hours: float = 4.0, seed: int = 0, workers: int = 1
) -> None:
    """Play scores into DIRECTORY/clips. The same command goes on after a stop.

    Args:
        hours: of audio.
        seed: of pieces, instruments, speeds and transpositions.
        workers: processes.
    """
    made = render_scores(directory, seed=seed, hours=hours, workers=workers, progress=_show)
    print(f"{made.num_clips} clips, {made.hours:.2f} h in {directory / 'clips'}")
    for reason, names in made.drops.items():
        print(f"not played, {reason}: {len(names)}")


def _show(done: int, total: int, what: str) -> None:
    print(f"\r\x1b[K{done}/{total} {what}", end="" if done < total else "\n", file=sys.stderr, flush=True)


def main() -> None:
    """Entry point of `python -m audiation.mini_corpus`. User errors print one message and exit with 2."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            {"list": list_, "fetch": fetch, "render": render_},
            prog="python -m audiation.mini_corpus",
            description="Freely licensed music and rendered scores, to pre-train on.",
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except (ValueError, KeyError, OSError, ImportError) as error:
        print(f"mini_corpus: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
