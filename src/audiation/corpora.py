"""Published collections as corpora: where they are, what lies where, how many hours, and what may be done with a track.

    FMA         Defferrard et al., "FMA: a dataset for music analysis", ISMIR 2017, arXiv 1612.01840
    Music4All   Santana et al., "Music4All: a new music database and its applications", IWSSIP 2020

A recipe says which of the files that are there belong into a corpus, and gives each its artist and licence. It fetches
nothing: the archives have up to 879 GiB, or are given out by hand.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from audiation.corpus_sources import SourceFile, Sources, find_sources
from audiation.corpus_table import FileEntry
from audiation.registry import Registry

LICENCES = (
    "cc0",
    "public-domain",
    "cc-by",
    "cc-by-sa",
    "cc-by-nc",
    "cc-by-nc-sa",
    "cc-by-nd",
    "cc-by-nc-nd",
    "other",
    "none",
)
"""Classes of licences that a recipe can be asked for. other: any text that is not one of Creative Commons, like
"FMA-Limited: Download Only" and "Free Art License". none: the track has no licence in the tables."""

AGREEMENT = "agreement"
"""The licence of a track that one has by an agreement over the whole collection."""


@dataclass(frozen=True)
class CorpusRecipe:
    """A collection that a corpus can be built from.

    hours: of audio, from the number and length of its tracks. layout: what the folder and the tables must look like.
    select: (folder, tables or None, classes of licences; none: all) -> the files and what is left out.
    """

    title: str
    where: str
    hours: str
    layout: str
    licence: str
    select: Callable[[Path, Path | None, Sequence[str]], Sources]


CORPORA: Registry[CorpusRecipe] = Registry("corpus recipe", "audiation.corpora")


def select_fma(root: Path, metadata: Path | None = None, licences: Sequence[str] = ()) -> Sources:
    """Files of FMA, full tracks or clips of 30 s, with the licence and artist of each.

    Args:
        root: an unpacked `fma_full`, `fma_large`, `fma_medium` or `fma_small`: `000/000002.mp3` and so on.
        metadata: `tracks.csv`, or the folder with it; None: `fma_metadata` beside or inside `root`.
        licences: classes from `LICENCES` to keep.

    Raises:
        FileNotFoundError: no `tracks.csv`.
        ValueError: a table without the columns, an unknown class, or a folder without files.
    """
    _check_licences(licences, LICENCES)
    table = _find_table(root, metadata, "tracks.csv", "fma_metadata")
    tracks = dict(_fma_tracks(table))
    return _chosen(
        root, lambda source: tracks.get(_fma_id(source.path)), f"not in {table.name}", licences, licence_class
    )


def select_music4all(root: Path, metadata: Path | None = None, licences: Sequence[str] = ()) -> Sources:
    """Clips of Music4All with the artist of each.

    Args:
        root: the unpacked folder, with `audios/0009fFIM1eYThaPg.mp3` and so on.
        metadata: `id_information.csv`, or the folder with it; None: that in `root`.
        licences: nothing, or "agreement": no track has a licence of its own.

    Raises: as `select_fma`.
    """
    if set(licences) - {AGREEMENT}:
        raise ValueError(
            f"no track of Music4All has a licence of its own, so {', '.join(licences)} cannot be asked for. The "
            f"collection is had by an agreement, for research; say licences '{AGREEMENT}', or nothing."
        )
    table = _find_table(root, metadata, "id_information.csv", "")
    with table.open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        if not {"id", "artist"} <= set(rows.fieldnames or ()):
            raise ValueError(
                f"{table} has no columns id and artist, separated by tabs. Take it as it was sent."
            )
        tracks = {row["id"]: _Track(row["artist"], AGREEMENT) for row in rows}
    audios = root / "audios" if (root / "audios").is_dir() else root
    return _chosen(
        audios,
        lambda source: tracks.get(source.path.stem),
        f"not in {table.name}",
        licences,
        lambda text: text,
    )


def licence_class(text: str) -> str:
    """A licence as the tables of FMA write it -> its class in `LICENCES`, whatever its version and country.

    "Attribution-Noncommercial-Share Alike 3.0 United States" is "cc-by-nc-sa".
    """
    plain = "".join(c for c in text.lower() if c.isalnum()).removeprefix("creativecommons")
    if not plain:
        return "none"
    if plain.startswith("cc0"):
        return "cc0"
    if plain.startswith("publicdomain"):
        return "public-domain"
    if not plain.startswith("attribution"):
        return "other"
    terms = (("noncommercial", "-nc"), ("noderiv", "-nd"), ("sharealike", "-sa"))
    found = "cc-by" + "".join(mark for word, mark in terms if word in plain)
    return found if found in LICENCES else "other"


@dataclass(frozen=True)
class _Track:
    artist: str
    licence: str


def _fma_tracks(table: Path) -> Iterator[tuple[int, _Track]]:
    """Two rows of headings, a row with the name of the first column, then a row per track."""
    with table.open(encoding="utf-8", newline="") as stream:
        rows = csv.reader(stream)
        headings = list(zip(next(rows, []), next(rows, []), strict=False))
        try:
            licence, artist = headings.index(("track", "license")), headings.index(("artist", "name"))
        except ValueError as error:
            raise ValueError(
                f"{table} has no columns (track, license) and (artist, name). Take tracks.csv of fma_metadata.zip."
            ) from error
        for row in rows:
            if row and row[0].isdigit():
                yield int(row[0]), _Track(row[artist], row[licence])


def _fma_id(path: Path) -> int:
    return int(path.stem) if path.stem.isdigit() else -1


def _chosen(
    root: Path,
    track_of: Callable[[SourceFile], _Track | None],
    not_listed: str,
    licences: Sequence[str],
    class_of: Callable[[str], str],
) -> Sources:
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder. Name the one that the archive unpacks to.")
    found = find_sources([root])
    if not found.files:
        raise ValueError(f"{root} has no audio files. Name the folder that the archive unpacks to.")
    files: list[SourceFile] = []
    left_out: list[FileEntry] = []
    for source in found.files:
        track = track_of(source)
        if track is None:
            left_out.append(FileEntry(source.name, "left out", not_listed))
        elif licences and class_of(track.licence) not in licences:
            left_out.append(
                FileEntry(
                    source.name,
                    "left out",
                    f"licence {class_of(track.licence)}",
                    group=track.artist,
                    licence=track.licence,
                )
            )
        else:
            files.append(replace(source, group=track.artist, licence=track.licence))
    return replace(found, files=tuple(files), left_out=tuple(left_out))


def _check_licences(licences: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [licence for licence in licences if licence not in known]:
        raise ValueError(f"unknown licences: {', '.join(unknown)}. Known: {', '.join(known)}.")


def _find_table(root: Path, metadata: Path | None, name: str, folder: str) -> Path:
    if metadata is not None:
        places = [metadata / name if metadata.is_dir() else metadata]
    else:
        places = [root / folder / name, root.parent / folder / name]
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(map(str, places))
    raise FileNotFoundError(f"{name} was not found (looked for {looked}). Give its place with --metadata.")


CORPORA.add(
    "fma",
    CorpusRecipe(
        "Free Music Archive, 106,574 tracks of 16,341 artists",
        "https://github.com/mdeff/fma: fma_full.zip (879 GiB), fma_large.zip (93 GiB, clips of 30 s), fma_metadata.zip",
        "about 8,230 h in full (343 days), 888 h as clips",
        "fma_full/000/000002.mp3, fma_metadata/tracks.csv",
        "each track has its own, mostly Creative Commons; the collection is meant for research",
        select_fma,
    ),
)
CORPORA.add(
    "music4all",
    CorpusRecipe(
        "Music4All, 109,269 clips of 30 s of 16,269 artists",
        "on request, with a signed agreement: https://sites.google.com/view/contact4music4all",
        "about 911 h",
        "audios/0009fFIM1eYThaPg.mp3, id_information.csv",
        "by agreement over the whole collection, for research; the tracks have no licences of their own",
        select_music4all,
    ),
)
