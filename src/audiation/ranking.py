"""Which system is better, and how sure that is: comparisons, ranks that systems may share, seeds, averages.

All resampling is over test tracks and paired: systems that are compared are scored on the same draws of the tracks that
all of them answered (`bootstrap.resampled_scores`). Everything is computed from the text of the predictions, so results
can be compared by whoever has their files.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from audiation.answers import metrics_of, read_answers, read_estimates
from audiation.averages import (
    PAPER_AVERAGES,
    AveragedTask,
    PaperAverage,
    TaskAverage,
    normalised_average,
    paper_average,
    rank_average,
)
from audiation.bootstrap import Interval, percentile_interval, resampled_scores
from audiation.metrics import Metric
from audiation.results import Result

__all__ = [
    "PAPER_AVERAGES", "AgainstBoth", "AveragedTask", "Comparison", "NotComparableError", "OverSeeds", "PaperAverage",
    "RankGroup", "TaskAverage", "Verdict", "better_than_both", "compare", "compare_means", "normalised_average",
    "over_seeds", "paper_average", "rank_average", "rank_groups",
]  # fmt: skip

Verdict = Literal["better", "worse", "cannot be told apart"]


class NotComparableError(ValueError):
    """Results that no comparison may put side by side: other tasks, splits, metrics or references."""


# Two or three systems -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """System A against system B in the first metric of their task, on the tracks that both answered.

    score_a, score_b: on these tracks, so they may differ from those of the results.
    difference: score_a - score_b, in the unit of the metric.
    interval: of the difference; None for one track.
    verdict: of A. "cannot be told apart" where the interval holds 0 or there is none; it does not say that A and B are
        equal.
    """

    metric: str
    score_a: float
    score_b: float
    interval: Interval | None
    verdict: Verdict
    num_tracks: int

    @property
    def difference(self) -> float:
        return self.score_a - self.score_b


def compare(
    a: Result, b: Result, *, num_resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Comparison:
    """Paired percentile bootstrap of the difference in the first metric, over the tracks that both answered.

    Raises:
        NotComparableError: other tasks, splits, metric versions or references, or no track that both answered.
        AnswerError: predictions that are not there or cannot be read.
        ValueError: a score that more than 5 % of the resamples do not have.
    """
    shared = _Shared.of([a, b], num_resamples, seed)
    return shared.comparison(0, 1, confidence)


def compare_means(
    pairs: Sequence[tuple[Result, Result]],
    *,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Two systems on several tasks: the mean over the tasks of their first metrics, each pair on the same task.

    Tasks about the same tracks are resampled together. The mean adds metrics of different kinds as papers do, so they
    have to be of like size, and to rise.

    Raises:
        NotComparableError, AnswerError, ValueError: as `compare`; also no pairs, or metrics of which lower is better.
    """
    if not pairs:
        raise NotComparableError("there is nothing to compare: no pairs of results")
    shared = [_Shared.of(pair, num_resamples, seed) for pair in pairs]
    if falling := [s.metric.name for s in shared if not s.metric.higher_is_better]:
        raise NotComparableError(f"of {falling[0]} lower is better, so it has no part in a mean")
    score_a, score_b = (float(np.mean([s.scores[i] for s in shared])) for i in (0, 1))
    differences = np.mean([s.resampled[0] - s.resampled[1] for s in shared], axis=0)
    num_tracks = min(s.num_tracks for s in shared)
    interval = percentile_interval(shared[0].metric, differences, num_tracks, confidence)
    name = f"mean of {len(pairs)} tasks"
    return Comparison(name, score_a, score_b, interval, _verdict(interval, True), num_tracks)


@dataclass(frozen=True)
class AgainstBoth:
    """A system against two baselines, on the same tracks and the same resamples. better: than both."""

    against_a: Comparison
    against_b: Comparison

    @property
    def better(self) -> bool:
        return self.against_a.verdict == self.against_b.verdict == "better"


def better_than_both(
    result: Result,
    baseline_a: Result,
    baseline_b: Result,
    *,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> AgainstBoth:
    """Whether a system is better than two others at once (protocols: PETL 5.4, full fine-tuning and probing there).

    The tracks that all three answered are drawn with replacement, the same for all three; the metric is computed anew
    on each draw; the intervals of both differences have to lie on the better side of 0. Raises as `compare`.
    """
    shared = _Shared.of([result, baseline_a, baseline_b], num_resamples, seed)
    return AgainstBoth(shared.comparison(0, 1, confidence), shared.comparison(0, 2, confidence))


# Many systems -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RankGroup:
    """Systems that share a rank.

    rank: 1 + how many systems are significantly better than each of them.
    results: by score on the shared tracks, the best first.
    num_tracks: that all ranked systems answered.
    """

    rank: int
    results: tuple[Result, ...]
    num_tracks: int


def rank_groups(
    results: Sequence[Result], *, num_resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> list[RankGroup]:
    """Ranks of systems on one task, in its first metric, the best rank first.

    The rank of a system is 1 + the number of systems that are significantly better than it: those whose paired
    interval of the difference lies on the better side of 0. "Cannot be told apart" is not transitive (A and B may be
    alike, B and C too, and A still better than C), so groups cannot be cut by it; this count can always be made, does
    not depend on an order, and gives no system a worse rank without naming the systems that beat it. Two systems of one
    rank may therefore differ from each other significantly, and a system of lower score may have the better rank where
    its answers vary more. The intervals are those of single comparisons, not corrected for their number.

    Scores are computed on the tracks that all systems answered.

    Raises:
        NotComparableError: as `compare`; also for no results.
        AnswerError, ValueError: as `compare`.
    """
    shared = _Shared.of(results, num_resamples, seed)
    count = len(results)
    ranks = [1] * count
    for i in range(count):
        for j in range(i):
            verdict = shared.comparison(i, j, confidence).verdict
            if verdict != "cannot be told apart":
                ranks[i if verdict == "worse" else j] += 1
    sign = 1 if shared.metric.higher_is_better else -1
    order = sorted(range(count), key=lambda i: -sign * shared.scores[i])
    return [
        RankGroup(rank, tuple(results[i] for i in order if ranks[i] == rank), shared.num_tracks)
        for rank in sorted(set(ranks))
    ]


@dataclass(frozen=True, eq=False)
class _Shared:
    """Systems on the tracks that all of them answered.

    scores: of each system on these tracks. resampled: `(R,)` of each, on the same draws.
    """

    metric: Metric
    num_tracks: int
    scores: tuple[float, ...]
    resampled: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, results: Sequence[Result], num_resamples: int, seed: int) -> _Shared:
        metric = _common_metric(results)
        track_ids = _common_tracks(results)
        references = read_answers(results[0], track_ids).references
        scores, resampled = [], []
        for result in results:  # one after another: thirty systems' tags would fill the memory
            estimates = read_estimates(result, track_ids)
            scores.append(float(metric.compute(references, estimates)))
            resampled.append(
                resampled_scores(metric, references, estimates, num_resamples=num_resamples, seed=seed)
            )
        return cls(metric, len(track_ids), tuple(scores), tuple(resampled))

    def comparison(self, a: int, b: int, confidence: float) -> Comparison:
        differences = self.resampled[a] - self.resampled[b]
        interval = percentile_interval(self.metric, differences, self.num_tracks, confidence)
        verdict = _verdict(interval, self.metric.higher_is_better)
        return Comparison(
            self.metric.name, self.scores[a], self.scores[b], interval, verdict, self.num_tracks
        )


def _verdict(interval: Interval | None, higher_is_better: bool) -> Verdict:
    if interval is None or interval.low <= 0 <= interval.high:
        return "cannot be told apart"
    return "better" if (interval.low > 0) == higher_is_better else "worse"


def _common_metric(results: Sequence[Result]) -> Metric:
    """The first metric of all results. NotComparableError where it is not one and the same question."""
    if not results:
        raise NotComparableError("there is nothing to compare: no results")
    first = results[0]
    metrics = [metrics_of(r) for r in results]  # of the versions that this code computes, or an error
    for result, known in zip(results, metrics, strict=True):
        for what, ours, theirs in (
            ("task", first.run["task"], result.run["task"]),
            ("split hash", first.split_hash, result.split_hash),
            ("first metric", next(iter(metrics[0])), next(iter(known))),
        ):
            if ours != theirs:
                raise NotComparableError(
                    f"results of another {what} cannot be compared: '{ours}' of {_name(first)} and '{theirs}' of "
                    f"{_name(result)}. Compare runs of one task on the same recordings."
                )
    return next(iter(metrics[0].values()))


def _common_tracks(results: Sequence[Result]) -> list[str]:
    """Ids that all results have, in the order of the first. NotComparableError for other references, or no track."""
    references = [{p.track_id: p.reference for p in r.predictions} for r in results]
    shared = [i for i in references[0] if all(i in of for of in references)]
    if not shared:
        for result in results:
            read_estimates(result, ())  # one without predictions says so
        raise NotComparableError(
            f"{len(results)} results of '{results[0].run['task']}' share no track, so they cannot be compared"
        )
    for result, of in zip(results, references, strict=True):
        for track_id in shared:
            if of[track_id] != references[0][track_id]:
                raise NotComparableError(
                    f"track '{track_id}' has another reference in {_name(result)} than in {_name(results[0])}: one of "
                    "them was scored against other annotations"
                )
    return shared


def _name(result: Result) -> str:
    run = result.run
    return f"{run['backbone']} with {run['method']} on {run['task']}, seed {run.get('seed', 0)}"


# Seeds --------------------------------------------------------------------------------------------------------

# What makes two runs the same but for their seed. Everything else that a run resolved to follows from it.
_SYSTEM_FIELDS = ("backbone", "task", "method", "protocol", "weights", "num_layers", "precision", "train")


@dataclass(frozen=True)
class OverSeeds:
    """Runs that differ only in their seed.

    system: what they share, by the name of the field.
    seeds, scores: of each run, by seed. Scores are those of the first metric on the tracks that all runs answered.
    deviation: sample deviation (n - 1) of the scores; None for one seed.
    interval: of the mean over seeds; see `over_seeds`. None for one track.
    """

    system: dict[str, Any]
    metric: str
    seeds: tuple[int, ...]
    scores: tuple[float, ...]
    interval: Interval | None
    num_tracks: int

    @property
    def num_seeds(self) -> int:
        return len(self.seeds)

    @property
    def mean(self) -> float:
        return float(np.mean(self.scores))

    @property
    def deviation(self) -> float | None:
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else None

    @property
    def minimum(self) -> float:
        return min(self.scores)

    @property
    def maximum(self) -> float:
        return max(self.scores)


def over_seeds(
    results: Sequence[Result], *, num_resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> list[OverSeeds]:
    """Runs put together that differ only in their seed, in the order in which the first of each appears.

    The interval of the mean takes in both that the tracks could have been others and that the seeds could have been:
    on each resample of the tracks, the same for all seeds, as many seeds are drawn with replacement as there are, and
    their scores averaged. With few seeds that understates their part, by the factor (n - 1) / n in the variance; with
    one seed it knows the tracks only.

    The layer counts as part of a system where the run names it, and not where validation chose it.

    Raises:
        NotComparableError: one seed twice in a group, or runs of one group on other splits or metric versions.
        AnswerError: predictions that are not there or cannot be read.
    """
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        groups[json.dumps(_system(result), sort_keys=True)].append(result)
    return [_over_seeds(group, num_resamples, confidence, seed) for group in groups.values()]


def _system(result: Result) -> dict[str, Any]:
    run = result.run
    system = {name: run.get(name) for name in _SYSTEM_FIELDS}
    if len(result.layer_profile) < 2:  # otherwise the layer was searched
        system["layer"] = run.get("layer")
    system["protocol_version"] = run.get("protocol_version")
    system["departures"] = "; ".join(result.departures)
    if run.get("weights") != "random":  # random ones follow from the seed
        system["weights_hash"] = run.get("weights_hash")
    return system


def _over_seeds(group: list[Result], num_resamples: int, confidence: float, seed: int) -> OverSeeds:
    group = sorted(group, key=lambda r: r.run.get("seed", 0))
    seeds = tuple(r.run.get("seed", 0) for r in group)
    if len(set(seeds)) < len(seeds):
        twice = next(s for s in seeds if seeds.count(s) > 1)
        raise NotComparableError(
            f"{_name(group[0])}: seed {twice} is there {seeds.count(twice)} times. Leave one of the results out; the "
            "same run again says nothing about seeds."
        )
    shared = _Shared.of(group, num_resamples, seed)
    by_seed = np.stack(shared.resampled)  # (seeds, R)
    # A stream of its own, so that the tracks are those that every other comparison draws.
    drawn = np.random.default_rng((seed, 1)).integers(0, len(group), (len(group), num_resamples))
    means = np.take_along_axis(by_seed, drawn, axis=0).mean(axis=0)
    interval = percentile_interval(shared.metric, means, shared.num_tracks, confidence)
    return OverSeeds(_system(group[0]), shared.metric.name, seeds, shared.scores, interval, shared.num_tracks)
