"""Where things made or fetched once are kept: `$AUDIATION_CACHE`, else the user's cache directory."""

from __future__ import annotations

import os
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
