"""Places that commands write to, tried before the work: hours of it must not end at a path that cannot be written."""

from __future__ import annotations

import tempfile
from pathlib import Path


def require_writable_folder(folder: Path) -> None:
    """Make the folder where it is not there, and try that files can be made in it. OSError naming it if they cannot."""
    try:
        if folder.exists() and not folder.is_dir():
            raise OSError(f"cannot write into {folder}: it is a file")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(f"cannot write into {folder}: {error.strerror}") from None


def require_writable_file(path: Path) -> None:
    """The same for the folder of a file; ValueError if the path itself is a folder."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the result a file name, like {path / 'result.json'}")
    require_writable_folder(path.parent)
