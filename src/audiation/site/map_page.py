"""The page of a map: clips as dots, coloured and shaped by label, one map per layer, played on a click."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audiation.maps import ClipMap
from audiation.site.markup import Markup, json_island, printable, tag

SIZE = 720  # of the drawing; the script knows it too
MAX_LABELS = 24  # more colours and shapes than these cannot be told apart
OTHER_LABELS = "other labels"


def map_body(title: str, maps: Sequence[ClipMap], page_dir: Path, audio_root: Path | None) -> Markup:
    """Everything inside `<body>`. maps: of one title, a layer each. page_dir, audio_root: as in `audio_address`."""
    data = [_data(one, page_dir, audio_root) for one in maps]
    num_playable = sum(path is not None for path in data[0]["audio_paths"])
    num_clips = len(data[0]["track_ids"])
    options = [tag("option", {"value": index}, one.layer) for index, one in enumerate(maps)]
    drawing = tag(
        "svg",
        {
            "viewBox": f"0 0 {SIZE} {SIZE}",
            "role": "group",
            "aria-label": "Clips; arrow keys move, Enter plays",
        },
        tag("g", {"class": "points"}),
        tag("circle", {"class": "current", "r": 10, "display": "none"}),
    )
    return tag(
        "main",
        {},
        tag("nav", {"aria-label": "Back"}, tag("a", {"href": "../index.html"}, "All systems")),
        tag("h1", {"class": "isolate"}, title),
        tag(
            "p",
            {"class": "lead"},
            f"Every mark is a clip; close marks sound alike to the model. {num_playable:,} of {num_clips:,} can be "
            "played: click one, or move with the arrow keys and press Enter.",
        ),
        tag(
            "label",
            {"class": "layer"},
            "Layer",
            tag("select", {"id": "layer", "autocomplete": "off"}, *options),
        ),
        tag(
            "div",
            {"class": "map"},
            tag("div", {"class": "plot"}, drawing, tag("div", {"class": "tip", "hidden": True})),
            tag(
                "div",
                {},
                tag(
                    "div",
                    {"class": "playing screen"},
                    tag("p", {"aria-live": "polite", "class": "isolate"}, "Nothing is playing."),
                    tag("audio", {"controls": True, "hidden": True, "preload": "none"}),
                ),
                tag("ul", {"class": "legend", "aria-label": "Labels: press one to see it alone"}),
                tag("p", {"class": "note"}, "Hollow: training clips. Filled: test clips."),
                tag("p", {"class": "note explained"}),
            ),
        ),
        tag("noscript", {}, "The map is drawn by a script of this page."),
        json_island("maps", data),
    )


def audio_address(path: str | None, page_dir: Path, audio_root: Path | None) -> str | None:
    """What a page in `page_dir` plays for a file; None where it cannot.

    audio_root: folder that travels with the site: files in it are named relative to the page, others not at all. None:
        files are named by where they are on this machine.
    """
    if path is None:
        return None
    place = Path(path).resolve()
    if not place.is_file():
        return None
    if audio_root is None:
        return place.as_uri()
    if not place.is_relative_to(Path(audio_root).resolve()):
        return None
    return urllib.parse.quote(Path(os.path.relpath(place, Path(page_dir).resolve())).as_posix())


def _data(one: ClipMap, page_dir: Path, audio_root: Path | None) -> dict[str, Any]:
    shown = _legend(one.labels)
    return {
        "points": [[float(f"{x:.5g}"), float(f"{y:.5g}")] for x, y in one.points],
        "labels": [printable(label) if label in shown else OTHER_LABELS for label in one.labels],
        "legend": [printable(label) for label in shown]
        + ([OTHER_LABELS] if set(one.labels) - set(shown) else []),
        "track_ids": [printable(track_id) for track_id in one.track_ids],
        "splits": list(one.splits),
        "audio_paths": [audio_address(path, page_dir, audio_root) for path in one.audio_paths],
        "explained": printable(one.explained),
    }


def _legend(labels: Sequence[str]) -> list[str]:
    """The commonest labels, in the order people expect: 2 before 10."""
    counts = {label: labels.count(label) for label in set(labels)}
    common = sorted(counts, key=lambda label: (-counts[label], _natural(label)))[:MAX_LABELS]
    return sorted(common, key=_natural)


def _natural(text: str) -> list[tuple[int, int, str]]:
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part
    ]
