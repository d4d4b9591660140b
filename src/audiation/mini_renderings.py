"""Renderings of scores for `audiation-mini`: music of the music21 corpus that is not in the data set `scores`.

A piece has several instruments, one for each part. docs/mini-corpus.md says what is played and under which licences.
music21 (the optional extra `scores`) is imported inside functions only.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import itertools
import json
import math
import os
import re
import shutil
import statistics
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from audiation.datasets import chorales
from audiation.datasets.chorales import LONG_INCIPIT, TUNE_INCIPIT, ScoreNote
from audiation.datasets.synthesis import SAMPLE_RATE_HZ, TIMBRES, Draws, Note, render
from audiation.workers import WorkerDied, serve

VERSION = 1  # goes up whenever the same seed would give other renderings
CLIP_SECONDS = (30, 120)
TYPICAL_NOTE_SECONDS = (0.16, 0.50)  # of the piece's median note: scores count in quavers or in breves

Progress = Callable[[int, int, str], None]
"""(done, total, what is being done)"""

UNSTATED = "not stated in the file; music21: 'distributed with the permission of the encoders'"


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
class Renderings:
    """What `render_scores` made. drops: reason -> names of files and pieces that are not played."""

    num_clips: int
    hours: float
    drops: dict[str, list[str]]


def render_scores(
    directory: Path,
    *,
    seed: int = 0,
    hours: float = 4.0,
    workers: int = 1,
    sources: Sequence[ScoreSource] = SOURCES,
    progress: Progress | None = None,
) -> Renderings:
    """Play scores into `directory/clips/0000.flac`, ...: 24 kHz mono, 30 to 120 s each, until `hours` are full.

    Each part has an instrument of its own, out of the eight of `synthesis`, with its own room and level; a single part
    is doubled at the octave. A clip draws its place in the piece, its speed and its transposition (-6 to +5 semitones).
    The same seed and music21 give the same samples everywhere, and the same bytes with the same FLAC encoder. May be
    killed and called again. `directory/index.json` says for each clip what is played and under which licence.

    Args:
        workers: processes, spawned; 0: everything happens in this one.

    Raises:
        ValueError: `hours` is not positive, `directory` holds renderings made otherwise, or no score is left.
        BlockingIOError: another process renders into `directory`.
        ImportError: music21 is not installed.
    """
    directory, report = Path(directory), progress or (lambda done, total, what: None)
    if not hours > 0.0:
        raise ValueError(f"hours must be greater than 0, got {hours}")
    corpus = chorales.chorale_files()[0].parent.parent
    settings = {
        "version": VERSION,
        "seed": seed,
        "hours": hours,
        "music21": importlib.metadata.version("music21"),
        "sources": [asdict(source) for source in sources],
    }
    with _locked(directory):
        _check_settings(directory, settings)
        index = _read_json(directory / "index.json")
        if index is None or any(_size(_clip(directory, c["id"])) != c["num_bytes"] for c in index["clips"]):
            pieces, drops = _read_pieces(directory, corpus, sources, workers, report)
            clips = _render(directory, plan_renderings(pieces, seed, hours), seed, workers, report)
            index = {"drops": drops, "clips": clips}
            _write_json(directory / "index.json", index)
    seconds = sum(clip["seconds"] for clip in index["clips"])
    return Renderings(len(index["clips"]), seconds / 3600.0, index["drops"])


# ------------------------------------------------------------------------------------------ scores -> pieces


def _read_pieces(
    directory: Path, corpus: Path, sources: Sequence[ScoreSource], workers: int, report: Progress
) -> tuple[list[Piece], dict[str, list[str]]]:
    """All pieces in order of source and name, and reason -> what was dropped. Goes on where a call was killed."""
    scratch, journal = directory / "scratch", directory / "pieces.jsonl"
    files = [(source, path) for source in sources for path in sorted(corpus.glob(source.files))]
    tunes = chorale_tunes(directory, workers, report)
    read = {entry["file"]: entry for entry in _read_lines(journal)}
    scratch.mkdir(exist_ok=True)
    waiting = [job for job in files if _name(corpus, job[1]) not in read]
    report(len(files) - len(waiting), len(files), "reading scores")
    with journal.open("a", encoding="utf-8") as lines:
        for answer in serve(waiting, partial(_read_job, corpus, scratch), workers, threads=1):
            entry = _alive(answer.message)
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
    return pieces, dict(drops)


def chorale_tunes(directory: Path, workers: int, report: Progress) -> ChoraleTunes:
    """How all Bach chorales of the corpus begin; kept in `directory/chorales.json`, for reading them takes a minute."""
    kept, scratch = directory / "chorales.json", directory / "scratch"
    known = _read_json(kept)
    if known is None:
        files = chorales.chorale_files()
        scratch.mkdir(exist_ok=True)
        known = {"first part": [], "soprano by note": []}
        for i, answer in enumerate(serve(files, partial(_chorale_job, scratch), workers, threads=1)):
            for kind, intervals in _alive(answer.message):
                if kind in known:
                    known[kind].append(intervals)
            report(i + 1, len(files), "reading chorales")
        _write_json(kept, known)
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
    """The scores of a file: one, or the tunes of a collection. music21 stores no pickle, and unpacks to `scratch`."""
    from music21 import converter, environment, stream

    settings = environment.Environment()  # in memory only; the user's own settings file is not written
    before = settings["directoryScratch"]
    settings["directoryScratch"] = str(scratch)
    try:
        parsed: Any = converter.parse(path, forceSource=True, storePickle=False)
    finally:
        settings["directoryScratch"] = before
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


# --------------------------------------------------------------------------------------------- pieces -> clips


def plan_renderings(pieces: Sequence[Piece], seed: int, hours: float) -> list[tuple[dict[str, Any], Piece]]:
    """What is played in which clip. Repertories take turns, and in each of them the pieces, in random order."""
    if not pieces:
        raise ValueError(
            "no score is left to play. Give other sources, or reinstall music21 with its corpus."
        )
    draws = Draws(seed, "renderings")
    repertories = sorted({piece.repertory for piece in pieces})
    turns = [
        itertools.cycle(draws.shuffled([p for p in pieces if p.repertory == repertory]))
        for repertory in repertories
    ]
    plan: list[tuple[dict[str, Any], Piece]] = []
    seconds = 0
    while seconds < hours * 3600.0:
        piece = next(turns[len(plan) % len(turns)])
        clip = _draw_clip(f"{len(plan):04d}", piece, Draws(seed, "renderings", len(plan)))
        plan.append((clip, piece))
        seconds += clip["seconds"]
    return plan


def _draw_clip(name: str, piece: Piece, draws: Draws) -> dict[str, Any]:
    seconds = CLIP_SECONDS[0] + draws.below(CLIP_SECONDS[1] - CLIP_SECONDS[0] + 1)
    bpm = 60.0 * piece.typical_quarters / draws.uniform(*TYPICAL_NOTE_SECONDS)
    bpm = math.floor(bpm * 10.0 + 0.5) / 10.0
    latest = piece.end_quarters - seconds * bpm / 60.0
    starts = sorted({n.onset for part in piece.parts for n in part if n.onset <= latest})
    timbres = draws.shuffled(list(TIMBRES))
    return {
        "id": name,
        "source": piece.name,
        "repertory": piece.repertory,
        "licence": piece.licence,
        "seconds": seconds,
        "bpm": bpm,  # quarter notes per minute
        "start_quarters": starts[draws.below(len(starts))]
        if starts
        else min(p[0].onset for p in piece.parts),
        "transposition": draws.below(12) - 6,
        "doubling": draws.shuffled((-12, 12))[0] if len(piece.parts) == 1 else 0,
        "timbres": [timbres[i % len(timbres)] for i in range(max(2, len(piece.parts)))],
    }


def clip_parts(clip: dict[str, Any], piece: Piece, draws: Draws) -> list[list[Note]]:
    """The notes of each instrument of a clip, in samples; a piece that is too short is played again and again."""
    num_samples, quarter_seconds = clip["seconds"] * SAMPLE_RATE_HZ, 60.0 / clip["bpm"]
    start, parts = clip["start_quarters"], list(piece.parts)
    if clip["doubling"]:
        parts.append(tuple(note._replace(midi=note.midi + clip["doubling"]) for note in parts[0]))
    window_quarters = clip["seconds"] / quarter_seconds
    rounds = math.ceil((start + window_quarters) / piece.end_quarters)
    played = []
    for part in parts:
        articulation, notes = draws.uniform(0.80, 0.98), []
        for again in range(rounds):
            for onset, length, midi in part:
                at, gain = onset + again * piece.end_quarters - start, draws.uniform(0.6, 1.0)
                first = math.floor(at * quarter_seconds * SAMPLE_RATE_HZ + 0.5)
                if 0 <= first < num_samples:
                    held = max(1, math.floor(length * articulation * quarter_seconds * SAMPLE_RATE_HZ))
                    note = Note(first, min(held, num_samples - first), midi + clip["transposition"], gain)
                    notes.append(note)
        played.append(notes)
    return played


def _render(
    directory: Path,
    plan: Sequence[tuple[dict[str, Any], Piece]],
    seed: int,
    workers: int,
    report: Progress,
) -> list[dict[str, Any]]:
    """Render what is missing. `rendered.jsonl` has the hash of each finished file; no other file is trusted."""
    journal = directory / "rendered.jsonl"
    known = {entry["id"]: entry["sha256"] for entry in _read_lines(journal)}
    (directory / "clips").mkdir(exist_ok=True)
    for leftover in (directory / "clips").glob("*.tmp"):
        leftover.unlink()
    jobs = [j for j in plan if known.get(j[0]["id"], "none") != _sha256(_clip(directory, j[0]["id"]))]
    done = len(plan) - len(jobs)
    report(done, len(plan), "rendering clips")
    with journal.open("a", encoding="utf-8") as lines:
        for answer in serve(jobs, partial(_render_job, directory, seed), workers, threads=1):
            name = answer.job[0]["id"]
            known[name] = _alive(answer.message)
            lines.write(f"\n{json.dumps({'id': name, 'sha256': known[name]})}\n")
            lines.flush()
            done += 1
            report(done, len(plan), "rendering clips")
    return [c | {"sha256": known[c["id"]], "num_bytes": _size(_clip(directory, c["id"]))} for c, _ in plan]


def _render_job(directory: Path, seed: int, job: tuple[dict[str, Any], Piece]) -> Iterator[str]:
    clip, piece = job
    pcm = render_clip(clip, piece, seed)
    path = _clip(directory, clip["id"])
    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    soundfile.write(part, pcm, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    digest = _sha256(part)
    assert digest is not None
    os.replace(part, path)
    yield digest


def render_clip(clip: dict[str, Any], piece: Piece, seed: int) -> np.ndarray:
    """int16 samples `(S,)` at 24 kHz. Each instrument is rendered alone, then all are added as integers."""
    num_samples = clip["seconds"] * SAMPLE_RATE_HZ
    mix = np.zeros(num_samples, dtype=np.int64)
    draws = Draws(seed, "renderings", clip["id"], "notes")
    for i, (notes, timbre) in enumerate(zip(clip_parts(clip, piece, draws), clip["timbres"], strict=True)):
        if notes:
            mix += render(notes, timbre, num_samples, Draws(seed, "renderings", clip["id"], "sound", i))
    loudness = draws.uniform(0.35, 0.97)
    scale = loudness * loudness * 32767.0 / (int(np.max(np.abs(mix))) or 1)
    return np.floor(mix * scale + 0.5).astype(np.int16)


# -------------------------------------------------------------------------------------------------- files


def _clip(directory: Path, name: str) -> Path:
    return directory / "clips" / f"{name}.flac"


def _alive(message: Any) -> Any:
    if isinstance(message, WorkerDied):
        raise RuntimeError(
            f"a worker process ended (exit code {message.exit_code}); it may have been killed or out of memory. "
            "Call render_scores again: it goes on where it stopped."
        )
    return message


def _check_settings(directory: Path, settings: dict[str, Any]) -> None:
    settings = json.loads(json.dumps(settings))
    found = _read_json(directory / "settings.json")
    if found is None:
        _write_json(directory / "settings.json", settings)
    elif found != settings:
        different = sorted(name for name in settings if found.get(name) != settings[name])
        raise ValueError(
            f"{directory} holds renderings made with other settings ({', '.join(different)} differ). Remove that "
            "folder, or render elsewhere."
        )


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the system however the process ends
        except BlockingIOError as error:
            raise BlockingIOError(f"another process renders into {directory}; wait for it.") from error
        yield


def _sha256(path: Path) -> str | None:
    """None where there is no file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Entries of a journal. A line that a kill cut short is no JSON and is passed over: its work is done again."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        yield entry


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _write_json(path: Path, value: Any) -> None:
    part = path.with_name(f"{path.name}.tmp")
    part.write_text(json.dumps(value, indent=1), encoding="utf-8")
    os.replace(part, path)
