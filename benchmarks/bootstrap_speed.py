"""Bootstrap intervals of 5,329 tracks with 50 tags (the test split of MagnaTagATune), 1,000 resamples.

    ./dev bench bootstrap_speed

Prints one JSON object. Asked: the interval of macro average precision in under 5 s on two cores; one is used. Beside
it the same resamples scored by scikit-learn one after another, on arrays that are ready: timed on a few of them and
multiplied, since all take the same time. Peak memory is what the interval holds at once beside its annotations.
"""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import sklearn.metrics

from audiation import metrics
from audiation.annotations import Label, Tags
from audiation.bootstrap import RESAMPLES_PER_BLOCK, bootstrap_interval
from audiation.metrics import Metric

TRACKS, TAGS, CLASSES, RESAMPLES, PEER_RESAMPLES = 5329, 50, 10, 1000, 10
ASKED_SECONDS = 5.0  # of average precision
BYTES_PER_MIB = 2**20


def main() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random((TRACKS, TAGS)) < rng.uniform(0.01, 0.2, TAGS)).astype(float)
    scores = np.clip(0.3 * truth + rng.random((TRACKS, TAGS)) * 0.7, 0, 1)
    names = [f"tag {i}" for i in range(TAGS)]
    references, estimates = (
        [Tags(dict(zip(names, row, strict=True))) for row in table.tolist()] for table in (truth, scores)
    )
    answers = rng.integers(0, CLASSES, (2, TRACKS))
    labels, guesses = ([Label(f"class {i}") for i in row] for row in answers.tolist())
    average_precision = sklearn.metrics.average_precision_score
    roc_auc, accuracy = sklearn.metrics.roc_auc_score, sklearn.metrics.accuracy_score
    measured = {
        "ap": measure(metrics.AP, references, estimates, lambda d: average_precision(truth[d], scores[d])),
        "roc_auc": measure(metrics.ROC_AUC, references, estimates, lambda d: roc_auc(truth[d], scores[d])),
        "accuracy": measure(
            metrics.ACCURACY, labels, guesses, lambda d: accuracy(answers[0, d], answers[1, d])
        ),
    }
    sizes = {"tracks": TRACKS, "tags": TAGS, "resamples": RESAMPLES, "scikit_learn_resamples": PEER_RESAMPLES}
    print(json.dumps({**sizes, "asked_seconds_of_ap": ASKED_SECONDS, "metrics": measured}, indent=1))


def measure(
    metric: Metric, references: list[Any], estimates: list[Any], peer: Callable[[np.ndarray], float]
) -> dict[str, float]:
    """peer: indices of the tracks of one resample -> its score."""
    started = time.perf_counter()
    bootstrap_interval(metric, references, estimates, num_resamples=RESAMPLES)
    seconds = time.perf_counter() - started

    generator = np.random.default_rng(1)
    draws = [generator.integers(0, TRACKS, TRACKS) for _ in range(PEER_RESAMPLES)]
    started = time.perf_counter()
    expected = [float(peer(draw)) for draw in draws]
    peer_seconds = (time.perf_counter() - started) / PEER_RESAMPLES * RESAMPLES
    ours = [metric.compute([references[i] for i in d], [estimates[i] for i in d]) for d in draws[:1]]
    if metric.weighted is not None:
        score = metric.weighted(references, estimates)
        ours = [score(np.bincount(draw, minlength=TRACKS).astype(float)) for draw in draws]
    difference = max(abs(a - b) for a, b in zip(ours, expected, strict=False))

    tracemalloc.start()  # slows what it watches, so apart from the timing; later blocks are as large as the first
    bootstrap_interval(metric, references, estimates, num_resamples=RESAMPLES_PER_BLOCK)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "seconds": round(seconds, 2),
        "scikit_learn_seconds": round(peer_seconds, 1),
        "times_faster": round(peer_seconds / seconds, 1),
        "largest_difference_of_a_resample": difference,
        "peak_mib": round(peak / BYTES_PER_MIB, 1),
    }


if __name__ == "__main__":
    main()
