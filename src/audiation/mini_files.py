"""Small JSON files of `audiation-mini` that say what is done already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from audiation.cache import write_text


def read_json(path: Path) -> Any:
    """What a file holds; None where there is none. ValueError where it is damaged."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). Remove it and call again.") from error


def write_json(path: Path, value: Any) -> None:
    """All or nothing."""
    write_text(path, json.dumps(value, indent=1))


def size_of(path: Path) -> int:
    """Bytes; -1 where there is no file."""
    return path.stat().st_size if path.is_file() else -1
