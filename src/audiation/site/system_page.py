"""The page of a system: what it is, every score with what is behind it, how to repeat it, and its charts."""

from __future__ import annotations

import json

from audiation.backbones import BACKBONES
from audiation.cards import card_of
from audiation.charts import confusion, cost_against_score, layer_profile, learning_curves, reliability
from audiation.results import Result
from audiation.site.index_page import chart
from audiation.site.markup import Markup, join, tag
from audiation.site.systems import System, column_of, marks_of
from audiation.site.words import (
    chosen_text,
    cost_text,
    count_text,
    interval_text,
    mark_badges,
    repeat_command,
    score_text,
    task_question,
    unit_text,
)

SHOWN_FAILURES = 100
_WIDE_LINES = (
    "what it is",
    "pre-trained on",
    "note",
    "licence of the code",
    "licence of the weights",
    "paper",
)


def system_body(system: System) -> Markup:
    """Everything inside `<body>`."""
    version = "" if system.protocol_version is None else f", version {system.protocol_version}"
    lead = f"Method {system.method}, protocol {system.protocol}{version}, {count_text(len(system.results), 'result')}."
    return tag(
        "main",
        {},
        tag("nav", {"aria-label": "Back"}, tag("a", {"href": "../index.html"}, "All systems")),
        tag("h1", {"class": "isolate"}, system.name),
        tag("p", {"class": "lead isolate"}, lead),
        _card(system.backbone),
        tag("h2", {}, "Scores"),
        _scores(system),
        tag("h2", {}, "Charts"),
        _charts(system),
        tag("h2", {}, "Behind each score"),
        *(_evidence(result, _anchor(index)) for index, result in enumerate(system.results)),
    )


def _card(backbone: str) -> Markup:
    if backbone not in BACKBONES:
        return tag(
            "p", {"class": "note"}, f"This version of audiation does not have the backbone {backbone}."
        )
    lines = [
        tag("div", {"class": "wide" if line.label in _WIDE_LINES else None},
            tag("dt", {}, line.label), tag("dd", {}, line.text))
        for line in card_of(backbone).lines()
        if line.label != "name"
    ]  # fmt: skip
    return tag("dl", {"class": "card"}, *lines)


def _scores(system: System) -> Markup:
    heads = ["task", "metric", "score", "95 % interval", "test tracks", "chosen", "cost", "seed"]
    rows = []
    for place, result in enumerate(system.results):
        column = column_of(result)
        tracks = f"{result.num_test_tracks:,} of {result.num_official_test_tracks:,}"
        for index, (metric, score) in enumerate(result.scores.items()):
            interval = result.intervals[metric]
            # Only separation is in dB; the metrics of one task share their unit.
            first = index == 0
            marks = mark_badges(marks_of([result])) if first else None
            cells = [
                tag("td", {}, metric),
                tag(
                    "td",
                    {"class": "number"},
                    tag("b" if first else "span", {}, score_text(score, column)),
                    " ",
                    unit_text(column),
                ),
                tag("td", {"class": "number"}, "–" if interval is None else interval_text(interval, column)),
                tag("td", {"class": "number"}, tracks if first else None),
                tag("td", {}, chosen_text(result) if first else None),
                tag("td", {}, cost_text(result) if first else None),
                tag("td", {"class": "number"}, str(result.run.get("seed", "–")) if first else None),
            ]
            name = tag("a", {"href": f"#{_anchor(place)}"}, result.run["task"]) if first else None
            rows.append(
                tag("tr", {}, tag("th", {"scope": "row"}, name, marks) if first else tag("td", {}), *cells)
            )
    head = tag("tr", {}, *(tag("th", {"scope": "col"}, name) for name in heads))
    table = tag("table", {"class": "figures"}, tag("caption", {"class": "sr"}, "Scores"),
                tag("thead", {}, head), tag("tbody", {}, *rows))  # fmt: skip
    return tag(
        "div", {"class": "scroll", "tabindex": 0, "role": "region", "aria-label": "Table: scores"}, table
    )


def _charts(system: System) -> Markup:
    results = list(system.results)
    figures = [
        chart(layer_profile(results)) if any(r.layer_profile for r in results) else None,
        chart(learning_curves(results)) if any(r.curve for r in results) else None,
        chart(cost_against_score(results)),
    ]
    for result in results:
        figures += [None if svg is None else chart(svg) for svg in (confusion(result), reliability(result))]
    return tag("div", {"class": "charts"}, *figures)


def _anchor(index: int) -> str:
    return f"result-{index}"


def _evidence(result: Result, anchor: str) -> Markup:
    """What a doubter asks: conditions, failures, code, the command."""
    run = result.run
    marks = [tag("li", {}, mark.detail) for mark in marks_of([result])]
    facts = {
        "metrics": ", ".join(str(name) for name in run.get("metrics") or result.scores),
        "trained parameters": f"{result.num_parameters:,}",
        "updates until the best state": f"{result.best_step:,}",
        "configurations tried": f"{len(result.trials):,}" if result.trials else "one, no search",
        "features": f"{result.extract_seconds:.1f} s",
        "training": f"{result.train_seconds:.1f} s",
        "split": result.split_hash,
        "code": ", ".join(f"{name} {value}" for name, value in sorted(result.code.items())),
        "versions": ", ".join(f"{name} {value}" for name, value in sorted(result.versions.items())),
        "machine": ", ".join(f"{name}: {value}" for name, value in sorted(result.hardware.items())),
        "made": result.created,
    }
    wide = ("metrics", "split", "code", "versions", "machine")
    lines = [
        tag("div", {"class": "wide" if name in wide else None}, tag("dt", {}, name), tag("dd", {}, text))
        for name, text in facts.items()
    ]
    settings = json.dumps(run, indent=1, sort_keys=True, ensure_ascii=False, default=str)
    return tag(
        "section",
        {"id": anchor},
        tag("h3", {"class": "isolate"}, f"{run['task']}, seed {run.get('seed', '–')}"),
        tag("p", {"class": "note"}, task_question(run["task"])),
        tag("ul", {"class": "plain-list"}, *marks) if marks else None,
        tag("p", {}, "To repeat it:"),
        tag("pre", {}, tag("code", {}, repeat_command(result))),
        tag("dl", {"class": "card"}, *lines),
        _failures(result),
        tag("details", {}, tag("summary", {}, "All settings of the run"), tag("pre", {}, settings)),
    )


def _failures(result: Result) -> Markup | None:
    if not result.failures:
        return None
    lines = [
        tag("li", {}, f"{failure.track_id} ({failure.split}): {failure.reason}")
        for failure in result.failures[:SHOWN_FAILURES]
    ]
    rest = len(result.failures) - len(lines)
    more = tag("p", {"class": "note"}, f"and {rest:,} more, which the result file names") if rest else None
    title = f"{count_text(len(result.failures), 'recording')} that could not be used"
    return tag(
        "details", {}, tag("summary", {}, title), join(tag("ul", {"class": "plain-list"}, *lines), more)
    )
