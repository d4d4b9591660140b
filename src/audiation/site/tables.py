"""Tables inside which numbers may be compared, with ranks, averages, and what papers print.

A table holds one version of one protocol. Two tasks never share it where they ask the same question of the same
recordings under other conditions (`mtt` and `mtt_clean`, other windows, other training data), and what was trained on
other recordings than its test comes from has tables of its own (protocols, section 4). A column holds one task, one
versioned metric and one split.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from audiation.averages import paper_average, rank_average
from audiation.backbones import BACKBONES
from audiation.bootstrap import Interval
from audiation.published import PublishedScore, published_beside, published_rows
from audiation.ranking import over_seeds, rank_groups
from audiation.results import Result
from audiation.site.systems import Column, Mark, System, column_of, marks_of, task_of

MEAN_RANK = "mean rank"

# Protocols, by how their names begin -> their paper, and the averages that it prints (protocols, 6).
_PAPERS = {"jukemir": "jukemir", "marble": "thesis", "musicfm": "musicfm", "petl": "petl"}
_AVERAGES = (
    ("jukemir", ("jukemir-3",)),
    ("marble-weighted-sum", ("thesis-4.2",)),
    ("marble", ("thesis-6.3", "thesis-5.3")),
)


@dataclass(frozen=True)
class Entry:
    """A system in a column.

    results: one per seed, in their order; the first is the one that is ranked and drawn.
    score, interval: over all seeds.
    rank: 1 + number of systems that are better beyond chance; None where the column cannot be ranked.
    """

    results: tuple[Result, ...]
    score: float
    interval: Interval | None
    rank: int | None
    marks: tuple[Mark, ...]

    @property
    def result(self) -> Result:
        return self.results[0]


@dataclass(frozen=True)
class Average:
    """Of one system. value: None where it lacks a task.

    why: which one, or what is averaged. caveat: what keeps it from being that of the paper; "" for nothing.
    """

    value: float | None
    why: str
    caveat: str = ""


@dataclass(frozen=True)
class Row:
    """A system in a table. averages: in the order of `Ranking.averages`."""

    system: System
    entries: dict[Column, Entry]
    averages: tuple[Average, ...]


@dataclass(frozen=True)
class PublishedRow:
    """One line of a paper's table. own: backbones of ours that it is about."""

    paper: str
    table: str
    system: str
    method: str
    backbones: tuple[str, ...]
    scores: dict[Column, PublishedScore]


@dataclass(frozen=True)
class Ranking:
    """One table of the site.

    conditions: what sets it apart from other tables of its protocol; "" where nothing does.
    averages: titles.
    published: on the same data. elsewhere: on other recordings, for orientation.
    unranked: columns that lack ranks, and why.
    unaveraged: averages of papers that no system here has the tasks for, and what is missing.
    """

    name: str
    protocol: str
    protocol_version: int | None
    conditions: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    averages: tuple[str, ...]
    published: tuple[PublishedRow, ...]
    elsewhere: tuple[PublishedRow, ...]
    unranked: dict[Column, str]
    unaveraged: dict[str, str]


def rankings_of(systems: Sequence[System]) -> list[Ranking]:
    """The tables of the site, in the order of protocols."""
    by_protocol: defaultdict[tuple[str, int | None], list[System]] = defaultdict(list)
    for system in systems:
        by_protocol[(system.protocol, system.protocol_version)].append(system)
    rankings: list[Ranking] = []
    for protocol, version in sorted(by_protocol, key=lambda k: (k[0], str(k[1]))):
        members = by_protocol[(protocol, version)]
        columns = {column_of(result) for system in members for result in system.results}
        for conditions, part in _comparable(columns):
            rankings.append(_ranking(protocol, version, conditions, part, members, len(rankings)))
    return rankings


# Tables ------------------------------------------------------------------------------------------------


def _comparable(columns: Iterable[Column]) -> list[tuple[str, tuple[Column, ...]]]:
    """Columns in the tables they may stand in: (conditions, columns)."""
    tables: defaultdict[str, list[tuple[set[Any], list[Column]]]] = defaultdict(list)
    for column in sorted(columns, key=lambda c: (c.task, c.metric, c.split_hash, c.test_size)):
        task = task_of(column.task)
        conditions = ""
        question: Any = column.task
        if task is not None:
            if task.published_train_on:
                conditions = "trained on other recordings than the test's"
            about = task.published_as or task.compare_with or (task.name,)
            question = (task.test_dataset.partition(":")[0], about[0])
        for questions, members in tables[conditions]:
            if question not in questions:
                questions.add(question)
                members.append(column)
                break
        else:
            tables[conditions].append(({question}, [column]))
    named = []
    for conditions in sorted(tables):
        for index, (_, members) in enumerate(tables[conditions]):
            apart = ", ".join(dict.fromkeys(column.task for column in members)) if index else ""
            named.append(("; ".join(filter(None, (apart, conditions))), tuple(members)))
    return named


def _ranking(
    protocol: str,
    version: int | None,
    conditions: str,
    columns: tuple[Column, ...],
    systems: Sequence[System],
    index: int,
) -> Ranking:
    own: defaultdict[str, dict[Column, Entry]] = defaultdict(dict)
    unranked: dict[Column, str] = {}
    for column in columns:
        entries, why = _entries(column, systems)
        for page, entry in entries.items():
            own[page][column] = entry
        if why:
            unranked[column] = why
    shown = [system for system in systems if system.page in own]
    paper, unaveraged = _paper_averages(protocol, columns, own)
    averages = paper
    if len(shown) > 1 and len(columns) > 1:
        mean_ranks = _mean_ranks(columns, own)
        if any(average.value is not None for average in mean_ranks.values()):
            averages = averages | {MEAN_RANK: mean_ranks}
        else:
            unaveraged[MEAN_RANK] = "no system has all tasks of the table"
    rows = [Row(s, own[s.page], tuple(a[s.page] for a in averages.values())) for s in shown]
    published = _published(protocol, columns, rows)
    return Ranking(
        f"table-{index}", protocol, version, conditions, columns,
        tuple(sorted(rows, key=lambda row: _best_first(row, tuple(averages)))), tuple(averages),
        tuple(row for row, other in published if not other), tuple(row for row, other in published if other),
        unranked, unaveraged,
    )  # fmt: skip


def _best_first(row: Row, averages: tuple[str, ...]) -> tuple[Any, ...]:
    mean_rank = dict(zip(averages, row.averages, strict=True)).get(MEAN_RANK, Average(None, "")).value
    first = min(row.entries, key=lambda c: (c.task, c.metric))
    return (mean_rank is None, mean_rank or 0.0, first.task, -row.entries[first].score, row.system.name)


def _entries(column: Column, systems: Sequence[System]) -> tuple[dict[str, Entry], str]:
    """Page of a system -> its entry; and why entries have no ranks, "" where all have."""
    members = {s.page: tuple(r for r in s.results if column_of(r) == column) for s in systems}
    members = {page: results for page, results in members.items() if results}
    answered = [results[0] for results in members.values() if results[0].predictions]
    ranks: dict[int, int] = {}
    lacking = len(members) - len(answered)
    why = f"{lacking} of {len(members)} results hold no predictions to compare" if lacking else ""
    if answered:
        try:
            ranks = {id(r): group.rank for group in rank_groups(answered) for r in group.results}
        except ValueError as error:  # metrics of another version, a task that this version does not have
            why = str(error)
    entries = {}
    for page, results in members.items():
        score, interval = _over_seeds(results)
        entries[page] = Entry(results, score, interval, ranks.get(id(results[0])), marks_of(results))
    return entries, why


def _over_seeds(results: Sequence[Result]) -> tuple[float, Interval | None]:
    """Score and interval of runs that differ only in their seed."""
    metric = next(iter(results[0].scores))
    score = sum(r.scores[metric] for r in results) / len(results)
    if len(results) == 1:
        return score, results[0].intervals[metric]
    try:
        together = over_seeds(results)
    except ValueError:  # as in `_entries`, where the reason is kept
        return score, None
    return score, together[0].interval if len(together) == 1 else None


# Averages ----------------------------------------------------------------------------------------------


def _paper_averages(
    protocol: str, columns: Sequence[Column], own: dict[str, dict[Column, Entry]]
) -> tuple[dict[str, dict[str, Average]], dict[str, str]]:
    """(title -> page -> average) of those that some system has; and title -> what all systems lack."""
    tables = next((t for prefix, t in _AVERAGES if protocol.startswith(prefix)), ())
    found: dict[str, dict[str, Average]] = {}
    lacking: dict[str, str] = {}
    known = [c for c in columns if task_of(c.task) is not None]
    for table in tables:
        title = f"average of {table}"
        of_systems: dict[str, Average] = {}
        nearest: tuple[str, ...] | None = None
        for page, entries in own.items():
            results = [entries[c].result for c in known if c in entries]
            try:
                average = paper_average(results, table)
            except ValueError as error:  # two splits of one task
                of_systems[page] = Average(None, str(error))
                continue
            if average.by_task and (nearest is None or len(average.missing) < len(nearest)):
                nearest = average.missing
            caveats = [f"other rules: {', '.join(average.other_rules)}"] if average.other_rules else []
            caveats += [f"partial: {', '.join(average.partial)}"] if average.partial else []
            why = (
                f"lacks {', '.join(average.missing)}"
                if average.missing
                else f"of {len(average.by_task)} tasks"
            )
            of_systems[page] = Average(average.value, why, "; ".join(caveats))
        if any(average.value is not None for average in of_systems.values()):
            found[title] = of_systems
        elif nearest:
            lacking[title] = f"no system has all its tasks; the nearest lacks {', '.join(nearest)}"
    return found, lacking


def _mean_ranks(columns: Sequence[Column], own: dict[str, dict[Column, Entry]]) -> dict[str, Average]:
    names = {c: f"{c.task} ({c.metric}, {c.split_hash})" for c in columns}
    scores = {page: {names[c]: entry.score for c, entry in entries.items()} for page, entries in own.items()}
    tasks = {name: column.task for column, name in names.items()}
    averages = {}
    for page, average in rank_average(scores).items():
        missing = ", ".join(dict.fromkeys(tasks[name] for name in average.missing))
        why = f"lacks {missing}" if missing else f"over {average.num_tasks} tasks"
        averages[page] = Average(average.value, why)
    return averages


# Published numbers -------------------------------------------------------------------------------------


def _published(
    protocol: str, columns: Sequence[Column], rows: Sequence[Row]
) -> list[tuple[PublishedRow, bool]]:
    """Lines of papers, and whether each is about other recordings.

    All of the protocol's own paper on the tasks of the table, and of any paper on the systems in it.
    """
    paper = next((p for p in _PAPERS if protocol.startswith(p)), "")
    cells: list[tuple[PublishedScore, Column]] = []
    for column in columns:
        task = task_of(column.task)
        if task is None:
            continue
        printed = {m.name: m.printed_name for m in task.metrics}.get(column.name, column.name)
        found: list[PublishedScore] = []
        if task.published_as is not None and paper:
            try:
                found += published_rows(*task.published_as, printed)
            except ValueError:
                pass  # no paper prints this metric
            found = [s for s in found if s.paper == _PAPERS[paper] and s.train_on == task.published_train_on]
        for row in rows:
            if column in row.entries and row.system.backbone in BACKBONES:
                found += [s for s in published_beside(row.entries[column].result) if s.metric == printed]
        cells += [(score, column) for score in dict.fromkeys(found)]
    lines: dict[tuple[Any, ...], dict[Column, PublishedScore]] = {}
    for score, column in cells:
        line = (score.other_data, score.paper, score.table, score.system, score.method)
        copies = 0  # a paper may print a cell twice, with different notes
        while column in lines.setdefault((*line, copies), {}):
            copies += 1
        lines[(*line, copies)][column] = score
    return [
        (PublishedRow(paper, table, system, method, _backbones_printed_as(system), scores), other)
        for (other, paper, table, system, method, _), scores in sorted(
            lines.items(), key=lambda item: item[0]
        )
    ]


def _backbones_printed_as(system: str) -> tuple[str, ...]:
    return tuple(name for name in BACKBONES if system in BACKBONES[name].published_names)
