"""Peak memory of `extract` on a long file against a short one, each in a process of its own.

    python benchmarks/extract_memory.py [--backbone logmel-frames] [--num-layers N] [--pooling mean|frames]
                                        [--short-seconds 300] [--long-seconds 7200]

Prints the ratio of the two peaks (resident set), and of what each added to the process before it began.
Linux only (reads VmHWM). A backbone with weights runs with random ones.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SOURCE_RATE_HZ = 44100
LIMIT = 1.2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="logmel-frames")
    parser.add_argument("--num-layers", type=int)
    parser.add_argument("--pooling", default="mean")
    parser.add_argument("--short-seconds", type=float, default=300.0)
    parser.add_argument("--long-seconds", type=float, default=7200.0)
    parser.add_argument("--measure", nargs=2, metavar=("FILE", "STORE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure, options)))
        return
    lengths = (options.short_seconds, options.long_seconds)
    with tempfile.TemporaryDirectory() as folder:
        short, long = (run(Path(folder), seconds, options) for seconds in lengths)
    print(f"{options.backbone}, pooling {options.pooling}, windows of 30 s")
    for seconds, found in zip(lengths, (short, long), strict=True):
        print(
            f"{seconds / 60:7.1f} min of audio: peak {found['peak_mib']:7.1f} MiB, "
            f"{found['peak_mib'] - found['before_mib']:6.1f} MiB of them added; "
            f"{found['rows']:4d} rows, {found['wall_seconds']:6.1f} s"
        )
    ratio = long["peak_mib"] / short["peak_mib"]
    added = (long["peak_mib"] - long["before_mib"]) / (short["peak_mib"] - short["before_mib"])
    print(f"peak memory, long / short: {ratio:.3f} (limit {LIMIT}); of what was added: {added:.3f}")
    sys.exit(ratio >= LIMIT)


def run(folder: Path, seconds: float, options: argparse.Namespace) -> dict[str, float]:
    path = folder / f"{seconds:g}s.wav"
    write_noise(path, seconds)
    command = [sys.executable, __file__, "--measure", str(path), str(folder / f"store-{seconds:g}")]
    command += ["--backbone", options.backbone, "--pooling", options.pooling]
    if options.num_layers is not None:
        command += ["--num-layers", str(options.num_layers)]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    path.unlink()
    return result


def measure(path: str, store: str, options: argparse.Namespace) -> dict[str, float]:
    from audiation import extract, load_backbone
    from audiation.backbones import BACKBONES

    needs_weights = BACKBONES[options.backbone].from_published is not None
    backbone = load_backbone(
        options.backbone, "random" if needs_weights else None, num_layers=options.num_layers
    )
    before_mib, started = peak_mib(), time.perf_counter()
    report = extract(path, backbone, store, pooling=options.pooling)
    assert report.num_done == 1 and not report.failures, report
    wall_seconds = time.perf_counter() - started
    return {
        "before_mib": before_mib, "peak_mib": peak_mib(), "rows": report.num_rows, "wall_seconds": wall_seconds,
    }  # fmt: skip


def peak_mib() -> float:
    """Largest resident set of this process so far; unlike `ru_maxrss`, nothing of its parent."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def write_noise(path: Path, seconds: float) -> None:
    import numpy as np
    import soundfile

    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", SOURCE_RATE_HZ, 1, "PCM_16") as file:
        for start in range(0, round(seconds * SOURCE_RATE_HZ), SOURCE_RATE_HZ):
            count = min(SOURCE_RATE_HZ, round(seconds * SOURCE_RATE_HZ) - start)
            file.write(0.1 * rng.standard_normal(count).clip(-3, 3))


if __name__ == "__main__":
    main()
