"""Scores of the music21 corpus -> pieces that may be played: none of them a chorale of the data set `scores`.

docs/mini-corpus.md says what is played and under which licences. music21 (the optional extra `scores`) is imported
inside functions only.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import statistics
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from audiation.datasets import chorales
from audiation.datasets.chorales import LONG_INCIPIT, TUNE_INCIPIT, ScoreNote
from audiation.mini_files import read_json, write_json
from audiation.workers import alive, serve

Progress = Callable[[int, int, str], None]
"""(done, total, what is being done)"""

UNSTATED = "not stated in the file; music21: 'distributed with the permission of the encoders'"


AGAIN = "Call render_scores again: it goes on where it stopped."


@dataclass(frozen=True)
class ScoreSource:
    """Files of the music21 corpus that are played, none of them a chorale.

    repertory: the repertories take turns in the renderings.
    files: pattern of their paths in the corpus.
    licence: of the encodings, as the files or their folder state it. The music itself is in the public domain.
    parts_apart: each part is a tune of its own in the file, and all of a file are one piece.
    """

    repertory: str
    files: str
    licence: str = UNSTATED
    parts_apart: bool = False


SOURCES = (
    ScoreSource("chamber", "beethoven/**/*.mxl"),
    ScoreSource("chamber", "haydn/**/*.mxl"),
    ScoreSource("chamber", "mozart/**/*.mxl"),
    ScoreSource("chamber", "schumann_robert/**/*.mxl"),
    ScoreSource("chamber", "corelli/**/*.xml", "CC-BY"),
    ScoreSource("chamber", "weber/*.mxl", "public domain"),
    ScoreSource("keyboard and song", "chopin/*.krn"),
    ScoreSource("keyboard and song", "cpebach/*.mxl"),
    ScoreSource("keyboard and song", "joplin/*.mxl"),
    ScoreSource("keyboard and song", "schumann_clara/*.mxl"),
    ScoreSource("keyboard and song", "handel/**/*.mxl"),
    ScoreSource("keyboard and song", "verdi/*.mxl"),
    ScoreSource("keyboard and song", "beach/*.musicxml", "CC-BY-SA"),
    ScoreSource("keyboard and song", "johnson_j_r/*.mxl", "CC0"),
    ScoreSource("keyboard and song", "liliuokalani/*.mxl", "CC0"),
    ScoreSource("voices", "monteverdi/*.mxl"),
    ScoreSource("voices", "lusitano/*.mxl"),
    ScoreSource("voices", "josquin/*.abc", "GPL-2+", parts_apart=True),
    ScoreSource("voices", "ciconia/*.xml", "CC-BY-SA-3.0"),
    ScoreSource("voices", "luca/*.xml", "CC-BY-SA-3.0"),
    ScoreSource("tunes", "ryansMammoth/*.abc"),
    ScoreSource("tunes", "oneills1850/*.abc"),
)
"""Left out for their encodings: palestrina and bach/*.krn (rights reserved), essenFolksong (non-commercial)."""

# What a file says that may not be used freely. Two madrigals name a publisher of 2003.
_RESTRICTED = re.compile(r"rights (to all derivative|reserved)|non-?commercial|edizioni", re.IGNORECASE)


@dataclass(frozen=True)
class Piece:
    """A piece of the corpus, or a tune of a collection: its parts as notes in order, ties joined."""

    name: str
    repertory: str
    licence: str
    parts: tuple[tuple[ScoreNote, ...], ...]

    @cached_property
    def end_quarters(self) -> float:
        return max(note.onset + note.length for part in self.parts for note in part)

    @cached_property
    def typical_quarters(self) -> float:
        """Length of the median note in quarter notes."""
        return statistics.median(note.length for part in self.parts for note in part)


@dataclass(frozen=True)
class ChoraleTunes:
    """How the chorales of `scores` begin, in semitones from note to note: 16 of the first part, 8 of the soprano."""

    first_parts: frozenset[tuple[int, ...]]
    sopranos: frozenset[tuple[int, ...]]

    def hold(self, piece: Piece) -> bool:
        """Whether the piece begins like a chorale, in any transposition and rhythm and in any of its parts."""
        starts = [_intervals(part) for part in piece.parts]
        return any(s[:LONG_INCIPIT] in self.first_parts or s[:TUNE_INCIPIT] in self.sopranos for s in starts)


@dataclass(frozen=True)
class Pieces:
    """What is played, in order of source and name. drops: reason -> names of files and pieces that are not."""

    pieces: tuple[Piece, ...]
    drops: dict[str, list[str]]


def read_pieces(
    directory: Path, corpus: Path, sources: Sequence[ScoreSource], workers: int, report: Progress
) -> Pieces:
    """All pieces of the sources. Goes on where a call was killed, in `directory`."""
    scratch, journal = directory / "scratch", directory / "pieces.jsonl"
    files = [(source, path) for source in sources for path in sorted(corpus.glob(source.files))]
    tunes = chorale_tunes(directory, workers, report)
    read = {entry["file"]: entry for entry in read_lines(journal)}
    scratch.mkdir(exist_ok=True)
    waiting = [job for job in files if _name(corpus, job[1]) not in read]
    report(len(files) - len(waiting), len(files), "reading scores")
    with journal.open("a", encoding="utf-8") as lines:
        for answer in serve(waiting, partial(_read_job, corpus, scratch), workers, threads=1):
            entry = alive(answer.message, AGAIN)
            read[entry["file"]] = entry
            lines.write(f"\n{json.dumps(entry)}\n")
            lines.flush()
            report(len(read), len(files), "reading scores")
    shutil.rmtree(scratch)
    pieces: list[Piece] = []
    drops: dict[str, list[str]] = defaultdict(list)
    for source, path in files:
        entry = read[_name(corpus, path)]
        if entry["drop"]:
            drops[entry["drop"]].append(entry["file"])
        for name, parts in entry["pieces"]:
            notes = tuple(tuple(ScoreNote(*note) for note in part) for part in parts)
            piece = Piece(name, source.repertory, source.licence, notes)
            if sum(map(len, notes)) < LONG_INCIPIT:
                drops[f"has fewer than {LONG_INCIPIT} notes"].append(name)
            elif tunes.hold(piece):
                drops["begins like a chorale of `scores`"].append(name)
            else:
                pieces.append(piece)
    return Pieces(tuple(pieces), dict(drops))


def chorale_tunes(directory: Path, workers: int, report: Progress) -> ChoraleTunes:
    """How all Bach chorales of the corpus begin; kept in `directory/chorales.json`, for reading them takes a minute."""
    kept, scratch = directory / "chorales.json", directory / "scratch"
    known = read_json(kept)
    if known is None:
        files = chorales.chorale_files()
        scratch.mkdir(exist_ok=True)
        known = {"first part": [], "soprano by note": []}
        for i, answer in enumerate(serve(files, partial(_chorale_job, scratch), workers, threads=1)):
            for kind, intervals in alive(answer.message, AGAIN):
                if kind in known:
                    known[kind].append(intervals)
            report(i + 1, len(files), "reading chorales")
        write_json(kept, known)
    first_parts, sopranos = (frozenset(map(tuple, known[k])) for k in ("first part", "soprano by note"))
    return ChoraleTunes(first_parts, sopranos)


def _chorale_job(scratch: Path, path: Path) -> Iterator[tuple[chorales.Incipit, ...]]:
    chorale = chorales.read_chorale(path, scratch)
    yield () if chorale is None else chorale.incipits


def _read_job(corpus: Path, scratch: Path, job: tuple[ScoreSource, Path]) -> Iterator[dict[str, Any]]:
    """One file -> {"file", "pieces": [[name, parts], ...], "drop": why there are none}."""
    source, path = job
    name, pieces, drop = _name(corpus, path), [], None
    if _RESTRICTED.search(_text(path)):
        drop = "its encoding may not be used freely"
    else:
        try:
            pieces = _read_score(name, path, source.parts_apart, scratch)
        except Exception as error:  # music21 raises what it likes; one file never stops the others
            drop = f"music21 cannot read it ({type(error).__name__}: {error})"
    yield {"file": name, "pieces": pieces, "drop": drop}


def _read_score(name: str, path: Path, parts_apart: bool, scratch: Path) -> list[Any]:
    """[[name of a piece, its parts], ...]"""
    parts_of = [[part for part in map(_notes, score.parts) if part] for score in _parse(path, scratch)]
    if parts_apart:
        parts_of = [[part for parts in parts_of for part in parts]]
    names = [name] if len(parts_of) == 1 else [f"{name}#{i + 1}" for i in range(len(parts_of))]
    return [[n, parts] for n, parts in zip(names, parts_of, strict=True)]


def _name(corpus: Path, path: Path) -> str:
    return path.relative_to(corpus).as_posix()


def _text(path: Path) -> str:
    if path.suffix != ".mxl":
        return path.read_text(encoding="utf-8", errors="replace")
    with zipfile.ZipFile(path) as packed:
        names = [n for n in packed.namelist() if n.endswith(".xml") and not n.startswith("META-INF")]
        return "\n".join(packed.read(name).decode("utf-8", "replace") for name in names)


def _parse(path: Path, scratch: Path) -> list[Any]:
    """The scores of a file: one, or the tunes of a collection."""
    parsed = chorales.parse_score(path, scratch)
    from music21 import stream

    return list(parsed.scores) if isinstance(parsed, stream.Opus) else [parsed]


def _notes(part: Any) -> list[ScoreNote]:
    """Notes of a part in order, ties joined; no grace notes and no chord symbols."""
    notes: list[ScoreNote] = []
    held: dict[int, int] = {}  # pitch -> which note a tie may go on with
    for element in part.flatten().notes:
        if element.quarterLength <= 0 or "ChordSymbol" in element.classes:
            continue
        onset, length = float(element.offset), float(element.quarterLength)
        tie = element.tie.type if element.tie else ""
        for pitch in element.pitches:
            before = held.pop(pitch.midi, None) if tie in ("stop", "continue") else None
            if before is not None and abs(notes[before].onset + notes[before].length - onset) < 1e-6:
                notes[before] = notes[before]._replace(length=notes[before].length + length)
            else:
                before = len(notes)
                notes.append(ScoreNote(onset, length, int(pitch.midi)))
            if tie in ("start", "continue"):
                held[pitch.midi] = before
    return sorted(notes)


def _intervals(part: Sequence[ScoreNote]) -> tuple[int, ...]:
    """Semitones from note to note at the start of a part, of its highest note where there are several."""
    top = list({note.onset: note.midi for note in part}.values())[: LONG_INCIPIT + 1]
    return tuple(b - a for a, b in itertools.pairwise(top))


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Entries of a journal. A line that a kill cut short is no JSON and is passed over: its work is done again."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        yield entry
