"""Answers of adapters as JSON, CSV or JAMS (Humphrey et al. 2014)."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from audiation.annotations import Key, Label, Tags, Values
from audiation.audio import AudioError, audio_info
from audiation.own_audio import Prediction

Format = Literal["json", "csv", "jams"]
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


def write_predictions(predictions: Sequence[Prediction], kind: Format, out: Path) -> list[Path]:
    """Write a JSON or CSV file, or one JAMS file per audio file into the folder `out`; returns what was written.

    Raises:
        ValueError: two audio files of one name whose JAMS files would overwrite each other.
    """
    if kind != "jams":
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(
            render_json(predictions) if kind == "json" else render_csv(predictions), encoding="utf-8"
        )
        return [out]
    by_file: dict[Path, list[Prediction]] = {}
    for p in predictions:
        by_file.setdefault(p.path, []).append(p)
    targets: dict[Path, Path] = {}
    for path in by_file:
        target = out / f"{path.stem}.jams"
        if target in targets:
            raise ValueError(
                f"{targets[target]} and {path} would both become {target}. Ask about them apart."
            )
        targets[target] = path
    out.mkdir(parents=True, exist_ok=True)
    for target, path in targets.items():
        target.write_text(render_jams(by_file[path]), encoding="utf-8")
    return list(targets)


def _record(p: Prediction) -> dict[str, Any]:
    record: dict[str, Any] = {"path": str(p.path), "adapter": p.adapter}
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
    return annotation.values if isinstance(annotation, Values) else str(annotation)


def _answer_text(annotation: Any) -> str:
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
    annotation = p.answer.annotation
    sandbox: dict[str, Any] = {}
    values: list[tuple[Any, float | None]]
    if isinstance(annotation, Key):
        key = f"{str(annotation).split()[0]}:{annotation.mode}"
        namespace, values = "key_mode", [(key, p.scores[str(annotation)])]
    elif isinstance(annotation, Label):
        namespace, values = "tag_open", [(annotation.name, p.scores[annotation.name])]
    elif isinstance(annotation, Tags):
        namespace, values = "tag_open", [*annotation.scores.items()]
    else:
        assert isinstance(annotation, Values)
        namespace, values = "vector", [(list(annotation.values.values()), None)]
        sandbox = {"names": list(annotation.values)}
    return {
        "namespace": namespace,
        "data": [
            {"time": 0.0, "duration": duration, "value": value, "confidence": confidence}
            for value, confidence in values
        ],
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
        "sandbox": sandbox,
        "time": 0.0,
        "duration": duration,
    }
