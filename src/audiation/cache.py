"""Where things made or fetched once are kept: `$AUDIATION_CACHE`, else the user's cache directory."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path


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
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as stream:
            stream.write(text)
        os.replace(stream.name, path)
    except OSError as error:
        warnings.warn(f"cannot write {path} ({error}); $AUDIATION_CACHE may name another place", stacklevel=3)
