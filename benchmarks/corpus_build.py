"""How many hours of music a core turns into a corpus per hour, and how fast crops are read from one.

    ./dev bench corpus_build [SECONDS]

Synthetic music of 44.1 kHz stereo, a few files of each format (WAV, FLAC, OGG Vorbis, MP3), is built to 24 kHz in one
process; the time is that of its processor, so that others on the machine count little. Crops of 5 s are then read from
the packed and from the Lance form, on a disk whose cache is warm, by the clock.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

from audiation.corpus import Corpus, CropBatches
from audiation.corpus_build import build_corpus
from audiation.corpus_copy import write_lance
from audiation.corpus_sources import find_sources

FORMATS = ("wav", "flac", "ogg", "mp3")
FILES_PER_FORMAT, RATE_HZ, CROP_SECONDS, BATCH_SIZE, BATCHES = 4, 44_100, 5.0, 16, 50


def main() -> None:
    torch.set_num_threads(1)
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 180
    measured: dict[str, object] = {"seconds_per_file": seconds, "files_per_format": FILES_PER_FORMAT}
    with tempfile.TemporaryDirectory() as folder:
        music = Path(folder, "music")
        for number in range(FILES_PER_FORMAT):
            tune = music_of(number, seconds)
            for suffix in FORMATS:
                path = music / suffix / f"{number}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                with soundfile.SoundFile(path, "w", RATE_HZ, 2) as file:
                    for block in np.split(tune, seconds):  # libsndfile's Vorbis encoder dies of long ones
                        file.write(block)
        measured["audio_hours_per_core_hour"] = {
            suffix: round(speed(music / suffix, Path(folder, f"corpus-{suffix}"))) for suffix in FORMATS
        }
        packed = Corpus(Path(folder, "corpus-flac"))
        started = time.perf_counter()
        lance = write_lance(packed, str(Path(folder, "lance")))
        measured["lance_audio_hours_per_hour"] = round(packed.hours * 3600 / (time.perf_counter() - started))
        measured["crops_per_second"] = {"packed": round(crops(packed)), "lance": round(crops(lance))}
    print(json.dumps(measured, indent=1))


def music_of(seed: int, seconds: int) -> np.ndarray:
    """`(S, 2)`: notes with overtones, four a second, and noise 40 dB below."""
    rng = np.random.default_rng(seed)
    times = np.arange(seconds * RATE_HZ) / RATE_HZ
    hz = 110.0 * 2.0 ** (rng.integers(0, 36, seconds * 4)[(times * 4).astype(int)] / 12)
    phase = 2 * np.pi * np.cumsum(hz) / RATE_HZ
    sound = sum(np.sin(k * phase) / k for k in (1, 2, 3)) * 0.2
    return np.stack([sound, 0.8 * sound], axis=1) + 0.005 * rng.standard_normal((len(times), 2))


def speed(music: Path, directory: Path) -> float:
    """Hours of audio per hour of processor time, from the first answer to the last."""
    marks: list[tuple[float, float]] = []
    build_corpus(
        find_sources([music]),
        directory,
        "music",
        workers=0,
        progress=lambda p: marks.append((time.process_time(), p.hours)),
    )
    (first, before), (last, after) = marks[0], marks[-1]
    return (after - before) * 3600 / (last - first)


def crops(corpus: Corpus) -> float:
    """Crops per second, in micro-batches."""
    batches = CropBatches(corpus, CROP_SECONDS, BATCH_SIZE, 1, seed=0)
    batches.micro_batch(0, 0)
    started = time.perf_counter()
    for step in range(1, BATCHES + 1):
        batches.micro_batch(step, 0)
    return BATCHES * BATCH_SIZE / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
