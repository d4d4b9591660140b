"""Beats and downbeats by the bar-pointer model, against madmom-infer: `./dev bench dbn_speed`.

Both decode the same activations in one process, in turn, and the fastest of several turns counts; their beats are
compared. The peer's processor is built once, outside of the timing. Then 30 s at 50 Hz and 10 min at 100 Hz on our
side alone (the peer's backpointers of the latter need gigabytes), with the memory of a process that does nothing else,
and what the first call of a process costs. Prints one JSON object. Linux only (reads VmHWM). Needs the extra
`benchmark`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from madmom_infer.features.downbeats import DBNDownBeatTrackingProcessor

from audiation.annotations import Beats
from audiation.decoding import decode_beats_dbn, decode_downbeats_dbn

BEATS_PER_BAR = (3, 4)
AGAINST_PEER = ((30.0, 50.0), (30.0, 100.0))  # seconds, Hz
ALONE = ((30.0, 50.0), (600.0, 100.0))
ASKED_RATIO, ASKED_SHORT_SECONDS, ASKED_LONG_SECONDS, ASKED_MEGABYTES = 20.0, 0.05, 10.0, 1000.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7, help="how often everything is timed")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as empty_cache:
        compiled, cached = (in_new_process(first_call, empty_cache) for _ in range(2))
    report: dict[str, object] = {
        "load": round(os.getloadavg()[0], 2),
        "asked": {
            "times_faster": ASKED_RATIO,
            "seconds_30s_50hz": ASKED_SHORT_SECONDS,
            "seconds_600s_100hz": ASKED_LONG_SECONDS,
            "peak_megabytes_600s_100hz": ASKED_MEGABYTES,
        },
        "first_call_seconds": {"compiles": round(compiled, 2), "finds_it_on_disk": round(cached, 2)},
    }
    rows = []
    for seconds, rate in AGAINST_PEER:
        given = activations(seconds, rate)
        peer = DBNDownBeatTrackingProcessor(beats_per_bar=list(BEATS_PER_BAR), fps=rate)
        took = fastest(
            {
                "ours": lambda given=given, rate=rate: downbeats(given, rate),
                "peer": lambda given=given, peer=peer: peer.process(given),
            },
            options.turns,
        )
        found = downbeats(given, rate)
        ours, theirs = np.stack([found.times_seconds, found.positions], axis=1), peer.process(given)
        rows.append(
            {
                "audio_seconds": seconds,
                "frame_rate_hz": rate,
                "ours_seconds": round(took["ours"], 4),
                "madmom_infer_seconds": round(took["peer"], 3),
                "times_faster": round(took["peer"] / took["ours"], 1),
                "beats": len(ours),
                "same_beats": ours.shape == theirs.shape and bool(np.allclose(ours, theirs, atol=1e-9)),
            }
        )
    report["downbeats_against_madmom_infer"] = rows
    rows = []
    for seconds, rate in ALONE:
        given = activations(seconds, rate)
        took = fastest(
            {
                "beats": lambda given=given, rate=rate: beats(given, rate),
                "downbeats": lambda given=given, rate=rate: downbeats(given, rate),
            },
            min(options.turns, 3) if seconds > 60 else options.turns,
        )
        rows.append(
            {
                "audio_seconds": seconds,
                "frame_rate_hz": rate,
                "beats_seconds": round(took["beats"], 4),
                "downbeats_seconds": round(took["downbeats"], 4),
                "peak_megabytes": round(in_new_process(peak_megabytes, seconds, rate)),
                "of_them_before_decoding": round(in_new_process(peak_megabytes, 1.0, rate)),
            }
        )
    report["ours_alone"] = rows
    print(json.dumps(report, indent=1))


def activations(seconds: float, rate: float) -> np.ndarray:
    """`(T, 2)`: four in a bar at a tempo that drifts around 121 BPM, in noise, some beats missing."""
    rng = np.random.default_rng(0)
    values = 0.2 * rng.random((int(seconds * rate), 2))
    t, beat = 0.3, 0
    while t < seconds:
        if rng.random() > 0.1:
            frame = min(int(t * rate), len(values) - 1)
            values[frame, 1 if beat % 4 == 0 else 0] = rng.uniform(0.4, 0.8)
        t += 60.0 / (121.0 + 6.0 * np.sin(t / 10.0))
        beat += 1
    return values


def beats(given: np.ndarray, rate: float) -> Beats:
    return decode_beats_dbn(given.sum(axis=1), frame_rate_hz=rate)


def downbeats(given: np.ndarray, rate: float) -> Beats:
    return decode_downbeats_dbn(given, frame_rate_hz=rate, beats_per_bar=BEATS_PER_BAR)


def fastest(calls: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    seconds = dict.fromkeys(calls, np.inf)
    for _ in range(turns):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    return seconds


def in_new_process(function: Callable[..., float], *arguments: object) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def first_call(cache_dir: str) -> float:
    """Seconds of the first call: numba is imported, and the kernel compiled or read from its cache."""
    os.environ["NUMBA_CACHE_DIR"] = cache_dir
    given = activations(2.0, 50.0)
    started = time.perf_counter()
    downbeats(given, 50.0)
    return time.perf_counter() - started


def peak_megabytes(seconds: float, rate: float) -> float:
    downbeats(activations(seconds, rate), rate)
    status = Path("/proc/self/status").read_text()
    return (
        int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    )  # ru_maxrss would begin with that of the parent


if __name__ == "__main__":
    main()
