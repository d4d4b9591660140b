"""Metrics of 12,000 tracks with 87 tags, and their bootstrap intervals.

    ./dev bench metrics_speed

Prints one JSON object. Asked: all four tag metrics in under 5 s together.
"""

import json
import time

import numpy as np

from audiation import metrics
from audiation.annotations import Tags
from audiation.bootstrap import bootstrap_interval

TRACKS, TAGS, RESAMPLES = 12_000, 87, 20


def main() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random((TRACKS, TAGS)) < rng.uniform(0.002, 0.2, TAGS)).astype(float)
    scores = np.clip(0.3 * truth + rng.random((TRACKS, TAGS)) * 0.7, 0, 1)
    names = [f"tag{i}" for i in range(TAGS)]
    references = [Tags(dict(zip(names, row, strict=True))) for row in truth.tolist()]
    estimates = [Tags(dict(zip(names, row, strict=True))) for row in scores.tolist()]
    measured = {}
    for metric in (metrics.ROC_AUC, metrics.AP, metrics.ROC_AUC_UNDEFINED_ZERO, metrics.AP_UNDEFINED_SKIPPED):
        started = time.perf_counter()
        value = metric.compute(references, estimates)
        seconds = time.perf_counter() - started
        started = time.perf_counter()
        bootstrap_interval(metric, references, estimates, num_resamples=RESAMPLES)
        interval_seconds = time.perf_counter() - started
        measured[metric.name] = {
            "score": round(value, 4),
            "seconds": round(seconds, 3),
            f"interval_seconds_of_{RESAMPLES}_resamples": round(interval_seconds, 3),
        }
    total = sum(row["seconds"] for row in measured.values())
    print(
        json.dumps(
            {"tracks": TRACKS, "tags": TAGS, "metrics": measured, "seconds_of_all": round(total, 3)}, indent=1
        )
    )


if __name__ == "__main__":
    main()
