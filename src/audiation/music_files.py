"""Which files of a folder are music: nothing is left out without being counted."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# Also kinds that cannot be decoded here: such a file then fails with its reason instead of being passed over.
AUDIO_SUFFIXES = frozenset(
    ".wav .wave .w64 .rf64 .bwf .flac .ogg .oga .opus .mp3 .mp2 .mpga .aif .aiff .aifc .au .snd .caf "
    ".m4a .m4b .aac .alac .wma .ape .wv .mka .mpc .tta .dsf .dff .amr .ac3".split()
)


@dataclass(frozen=True)
class FoundFiles:
    """files: to be read, in order. problems: (path, reason) of folders that could not be listed, and links that
    lead nowhere one may go.

    num_other: files in the folders whose suffix is not of audio. num_hidden: files and folders whose names
    begin with a dot, which were not looked into.
    """

    files: tuple[Path, ...]
    num_other: int
    num_hidden: int
    problems: tuple[tuple[Path, str], ...]


def find_music(paths: Iterable[str | os.PathLike[str]]) -> FoundFiles:
    """Files named in `paths` (whatever they are called, even if missing), and audio files under the folders.

    Folders are searched in the order of names; links are followed, and a folder that several links lead to is
    searched once, so loops end. Inside folders the suffix decides, ignoring case.
    """
    files: dict[Path, None] = {}
    problems: list[tuple[Path, str]] = []
    num_other = num_hidden = 0
    seen: set[tuple[int, int]] = set()
    for given in map(Path, paths):
        if not os.path.isdir(given):  # Path.is_dir raises where the name is too long or may not be looked at
            files[given] = None
            continue
        waiting = [given]
        while waiting:
            folder = waiting.pop()
            try:
                status = folder.stat()
                entries = sorted(os.scandir(folder), key=lambda e: e.name)
            except OSError as error:
                problems.append((folder, _refused("folder cannot be listed", error)))
                continue
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            folders = []
            for entry in entries:
                path = folder / entry.name
                if entry.name.startswith("."):
                    num_hidden += 1
                    continue
                try:
                    is_folder = entry.is_dir()
                except OSError as error:
                    problems.append((path, _refused("cannot be followed", error)))
                    continue
                if is_folder:
                    folders.append(path)
                elif path.suffix.lower() in AUDIO_SUFFIXES:
                    files[path] = None
                else:
                    num_other += 1
            waiting += reversed(folders)
    return FoundFiles(tuple(files), num_other, num_hidden, tuple(problems))


def _refused(what: str, error: OSError) -> str:
    return f"{what} ({error.strerror}). Check its permissions, or leave it out."
