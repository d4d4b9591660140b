"""`audiation tag`: what a published tagger hears in music, file by file."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Literal

import tyro


def tag(
    files: tyro.conf.Positional[tuple[Path, ...]],
    /,
    model: Literal["musicnn-msd", "musicnn-mtt", "musicnn-msd-big"] = "musicnn-msd",
    top: int = 5,
    threshold: float = 0.0,
    format: Literal["text", "json", "csv"] = "text",
    out: Path | None = None,
    weights: str | None = None,
    device: str = "cpu",
) -> None:
    """Tag music with a published model: genre, instruments, voice, mood, every 3 s and of the whole file.

    Folders are searched recursively. Files that cannot be read are in the answer with their reason, and the exit code
    is then 1. Ctrl-C ends it with what has been tagged so far.

    Args:
        files: audio files and folders.
        model: musicnn-msd (tags of last.fm), musicnn-mtt (tags of MagnaTagATune), or musicnn-msd-big.
        top: how many tags are shown.
        threshold: least probability of a tag that is shown.
        format: text for people; json; csv with a row per tag.
        out: file; default: the terminal.
        weights: checkpoint file or directory; default: the official ones.
        device: torch device, for example cuda:0.
    """
    from rich.console import Console

    from audiation.console import new_progress
    from audiation.music_files import find_music
    from audiation.output_places import require_writable_file
    from audiation.tagging import TagChoice, render_csv, render_json, render_text, tag_files

    if not files:
        raise ValueError("nothing to tag: name at least one audio file or folder")
    choice = TagChoice(top, threshold)
    if out is not None:
        require_writable_file(out)
    found = find_music(files)
    err = Console(stderr=True)
    for path, reason in found.problems:
        err.print(f"failed: {path}: {reason}", style="red", markup=False, soft_wrap=True)
    if not found.files:
        raise ValueError(f"no audio file in {', '.join(map(str, files))}")
    tagged = []
    stopped = False
    with new_progress(err) as bar:
        row = bar.add_task("tag", total=len(found.files), detail="loading")
        try:
            for one in tag_files(found.files, model, weights=weights, device=device):
                tagged.append(one)
                bar.update(row, completed=len(tagged), detail=f"{len(tagged)} files")
        except KeyboardInterrupt:
            if not tagged:
                raise
            stopped = True
    document = {"text": render_text, "json": render_json, "csv": render_csv}[format](tagged, choice)
    if out is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # a name may be no text
        print(document, end="")
    else:
        out.write_text(document, encoding="utf-8", errors="backslashreplace")
        err.print(f"Written: {out}", markup=False, highlight=False, soft_wrap=True)
    if stopped:
        err.print(
            f"Stopped after {len(tagged)} of {len(found.files)} files; these are answered.", style="red"
        )
        sys.exit(130)
    if found.problems or any(one.failure for one in tagged):
        sys.exit(1)
