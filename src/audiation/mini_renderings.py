"""Renderings of scores for `audiation-mini`: music of the music21 corpus that is not in the data set `scores`.

`mini_scores.py` reads the pieces. Each has several instruments, one for each part. docs/mini-corpus.md says what is
played and under which licences.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from audiation.datasets import chorales
from audiation.datasets.synthesis import SAMPLE_RATE_HZ, TIMBRES, Draws, Note, render
from audiation.folder_lock import locked
from audiation.mini_files import read_json, size_of, write_json
from audiation.mini_scores import AGAIN, SOURCES, Piece, Progress, ScoreSource, read_lines, read_pieces
from audiation.workers import alive, serve

VERSION = 1  # goes up whenever the same seed would give other renderings
CLIP_SECONDS = (30, 120)
TYPICAL_NOTE_SECONDS = (0.16, 0.50)  # of the piece's median note: scores count in quavers or in breves


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
        FolderLockedError: another process renders into `directory`.
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
    with locked(directory, "rendering scores"):
        _check_settings(directory, settings)
        index = read_json(directory / "index.json")
        if index is None or any(size_of(_clip(directory, c["id"])) != c["num_bytes"] for c in index["clips"]):
            read = read_pieces(directory, corpus, sources, workers, report)
            clips = _render(directory, plan_renderings(read.pieces, seed, hours), seed, workers, report)
            index = {"drops": read.drops, "clips": clips}
            write_json(directory / "index.json", index)
    seconds = sum(clip["seconds"] for clip in index["clips"])
    return Renderings(len(index["clips"]), seconds / 3600.0, index["drops"])


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
    known = {entry["id"]: entry["sha256"] for entry in read_lines(journal)}
    (directory / "clips").mkdir(exist_ok=True)
    for leftover in (directory / "clips").glob("*.tmp"):
        leftover.unlink()
    jobs = [j for j in plan if known.get(j[0]["id"], "none") != _sha256(_clip(directory, j[0]["id"]))]
    done = len(plan) - len(jobs)
    report(done, len(plan), "rendering clips")
    with journal.open("a", encoding="utf-8") as lines:
        for answer in serve(jobs, partial(_render_job, directory, seed), workers, threads=1):
            name = answer.job[0]["id"]
            known[name] = alive(answer.message, AGAIN)
            lines.write(f"\n{json.dumps({'id': name, 'sha256': known[name]})}\n")
            lines.flush()
            done += 1
            report(done, len(plan), "rendering clips")
    return [c | {"sha256": known[c["id"]], "num_bytes": size_of(_clip(directory, c["id"]))} for c, _ in plan]


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


def _check_settings(directory: Path, settings: dict[str, Any]) -> None:
    settings = json.loads(json.dumps(settings))
    found = read_json(directory / "settings.json")
    if found is None:
        write_json(directory / "settings.json", settings)
    elif found != settings:
        different = sorted(name for name in settings if found.get(name) != settings[name])
        raise ValueError(
            f"{directory} holds renderings made with other settings ({', '.join(different)} differ). Remove that "
            "folder, or render elsewhere."
        )


def _sha256(path: Path) -> str | None:
    """None where there is no file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
