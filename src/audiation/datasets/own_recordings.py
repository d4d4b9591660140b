"""Recordings that a data set does not distribute: yours, under the names it knows, in whatever format."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from audiation.music_files import AUDIO_SUFFIXES

# What can be decoded comes first; the rest is found too, so that it fails with its reason.
_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", *sorted(AUDIO_SUFFIXES), ".webm", ".mp4")


def recordings_in(folders: Iterable[Path]) -> dict[str, Path]:
    """Name without suffix -> file. The first folder that has it wins, and in it WAV, FLAC, MP3, OGG, then others."""
    found: dict[str, tuple[int, int, Path]] = {}
    for place, folder in enumerate(folders):
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.suffix.lower() in _SUFFIXES:
                candidate = (place, _SUFFIXES.index(path.suffix.lower()), path)
                found[path.stem] = min(found.get(path.stem, candidate), candidate)
    return {name: path for name, (_, _, path) in found.items()}
