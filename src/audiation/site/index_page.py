"""The first page: one table for everything that may be compared, filters, figures, and how to read them."""

from __future__ import annotations

from collections.abc import Sequence

from audiation.backbones import BACKBONES
from audiation.cards import BackboneCard, card_of
from audiation.charts import bars_by_task_type, cost_against_score, radar_by_task_type, score_against_hours
from audiation.protocols import PROTOCOLS
from audiation.site.markup import Markup, join, tag
from audiation.site.systems import Column, System
from audiation.site.tables import MEAN_RANK, Average, PublishedRow, Ranking, Row
from audiation.site.words import (
    column_title,
    count_text,
    interval_bar,
    paper_title,
    score_cell,
    score_text,
    size_text,
    task_question,
    unit_text,
)

RADAR_COLUMNS = 3  # fewer make no shape
DENSE_COLUMNS = 7  # more than these fit a printed page in small type only
_SIZES = ((10**6, "up to 1 M"), (10**8, "up to 100 M"), (4 * 10**8, "up to 400 M"), (2 * 10**9, "up to 2 B"))
_WHY_APART = (
    "A table of its own: these scores cannot be ranked with those of the other tables of the protocol."
)
_METHODS = {"probing": "probe", "ft": "finetune", "fine-tuning": "finetune"}


def index_body(
    title: str, rankings: Sequence[Ranking], systems: Sequence[System], maps: Sequence[tuple[str, str]],
    notes: Sequence[str],
) -> Markup:  # fmt: skip
    """Everything inside `<body>`. maps: (title, address) of the pages with maps."""
    num_results = sum(len(system.results) for system in systems)
    tasks = sorted({result.run["task"] for system in systems for result in system.results})
    counts = (
        count_text(num_results, "result"),
        count_text(len(systems), "system"),
        count_text(len(tasks), "task"),
    )
    several = len(rankings) > 1
    contents = (
        [tag("a", {"href": f"#{r.name}-section"}, ranking_title(r)) for r in rankings] if several else []
    )
    links = [*contents, *(tag("a", {"href": address}, f"Map: {name}") for name, address in maps)]
    lead = f"{counts[0]} of {counts[1]} on {counts[2]}. Scores are on test splits, with 95 % intervals."
    return tag(
        "main",
        {},
        tag("h1", {"class": "isolate"}, title),
        tag("p", {"class": "lead"}, lead),
        tag("nav", {"aria-label": "On this site"}, *links) if links else None,
        _filters(rankings, tasks),
        *(_section(ranking) for ranking in rankings),
        _legend(),
        tag("h2", {}, "Left out") if notes else None,
        tag("ul", {"class": "plain-list"}, *(tag("li", {}, note) for note in notes)) if notes else None,
    )


def ranking_title(ranking: Ranking) -> str:
    version = "" if ranking.protocol_version is None else f", version {ranking.protocol_version}"
    return f"{ranking.protocol}{version}" + (f": {ranking.conditions}" if ranking.conditions else "")


# Filters -----------------------------------------------------------------------------------------------


def _filters(rankings: Sequence[Ranking], tasks: Sequence[str]) -> Markup:
    methods = {_method(row.system.method) for r in rankings for row in r.rows}
    methods |= {_published_method(row) for r in rankings for row in (*r.published, *r.elsewhere)}
    return tag(
        "form",
        {"class": "filters", "hidden": True, "aria-label": "Filters"},
        _select("task", "Task", [("", "all tasks"), *((t, t) for t in tasks)]),
        _select("method", "Method", [("", "all methods"), *((m, m) for m in sorted(methods))]),
        _select("licence", "Licence", [("", "any"), ("commercial", "commercial use allowed")]),
        _select("size", "Size", [("", "any"), *((str(n), f"{words} parameters") for n, words in _SIZES)]),
        tag(
            "label",
            {"class": "check"},
            tag("input", {"type": "checkbox", "name": "published", "checked": True}),
            "published numbers",
        ),
        tag("button", {"type": "button", "class": "plain"}, "Reset"),
        tag("span", {"class": "count", "role": "status"}),
    )


def _select(name: str, label: str, options: Sequence[tuple[str, str]]) -> Markup:
    choices = [tag("option", {"value": value}, words) for value, words in options]
    return tag("label", {}, label, tag("select", {"name": name, "autocomplete": "off"}, *choices))


# One table ---------------------------------------------------------------------------------------------


def _section(ranking: Ranking) -> Markup:
    title = ranking_title(ranking)
    dense = " dense" if len(ranking.columns) + len(ranking.averages) > DENSE_COLUMNS else ""
    table = tag(
        "table",
        {"class": f"ranking{dense}", "id": ranking.name},
        tag("caption", {"class": "sr"}, title),
        tag("thead", {}, _head(ranking)),
        _own_rows(ranking),
        _published_rows(
            ranking, ranking.published, "Published: printed in papers, same test data. Not ranked with ours."
        ),
        _published_rows(
            ranking,
            ranking.elsewhere,
            "Published, other recordings: the nearest question that papers ask. For orientation, never ranked.",
        ),
    )
    results = [entry.result for row in ranking.rows for entry in row.entries.values()]
    remarks = [
        tag("p", {"class": "note"}, f"{column_title(column)} lacks ranks: {why}")
        for column, why in ranking.unranked.items()
    ]
    remarks += [tag("p", {"class": "note"}, f"{title}: {why}.") for title, why in ranking.unaveraged.items()]
    return tag(
        "section",
        {"id": f"{ranking.name}-section"},
        tag("h2", {"class": "isolate"}, title),
        tag("p", {"class": "note"}, _WHY_APART) if ranking.conditions else None,
        _rules(ranking),
        tag(
            "div",
            {"class": "scroll", "tabindex": 0, "role": "region", "aria-label": f"Table: {title}"},
            table,
        ),
        *remarks,
        tag(
            "div",
            {"class": "charts"},
            chart(bars_by_task_type(results)),
            chart(radar_by_task_type(results)) if len(ranking.columns) >= RADAR_COLUMNS else None,
            chart(cost_against_score(results)),
            chart(score_against_hours(results)),
        ),
    )


def chart(svg: str) -> Markup:
    """A figure around a chart, which has a title of its own."""
    return tag("figure", {}, Markup(svg))


def _rules(ranking: Ranking) -> Markup | None:
    if ranking.protocol not in PROTOCOLS:
        return tag("p", {"class": "note"}, "This version of audiation does not have the protocol.")
    protocol = PROTOCOLS[ranking.protocol]
    note = None
    if ranking.protocol_version != protocol.version:
        note = tag("p", {"class": "note"}, f"The text is that of version {protocol.version}.")
    return tag(
        "details",
        {"class": "screen"},
        tag("summary", {}, "The rules"),
        tag("p", {}, protocol.describe()),
        note,
    )


def _head(ranking: Ranking) -> Markup:
    cells = [_head_cell("system", None, None, "ascending")]
    for column in ranking.columns:
        twins = [c for c in ranking.columns if c.task == column.task]
        # Two columns of one task: another split, metric or version; the reader must be able to tell them apart.
        other = f", split {column.split_hash[:6]}, {column.metric}" if len(twins) > 1 else ""
        unit = f"{column.name}, {unit_text(column)}{other}"
        cells.append(_head_cell(column_title(column), column, unit, "descending"))
    cells += [
        _head_cell(title, None, "lower is better" if title == MEAN_RANK else "%", _first(title))
        for title in ranking.averages
    ]
    return tag("tr", {}, *cells)


def _first(title: str) -> str:
    return "ascending" if title == MEAN_RANK else "descending"


def _head_cell(title: str, column: Column | None, unit: str | None, first: str) -> Markup:
    attributes = {
        "scope": "col",
        "data-first": first,
        "data-task": None if column is None else column.task,
        "title": None if column is None else task_question(column.task),
    }
    under = None if unit is None else tag("span", {"class": "unit"}, unit)
    return tag("th", attributes, tag("button", {"type": "button"}, title), under)


def _own_rows(ranking: Ranking) -> Markup:
    scales = {column: _scale(ranking, column) for column in ranking.columns}
    rows = []
    for order, row in enumerate(ranking.rows):
        card = _card(row.system.backbone)
        facts = [size_text(None if card is None else card.parameters)]
        facts += [] if card is None else [f"weights: {card.weights_licence}"]
        head = tag(
            "th",
            {"scope": "row"},
            tag("a", {"href": row.system.page}, row.system.name),
            tag("span", {"class": "facts"}, "; ".join(facts)),
        )
        cells = [_own_cell(row, column, scales[column]) for column in ranking.columns]
        cells += [_average_cell(average) for average in row.averages]
        rows.append(
            tag("tr", _row_facts(order, row.system.name, _method(row.system.method), card), head, *cells)
        )
    return tag("tbody", {}, *rows)


def _own_cell(row: Row, column: Column, scale: tuple[float, float]) -> Markup:
    entry = row.entries.get(column)
    if entry is None:
        return _absent_cell("no result")
    return tag("td", {"data-value": repr(entry.score)}, score_cell(entry, column, *scale))


def _average_cell(average: Average) -> Markup:
    if average.value is None:
        return tag("td", {"class": "average absent", "title": average.why}, "–")
    shown = tag("span", {"title": average.why}, f"{average.value:.1f}")
    caveat = (
        tag("span", {"class": "marks"}, tag("span", {"class": "mark"}, average.caveat))
        if average.caveat
        else None
    )
    return tag("td", {"class": "average", "data-value": repr(average.value)}, shown, caveat)


def _absent_cell(why: str) -> Markup:
    return tag(
        "td",
        {"class": "absent"},
        tag("span", {"aria-hidden": "true"}, "–"),
        tag("span", {"class": "sr"}, why),
    )


def _published_rows(ranking: Ranking, rows: Sequence[PublishedRow], heading: str) -> Markup | None:
    if not rows:
        return None
    width = 1 + len(ranking.columns) + len(ranking.averages)
    head = tag(
        "tr", {"class": "group"}, tag("th", {"colspan": width, "scope": "rowgroup"}, tag("span", {}, heading))
    )
    lines = []
    for order, row in enumerate(rows):
        card = _card(row.backbones[0]) if len(row.backbones) == 1 else None
        facts = tag("span", {"class": "facts"}, f"{row.method}. {paper_title(row.paper)}, {row.table}")
        name = tag(
            "th", {"scope": "row"}, row.system, " ", tag("span", {"class": "source"}, "published"), facts
        )
        cells = [_published_cell(row, column, _scale(ranking, column)) for column in ranking.columns]
        cells += [_absent_cell("papers' averages are over their own tasks")] * len(ranking.averages)
        about = _row_facts(order, row.system, _published_method(row), card) | {"data-published": "yes"}
        lines.append(tag("tr", about, name, *cells))
    return tag("tbody", {"class": "published"}, head, *lines)


def _published_cell(row: PublishedRow, column: Column, scale: tuple[float, float]) -> Markup:
    score = row.scores.get(column)
    if score is None:
        return _absent_cell("not published")
    number = tag("span", {"class": "num"}, score_text(score.value, column))
    # What was measured on other recordings has no place on the scale of ours.
    bar = None if score.other_data else interval_bar(score.value, None, *scale, ours=False)
    said = f"{score.task} of {score.dataset}" if score.other_data else "no interval published"
    return tag(
        "td",
        {"data-value": repr(score.value)},
        tag("span", {"class": "score"}, number, bar),
        tag("span", {"class": "range"}, said),
        tag("span", {"class": "range"}, score.note) if score.note.startswith("star") else None,
    )


def _scale(ranking: Ranking, column: Column) -> tuple[float, float]:
    """Ends of a column's bars: one scale for ours and what is published on the same data."""
    values = [row.scores[column].value for row in ranking.published if column in row.scores]
    for row in ranking.rows:
        if column in row.entries:
            entry = row.entries[column]
            values += [entry.score, *(entry.interval or ())]
    return min(values), max(values)


def _row_facts(order: int, name: str, method: str, card: BackboneCard | None) -> dict[str, str | int | None]:
    """What the filters ask about."""
    commercial = "unknown" if card is None else "yes" if card.commercial_use else "no"
    parameters = "" if card is None or card.parameters is None else str(card.parameters)
    return {
        "data-order": order,
        "data-name": name,
        "data-method": method,
        "data-commercial": commercial,
        "data-parameters": parameters,
    }


def _card(backbone: str) -> BackboneCard | None:
    return card_of(backbone) if backbone in BACKBONES else None


def _method(method: str) -> str:
    return method.partition(":")[0]


def _published_method(row: PublishedRow) -> str:
    """Our name for what a paper calls a method."""
    first = row.method.lower().partition(",")[0].strip()
    return _METHODS.get(first, first)


def _legend() -> Markup:
    lines = [
        (
            "#1",
            "Rank: one more than the number of systems that are better beyond chance.",
        ),
        (
            "bar",
            "Score (dot) in its 95 % interval, on one scale per column. A hollow diamond is a published number.",
        ),
        ("partial", "Some test tracks lack an answer, so the score is over fewer tracks."),
        ("departs", "The run does not follow its protocol; the page of the system says how."),
        (
            "test data seen",
            "The backbone heard test recordings in pre-training; the page of the system says which.",
        ),
        ("may have been seen", "Nobody published enough about the pre-training data to exclude it."),
        ("★ over a week", "Took longer than the protocol's wall of one week, on the machine that is named."),
        ("mean rank", "Ranks averaged over the tasks of the table; only for systems that have all of them."),
    ]
    rows = [tag("div", {"class": "wide"}, tag("dt", {}, term), tag("dd", {}, words)) for term, words in lines]
    return join(tag("h2", {}, "How to read this"), tag("dl", {"class": "card"}, *rows))
