"""Which files a corpus is made of, and what they are called in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from audiation.corpus_table import FileEntry
from audiation.music_files import find_music


@dataclass(frozen=True)
class SourceFile:
    """A file to put into a corpus. name: in the corpus. group: artist or album, licence: where a recipe knows them."""

    path: Path
    name: str
    group: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Sources:
    """What a corpus is made of. left_out: files that are not even decoded, and why; failed: that cannot be."""

    files: tuple[SourceFile, ...]
    left_out: tuple[FileEntry, ...] = ()
    failed: tuple[FileEntry, ...] = ()
    num_other: int = 0
    num_hidden: int = 0


def find_sources(paths: Sequence[str | Path]) -> Sources:
    """The audio files in and below `paths`, named as they lie below the path that was given.

    With several paths, the last part of the path comes before the name.

    Raises:
        ValueError: no path, or two files that would have the same name.
    """
    if not paths:
        raise ValueError("no path to build from was given. Name at least one folder or file.")
    files: list[SourceFile] = []
    failed: list[FileEntry] = []
    num_other = num_hidden = 0
    for root in map(Path, paths):
        found = find_music([root])
        num_other, num_hidden = num_other + found.num_other, num_hidden + found.num_hidden
        prefix = root.resolve().name if len(paths) > 1 and root.is_dir() else ""
        files += [SourceFile(path, _name(path, root, prefix)) for path in found.files]
        failed += [FileEntry(_name(path, root, prefix), "failed", reason) for path, reason in found.problems]
    named: dict[str, SourceFile] = {}
    for source in files:
        if (other := named.setdefault(source.name, source)) is not source:
            raise ValueError(
                f"{other.path} and {source.path} would both be called '{source.name}'. Give a folder above both."
            )
    return Sources(tuple(files), failed=tuple(failed), num_other=num_other, num_hidden=num_hidden)


def _name(path: Path, root: Path, prefix: str) -> str:
    below = path.name if path == root else path.relative_to(root).as_posix()
    text = f"{prefix}/{below}" if prefix else below
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
