"""What a published tagger hears in files: tags every 3 s and of the whole, without any training of one's own.

Probabilities are those of the model, one per tag; they are not calibrated, and depend on the music it was trained on.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from audiation.audio import AudioError, load_audio
from audiation.backbones.musicnn import Musicnn
from audiation.loading import load_backbone

TaggerName = Literal["musicnn-msd", "musicnn-mtt", "musicnn-msd-big"]
TagFormat = Literal["text", "json", "csv"]
CSV_COLUMNS = ("path", "scope", "start_seconds", "end_seconds", "rank", "tag", "probability", "failure")


@dataclass(frozen=True)
class WindowTags:
    """A stretch of a file, and the probability of every tag in it."""

    start_seconds: float
    duration_seconds: float
    scores: Mapping[str, float]


@dataclass(frozen=True)
class FileTags:
    """The tags of a file, or the reason why there are none.

    duration_seconds: of the file. scores: tag -> mean probability over the windows. windows: in order of time; what
        is left behind the last whole one is not heard.
    """

    path: Path
    duration_seconds: float
    scores: Mapping[str, float]
    windows: tuple[WindowTags, ...]
    failure: str = ""


@dataclass(frozen=True)
class TagChoice:
    """Which tags are shown: the `top` most probable ones, of those that reach `threshold`.

    Raises:
        ValueError: less than one tag, or a threshold outside [0, 1].
    """

    top: int = 5
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if type(self.top) is not int or self.top < 1:
            raise ValueError(f"top is how many tags are shown, at least 1, got {self.top!r}")
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold is a probability between 0 and 1, got {self.threshold!r}")

    def of(self, scores: Mapping[str, float]) -> dict[str, float]:
        """The chosen tags, most probable first; of equals the one that the model names first."""
        ranked = sorted(scores, key=lambda tag: -scores[tag])
        return {tag: scores[tag] for tag in ranked[: self.top] if scores[tag] >= self.threshold}


def tag_files(
    paths: Sequence[str | os.PathLike[str]],
    model: str = "musicnn-msd",
    *,
    weights: str | Path | None = None,
    device: str = "cpu",
) -> Iterator[FileTags]:
    """Tag audio files one after the other; one that cannot be read is a failure with its reason.

    Args:
        model: a `TaggerName`.
        weights: checkpoint file or directory; None: the official ones; "random": for tests.

    Raises:
        ValueError: a model that is no tagger, or a device that there is not.
        WeightsError: weights that are missing, damaged, or another model's.
    """
    if isinstance(paths, (str, os.PathLike)):
        raise ValueError(f"paths are several, like ['song.mp3'], got {os.fspath(paths)!r}")
    if model not in get_args(TaggerName):
        raise ValueError(f"'{model}' names no tags. Models that do: {', '.join(get_args(TaggerName))}")
    tagger = load_backbone(model, weights, device=device)
    assert isinstance(tagger, Musicnn)
    return (_tagged(Path(path), tagger, device) for path in paths)


def _tagged(path: Path, tagger: Musicnn, device: str) -> FileTags:
    rate = tagger.sample_rate_hz
    try:
        samples = load_audio(path, rate, min_seconds=tagger.min_samples / rate).samples
    except AudioError as error:
        return FileTags(path, 0.0, {}, (), str(error))
    with torch.inference_mode():
        probabilities = tagger.tags(samples[None].to(device))[0].double().cpu()  # (W, K)
    duration = len(samples) / rate
    assert tagger.hop_samples is not None
    hop = tagger.hop_samples / rate
    windows = tuple(
        WindowTags(
            number * hop, min(hop, duration - number * hop), dict(zip(tagger.tag_names, row, strict=True))
        )
        for number, row in enumerate(probabilities.tolist())
    )
    mean = probabilities.mean(0).tolist()
    return FileTags(path, duration, dict(zip(tagger.tag_names, mean, strict=True)), windows)


# Documents --------------------------------------------------------------------------------------------------


def render_text(tagged: Sequence[FileTags], choice: TagChoice) -> str:
    """For people: file by file the tags of the whole, and a line per window."""
    lines = []
    for one in tagged:
        if one.failure:
            lines += [f"{one.path}", f"  no tags: {one.failure}", ""]
            continue
        lines += [
            f"{one.path}  {_clock(one.duration_seconds)}",
            f"  {'whole':>8}  {_named(choice, one.scores)}",
        ]
        lines += [f"  {_clock(w.start_seconds):>8}  {_named(choice, w.scores)}" for w in one.windows]
        lines.append("")
    return "\n".join(lines)


def render_json(tagged: Sequence[FileTags], choice: TagChoice) -> str:
    """One object per file: tags of the whole and of every window with their probabilities, or the failure."""
    records: list[dict[str, Any]] = []
    for one in tagged:
        if one.failure:
            records.append({"path": str(one.path), "failure": one.failure})
            continue
        windows = [
            {
                "start_seconds": w.start_seconds,
                "duration_seconds": w.duration_seconds,
                "tags": choice.of(w.scores),
            }
            for w in one.windows
        ]
        record = {"path": str(one.path), "duration_seconds": one.duration_seconds}
        records.append({**record, "tags": choice.of(one.scores), "windows": windows})
    return json.dumps(records, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def render_csv(tagged: Sequence[FileTags], choice: TagChoice) -> str:
    """A row per tag: of the whole ("file"), then of every window ("window"). A failure is a row of its own."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for one in tagged:
        if one.failure:
            writer.writerow([str(one.path), "file", *[""] * 5, one.failure])
            continue
        whole = WindowTags(0.0, one.duration_seconds, one.scores)
        for scope, stretch in [("file", whole), *(("window", w) for w in one.windows)]:
            end = stretch.start_seconds + stretch.duration_seconds
            for rank, (tag, score) in enumerate(choice.of(stretch.scores).items(), start=1):
                times = f"{stretch.start_seconds:.3f}", f"{end:.3f}"
                writer.writerow([str(one.path), scope, *times, rank, tag, f"{score:.6g}", ""])
    return out.getvalue()


def _named(choice: TagChoice, scores: Mapping[str, float]) -> str:
    chosen = choice.of(scores)
    if not chosen:
        return f"no tag reaches {choice.threshold:g}"
    return ", ".join(f"{tag} {score:.2f}" for tag, score in chosen.items())


def _clock(seconds: float) -> str:
    """83.456 -> '1:23.46'."""
    hundredths = round(seconds * 100)
    return f"{hundredths // 6000}:{hundredths % 6000 / 100:05.2f}"
