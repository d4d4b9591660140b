"""`scores`: Bach chorales rendered on the user's machine, with exact truth about key, tempo, beats, chords, timbre.

It shows that the code is right, not how good a model is on recordings. docs/datasets/scores.md has the counts.
Nothing is downloaded: the notes come from the corpus inside the music21 package, the sound from `synthesis`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from audiation.annotations import Beats, Key, Label, Segments, Tempo
from audiation.cache import cache_dir
from audiation.datasets import chorales
from audiation.datasets.base import DATASETS, SPLITS, Dataset, DatasetInfo, Track
from audiation.datasets.chorales import Chorale
from audiation.datasets.synthesis import SAMPLE_RATE_HZ, TIMBRES, Draws, Note, render, write_wav
from audiation.workers import alive, serve

VERSION = 1  # goes up whenever the same seed would give other bytes or other truth
CLIP_SECONDS = 12.0
AGAIN = "Call make_scores again: it goes on where it stopped. workers=0 needs the least memory."
TEMPO_RANGE_BPM = (60.0, 150.0)
GREATEST_LEAD_IN_SECONDS = 0.5
SPLIT_SHARES = {"train": 0.35, "valid": 0.15, "test": 0.50}

Progress = Callable[[int, int, str], None]
"""(done, total, what is being done)"""


@dataclass(frozen=True)
class ScoresTrack(Track):
    """One clip of 12 s. `source` is the file of the corpus, `transposition` in semitones."""

    truth: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def source(self) -> str:
        return self.truth["source"]

    @property
    def transposition(self) -> int:
        return self.truth["transposition"]

    @cached_property
    def key(self) -> Key:
        return Key.parse(self.truth["key"])

    @cached_property
    def tempo(self) -> Tempo:
        return Tempo(self.truth["bpm"])

    @cached_property
    def beats(self) -> Beats:
        return Beats(np.array(self.truth["beats"]), np.array(self.truth["positions"]))

    @cached_property
    def chords(self) -> Segments:
        """One segment per beat, covering the whole clip: 'C:maj', 'A:min', 'N' (silence), 'X' (anything else)."""
        return Segments(np.array(self.truth["chord_intervals"]), tuple(self.truth["chords"]))

    @cached_property
    def timbre(self) -> Label:
        return Label(self.truth["timbre"])


@DATASETS.register("scores")
class Scores(Dataset):
    """The clips that `make_scores` made in `root`. `metadata_root` has no use here: the truth lies in `root`.

    drops: reason -> names of the corpus files that gave no clip.
    windows: how many windows were looked at for the clips, and how many were dropped for their own key.
    """

    name = "scores"
    info = DatasetInfo(
        title="Bach chorales of the music21 corpus, rendered here by a small synthesiser",
        where='nothing to fetch: made by `audiation demo` (needs the extra: pip install "audiation[scores]")',
        size="480 clips of 12 s, 24 kHz mono, 280 MB, made in about two minutes of processor time",
        licence="the music is in the public domain; the encodings are part of music21's corpus, 'distributed with "
        "the permission of the encoders', and some of that corpus may not be used commercially (corpus/license.txt "
        "in the music21 package)",
        commercial_use=False,
        citation="M. S. Cuthbert and C. Ariza: music21: A toolkit for computer-aided musicology and symbolic music "
        "data. ISMIR 2010",
    )

    def __init__(self, root: Path, *, metadata_root: Path | None = None) -> None:
        self.root = Path(root)
        index = _read_json(self.root / "index.json")
        if index is None:
            raise FileNotFoundError(
                f"scores not found at {self.root} (looked for index.json). It is made, not fetched: run "
                "`audiation demo`, or call audiation.datasets.scores.make_scores(root)."
            )
        _check_header(index, self.root)
        self.drops: dict[str, list[str]] = index["drops"]
        self.windows: dict[str, int] = index["windows"]
        self.skipped = ()
        self._files = {clip["id"]: clip for clip in index["clips"]}
        self.tracks = tuple(
            ScoresTrack(clip["id"], _audio_path(self.root, clip["id"]), clip["split"], clip["group"], clip)
            for clip in index["clips"]
        )

    def verify(self) -> list[str]:
        """One line per file that is missing or whose bytes are not the ones that were made."""
        return [
            f"{track_id}: {_audio_path(self.root, track_id)} is missing or has changed; make_scores renders it again"
            for track_id, clip in self._files.items()
            if _sha256(_audio_path(self.root, track_id)) != clip["sha256"]
        ]


def default_root() -> Path:
    """Where the commands keep it: `datasets/scores` in the cache directory."""
    return cache_dir("datasets", "scores")


def make_scores(
    root: Path,
    *,
    seed: int = 0,
    num_clips: int = 480,
    workers: int = 2,
    progress: Progress | None = None,
) -> Scores:
    """Make the data set in `root`, or what is missing of it. The same seed gives the same bytes everywhere.

    May be killed at any moment and called again. A complete set is recognised by its index and the sizes of its
    files, without music21. Two processes may call it at once; the second waits.

    Args:
        num_clips: a multiple of 24 (the keys), at least 96. Half of them are for testing.
        workers: processes, spawned; 0: everything happens in this one.
        progress: called as `progress(done, total, what)`.

    Raises:
        ValueError: `num_clips` is not allowed, or `root` holds a set of another seed, size or version.
        ImportError: music21 is needed and not installed.
    """
    root, progress = Path(root), progress or (lambda done, total, what: None)
    _clips_per_key(num_clips)
    header = {"version": VERSION, "seed": seed, "num_clips": num_clips}
    with _locked(root):
        index = _read_json(root / "index.json")
        if index is not None:
            _check_header(index, root, header)
            if all(_size(_audio_path(root, clip["id"])) == _WAV_BYTES for clip in index["clips"]):
                return Scores(root)
        plan = _read_json(root / "plan.json")
        if plan is None:
            plan = header | plan_clips(read_corpus(root / "scratch", workers, progress), seed, num_clips)
            _write_json(root / "plan.json", plan)
        _check_header(plan, root, header)
        render_clips(root, plan, workers, progress)
    return Scores(root)


def read_corpus(scratch_dir: Path, workers: int, progress: Progress) -> list[Chorale | str]:
    """All Bach scores of the corpus in order of name; the name alone where there are no four sung parts.

    scratch_dir: made for music21 and removed.
    """
    files = chorales.chorale_files()
    scratch_dir.mkdir(parents=True, exist_ok=True)
    progress(0, len(files), "reading chorales")
    found: dict[Path, Chorale | None] = {}
    for answer in serve(files, partial(_read_job, scratch_dir), workers, threads=1):
        found[answer.job] = alive(answer.message, AGAIN)
        progress(len(found), len(files), "reading chorales")
    shutil.rmtree(scratch_dir)
    return [found[f] or f.stem for f in files]


# ------------------------------------------------------------------------------------ which clips, and their truth


def plan_clips(corpus: Sequence[Chorale | str], seed: int, num_clips: int) -> dict[str, Any]:
    """Chorales -> {"clips", "drops", "windows", "tunes"}: every clip with its truth and its notes, as JSON values.

    Raises ValueError when a split would get no chorale of one mode.
    """
    scores = [c for c in corpus if isinstance(c, Chorale)]
    drops: dict[str, list[str]] = defaultdict(list)
    drops["has no four sung parts"] = [c for c in corpus if isinstance(c, str)]
    usable: list[Chorale] = []
    for score in scores:
        reason = _why_dropped(score)
        if reason:
            drops[reason].append(score.name)
        else:
            usable.append(score)
    incipits = {s.name: s.incipits for s in scores}
    tune_of = chorales.tunes(incipits)
    pieces = _share_out(usable, tune_of, Draws(seed, "splits"))
    clips: list[dict[str, Any]] = []
    windows: Counter[str] = Counter({"looked at": 0, "own key differs": 0, "chorale gave none": 0})
    for split, per_key in _clips_per_key(num_clips).items():
        keys = Draws(seed, split, "keys").shuffled(range(24))
        waiting = {mode: _round_robin(pieces[split, mode], split, mode) for mode in ("major", "minor")}
        for slot in range(24 * per_key):
            key, timbre = Key.from_index(keys[slot // per_key]), list(TIMBRES)[slot % len(TIMBRES)]
            draws = Draws(seed, split, slot, "music")
            clip = None
            while clip is None:
                score = next(waiting[key.mode])
                clip = _cut_clip(score, key, draws, windows)
            name = f"{split}-{slot:03d}"
            clips.append({"id": name, "split": split, "group": tune_of[score.name], "timbre": timbre} | clip)
    long = chorales.incipit_groups(incipits, "first part")
    used = {tune_of[c["source"]] for c in clips}
    tunes = {
        "long incipit groups": len(long),
        "files in long incipit groups": sum(len(names) for names in long),
        "tunes": len(set(tune_of.values())),
        "tunes used": len(used),
        "chorales used": len({c["source"] for c in clips}),
    }
    return {
        "drops": {k: v for k, v in drops.items() if v},
        "windows": dict(windows),
        "tunes": tunes,
        "clips": clips,
    }


def _why_dropped(score: Chorale) -> str | None:
    durations = chorales.pitch_class_durations(score.note_table, 0.0, score.end_quarters)
    if score.written_key is None:
        return "states no key"
    if score.final_bass != score.written_key.tonic:
        return "final bass is not the tonic of the written key"
    if int(chorales.krumhansl(durations)) != score.written_key.index:
        return "Krumhansl key of the whole score is not the written key"
    if score.beat_positions is None:
        return "bars do not follow one time signature"
    return None


def _clips_per_key(num_clips: int) -> dict[str, int]:
    """Clips of each of the 24 keys per split."""
    each = num_clips // 24
    if num_clips % 24 or each < 4:
        raise ValueError(f"num_clips must be a multiple of 24 (the keys) and at least 96, got {num_clips}")
    test, valid = math.ceil(each * SPLIT_SHARES["test"]), max(1, round(each * SPLIT_SHARES["valid"]))
    return {"train": each - valid - test, "valid": valid, "test": test}


def _share_out(
    usable: Sequence[Chorale], tune_of: dict[str, str], draws: Draws
) -> dict[tuple[str, str], list[Chorale]]:
    """(split, mode) -> chorales: whole tunes, large ones first, each to the split that lacks most of it."""
    by_tune: dict[str, list[Chorale]] = defaultdict(list)
    for score in usable:
        by_tune[tune_of[score.name]].append(score)
    order = sorted(draws.shuffled(sorted(by_tune)), key=lambda tune: -len(by_tune[tune]))
    total = Counter(_mode(score) for score in usable)
    pieces: dict[tuple[str, str], list[Chorale]] = defaultdict(list)
    for tune in order:
        modes = Counter(_mode(score) for score in by_tune[tune])

        def lack(split: str, modes: Counter[str] = modes) -> float:
            have = sum(len(pieces[split, mode]) * n for mode, n in modes.items())
            want = sum(total[mode] * n for mode, n in modes.items()) * SPLIT_SHARES[split]
            return 1.0 - have / want

        home = max(SPLITS, key=lack)
        for score in by_tune[tune]:
            pieces[home, _mode(score)].append(score)
    return {slot: draws.shuffled(scores) for slot, scores in sorted(pieces.items()) if scores} | {
        (split, mode): [] for split in SPLITS for mode in ("major", "minor") if not pieces[split, mode]
    }


def _mode(score: Chorale) -> str:
    assert score.written_key is not None
    return score.written_key.mode


def _round_robin(scores: list[Chorale], split: str, mode: str) -> Iterator[Chorale]:
    """All in turn, again and again; one that failed three rounds long would never end, so that raises."""
    if not scores:
        raise ValueError(f"no chorale in a {mode} key is left for '{split}': the corpus is too small")
    for _ in range(1000):
        yield from scores
    raise ValueError(f"no chorale for '{split}' has a window in its own {mode} key")


def _cut_clip(score: Chorale, key: Key, draws: Draws, windows: Counter[str]) -> dict[str, Any] | None:
    """A random window of 12 s whose own key is the chorale's, moved to `key`; None when there is none."""
    assert score.written_key is not None and score.beat_positions is not None
    bpm = math.floor(draws.uniform(*TEMPO_RANGE_BPM) * 10.0 + 0.5) / 10.0
    lead_in = draws.below(int(GREATEST_LEAD_IN_SECONDS * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    beat_seconds = 60.0 / bpm
    num_beats, window_beats = len(score.beat_positions), (CLIP_SECONDS - lead_in) / beat_seconds
    unit = score.beat_quarters
    starts = range(max(1, math.floor(num_beats - window_beats) + 1))
    durations = np.array(
        [
            chorales.pitch_class_durations(score.note_table, s * unit, (s + window_beats) * unit)
            for s in starts
        ]
    )
    fitting = [s for s in starts if chorales.krumhansl(durations[s]) == score.written_key.index]
    windows["looked at"] += len(starts)
    windows["own key differs"] += len(starts) - len(fitting)
    if not fitting:
        windows["chorale gave none"] += 1
        return None
    first = fitting[draws.below(len(fitting))]
    transposition = (key.tonic - score.written_key.tonic + 6) % 12 - 6
    notes = [n._replace(midi=n.midi + transposition) for n in score.notes]
    beats = range(first, min(num_beats, first + math.ceil(window_beats - 1e-9)))
    edges = [lead_in + i * beat_seconds for i in range(len(beats) + 1)]
    intervals = [[a, min(CLIP_SECONDS, b)] for a, b in pairwise(edges)]
    labels = [chorales.chord_label(notes, b * unit, (b + 1) * unit) for b in beats]
    if lead_in > 0.0:
        intervals, labels = [[0.0, lead_in], *intervals], ["N", *labels]
    if intervals[-1][1] < CLIP_SECONDS:
        intervals, labels = [*intervals, [intervals[-1][1], CLIP_SECONDS]], [*labels, "N"]
    return {
        "source": score.name,
        "transposition": transposition,
        "key": str(key),
        "bpm": bpm,
        "beats": edges[:-1],
        "positions": [score.beat_positions[b] for b in beats],
        "chord_intervals": intervals,
        "chords": labels,
        "notes": _sounding_notes(notes, first * unit, lead_in, beat_seconds / unit, draws),
    }


def _sounding_notes(
    notes: Sequence[chorales.ScoreNote], start: float, lead_in: float, quarter_seconds: float, draws: Draws
) -> list[Note]:
    """The notes from `start` (quarter notes) on as samples of the clip; one that has begun before begins there."""
    end_sample = int(CLIP_SECONDS * SAMPLE_RATE_HZ)
    articulation = draws.uniform(0.85, 0.98)
    sounding = []
    for onset, length, midi in notes:
        begin, end = (lead_in + (max(start, q) - start) * quarter_seconds for q in (onset, onset + length))
        gain = draws.uniform(0.7, 1.0)
        first = math.floor(begin * SAMPLE_RATE_HZ + 0.5)
        if end > begin and first < end_sample:
            num_samples = math.floor((end - begin) * articulation * SAMPLE_RATE_HZ)
            sounding.append(Note(first, min(num_samples, end_sample - first), midi, gain))
    return sounding


# ------------------------------------------------------------------------------------------------- files


_WAV_BYTES = 44 + 2 * int(CLIP_SECONDS * SAMPLE_RATE_HZ)


def render_clips(root: Path, plan: dict[str, Any], workers: int, progress: Progress) -> None:
    """Render what is missing of a plan, then write the index.

    `rendered.jsonl` notes each finished file with its hash, so that a call after a kill trusts no other file.
    """
    journal = root / "rendered.jsonl"
    known = _read_journal(journal)
    (root / "clips").mkdir(exist_ok=True)
    for leftover in (root / "clips").glob("*.tmp"):
        leftover.unlink()
    jobs = [c for c in plan["clips"] if known.get(c["id"], "none") != _sha256(_audio_path(root, c["id"]))]
    total, done = len(plan["clips"]), len(plan["clips"]) - len(jobs)
    progress(done, total, "rendering clips")
    with journal.open("a") as lines:
        for answer in serve(jobs, partial(_render_job, root, plan["seed"]), workers, threads=1):
            name, digest = answer.job["id"], alive(answer.message, AGAIN)
            if known.setdefault(name, digest) != digest:
                raise RuntimeError(
                    f"{name} was rendered to other bytes than before ({root}). Remove that folder, make it again "
                    "and report the machine: the same seed must give the same bytes everywhere."
                )
            lines.write(f"\n{json.dumps({'id': name, 'sha256': digest})}\n")
            lines.flush()
            done += 1
            progress(done, total, "rendering clips")
    clips = [{k: v for k, v in c.items() if k != "notes"} | {"sha256": known[c["id"]]} for c in plan["clips"]]
    _write_json(root / "index.json", plan | {"clips": clips})


def _read_job(scratch_dir: Path, path: Path) -> Iterator[Chorale | None]:
    yield chorales.read_chorale(path, scratch_dir)


def _render_job(root: Path, seed: int, clip: dict[str, Any]) -> Iterator[str]:
    draws = Draws(seed, clip["id"], "sound")
    notes = [Note(*note) for note in clip["notes"]]
    pcm = render(notes, clip["timbre"], int(CLIP_SECONDS * SAMPLE_RATE_HZ), draws)
    path = _audio_path(root, clip["id"])
    write_wav(path, pcm)
    digest = _sha256(path)
    assert digest is not None
    yield digest


def _audio_path(root: Path, track_id: str) -> Path:
    return root / "clips" / f"{track_id}.wav"


def _sha256(path: Path) -> str | None:
    """None where there is no file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _read_journal(path: Path) -> dict[str, str]:
    """Clip -> SHA-256. A line that a kill cut short is no JSON and is passed over."""
    known: dict[str, str] = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
            known[entry["id"]] = entry["sha256"]
        except (ValueError, KeyError):
            continue
    return known


def _check_header(found: dict[str, Any], root: Path, wanted: dict[str, int] | None = None) -> None:
    wanted = wanted or {"version": VERSION}
    have = {name: found.get(name) for name in wanted}
    if have != wanted:
        raise ValueError(
            f"{root} holds the data set scores as {have}, not as {wanted}. Remove that folder, or make it elsewhere."
        )


def _read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None


def _write_json(path: Path, value: dict[str, Any]) -> None:
    partial_path = path.with_name(f"{path.name}.tmp")
    partial_path.write_text(json.dumps(value, separators=(",", ":")))
    os.replace(partial_path, path)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system lets go of it when the process ends, however it ends
        yield
