"""Answers about files: a timeline for people; JSON, CSV, JAMS (Humphrey et al. 2014), .lab and .beats for programs."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from audiation.annotations import Beats, Emotion, Key, Label, Pitch, Segments, Tags, Tempo, Values
from audiation.audio import AudioError, audio_info
from audiation.own_audio import Prediction

Format = Literal["timeline", "json", "csv", "jams", "lab", "beats"]
PER_FILE_FORMATS = ("jams", "lab", "beats")  # files of their own, so they need a folder
SAME_MOMENT_SECONDS = 0.05
VERSION = importlib.metadata.version("audiation")
JAMS_VERSION = "0.3.4"  # of the schema that is written


def render_json(predictions: Sequence[Prediction]) -> str:
    """One object per file and adapter: answer, scores, windows, or the reason why there is no answer."""
    return json.dumps([_record(p) for p in predictions], indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def render_csv(predictions: Sequence[Prediction]) -> str:
    """A row per file and adapter: path, adapter, answer, a column per score, failure."""
    names = list(dict.fromkeys(name for p in predictions for name in p.scores))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["path", "adapter", "answer", *names, "failure"])
    for p in predictions:
        answer = "" if p.answer is None else _answer_text(p.answer.annotation)
        scores = [f"{p.scores[name]:.6g}" if name in p.scores else "" for name in names]
        writer.writerow([str(p.path), p.adapter, answer, *scores, p.failure])
    return out.getvalue()


def render_jams(predictions: Sequence[Prediction]) -> str:
    """One JAMS object for one file, with an annotation per adapter.

    Raises:
        ValueError: predictions of several files, or of none.
    """
    paths = {p.path for p in predictions}
    if len(paths) != 1:
        raise ValueError(f"a JAMS object is about one file, got {len(paths)}")
    duration = _duration(next(iter(paths)), predictions)
    failures = {p.adapter: p.failure for p in predictions if p.answer is None}
    jam = {
        "file_metadata": {
            "title": paths.pop().stem,
            "artist": "",
            "release": "",
            "duration": duration,
            "identifiers": {},
            "jams_version": JAMS_VERSION,
        },
        "annotations": [_jams_annotation(p, duration) for p in predictions if p.answer is not None],
        "sandbox": {"failures": failures} if failures else {},
    }
    return json.dumps(jam, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def render_timeline(predictions: Sequence[Prediction]) -> str:
    """For people: file by file, what holds for all of it, and a line per moment at which something happens."""
    return "\n".join(_file_timeline(path, ps) for path, ps in _by_file(predictions).items())


def render_lab(annotation: Segments) -> str:
    """A line per segment: start, end, label, between tabs."""
    rows = zip(annotation.intervals_seconds.tolist(), annotation.labels, strict=True)
    return "".join(f"{start:.3f}\t{end:.3f}\t{label}\n" for (start, end), label in rows)


def render_beats(annotation: Beats) -> str:
    """A line per beat: time and position in the bar, between tabs; the position is left out where none is known."""
    rows = zip(annotation.times_seconds.tolist(), annotation.positions.tolist(), strict=True)
    return "".join(f"{time:.3f}\t{place}\n" if place else f"{time:.3f}\n" for time, place in rows)


def write_predictions(predictions: Sequence[Prediction], kind: Format, out: Path) -> list[Path]:
    """Write one document, or files per audio file into the folder `out`; returns what was written.

    "lab": NAME.chords.lab and NAME.sections.lab; "beats": NAME.beats.

    Raises:
        ValueError: two answers that would overwrite each other's file, or none that such a file could hold.
    """
    if kind not in PER_FILE_FORMATS:
        render = {"timeline": render_timeline, "json": render_json, "csv": render_csv}[kind]
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(render(predictions), encoding="utf-8")
        return [out]
    files: dict[Path, str] = {}
    owners: dict[Path, Path] = {}
    for path, answers in _by_file(predictions).items():
        for name, text in _files_of(path, answers, kind):
            target = out / name
            if target in owners:
                raise ValueError(
                    f"{owners[target]} and {path} would both become {target}. Ask about them, or these adapters, apart."
                )
            files[target], owners[target] = text, path
    if not files:
        raise ValueError(f"no answer can be written as {kind}: such files hold {_HOLDS[kind]}")
    out.mkdir(parents=True, exist_ok=True)
    for target, text in files.items():
        target.write_text(text, encoding="utf-8")
    return list(files)


_HOLDS = {"jams": "answers", "lab": "chords and sections", "beats": "beats"}


def _files_of(path: Path, answers: Sequence[Prediction], kind: Format) -> Iterator[tuple[str, str]]:
    if kind == "jams":
        yield f"{path.stem}.jams", render_jams(answers)
        return
    for p in answers:
        annotation = None if p.answer is None else p.answer.annotation
        if kind == "lab" and isinstance(annotation, Segments):
            yield f"{path.stem}.{p.question}.lab", render_lab(annotation)
        if kind == "beats" and isinstance(annotation, Beats):
            yield f"{path.stem}.beats", render_beats(annotation)


def _by_file(predictions: Sequence[Prediction]) -> dict[Path, list[Prediction]]:
    found: dict[Path, list[Prediction]] = {}
    for p in predictions:
        found.setdefault(p.path, []).append(p)
    return found


def _file_timeline(path: Path, predictions: Sequence[Prediction]) -> str:
    lines = [f"{path}  {_clock(_duration(path, predictions))}"]
    events: list[tuple[float, str, str]] = []  # seconds, question, text
    for p in predictions:
        if p.answer is None:
            lines.append(f"  {p.question:<9} no answer: {p.failure}")
            continue
        annotation = p.answer.annotation
        if isinstance(annotation, Beats):
            lines.append(f"  {p.question:<9} {_beats_summary(annotation)}")
            rows = zip(annotation.times_seconds.tolist(), annotation.positions.tolist(), strict=True)
            events += [(time, p.question, str(place) if place else "x") for time, place in rows]
        elif isinstance(annotation, Segments):
            starts = zip(annotation.intervals_seconds[:, 0].tolist(), annotation.labels, strict=True)
            events += [(start, p.question, label) for start, label in starts]
        else:
            sure = p.scores.get(str(annotation))
            text = f"{annotation.bpm:.1f} BPM" if isinstance(annotation, Tempo) else _answer_text(annotation)
            lines.append(f"  {p.question:<9} {text}" + ("" if sure is None else f" ({sure:.2f})"))
    return "\n".join([*lines, *_event_lines(events)]) + "\n"


def _beats_summary(beats: Beats) -> str:
    times = beats.times_seconds
    if len(times) < 2:
        return f"{len(times)} found"
    bars = int((beats.positions == 1).sum())
    pace = 60.0 / float(np.median(np.diff(times)))
    return f"{len(times)} found, {pace:.1f} a minute" + (f", {bars} bars" if bars else "")


def _event_lines(events: list[tuple[float, str, str]]) -> list[str]:
    """A column per question, a row per moment."""
    if not events:
        return []
    questions = [q for q in ("sections", "beats", "chords") if any(e[1] == q for e in events)]
    questions += sorted({e[1] for e in events} - set(questions))
    widths = {q: max(len(q), *(len(e[2]) for e in events if e[1] == q)) for q in questions}
    rows: list[tuple[float, dict[str, str]]] = []
    for seconds, question, text in sorted(events):
        if not rows or seconds - rows[-1][0] > SAME_MOMENT_SECONDS or question in rows[-1][1]:
            rows.append((seconds, {}))
        rows[-1][1][question] = text
    header = "  " + "  ".join([f"{'time':>8}", *(f"{q:<{widths[q]}}" for q in questions)])
    return [header.rstrip()] + [
        ("  " + "  ".join([f"{_clock(s):>8}", *(f"{r.get(q, ''):<{widths[q]}}" for q in questions)])).rstrip()
        for s, r in rows
    ]


def _clock(seconds: float) -> str:
    """83.456 -> '1:23.46'."""
    hundredths = round(seconds * 100)
    return f"{hundredths // 6000}:{hundredths % 6000 / 100:05.2f}"


def _record(p: Prediction) -> dict[str, Any]:
    record: dict[str, Any] = {"path": str(p.path), "adapter": p.adapter, "question": p.question}
    if p.answer is None:
        return record | {"failure": p.failure}
    starts, lengths = p.answer.starts_seconds, p.answer.durations_seconds
    return record | {
        "answer": _answer_value(p.answer.annotation),
        "scores": p.scores,
        "windows": [
            {"start_seconds": start, "duration_seconds": length, "scores": scores}
            for start, length, scores in zip(starts, lengths, p.window_scores, strict=True)
        ],
    }


def _answer_value(annotation: Any) -> Any:
    if isinstance(annotation, Tags):
        return [tag for tag, score in annotation.scores.items() if score >= 0.5]
    if isinstance(annotation, Values):
        return annotation.values
    if isinstance(annotation, Emotion):
        return {"arousal": annotation.arousal, "valence": annotation.valence}
    if isinstance(annotation, Tempo):
        return {"bpm": annotation.bpm}
    if isinstance(annotation, Beats | Segments):
        return json.loads(str(annotation))
    return str(annotation)


def _answer_text(annotation: Any) -> str:
    if isinstance(annotation, Beats | Segments):
        return str(annotation)
    value = _answer_value(annotation)
    if isinstance(value, list):
        return "|".join(value)
    return " ".join(f"{k}={v:.6g}" for k, v in value.items()) if isinstance(value, dict) else value


def _duration(path: Path, predictions: Sequence[Prediction]) -> float:
    """Seconds of the file; where it cannot be read, as far as it was answered about."""
    try:
        return audio_info(path).duration_seconds
    except AudioError:
        answers = [p.answer for p in predictions if p.answer is not None]
        return max((a.starts_seconds[-1] + a.durations_seconds[-1] for a in answers), default=0.0)


def _jams_annotation(p: Prediction, duration: float) -> dict[str, Any]:
    assert p.answer is not None
    content = _jams_content(p, p.answer.annotation, duration)
    return {
        "namespace": content.namespace,
        "data": content.data,
        "annotation_metadata": {
            "curator": {"name": "", "email": ""},
            "annotator": {},
            "version": VERSION,
            "corpus": "",
            "annotation_tools": f"audiation {VERSION}, adapter {p.adapter}",
            "annotation_rules": "",
            "validation": "",
            "data_source": "program",
        },
        "sandbox": content.sandbox,
        "time": 0.0,
        "duration": duration,
    }


@dataclass(frozen=True)
class _JamsContent:
    namespace: str
    data: list[dict[str, Any]]
    sandbox: dict[str, Any] = field(default_factory=dict)


def _jams_content(p: Prediction, annotation: Any, duration: float) -> _JamsContent:
    def whole(value: Any, confidence: float | None = None) -> dict[str, Any]:
        return {"time": 0.0, "duration": duration, "value": value, "confidence": confidence}

    if isinstance(annotation, Key):
        key = f"{str(annotation).split()[0]}:{annotation.mode}"
        return _JamsContent("key_mode", [whole(key, p.scores.get(str(annotation)))])
    if isinstance(annotation, Label):
        return _JamsContent("tag_open", [whole(annotation.name, p.scores[annotation.name])])
    if isinstance(annotation, Tags):
        return _JamsContent("tag_open", [whole(tag, score) for tag, score in annotation.scores.items()])
    if isinstance(annotation, Tempo):
        # JAMS wants a number between 0 and 1 here, and how sure the model is of one bin among 300 says little.
        return _JamsContent("tempo", [whole(annotation.bpm, 1.0)])
    if isinstance(annotation, Pitch):
        return _JamsContent("note_midi", [whole(float(annotation.midi), p.scores.get(str(annotation)))])
    if isinstance(annotation, Beats):
        rows = zip(annotation.times_seconds.tolist(), annotation.positions.tolist(), strict=True)
        return _JamsContent(
            "beat",
            [{"time": t, "duration": 0.0, "value": place or None, "confidence": None} for t, place in rows],
        )
    if isinstance(annotation, Segments):
        segments = zip(annotation.intervals_seconds.tolist(), annotation.labels, strict=True)
        return _JamsContent(
            "chord" if p.question == "chords" else "segment_open",
            [
                {"time": start, "duration": end - start, "value": label, "confidence": None}
                for (start, end), label in segments
            ],
        )
    values = _answer_value(annotation)
    return _JamsContent("vector", [whole(list(values.values()))], {"names": list(values)})
