"""Results: what was run, how well it did, how sure that is, what it cost, and everything needed to repeat it."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
import platform
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from audiation.bootstrap import Interval
from audiation.provenance import current_code, current_hardware

SCHEMA_VERSION = 2


class ResultError(ValueError):
    """A result that contradicts itself or a result file that cannot be read. Says which field is wrong."""


@dataclass(frozen=True)
class Prediction:
    """What was asked for and what came out for one test track, as text (`str(annotation)`).

    confidence: probability of the given answer, where it is one class out of several; None elsewhere.
    """

    track_id: str
    reference: str
    estimate: str
    confidence: float | None = None


@dataclass(frozen=True)
class Trial:
    """One configuration of a protocol's search.

    choices: name -> value of what the search varies, such as {"layer": "7", "learning_rate": 0.001}; a learned mix of
        layers is the layer "weighted-sum".
    valid_score: the best on the validation split, larger is better.
    best_step, last_step: updates after which the best state was found, and training ended.
    """

    choices: dict[str, Any]
    valid_score: float
    best_step: int
    last_step: int


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
    num_official_test_tracks: test tracks the official split has; where the parts of a recording answer together, the
        answers, and the parts that failed.
    failures: of every split; those of the test split are what coverage lacks.
    num_parameters: trained ones.
    best_step: updates after which the kept state was found.
    chosen: choices of the trial that was tested.
    trials: everything that the protocol tried, in its order; none where it has no search.
    curve: (updates, validation score) of the trial that was tested.
    departures: how the run departs from its protocol, in words; none: it follows it.
    extract_seconds: spent on features in this run; next to nothing where they were there (`run["features_from_store"]`
        counts the files), so that hours are then a lower bound.
    hardware: `provenance.current_hardware`.
    code: `provenance.current_code`.
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
    chosen: dict[str, Any] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    curve: tuple[tuple[int, float], ...] = ()
    departures: tuple[str, ...] = ()
    extract_seconds: float = 0.0
    hardware: dict[str, Any] = field(default_factory=current_hardware)
    code: dict[str, str] = field(default_factory=current_code)
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
        amounts = {
            "num_parameters": self.num_parameters, "train_seconds": self.train_seconds, "best_step": self.best_step,
            "extract_seconds": self.extract_seconds, "hardware.gpus": self.hardware.get("gpus", 0),
            "hardware.cores": self.hardware.get("cores", 1),
        }  # fmt: skip
        for name, amount in amounts.items():
            if (
                not isinstance(amount, int | float) or not 0 <= amount < 1e18
            ):  # no machine has worked that long
                raise ResultError(f"{name} must be a number from 0, got {amount!r}")
        if self.predictions and len(self.predictions) != self.num_test_tracks:
            raise ResultError(f"{len(self.predictions)} predictions for {self.num_test_tracks} scored tracks")

    @property
    def coverage(self) -> float:
        """Share of the official test split that was scored; below 1 the result is partial."""
        return self.num_test_tracks / self.num_official_test_tracks

    @property
    def layer_profile(self) -> dict[str, float]:
        """Layer -> best validation score of the trials on it, in the order of the search."""
        best: dict[str, float] = {}
        for trial in self.trials:
            if "layer" in trial.choices:
                layer = str(trial.choices["layer"])
                best[layer] = max(trial.valid_score, best.get(layer, -math.inf))
        return best

    @property
    def compute_hours(self) -> float:
        """Hours of the cores, or of the GPUs where there is one (`hardware`), spent on features and training."""
        units = self.hardware.get("gpus") or self.hardware.get("cores") or 1
        return (self.extract_seconds + self.train_seconds) * units / 3600

    def to_json(self) -> str:
        record = {"schema_version": SCHEMA_VERSION, "coverage": self.coverage} | asdict(self)
        return json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Result:
        """Inverse of `to_json`. Raises ResultError naming the field that is missing, unknown or wrong."""
        try:
            record = json.loads(text, parse_constant=_refuse_constant)
            json.dumps(record, ensure_ascii=False).encode()
        except (
            ValueError,
            RecursionError,
        ) as error:  # broken, too deep, a number without end, half a character
            raise ResultError(f"not JSON: {error}") from None
        if not isinstance(record, dict):
            raise ResultError(f"a result is a JSON object, got {type(record).__name__}")
        version = record.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise ResultError(
                f"schema_version must be {SCHEMA_VERSION}, got {version!r}; another version of audiation wrote this. "
                "Evaluate the run again, or read it with that version."
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
        record["trials"] = tuple(Trial(**r) for r in _rows(record["trials"], Trial, "trials"))
        record["curve"] = tuple(_point(point, f"curve[{i}]") for i, point in enumerate(record["curve"]))
        record["departures"] = tuple(_checked(d, (str,), "departures") for d in record["departures"])
        for name in ("scores", "versions"):
            kind = (int, float) if name == "scores" else (str,)
            record[name] = {k: _checked(v, kind, f"{name}.{k}") for k, v in record[name].items()}
        result = cls(**record)
        if isinstance(coverage, bool) or coverage != result.coverage:
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
    "chosen": (dict,),
    "trials": (list,),
    "curve": (list,),
    "departures": (list,),
    "extract_seconds": _NUMBER,
    "hardware": (dict,),
    "code": (dict,),
    "versions": (dict,),
    "created": (str,),
}


def _refuse_constant(name: str) -> None:
    raise ResultError(f"{name} is not a number a result can hold")


def _checked(value: Any, kinds: tuple[type, ...], where: str) -> Any:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ResultError(f"{where} must be {kinds[-1].__name__}, got {value!r}")
    if isinstance(value, int | float) and not abs(value) < 1e300:
        raise ResultError(f"{where} must be finite, got {str(value)[:20]}")
    return value


def _interval(value: Any, where: str) -> Interval | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise ResultError(f"{where} must be two numbers or null, got {value!r}")
    return Interval(*(_checked(v, _NUMBER, where) for v in value))


def _point(value: Any, where: str) -> tuple[int, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise ResultError(f"{where} must be a step and a score, got {value!r}")
    return _checked(value[0], (int,), where), _checked(value[1], _NUMBER, where)


_FIELD_KINDS: dict[str, tuple[type, ...]] = {
    "choices": (dict,),
    "valid_score": _NUMBER,
    "best_step": (int,),
    "last_step": (int,),
    "confidence": (*_NUMBER, type(None)),
}


def _rows(rows: list[Any], kind: type, where: str) -> list[dict[str, Any]]:
    names = {f.name for f in fields(kind)}
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or row.keys() != names:
            raise ResultError(f"{where}[{i}] must hold {', '.join(sorted(names))}, got {row!r}")
        for name, value in row.items():
            _checked(value, _FIELD_KINDS.get(name, (str,)), f"{where}[{i}].{name}")
    return rows
