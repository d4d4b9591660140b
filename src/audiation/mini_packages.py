"""The table of `audiation-mini`: which packages of Debian have the music, under which licences, and how much.

docs/mini-corpus.md.
"""

from __future__ import annotations

import fnmatch
import importlib.resources
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

AUDIO_SUFFIXES = (".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav")
ALLOWED_LICENCES = frozenset(
    {
        "CC-BY-3.0",
        "CC-BY-SA-3.0",
        "CC-BY-SA-3.0+",
        "CC-BY-SA-4.0",
        "GPL",
        "GPL-2",
        "GPL-2+",
        "GPL-3",
        "GPL-3+",
        "public-domain",
    }
)
"""Licences of music files that allow use, changes and redistribution, as debian/copyright writes them."""


@dataclass(frozen=True)
class MusicPackage:
    """A package of Debian's main section and the music in it.

    sha256, num_bytes: of the .deb file.
    licences: of the music files, as usr/share/doc/NAME/copyright states them.
    music: patterns of their paths in the package; what lies in a .pk3 archive counts as lying beside it.
    num_files, hours: what was measured, without files under 20 s.
    """

    name: str
    version: str
    sha256: str
    num_bytes: int
    licences: tuple[str, ...]
    music: tuple[str, ...]
    num_files: int
    hours: float

    @property
    def deb_name(self) -> str:
        """What apt calls the file; the epoch's colon is escaped."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_all.deb"

    def is_music(self, path: str) -> bool:
        """Whether a file of the package, by its path in it, is music."""
        is_audio = PurePosixPath(path).suffix.lower() in AUDIO_SUFFIXES
        return is_audio and any(fnmatch.fnmatchcase(path, pattern) for pattern in self.music)


def mini_packages(names: Sequence[str] | None = None) -> tuple[MusicPackage, ...]:
    """The packages of `audiation-mini`, or those named. KeyError for a name that is not among them."""
    path = importlib.resources.files("audiation").joinpath("data/mini_packages.json")
    rows = json.loads(path.read_text(encoding="utf-8"))["packages"]
    known = {
        row["name"]: MusicPackage(**row | {k: tuple(row[k]) for k in ("licences", "music")}) for row in rows
    }
    for name in names or ():
        if name not in known:
            raise KeyError(f"'{name}' is no package of audiation-mini. Known: {', '.join(known)}.")
    return tuple(known[name] for name in (known if names is None else names))
