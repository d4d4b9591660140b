"""Whether one result is what it says: its scores follow from its predictions, these answer the official split, and its
run followed the rules of its protocol."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from audiation.annotations import Beats, Segments
from audiation.answers import AnswerError, Answers, read_answers
from audiation.backbones import BACKBONES
from audiation.bootstrap import Interval, bootstrap_interval
from audiation.cards import card_of
from audiation.methods import parse_method
from audiation.own_backbones import RECORDED_AS
from audiation.own_backbones import is_own_backbone as own_backbone_name
from audiation.protocols import PROTOCOLS, AnyProtocol, Protocol, SeparationProtocol
from audiation.results import Result, Trial
from audiation.run import Run
from audiation.splits import Split, load_splits
from audiation.targets import KeyTarget
from audiation.tasks import TASKS, Task
from audiation.windows import AGGREGATIONS

SCORE_TOLERANCE = 1e-6  # what machines may differ by in the last bits of a sum
MAX_ANNOTATED_SECONDS = 6 * 3600.0  # of one track; metrics take memory by the frame
MOST_LOST = 0.1  # of a grid, that may have come to no score
SHOWN = 3  # names in a message


@dataclass
class Findings:
    """problems: why a result is refused. warnings: what could not be checked, and what a reader has to know."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_result(result: Result, splits: OfficialSplits) -> Findings:
    """Everything that can be checked of one result with what is here."""
    found = Findings()
    run = result.run
    if run["task"] not in TASKS:
        found.problems.append(f"there is no task '{run['task']}'")
        return found
    task = TASKS[run["task"]]
    _check_protocol(result, found)
    _check_metrics(result, task, found)
    _check_scores(result, task, found)
    splits.check(result, task, found)
    if result.coverage < 1:
        found.warnings.append(
            f"partial: {result.num_test_tracks} of {result.num_official_test_tracks} test tracks were scored"
        )
    if run.get("weights") not in (None, "random"):
        found.warnings.append(f"the weights are its authors' own: {run['weights']!r}")
    _check_identity(result, found)
    unused = Counter(f.split for f in result.failures if f.split != "test")
    if unused:
        counts = ", ".join(f"{count} of {split}" for split, count in sorted(unused.items()))
        found.warnings.append(f"recordings that could not be used beside the test: {counts}")
    return found


def _check_identity(result: Result, found: Findings) -> None:
    """What was judged: a backbone, a method and weights that agree with each other."""
    run = result.run
    own = own_backbone_name(run["backbone"])
    if not own and run["backbone"] not in BACKBONES:
        found.problems.append(f"there is no backbone '{run['backbone']}'")
    if own and not run.get(RECORDED_AS):
        found.problems.append(f"the file of the backbone '{run['backbone']}' was not recorded by its hash")
    weights_hash, source = run.get("weights_hash"), str(run.get("weights_source", ""))
    if not isinstance(weights_hash, str) or not weights_hash:
        found.problems.append("run.weights_hash is missing, so nobody knows which weights were judged")
    if source.startswith("random") != (run.get("weights") == "random"):
        found.problems.append(f"weights are {run.get('weights')!r}, and their source is {source!r}")
    try:
        method = parse_method(run["method"])
        Run(**{f.name: run[f.name] for f in fields(Run) if f.name in run})
    except (ValueError, KeyError, TypeError) as error:
        found.problems.append(f"the run is none: {error}")
        return
    protocol = PROTOCOLS[run["protocol"]] if run["protocol"] in PROTOCOLS else None
    if isinstance(protocol, Protocol) and method.trains_backbone:
        found.problems.append(
            f"protocol '{protocol.name}' probes frozen features, and '{run['method']}' changes them"
        )


def _check_metrics(result: Result, task: Task, found: Findings) -> None:
    """Every metric of the task in the version of this code, or a reason why it is not there."""
    expected = [m.versioned_name for m in task.metrics]
    if result.run.get("metrics") != expected:
        found.problems.append(
            f"metrics are {result.run.get('metrics')}, and this code has {expected} for '{task.name}'. Scores of other "
            "versions cannot be compared."
        )
    names = [m.name for m in task.metrics]
    not_defined = result.run.get("not_defined")
    said = not_defined if isinstance(not_defined, dict) else {}
    if there := sorted(said.keys() & result.scores.keys()):
        found.problems.append(f"'{there[0]}' is said not to be defined, and has a score")
    if next(iter(result.scores)) != names[0]:
        found.problems.append(f"the first score is '{next(iter(result.scores))}', and '{names[0]}' selects")
    for name in names:
        if name not in result.scores and name not in said:
            found.problems.append(f"the score '{name}' is missing, and run.not_defined does not say why")
        elif name not in result.scores:
            found.warnings.append(f"'{name}' is not defined for these tracks: {said[name]}")
    for name in result.scores.keys() - set(names):
        found.problems.append(f"task '{task.name}' has no metric '{name}'")


def _check_scores(result: Result, task: Task, found: Findings) -> None:
    """Scores and intervals from the text of the predictions."""
    if not result.predictions:
        found.problems.append("there are no predictions, so no score can be computed again")
        return
    confidences = [p.confidence for p in result.predictions if p.confidence is not None]
    if any(not 0 <= c <= 1 for c in confidences):
        found.problems.append("a confidence is no probability in [0, 1]")
    seed = result.run.get("seed")
    if type(seed) is not int or not 0 <= seed < 1 << 63:
        found.problems.append(f"run.seed is {seed!r}, and the bootstrap needs a whole number from 0")
        return
    try:
        answers = read_answers(result)
        _check_times(answers)
    except (AnswerError, RecursionError) as error:
        found.problems.append(f"predictions cannot be read: {error}")
        return
    pairs = answers.references, answers.estimates
    for metric in task.metrics:
        if metric.name not in result.scores:
            continue
        claimed = result.scores[metric.name]
        try:
            score = float(metric.compute(*pairs))
        except (
            Exception
        ) as error:  # texts of strangers reach mir_eval and scikit-learn, which raise what they like
            found.problems.append(f"{metric.name} cannot be computed from the predictions: {error}")
            continue
        if not abs(score - claimed) <= SCORE_TOLERANCE:
            found.problems.append(
                f"{metric.name} is {claimed!r} in the result, and {score!r} from its predictions"
            )
            continue
        interval: Interval | None
        try:
            interval = bootstrap_interval(metric, *pairs, seed=seed)
        except ValueError:  # too few resamples have this score, as when the result was made
            interval = None
        if not _equal_intervals(result.intervals[metric.name], interval):
            found.problems.append(
                f"the interval of {metric.name} is {_shown(result.intervals[metric.name])} in the result, and "
                f"{_shown(interval)} from its predictions with seed {seed}"
            )


def _check_times(answers: Answers) -> None:
    """AnswerError for times that no recording has: metrics take memory by the frame."""
    for side in (answers.references, answers.estimates):
        for track_id, annotation in zip(answers.track_ids, side, strict=True):
            times = (
                annotation.times_seconds
                if isinstance(annotation, Beats)
                else annotation.intervals_seconds
                if isinstance(annotation, Segments)
                else None
            )
            if times is not None and times.size and abs(times).max() > MAX_ANNOTATED_SECONDS:
                raise AnswerError(
                    f"track '{track_id}' has an annotation at {abs(times).max():g} s; no recording is longer than "
                    f"{MAX_ANNOTATED_SECONDS:g} s here"
                )


def _equal_intervals(a: Interval | None, b: Interval | None) -> bool:
    if a is None or b is None:
        return a is b
    return max(abs(a.low - b.low), abs(a.high - b.high)) <= SCORE_TOLERANCE


def _shown(interval: Interval | None) -> str:
    return "none" if interval is None else f"{interval.low!r} to {interval.high!r}"


# The rules of the protocol ----------------------------------------------------------------------------------------


def _check_protocol(result: Result, found: Findings) -> None:
    run = result.run
    if run["protocol"] not in PROTOCOLS:
        found.problems.append(f"there is no protocol '{run['protocol']}'")
        return
    protocol = PROTOCOLS[run["protocol"]]
    if run.get("protocol_version") != protocol.version:
        found.problems.append(
            f"made by version {run.get('protocol_version')!r} of protocol '{protocol.name}', and this code has version "
            f"{protocol.version}; the two cannot be compared"
        )
    free = _is_free(protocol)
    if any(not d.strip() for d in result.departures):
        found.problems.append("a departure without words")
    found.warnings += [f"departs from '{protocol.name}': {d}" for d in result.departures]
    if run.get("train") and not result.departures and not free:
        found.problems.append(
            f"train='{run['train']}' departs from protocol '{protocol.name}', and the result says of no departure"
        )
    if isinstance(protocol, Protocol):
        _check_wall(result, protocol, found)
        _check_aggregation(result, protocol, found)
        if not free and not result.departures:
            _check_grid(result, protocol, found)
    elif result.trials and not free:
        found.warnings.append(
            f"protocol '{protocol.name}' has no search, and {len(result.trials)} trials are unchecked"
        )
    _check_choice(result, protocol, found)


def _check_wall(result: Result, protocol: Protocol, found: Findings) -> None:
    hours = (result.extract_seconds + result.train_seconds) / 3600
    if protocol.wall_hours and hours > protocol.wall_hours and not result.run.get("beyond_wall_hours"):
        found.problems.append(
            f"it took {hours:.0f} hours, more than the {protocol.wall_hours:g} of '{protocol.name}', and is not starred"
        )


def _check_aggregation(result: Result, protocol: Protocol, found: Findings) -> None:
    """The windows of a track are combined by a rule that the protocol tries."""
    searched = protocol.search_key_aggregation and isinstance(TASKS[result.run["task"]].target, KeyTarget)
    allowed = AGGREGATIONS if searched else ("logits_mean",)
    if result.run.get("aggregation") not in allowed:
        found.problems.append(
            f"windows were combined by {result.run.get('aggregation')!r}; '{protocol.name}' has {', '.join(allowed)}"
        )


def _is_free(protocol: AnyProtocol) -> bool:
    """Whether its rules leave every choice open; separation has no such protocol."""
    return not isinstance(protocol, SeparationProtocol) and protocol.free


def _check_grid(result: Result, protocol: Protocol, found: Findings) -> None:
    """Trials are all of the grid, on all of the layers, and nothing else.

    Configurations that came to no score are not among the trials; where the number that was tried says so, a few
    missing ones are a warning.
    """
    probes = protocol.probes_for(result.run["task"])
    if not result.trials:
        found.problems.append(f"protocol '{protocol.name}' trains probes, and the result keeps no trials")
        return
    known = sorted(f.name for f in fields(probes[0]) if f.name not in ("layer", "seed"))
    if any(set(t.choices) != {*known, "layer"} for t in result.trials):
        found.problems.append(f"trials do not choose layer, {', '.join(known)}")
        return
    grid = Counter(_point([getattr(p, k) for k in known]) for p in probes)
    by_layer: dict[str, Counter[str]] = {}
    lost = 0
    for trial in result.trials:
        counter = by_layer.setdefault(str(trial.choices.get("layer", "")), Counter())
        counter[_point([trial.choices[k] for k in known])] += 1
    for layer, tried in by_layer.items():
        where = f" on layer {layer}" if layer else ""
        outside, untried = tried - grid, grid - tried
        if outside:
            found.problems.append(
                f"{outside.total()} trials{where} are not in the grid of '{protocol.name}', or twice: {known} = "
                f"{next(iter(outside))}"
            )
        if untried and result.run.get("num_configurations") == grid.total() * len(by_layer):
            lost += untried.total()
        elif untried:
            found.problems.append(
                f"{untried.total()} configurations of '{protocol.name}' were not tried{where}: {known} = "
                f"{next(iter(untried))}"
            )
    if lost > MOST_LOST * grid.total() * len(by_layer):
        found.problems.append(f"{lost} configurations are said to have come to no score, too many to believe")
    elif lost:
        found.warnings.append(
            f"{lost} configurations are said to have been tried, and to have come to no score"
        )
    wrong = _wrong_layers(set(by_layer), protocol.layers, _num_layers(result))
    if wrong:
        found.problems.append(f"protocol '{protocol.name}' searches {protocol.layers} layer: {wrong}")


def _point(values: Sequence[Any]) -> str:
    """A point of a grid as text: 64 and 64.0 are one."""
    return json.dumps([int(v) if isinstance(v, float) and v.is_integer() else v for v in values])


def _num_layers(result: Result) -> int | None:
    """Of the backbone; None where it is somebody's own."""
    if result.run["backbone"] not in BACKBONES:
        return None
    return card_of(result.run["backbone"]).num_layers


def _wrong_layers(tried: set[str], layers: str, num_layers: int | None) -> str:
    """What is wrong with the layers that were tried; "" for nothing."""
    if layers != "one" and num_layers == 0:  # one vector per clip has nothing to mix
        return "" if tried == {"0"} else f"{', '.join(sorted(tried))} were tried of a model with one vector"
    numbers = {layer for layer in tried if layer != "weighted-sum"}
    if layers == "one":
        return "" if len(tried) == 1 else f"{len(tried)} were tried"
    if layers == "weighted-sum":
        return "" if tried == {"weighted-sum"} else f"{', '.join(sorted(tried))} were tried"
    if numbers != {str(i) for i in range(len(numbers))} or not numbers:
        return f"those that were tried are not 0, 1, ... to the last: {', '.join(sorted(numbers)) or 'none'}"
    if num_layers is not None and len(numbers) != num_layers + 1:
        return f"{len(numbers)} were tried, and the model has 0 to {num_layers}"
    # Nothing can be weighted in a model that has layer 0 alone.
    if layers == "every and weighted-sum" and "weighted-sum" not in tried and numbers != {"0"}:
        return "the weighted sum was not tried"
    if layers == "every" and "weighted-sum" in tried:
        return "a weighted sum was tried as well"
    return ""


def _check_choice(result: Result, protocol: AnyProtocol, found: Findings) -> None:
    """What was tested is what is best on validation."""
    if not result.trials:
        return
    best = max(result.trials, key=lambda t: t.valid_score)
    # What is chosen may say more than the trials, which have it in common: which state was kept.
    chosen: Trial | None = next((t for t in result.trials if _agree(t.choices, result.chosen)), None)
    keep = result.chosen.get("keep")
    if isinstance(protocol, Protocol) and not _is_free(protocol) and not result.departures:
        rule = protocol.schedule_for(result.run["task"]).keep
        if keep not in (None, rule):
            found.problems.append(
                f"the {keep} state was kept, and protocol '{protocol.name}' keeps the {rule} one"
            )
    if chosen is None:
        found.problems.append(f"the chosen configuration is none of the {len(result.trials)} trials")
    elif chosen.valid_score < best.valid_score:
        found.problems.append(
            f"the tested configuration has {chosen.valid_score!r} on validation, and another has {best.valid_score!r}: "
            "the best on validation is the one to test"
        )
    elif result.run.get("layer") is not None and str(result.run["layer"]) != str(chosen.choices.get("layer")):
        found.problems.append(
            f"the run asks for layer {result.run['layer']}, and layer {chosen.choices.get('layer')} was tested"
        )
    elif result.curve and abs(max(score for _, score in result.curve) - chosen.valid_score) > SCORE_TOLERANCE:
        found.problems.append(
            f"the learning curve does not reach the {chosen.valid_score!r} of the chosen trial, or goes beyond it"
        )
    elif result.best_step not in (chosen.best_step, chosen.last_step):
        found.problems.append(
            f"the tested state is that of step {result.best_step}, and the chosen trial has its best at "
            f"{chosen.best_step} and its last at {chosen.last_step}"
        )


def _agree(choices: Mapping[str, Any], chosen: Mapping[str, Any]) -> bool:
    return all(name in chosen and chosen[name] == value for name, value in choices.items())


# The official split -----------------------------------------------------------------------------------------------


class OfficialSplits:
    """Splits of tasks from the data that are here, each loaded once."""

    def __init__(self, data_root: str | Path | None, metadata_root: str | Path | None) -> None:
        self._data_root, self._metadata_root = data_root, metadata_root
        names = ("AUDIATION_DATA_ROOT", "AUDIATION_METADATA_ROOT")
        self._anything = data_root or metadata_root or any(os.environ.get(n) for n in names)
        self._loaded: dict[str, tuple[dict[str, Split], str] | str] = {}

    def check(self, result: Result, task: Task, found: Findings) -> None:
        """Split hash, tracks and references of a result; a warning where the data are not here."""
        if task.name not in self._loaded:
            self._loaded[task.name] = self._load(task)
        loaded = self._loaded[task.name]
        if isinstance(loaded, str):
            found.warnings.append(f"split, tracks and references are not checked: {loaded}")
            return
        splits, split_hash = loaded
        lacking = sum(len(s.left_out) for s in splits.values())
        if lacking:
            found.warnings.append(
                f"the split hash is not checked: {lacking} recordings of {task.name} are not here"
            )
        elif result.split_hash != split_hash:
            found.problems.append(
                f"the split is another: hash {result.split_hash[:16]}, and the recordings here give {split_hash[:16]}. "
                "It has to be made on the official split, with every recording."
            )
        _check_tracks(result, task, splits["test"], found)

    def _load(self, task: Task) -> tuple[dict[str, Split], str] | str:
        """The splits, or why they are not here."""
        made_here = {task.train_dataset, task.test_dataset} == {"scores"}
        if not self._anything and not made_here:
            return "no data_root or metadata_root is given"
        try:
            return load_splits(task, self._data_root, self._metadata_root)
        except (OSError, ValueError) as error:
            return str(error)


def _check_tracks(result: Result, task: Task, test: Split, found: Findings) -> None:
    here = {t.track_id: t for t in test.tracks}
    left_out = {track_id for track_id, _ in test.left_out}
    failed = {f.track_id for f in result.failures if f.split == "test"}
    answered = {p.track_id: p.reference for p in result.predictions}
    strangers = sorted((answered.keys() | failed) - here.keys() - left_out)
    if strangers:
        found.problems.append(
            f"{len(strangers)} tracks are not in the test split: {', '.join(strangers[:SHOWN])}"
        )
    if both := sorted(answered.keys() & failed):
        found.problems.append(f"{len(both)} tracks are answered and failed: {', '.join(both[:SHOWN])}")
    group_of = task.answer_group
    if group_of is None:
        unaccounted = sorted((here.keys() | left_out) - answered.keys() - failed)
    else:  # one answer for all parts of a recording
        counts = Counter(group_of(here[i]) for i in answered if i in here)
        if twice := [group for group, count in counts.items() if count > 1]:
            found.problems.append(
                f"{len(twice)} recordings have several answers, one for each part: {', '.join(twice[:SHOWN])}"
            )
        groups = set(counts)
        unaccounted = sorted(i for i, t in here.items() if i not in failed and group_of(t) not in groups)
    if unaccounted:
        found.problems.append(
            f"{len(unaccounted)} tracks of the test split are neither answered nor failed: "
            f"{', '.join(unaccounted[:SHOWN])}"
        )
    if group_of is None and result.num_official_test_tracks != test.num_official:
        found.problems.append(
            f"the official test split has {test.num_official} tracks, and the result says "
            f"{result.num_official_test_tracks}"
        )
    wrong = [i for i, text in answered.items() if i in here and str(task.annotation(here[i])) != text]
    if wrong:
        found.problems.append(
            f"{len(wrong)} references are not the official annotations, such as {wrong[0]}: "
            f"{answered[wrong[0]][:60]!r} and not {str(task.annotation(here[wrong[0]]))[:60]!r}"
        )
