"""PETL paper, table 2: 2 backbones x 8 methods x 7 tasks. The systems of that paper, which its other recipes share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from audiation.backbones import BACKBONES
from audiation.bootstrap import Interval
from audiation.evaluation import Run
from audiation.methods import format_method, parse_method
from audiation.methods.prefix import Prefix
from audiation.published import PublishedScore, published_rows
from audiation.ranking import better_than_both
from audiation.recipes.base import RECIPES, Carried, FailedRun, carry_out_runs
from audiation.recipes.figures import write_csv
from audiation.results import Result
from audiation.tasks import TASKS

PETL_LAYERS = 6
PETL_BACKBONES = ("musicfm-msd", "mert-v1-95m")
METHOD_TITLES = {  # in the order of the paper
    "finetune": "FT",
    "probe": "Probing",
    "adapter": "Adapter",
    "prompt": "Prompt",
    "prefix": "Prefix",
    "bitfit": "BitFit",
    "ssf": "SSF",
    "lora": "LoRA",
}
BASELINES = ("finetune", "probe")


@dataclass(frozen=True)
class Column:
    """A column of the table. title: as printed; question, metric: ids in the published results, where the data set is
    called as the task."""

    task: str
    title: str
    question: str
    metric: str


COLUMNS = (
    Column("mtt_clean", "MTAT\nmAP", "tagging", "ap"),
    Column("mtg_top50", "MTG\nmAP", "tagging", "ap"),
    Column("gtzan_genre", "GTZAN\ngenre", "genre", "accuracy"),
    Column("gtzan_key", "GTZAN\nkey", "key", "key_weighted"),
    Column("giantsteps_key", "GiantS.\nkey", "key", "key_weighted"),
    Column("gtzan_tempo", "GTZAN\ntempo", "tempo", "tempo_acc1"),
    Column("giantsteps_tempo", "GiantS.\ntempo", "tempo", "tempo_acc1"),
)


@RECIPES.register("petl_table2")
@dataclass(frozen=True)
class PetlTable2:
    """Every method on both backbones and seven tasks, beside the numbers of the PETL paper (table 2).

    backbones, tasks, methods: names joined by "+". A method may have one field, like lora:rank=8.
    num_layers: first blocks of every backbone.
    mert_prefix_tokens: of the prefixes of MERT: 32 in the paper's table 1, 64 by the count in its table 3.
    weights: None for the official ones, or "random".
    train: choices that depart from the protocol, joined by "+", like steps=500+precision=fp32.
    """

    backbones: str = "+".join(PETL_BACKBONES)
    tasks: str = "+".join(column.task for column in COLUMNS)
    methods: str = "+".join(METHOD_TITLES)
    num_layers: int = PETL_LAYERS
    mert_prefix_tokens: int = 32
    weights: str | None = None
    train: str = ""

    def __post_init__(self) -> None:
        for backbone in names_in(self.backbones, "backbones"):
            BACKBONES[backbone]
        for method in names_in(self.methods, "methods"):
            parse_method(method)
        names_in(self.tasks, "tasks")  # one that does not exist yet is a run that fails

    def runs(self) -> list[Run]:
        return [
            petl_run(
                backbone, self._method(backbone, method), task, self.num_layers, self.weights, self.train
            )
            for backbone in names_in(self.backbones, "backbones")
            for method in names_in(self.methods, "methods")
            for task in names_in(self.tasks, "tasks")
        ]

    def _method(self, backbone: str, method: str) -> str:
        if backbone.startswith("mert") and method == "prefix":
            return format_method(Prefix(num_tokens=self.mert_prefix_tokens))
        return method

    def carry_out(self, out: Path, device: str, console: Console) -> None:
        """Carry out the runs; print the table, and write it as `table2.csv`."""
        carried = carry_out_runs(self.runs(), out, device, console)
        cells = cells_of(self.runs(), carried)
        console.print(render_cells(cells))
        for note in _notes(cells):
            console.print(note, style="dim", highlight=False)
        path = write_csv(out / "table2.csv", CSV_HEADER, [cell.csv_row() for cell in cells])
        report_failed(carried.failed, console)
        console.print(f"{len(carried.results)} of {len(cells)} runs have a result. Numbers: {path}")


def names_in(text: str, field: str) -> list[str]:
    """'a+b' -> ['a', 'b']. ValueError for none, or one that is named twice."""
    names = [name.strip() for name in text.split("+")]
    if not all(names):
        raise ValueError(f"{field} are names joined by '+', like {field}=a+b, got '{text}'")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"'{name}' is named twice in {field}={text}")
    return names


def petl_run(backbone: str, method: str, task: str, num_layers: int, weights: str | None, train: str) -> Run:
    """A run by the paper's protocol. train: choices joined by '+', because a recipe's own are joined by commas."""
    return Run(
        backbone=backbone,
        method=format_method(parse_method(method)),
        task=task,
        protocol="petl",
        num_layers=num_layers,
        weights=weights,
        train=train.replace("+", ","),
    )


def report_failed(failed: Sequence[FailedRun], console: Console) -> None:
    """What could not be carried out, equal reasons together."""
    by_reason: dict[str, list[Run]] = {}
    for one in failed:
        by_reason.setdefault(one.reason, []).append(one.run)
    for reason, runs in by_reason.items():
        shown = ", ".join(
            f"{r.task} with {r.method} on {r.backbone} (num_layers={r.num_layers})" for r in runs[:2]
        )
        shown += f", and {len(runs) - 2} more" if len(runs) > 2 else ""
        console.print(
            f"not carried out: {shown}: {reason}", style="red", markup=False, highlight=False, soft_wrap=True
        )  # fmt: skip


def short(value: float) -> str:
    """.486, as the paper prints it."""
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3f}"


# Cells ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One system on one task.

    result: None where the run failed, for `reason`.
    printed: what the paper has for it.
    beats_both: whether it is better than FT and than probing, significantly; None where that cannot be said, for
        `no_mark_because`, or where it is not asked (FT and probing themselves).
    best: no system of the same backbone has a better score.
    """

    run: Run
    result: Result | None
    reason: str
    printed: PublishedScore | None
    beats_both: bool | None = None
    no_mark_because: str = ""
    best: bool = False

    @property
    def metric(self) -> str:
        """What the score is called: the first metric of the result, or the printed one."""
        if self.result is not None:
            return Headline.of(self.result).metric
        return self.printed.metric if self.printed is not None else ""

    def csv_row(self) -> list[object]:
        ours: list[object] = [None] * 5
        if self.result is not None:
            score = Headline.of(self.result)
            low, high = score.interval or (None, None)
            counts = self.result.num_test_tracks, self.result.num_official_test_tracks
            ours = [score.score, low, high, *counts]
        theirs: list[object] = [None, None]
        if self.printed is not None:
            theirs = [self.printed.value, "yes" if "underlined" in self.printed.note else "no"]
        mark = {None: None, True: "yes", False: "no"}[self.beats_both]
        run = self.run
        note = self.reason or self.no_mark_because
        return [run.backbone, run.method, run.task, self.metric, *ours, *theirs, mark, note]


CSV_HEADER = (
    "backbone", "method", "task", "metric", "score", "low", "high", "tracks", "official_tracks", "printed",
    "printed_mark", "better_than_ft_and_probing", "note",
)  # fmt: skip


@dataclass(frozen=True)
class Headline:
    """The score that selects, of a result. interval: None for one track."""

    metric: str
    score: float
    interval: Interval | None

    @classmethod
    def of(cls, result: Result) -> Headline:
        metric, score = next(iter(result.scores.items()))
        return cls(metric, score, result.intervals[metric])


def cells_of(runs: Sequence[Run], carried: Carried) -> list[Cell]:
    """A cell per run, compared with FT and probing on the same backbone and task."""
    reasons = {one.run: one.reason for one in carried.failed}
    results = carried.results
    by_place = {(run.backbone, run.task, _kind(run.method)): results.get(run) for run in runs}
    cells = []
    for run in runs:
        result = results.get(run)
        if result is None:
            cells.append(Cell(run, None, reasons[run], printed_score(run)))
            continue
        rivals = [
            r
            for r in carried.results.values()
            if (r.run["backbone"], r.run["task"]) == (run.backbone, run.task)
        ]
        scores = [Headline.of(rival).score for rival in rivals]
        choose = max if TASKS[run.task].metrics[0].higher_is_better else min
        best = len(rivals) > 1 and Headline.of(result).score == choose(scores)
        beats, why = None, ""
        if _kind(run.method) not in BASELINES:
            finetuned, probed = (by_place.get((run.backbone, run.task, name)) for name in BASELINES)
            if finetuned is None or probed is None:
                why = "no mark: FT or probing is missing"
            else:
                beats, why = mark_of(result, finetuned, probed)
        cells.append(Cell(run, result, "", printed_score(run), beats, why, best))
    return cells


def printed_score(run: Run) -> PublishedScore | None:
    """What table 2 has for a system and task, None where it has nothing."""
    column = next((c for c in COLUMNS if c.task == run.task), None)
    if column is None or run.num_layers != PETL_LAYERS or run.backbone not in PETL_BACKBONES:
        return None
    system = BACKBONES[run.backbone].published_names[-1]
    title = METHOD_TITLES.get(_kind(run.method))
    rows = published_rows(column.question, column.task, column.metric, [system])
    return next((row for row in rows if (row.paper, row.method) == ("petl", title)), None)


class Mark(NamedTuple):
    """beats_both: None where it cannot be said, for the reason."""

    beats_both: bool | None
    reason: str = ""


def mark_of(result: Result, finetuned: Result, probed: Result) -> Mark:
    """Whether a system is better than FT and than probing: `ranking.better_than_both`, 1,000 resamples, 95 %."""
    try:
        found = better_than_both(result, finetuned, probed)
    except ValueError as error:  # of this cell; the table is not lost for it
        return Mark(None, f"no mark on {result.run['task']}: {error}")
    if found.against_a.interval is None:
        return Mark(None, "no mark: the systems share one test track")
    return Mark(found.better)


def beats_both(result: Result, finetuned: Result, probed: Result) -> bool | None:
    """`mark_of` without its reason."""
    return mark_of(result, finetuned, probed).beats_both


def _kind(method: str) -> str:
    return method.partition(":")[0].strip()


# The table -----------------------------------------------------------------------------------------------


def render_cells(cells: Sequence[Cell]) -> Table:
    """Rows are systems, columns tasks; in a cell our score, its interval, and in brackets the printed number."""
    table = Table(
        title="PETL, table 2: score, 95 % interval (printed)", title_justify="left", box=box.HORIZONTALS,
        padding=(0, 1, 0, 0), pad_edge=False,
    )  # fmt: skip
    tasks = list(dict.fromkeys(cell.run.task for cell in cells))
    titles = {column.task: column.title for column in COLUMNS}
    table.add_column("method", overflow="fold")
    for task in tasks:
        table.add_column(titles.get(task, task), justify="right", overflow="fold")
    systems = list(dict.fromkeys((cell.run.backbone, cell.run.method) for cell in cells))
    by_place = {(cell.run.backbone, cell.run.method, cell.run.task): cell for cell in cells}
    previous = None
    for backbone, method in systems:
        if backbone != previous:
            table.add_section()
            table.add_row(Text(backbone, style="bold"))
            previous = backbone
        title = METHOD_TITLES.get(method, method)
        table.add_row(title, *(_cell_text(by_place[backbone, method, task]) for task in tasks))
    return table


def _cell_text(cell: Cell) -> Text:
    text = Text()
    if cell.result is None:
        text.append("-")
    else:
        ours = Headline.of(cell.result)
        mark = "*" if cell.beats_both else ""
        text.append(short(ours.score) + mark, style="bold" if cell.best else "")
        if ours.interval is not None:
            text.append(f"\n{short(ours.interval.low)}-{short(ours.interval.high)}", style="dim")
    if cell.printed is not None:
        underlined = "*" if "underlined" in cell.printed.note else ""
        text.append(f"\n({short(cell.printed.value)}{underlined})", style="italic")
    return text


def _notes(cells: Sequence[Cell]) -> list[str]:
    lines = ["*: better than FT and than probing (ours: paired bootstrap over test tracks, 95 %)."]
    if any(cell.best for cell in cells):
        lines.append("Bold: best of a backbone and task.")
    for why in dict.fromkeys(cell.no_mark_because for cell in cells if cell.no_mark_because):
        lines.append(f"{why[0].upper()}{why[1:]}.")
    genre = next((c for c in cells if c.run.task == "gtzan_genre" and c.printed is not None), None)
    if genre is not None and genre.result is not None and "accuracy_class_macro" in genre.result.scores:
        lines.append(
            "GTZAN genre: ours is accuracy; the paper's is probably the mean over classes, also in the result files."
        )
    return lines
