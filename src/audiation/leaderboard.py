"""Results: what was run, how well it did and how sure that is, beside what others have published."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import importlib.resources
import json
import math
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from audiation.backbones import BACKBONES
from audiation.metrics import Metric
from audiation.tasks import TASKS

SCHEMA_VERSION = 1
RESAMPLES_PER_BLOCK = 100  # bounds the memory of a vectorised bootstrap
MIN_DEFINED_SHARE = (
    0.95  # of the resamples; the others have no score, and their share of the interval is unknown
)


class ResultError(ValueError):
    """A result that contradicts itself or a result file that cannot be read. Says which field is wrong."""


class Interval(NamedTuple):
    low: float
    high: float


@dataclass(frozen=True)
class Prediction:
    """What was asked for and what came out for one test track, as text (`str(annotation)`)."""

    track_id: str
    reference: str
    estimate: str


@dataclass(frozen=True)
class Failure:
    """A track that could not be used, and why: without an answer in the test split, without a vector elsewhere."""

    track_id: str
    reason: str
    split: str = "test"


def current_versions() -> dict[str, str]:
    """Versions of everything that can change a number."""
    packages = ("audiation", "torch", "numpy", "librosa", "soundfile", "soxr")
    return {name: importlib.metadata.version(name) for name in packages} | {
        "python": platform.python_version()
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Result:
    """The outcome of one run; everything needed to repeat it and to compute its scores again.

    run: the `Run` as a dict (backbone, task, method, protocol, layer, seed, ...) with what it resolved to
        (weights_hash, protocol_version, chunk policy, versioned names of the metrics).
    scores: metric -> score; the first metric is the one that selected.
    intervals: metric -> bootstrap interval, None where one track is all there is.
    num_test_tracks: test tracks that were scored.
    num_official_test_tracks: test tracks the official split has.
    failures: of every split; those of the test split are what coverage lacks.
    num_parameters: trained ones.
    best_step: updates after which the kept state was found.
    predictions: one per scored track.
    created: UTC, ISO 8601.

    Raises:
        ResultError: fields that contradict each other, or a number that is not finite.
    """

    run: dict[str, Any]
    scores: dict[str, float]
    intervals: dict[str, Interval | None]
    num_test_tracks: int
    num_official_test_tracks: int
    split_hash: str
    failures: tuple[Failure, ...] = ()
    predictions: tuple[Prediction, ...] = ()
    num_parameters: int = 0
    train_seconds: float = 0.0
    best_step: int = 0
    versions: dict[str, str] = field(default_factory=current_versions)
    created: str = field(default_factory=_now)

    def __post_init__(self) -> None:
        for name in ("backbone", "task", "method", "protocol"):
            if not isinstance(self.run.get(name), str):
                raise ResultError(f"run.{name} must be a name, got {self.run.get(name)!r}")
        if not self.scores or self.scores.keys() != self.intervals.keys():
            raise ResultError(
                f"scores and intervals must name the same metrics, "
                f"got {', '.join(self.scores) or 'none'} and {', '.join(self.intervals) or 'none'}"
            )
        for metric, score in self.scores.items():
            interval = self.intervals[metric]
            numbers = [score, *(interval or ())]
            if not all(math.isfinite(n) for n in numbers):
                raise ResultError(f"{metric} has a number that is not finite: {numbers}")
            if interval is not None and interval.low > interval.high:
                raise ResultError(f"the interval of {metric} ends before it starts: {list(interval)}")
        if not 0 < self.num_test_tracks <= self.num_official_test_tracks:
            raise ResultError(
                f"{self.num_test_tracks} scored tracks of {self.num_official_test_tracks} in the test split"
            )
        failed = sum(f.split == "test" for f in self.failures)
        if self.num_test_tracks + failed != self.num_official_test_tracks:
            raise ResultError(
                f"{self.num_test_tracks} scored and {failed} failed test tracks are not the "
                f"{self.num_official_test_tracks} of the split"
            )
        if self.predictions and len(self.predictions) != self.num_test_tracks:
            raise ResultError(f"{len(self.predictions)} predictions for {self.num_test_tracks} scored tracks")

    @property
    def coverage(self) -> float:
        """Share of the official test split that was scored; below 1 the result is partial."""
        return self.num_test_tracks / self.num_official_test_tracks

    def to_json(self) -> str:
        record = {"schema_version": SCHEMA_VERSION, "coverage": self.coverage} | asdict(self)
        return json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Result:
        """Inverse of `to_json`. Raises ResultError naming the field that is missing, unknown or wrong."""
        try:
            record = json.loads(text, parse_constant=_refuse_constant)
        except json.JSONDecodeError as error:
            raise ResultError(f"not JSON: {error}") from None
        if not isinstance(record, dict):
            raise ResultError(f"a result is a JSON object, got {type(record).__name__}")
        if record.pop("schema_version", None) != SCHEMA_VERSION:
            raise ResultError(
                f"schema_version must be {SCHEMA_VERSION}; another version of audiation wrote this"
            )
        coverage = record.pop("coverage", None)
        names = {f.name for f in fields(cls)}
        for problem, differing in (("lacks", names - record.keys()), ("has unknown", record.keys() - names)):
            if differing:
                raise ResultError(f"the result {problem} {', '.join(sorted(differing))}")
        for name, kind in _KINDS.items():
            record[name] = _checked(record[name], kind, name)
        record["intervals"] = {m: _interval(v, f"intervals.{m}") for m, v in record["intervals"].items()}
        record["failures"] = tuple(Failure(**r) for r in _rows(record["failures"], Failure, "failures"))
        record["predictions"] = tuple(
            Prediction(**r) for r in _rows(record["predictions"], Prediction, "predictions")
        )
        for name in ("scores", "versions"):
            kind = (int, float) if name == "scores" else (str,)
            record[name] = {k: _checked(v, kind, f"{name}.{k}") for k, v in record[name].items()}
        result = cls(**record)
        if coverage != result.coverage:
            raise ResultError(f"coverage is {coverage}, but the counts say {result.coverage}")
        return result

    def save(self, path: Path) -> None:
        """Write `to_json`, so that a reader never sees half a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.write_text(self.to_json(), encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Result:
        """Read a file written by `save`. Raises FileNotFoundError, or ResultError naming the file."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (ResultError, UnicodeDecodeError) as error:
            raise ResultError(f"{path} is not a usable result: {error}") from None


# Uncertainty ------------------------------------------------------------------------------------------


def bootstrap_interval(
    metric: Metric,
    references: Sequence[Any],
    estimates: Sequence[Any],
    *,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """Percentile bootstrap over tracks: how far the score would move with other tracks of the same kind.

    It knows nothing of the spread over training seeds. A metric that is a mean over tracks (`per_track`)
    is resampled from its per-track values; any other is computed once per resample.

    Returns:
        None for one track, whose resamples are all alike and would look like certainty.

    Raises:
        ValueError: no tracks, lists of different lengths, or a score that more than 5 % of the resamples do not have.
    """
    num_tracks = len(references)
    if num_tracks == 0 or num_tracks != len(estimates):
        raise ValueError(
            f"a bootstrap needs pairs, got {num_tracks} references and {len(estimates)} estimates"
        )
    if not (0 < confidence < 1 and num_resamples >= 1):
        raise ValueError(f"confidence in (0, 1) and resamples >= 1, got {confidence} and {num_resamples}")
    if num_tracks == 1:
        return None
    score_of = _resampled(metric, references, estimates)
    scores = np.concatenate([score_of(d) for d in _draws(num_tracks, num_resamples, seed)])
    return _percentiles(metric, scores, num_tracks, confidence)


def paired_interval(
    metric: Metric,
    references: Sequence[Any],
    estimates_a: Sequence[Any],
    estimates_b: Sequence[Any],
    *,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """Percentile bootstrap of score(a) - score(b) over the same tracks: both systems are scored on every resample.

    A is better than b (in a metric that rises) where the interval lies above 0, worse where it lies below, and they
    cannot be told apart where it holds 0.

    Returns:
        None for one track.

    Raises:
        ValueError: as `bootstrap_interval`.
    """
    num_tracks = len(references)
    if num_tracks == 0 or not num_tracks == len(estimates_a) == len(estimates_b):
        raise ValueError(
            f"a paired bootstrap needs the same tracks, got {num_tracks} references, {len(estimates_a)} and "
            f"{len(estimates_b)} estimates"
        )
    if not (0 < confidence < 1 and num_resamples >= 1):
        raise ValueError(f"confidence in (0, 1) and resamples >= 1, got {confidence} and {num_resamples}")
    if num_tracks == 1:
        return None
    score_a, score_b = (_resampled(metric, references, estimates) for estimates in (estimates_a, estimates_b))
    differences = np.concatenate([score_a(d) - score_b(d) for d in _draws(num_tracks, num_resamples, seed)])
    return _percentiles(metric, differences, num_tracks, confidence)


def _draws(num_tracks: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks of resamples, `(resamples, tracks)` indices."""
    generator = np.random.default_rng(seed)
    for done in range(0, num_resamples, RESAMPLES_PER_BLOCK):
        block = min(RESAMPLES_PER_BLOCK, num_resamples - done)
        yield generator.integers(0, num_tracks, (block, num_tracks))


def _resampled(
    metric: Metric, references: Sequence[Any], estimates: Sequence[Any]
) -> Callable[[np.ndarray], np.ndarray]:
    """`(resamples, tracks)` indices -> the score on every resample, nan where it is not defined."""
    if metric.per_track is not None:
        values = np.array([metric.per_track(r, e) for r, e in zip(references, estimates, strict=True)], float)
        return lambda draws: values[draws].mean(axis=1)
    if metric.weighted is not None:
        metric.compute(references, estimates)  # raises where something is wrong with all tracks
        score = metric.weighted(references, estimates)
        return lambda draws: np.array(
            [score(np.bincount(draw, minlength=len(references)).astype(np.float64)) for draw in draws]
        )

    def one_by_one(draws: np.ndarray) -> np.ndarray:
        scores = []
        for draw in draws:
            try:
                scores.append(metric.compute([references[i] for i in draw], [estimates[i] for i in draw]))
            except ValueError:  # a resample without variation, say
                scores.append(float("nan"))
        if np.isnan(scores).all():
            metric.compute(references, estimates)  # raises where something is wrong with all tracks
        return np.array(scores)

    return one_by_one


def _percentiles(metric: Metric, scores: np.ndarray, num_tracks: int, confidence: float) -> Interval:
    finite = scores[np.isfinite(scores)]
    if len(finite) < MIN_DEFINED_SHARE * len(scores):
        raise ValueError(
            f"{metric.name} is defined on {len(finite)} of {len(scores)} resamples of {num_tracks} tracks; too few "
            "for an interval"
        )
    tail = 50 * (1 - confidence)
    low, high = np.percentile(finite, [tail, 100 - tail])
    return Interval(float(low), float(high))


# Published numbers ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PublishedScore:
    """A number as printed in a paper; percentages are turned into fractions.

    train_on: data set of the training where it is not that of the test.
    other_data: set by `published_beside` where it was measured on other recordings than the result beside it.
    """

    paper: str
    table: str
    system: str
    method: str
    task: str
    dataset: str
    metric: str
    value: float
    note: str
    train_on: str = ""
    other_data: bool = False


def published_rows(
    task: str, dataset: str, metric: str | None = None, systems: Sequence[str] | None = None
) -> list[PublishedScore]:
    """Published numbers for a question and data set, for example `("key", "giantsteps_key", "key_weighted")`.

    Args:
        systems: names as printed, for example ("CHROMA", "MFCC"), in the order wanted; None: all.

    Raises:
        ValueError: nothing is published under these names; lists what is.
    """
    everything = [r for r in _published() if (r.task, r.dataset) == (task, dataset)]
    found = [r for r in everything if metric in (None, r.metric)]
    if not found:
        known = sorted({r.metric for r in everything} or {f"{r.task}/{r.dataset}" for r in _published()})
        raise ValueError(f"no published numbers for {task}/{dataset}/{metric}. Known: {', '.join(known)}.")
    if systems is None:
        return found
    unknown = [s for s in systems if s not in {r.system for r in found}]
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)} has no published number for {task}/{dataset}. "
            f"Systems: {', '.join(sorted({r.system for r in found}))}."
        )
    return [r for s in systems for r in found if r.system == s]


_PUBLISHED_METHODS = {"probe": ("probing",), "finetune": ("ft", "fine-tuning")}


def published_beside(result: Result) -> list[PublishedScore]:
    """What papers print for the same representation and method: on the result's task, or the nearest to it.

    Empty for random weights, and where nothing is published.
    """
    task, spec = TASKS[result.run["task"]], BACKBONES[result.run["backbone"]]
    ids = task.published_as or task.compare_with
    if ids is None or result.run.get("weights") == "random":
        return []
    method = result.run["method"].partition(":")[0]
    names = {m.name: m.printed_name for m in task.metrics}
    printed = dict.fromkeys(names.get(metric, metric) for metric in result.scores)
    return [
        replace(row, other_data=task.published_as is None)
        for metric in printed
        for row in _published()
        # Beats and downbeats of one data set are two questions there, and one task here.
        if row.dataset == ids[1]
        and row.metric == metric
        and (row.task == ids[0] or row.metric == f"f1_{row.task}")
        and (task.published_as is None or row.train_on == task.published_train_on)
        and row.system in spec.published_names
        and row.method.lower().startswith(_PUBLISHED_METHODS.get(method, (method,)))
    ]


@functools.cache
def _published() -> tuple[PublishedScore, ...]:
    path = importlib.resources.files("audiation").joinpath("data/published_results.json")
    names = [f.name for f in fields(PublishedScore) if f.name not in ("other_data", "train_on")]
    rows = []
    for record in json.loads(path.read_text(encoding="utf-8"))["records"]:
        scale = 0.01 if record["unit"] == "percent" else 1.0
        # Rounding removes what the multiplication adds: 56.5 % is 0.565.
        rows.append(
            PublishedScore(
                **{n: record[n] for n in names}
                | {"value": round(record["value"] * scale, 6), "train_on": record.get("train_on") or ""}
            )
        )
    return tuple(rows)


# The table --------------------------------------------------------------------------------------------

_DATASET_TITLES = {"giantsteps_key": "GiantSteps", "gtzan_genre": "GTZAN", "gtzan_key": "GTZAN"}
_PAPER_TITLES = {"petl": "PETL", "musicfm": "MusicFM", "thesis": "MARBLE/MERT thesis"}


def render_table(
    results: Sequence[Result],
    published: Sequence[PublishedScore] = (),
    *,
    title: str = "Results",
) -> Table:
    """One table: a row per result and metric, then, set apart and labelled in words, the published numbers."""
    table = Table(
        title=title, title_justify="left", box=box.HORIZONTALS, padding=(0, 1, 0, 0), pad_edge=False
    )
    for name in ("representation", "task", "metric"):
        table.add_column(name, overflow="fold")
    for name in ("score", "95 % interval", "tracks"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in sorted(results, key=lambda r: r.run["task"]):
        for metric, score in result.scores.items():
            interval = result.intervals[metric]
            table.add_row(
                _representation(result),
                result.run["task"],
                metric,
                Text(f"{score:.3f}", style="bold"),
                "-" if interval is None else f"{interval.low:.3f} to {interval.high:.3f}",
                _tracks(result),
            )
    table.add_section()
    for row in published:
        data = _DATASET_TITLES.get(row.dataset, row.dataset)
        label = f"published, other\ndata: {data}" if row.other_data else f"published: {data}"
        source = f"{row.system} ({_PAPER_TITLES.get(row.paper, row.paper)})\n{label}"
        cells = (source, row.task, row.metric, f"{row.value:.3f}", "not published", "-")
        table.add_row(*(Text(cell, style="dim italic") for cell in cells))
    failed_in = Counter("test" if f.split == "test" else "training" for r in results for f in r.failures)
    notes = ["Published numbers follow the protocol of their paper."] if published else []
    if any(row.other_data for row in published):
        notes.append(
            "Those on other data are for orientation only; their row names the question they answer."
        )
    if failed_in["test"]:
        notes.append(f"Failed test tracks: {failed_in['test']}; the result files say which and why.")
    if failed_in["training"]:
        notes.append(f"Tracks missing from training and validation: {failed_in['training']}.")
    table.caption, table.caption_justify = "\n".join(notes) or None, "left"
    return table


def _representation(result: Result) -> str:
    run = result.run
    parts = [run["backbone"] if run.get("weights") != "random" else f"{run['backbone']}, untrained"]
    if run.get("layer"):
        parts.append(f"layer {run['layer']}")
    if run["method"] != "probe":
        parts.append(run["method"])
    return ", ".join(parts)


def _tracks(result: Result) -> Text:
    """How many of the official test tracks were scored: what the coverage is made of."""
    counts = f"{result.num_test_tracks}/{result.num_official_test_tracks}"
    return Text(counts) if result.coverage == 1 else Text(f"{counts}\npartial", style="bold red")


# Reading what somebody may have edited ----------------------------------------------------------------

_NUMBER = (int, float)
_KINDS: dict[str, tuple[type, ...]] = {
    "run": (dict,),
    "scores": (dict,),
    "intervals": (dict,),
    "num_test_tracks": (int,),
    "num_official_test_tracks": (int,),
    "split_hash": (str,),
    "failures": (list,),
    "predictions": (list,),
    "num_parameters": (int,),
    "train_seconds": _NUMBER,
    "best_step": (int,),
    "versions": (dict,),
    "created": (str,),
}


def _refuse_constant(name: str) -> None:
    raise ResultError(f"{name} is not a number a result can hold")


def _checked(value: Any, kinds: tuple[type, ...], where: str) -> Any:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ResultError(f"{where} must be {kinds[-1].__name__}, got {value!r}")
    return value


def _interval(value: Any, where: str) -> Interval | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise ResultError(f"{where} must be two numbers or null, got {value!r}")
    return Interval(*(_checked(v, _NUMBER, where) for v in value))


def _rows(rows: list[Any], kind: type, where: str) -> list[dict[str, str]]:
    names = {f.name for f in fields(kind)}
    for i, row in enumerate(rows):
        if (
            not isinstance(row, dict)
            or row.keys() != names
            or not all(isinstance(v, str) for v in row.values())
        ):
            raise ResultError(f"{where}[{i}] must hold the texts {', '.join(sorted(names))}, got {row!r}")
    return rows
