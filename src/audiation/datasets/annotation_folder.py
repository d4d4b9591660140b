"""A folder of small annotation files, one per recording: the data folder's own, else the official ones."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from audiation.datasets.annotation_files import read_bytes
from audiation.datasets.metadata import MetadataFolder, OpenUrl, manifest, read_metadata_folder


class AnnotationFolder:
    """Files by their name below the folder, looked for when the first one is asked for.

    Args:
        places: folders that may hold the files; the first that exists is taken, and its files are not compared with
            the published ones (`differences` does that).
        item: the official files, for when no place exists.
        metadata_root, open_url: as in `metadata.read_metadata_folder`, whose errors pass through.
    """

    def __init__(
        self,
        places: Iterable[Path],
        item: MetadataFolder,
        metadata_root: str | Path | None,
        open_url: OpenUrl | None = None,
    ) -> None:
        self._places, self._item = tuple(places), item
        self._metadata_root, self._open_url = metadata_root, open_url

    def names(self) -> list[str]:
        """Sorted."""
        if self.local is None:
            return sorted(self._official)
        inside = (p.relative_to(self.local).as_posix() for p in self.local.rglob("*"))
        return sorted(name for name in inside if re.fullmatch(self._item.pattern, name))

    def read(self, name: str) -> bytes | None:
        """None where there is no such file. `annotation_files.AnnotationError` where it is far too long."""
        if self.local is None:
            return self._official.get(name)
        path = self.local / name
        return read_bytes(path, self._item.max_file_bytes) if path.is_file() else None

    def where(self, name: str) -> str:
        """The file's name in messages."""
        return f"{self.local or self._item.path}/{name}"

    def differences(self) -> list[str]:
        """A line where the data folder's own files are not the published ones; official files are always checked."""
        if self.local is None:
            return []
        names = self.names()
        found = f"{len(names)} of {self._item.num_files} files"
        if len(names) == self._item.num_files:
            files = {name: self.read(name) or b"" for name in names}
            if hashlib.sha256(manifest(files)).hexdigest() == self._item.sha256:
                return []
            found = "other content"
        return [f"{self.local} is not as published ({found})"]

    @cached_property
    def local(self) -> Path | None:
        """The folder in the data folder; None where the official files are taken."""
        return next((place for place in self._places if place.is_dir()), None)

    @cached_property
    def _official(self) -> dict[str, bytes]:
        return read_metadata_folder(self._item, self._metadata_root, self._open_url)
