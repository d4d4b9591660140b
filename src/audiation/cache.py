"""Where things made or fetched once are kept: `$AUDIATION_CACHE`, else the user's cache directory."""

from __future__ import annotations

import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def cache_dir(*parts: str) -> Path:
    """The cache directory, or a folder in it (not created here).

    `AUDIATION_CACHE` wins; otherwise `$XDG_CACHE_HOME/audiation` or `~/.cache/audiation`.
    """
    root = os.environ.get("AUDIATION_CACHE")
    if root:
        base = Path(root).expanduser()
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "audiation"
    return base.joinpath(*parts)


def keep_text(path: Path, text: str) -> None:
    """Write a small file, all or nothing. A cache that cannot be written is a warning, not an error."""
    try:
        write_text(path, text)
    except OSError as error:
        warnings.warn(f"cannot write {path} ({error}); $AUDIATION_CACHE may name another place", stacklevel=3)


def write_text(path: Path, text: str) -> None:
    """As `keep_text`, with an OSError where the cache cannot be written."""
    with whole_file(path) as stream:
        stream.write(text.encode())


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that appears at `path` when it is whole; whatever goes wrong, nothing is left of it.

    Processes that write the same file at a time have one each, and the last one stays. Whoever may read new files of
    this user may read it (a temporary file of `tempfile` would be the user's alone, also in a shared cache).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        with partial.open("xb") as stream:
            yield stream
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
