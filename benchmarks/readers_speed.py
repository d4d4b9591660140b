"""How fast readers read, and audio is decoded, per core.

    AUDIATION_METADATA_ROOT=DIR ./dev bench readers_speed

Reading: constructing a data set and asking every track for every annotation, with the official annotation files below
the metadata root and stand-ins of one byte for the audio; data sets whose files are not there are named. Decoding:
`load_audio` to 24 kHz mono of two minutes of noise at 44.1 kHz stereo. One thread.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import soundfile
import torch

from audiation.audio import load_audio
from audiation.datasets import DATASETS, giantsteps, harmonix
from audiation.datasets.gtzan import GENRES

ANNOTATIONS = ("genre", "key", "tempo", "beats", "sections", "tags", "emotion")
AUDIO_SECONDS, TURNS = 120, 3


def main() -> None:
    torch.set_num_threads(1)
    root = os.environ.get("AUDIATION_METADATA_ROOT")
    measured: dict[str, object] = {"decoding": decoding()}
    if root is None:
        measured["reading"] = "AUDIATION_METADATA_ROOT is not set"
    else:
        measured["reading"] = {name: reading(name, files, root) for name, files in stand_ins(root).items()}
    print(json.dumps(measured, indent=1))


def stand_ins(root: str) -> dict[str, Callable[[], Iterable[str]]]:
    """Data set -> the audio files that its reader looks for."""
    return {
        "giantsteps_key": lambda: (f"audio/{i}.LOFI.mp3" for i in giantsteps.key_test_set(root)),
        "giantsteps_mtg_key": lambda: (f"audio/{t.track_id}.LOFI.mp3" for t in giantsteps.mtg_key_set(root)),
        "giantsteps_tempo": lambda: (f"audio/{t.track_id}.LOFI.mp3" for t in giantsteps.tempo_set(root)),
        "harmonix": lambda: (f"audio/{song.file}.mp3" for song in harmonix.songs(root)),
        "gtzan": lambda: (f"genres/{g}/{g}.{i:05d}.wav" for g in GENRES for i in range(100)),
        "mtg_genre": lambda: mtg_paths(root),
        "mtg_top50": lambda: mtg_paths(root),
    }


def mtg_paths(root: str) -> Iterable[str]:
    for path in Path(root, "mtg-jamendo-dataset/data/splits/split-0").glob("*.tsv"):
        for line in path.read_text().splitlines()[1:]:
            yield f"audio/{line.split(chr(9))[3]}"


def reading(name: str, files: Callable[[], Iterable[str]], metadata_root: str) -> dict[str, float] | str:
    with tempfile.TemporaryDirectory() as folder:
        for file in files():
            path = Path(folder, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            if name == "gtzan":  # whose reader opens every header
                soundfile.write(path, np.zeros(100), 22_050)
            else:
                path.write_bytes(b"x")
        seconds = []
        for _ in range(TURNS):
            started = time.perf_counter()
            data = DATASETS[name](Path(folder), metadata_root=Path(metadata_root))
            for track in data.tracks:
                for annotation in ANNOTATIONS:
                    getattr(track, annotation, None)
            seconds.append(time.perf_counter() - started)
        return {"tracks": len(data.tracks), "tracks_per_second": round(len(data.tracks) / min(seconds))}


def decoding() -> dict[str, float]:
    noise = np.random.default_rng(0).standard_normal((AUDIO_SECONDS * 44_100, 2)) * 0.1
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("wav", "flac", "ogg", "mp3"):
            path = Path(folder, f"a.{suffix}")
            with soundfile.SoundFile(path, "w", 44_100, 2) as file:
                for block in np.split(noise, AUDIO_SECONDS):  # libsndfile's Vorbis encoder dies of long ones
                    file.write(block)
            seconds = []
            for _ in range(TURNS):
                started = time.perf_counter()
                load_audio(path, 24_000)
                seconds.append(time.perf_counter() - started)
            found[f"{suffix}_times_real_time"] = round(AUDIO_SECONDS / min(seconds))
    return found


if __name__ == "__main__":
    main()
