"""`audiation corpus`: make a corpus to pre-train on, look at it, check it, copy it.

`corpus_console.py` does it, with imports that take a while; the command line loads only what is here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import tyro


def corpus(
    action: tyro.conf.Positional[Literal["build", "show", "verify", "targets", "to-lance", "recipes"]],
    paths: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    out: str | None = None,
    name: str | None = None,
    rate: Literal[24000, 16000] = 24000,
    form: Literal["packed", "lance"] = "packed",
    min_seconds: float = 1.0,
    keep_silence: bool = False,
    workers: int | None = None,
    recipe: str | None = None,
    licences: str = "",
    metadata: Path | None = None,
    teacher: str | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    device: str = "cpu",
) -> None:
    """Make a corpus to pre-train on, and look after it.

    build PATH... --out DIR: decode every audio file in and below the paths to 16-bit mono at one rate; what cannot be
    read is listed. The same command goes on after a stop, and reads only what is new or has changed. show DIR: hours,
    statistics, duplicates, failures. verify DIR: read everything and compare with its hash; the exit code is 1 if
    something differs. targets DIR --teacher NAME: codes that mert and hubert predict, stored beside the corpus; without
    --teacher: which there are. to-lance DIR --out PLACE: copy a corpus with its stored targets to a table that can be
    read over the network, at a folder or a place like s3://bucket/corpus. recipes: collections whose tables are
    understood.

    Args:
        action: build, show, verify, targets, to-lance or recipes.
        paths: build: folders and files; others: the corpus, a folder or URI.
        out: folder of the new corpus; for to-lance also a URI.
        name: of the corpus, which runs record; default: that of the recipe, or of the first path.
        rate: of the corpus in Hz, that of the backbones to be trained.
        form: packed: files that are mapped into memory; lance: a table, to be copied to object storage.
        min_seconds: files that are shorter are left out.
        keep_silence: keep files that are silent throughout.
        workers: processes that decode; default: one per core.
        recipe: take only files that a collection's tables name, as in `audiation corpus recipes`.
        licences: with --recipe: classes of licences to keep, like cc0,cc-by; default: all.
        metadata: with --recipe: the table, or the folder that it is in.
        teacher: with targets: like encodec, logmel-km300, mfcc39-km500 or layer6-km2000.
        backbone: with targets: whose layer a teacher hears.
        weights: with targets: of the backbone or the teacher, as for `audiation evaluate`.
        device: with targets: torch device.
    """
    of_build = {
        "--name": name is not None, "--rate": rate != 24_000, "--form": form != "packed",
        "--min-seconds": min_seconds != 1.0, "--keep-silence": keep_silence, "--recipe": recipe is not None,
        "--licences": licences != "", "--metadata": metadata is not None,
    }  # fmt: skip
    of_targets = {
        "--teacher": teacher is not None, "--backbone": backbone is not None, "--weights": weights is not None,
        "--device": device != "cpu",
    }  # fmt: skip
    unused = {} if action == "build" else of_build
    unused |= {} if action == "targets" else of_targets
    unused |= {} if action in ("build", "targets") else {"--workers": workers is not None}
    unused |= {} if action in ("build", "to-lance") else {"--out": out is not None}
    if given := [flag for flag, is_given in unused.items() if is_given]:
        raise ValueError(f"corpus {action} does not take {', '.join(given)}. Leave it away.")
    if workers is not None and workers < 0:
        raise ValueError(f"--workers must be 0 or more, got {workers}")
    from audiation import corpus_console as console

    if action == "recipes":
        _no_paths(action, paths)
        console.list_recipes()
    elif action == "build":
        asked = tuple(x.strip() for x in licences.split(",") if x.strip())
        chosen = console.choose_sources(paths, recipe, asked, metadata)
        settings = console.BuildSettings(rate, min_seconds, keep_silence)
        folder = Path(_needed(out, action))
        console.build(
            chosen, folder, name or recipe or Path(paths[0]).resolve().name, settings, form, workers
        )
    elif action == "targets":
        if teacher is not None and len(paths) != 1:
            raise ValueError(f"corpus targets needs the folder of one corpus, got {len(paths)}")
        console.targets(paths[0] if paths else "", teacher, backbone, weights, device, workers)
    elif len(paths) != 1:
        raise ValueError(f"corpus {action} needs the folder or URI of one corpus, got {len(paths)}")
    elif action == "show":
        console.show(paths[0])
    elif action == "verify":
        if console.verify(paths[0]):
            sys.exit(1)
    else:
        console.to_lance(paths[0], _needed(out, action))


def _needed(out: str | None, action: str) -> str:
    if out is None:
        raise ValueError(f"corpus {action} needs --out, where the corpus goes")
    return out


def _no_paths(action: str, paths: tuple[str, ...]) -> None:
    if paths:
        raise ValueError(f"corpus {action} takes no path, got {', '.join(paths)}")
