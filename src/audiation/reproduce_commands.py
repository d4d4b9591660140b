"""`audiation reproduce`: a table of a paper, ours beside what is printed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from audiation.recipes.reproduce import CellOutcome, Reproduction
    from audiation.recipes.table_plan import Plan
    from audiation.recipes.tables import Cell, PaperTable


def reproduce(
    name: tyro.conf.Positional[str | None] = None,
    /,
    data_root: Path | None = None,
    metadata_root: Path | None = None,
    out: Path = Path("runs"),
    backbones: str = "",
    tasks: str = "",
    weights: Literal["random"] | None = None,
    dry_run: bool = False,
    device: str = "cpu",
) -> None:
    """Run what the data at hand allow of a table of a paper, and print ours - published - difference for every cell.

    First it says what can be run and what is missing, then it runs, one run after another. Runs whose result is in
    the folder already are not repeated, so it can be stopped and started again. The exit code is 1 unless everything
    that was asked has a number; numbers that the paper itself took from others are not asked.

    Args:
        name: like jukemir/table3. Without it, the tables are listed.
        data_root: folder with one folder per data set (default: $AUDIATION_DATA_ROOT).
        metadata_root: folder with local copies of official split and annotation files.
        out: folder for results and for the table as CSV and JSON.
        backbones: only these, joined by "+", like chroma+mfcc.
        tasks: only these, joined by "+", like gtzan_genre+giantsteps_key.
        weights: random lets every backbone draw its weights, for a dry trial.
        dry_run: say what would be run, and stop. The exit code is 1 where something is missing.
        device: torch device.
    """
    from rich.console import Console

    if name is None:
        given = {"--backbones": backbones, "--tasks": tasks, "--weights": weights, "--dry-run": dry_run}
        if unused := [flag for flag, value in given.items() if value]:
            raise ValueError(f"{', '.join(unused)} need a table, like: audiation reproduce jukemir/table3")
        list_tables(Console())
    elif not reproduce_table(
        name, Console(), data_root=data_root, metadata_root=metadata_root, out=out, backbones=backbones, tasks=tasks,
        weights=weights, dry_run=dry_run, device=device,
    ):  # fmt: skip
        sys.exit(1)


def reproduce_table(
    name: str,
    console: Console,
    *,
    data_root: Path | None = None,
    metadata_root: Path | None = None,
    out: Path = Path("runs"),
    backbones: str = "",
    tasks: str = "",
    weights: Literal["random"] | None = None,
    dry_run: bool = False,
    device: str = "cpu",
) -> bool:
    """Plan, run, print, write. Whether everything that was asked has a number (dry run: nothing is missing).

    Raises:
        UnknownNameError: no such table, or a backbone or task that none of its cells has.
        ValueError: a data root that is no folder, or a device that is not there.
    """
    from audiation.loading import check_device
    from audiation.output_places import require_writable_folder
    from audiation.recipes.petl_table2 import names_in
    from audiation.recipes.reproduce import carry_out_table, write_reproduction
    from audiation.recipes.table_plan import plan_runs
    from audiation.recipes.tables import TABLES, runs_of, select_cells

    table = TABLES[name.strip()]
    check_device(device)
    cells = select_cells(
        table.cells(),
        backbones=names_in(backbones, "backbones") if backbones else (),
        tasks=names_in(tasks, "tasks") if tasks else (),
        weights=weights,
    )
    plan = plan_runs(runs_of(cells), data_root, out / "results")
    print_plan(table, cells, plan, console)
    if dry_run:
        return not plan.runs_behind and all(_kind(cell) != "weights never published" for cell in cells)
    require_writable_folder(out)
    reproduction = carry_out_table(
        table,
        cells,
        plan,
        out,
        device=device,
        console=console,
        data_root=data_root,
        metadata_root=metadata_root,
    )
    print_reproduction(reproduction, console)
    _say(console, f"Written: {', '.join(map(str, write_reproduction(reproduction, out)))}")
    return reproduction.is_complete


def list_tables(console: Console) -> None:
    """Name and title of every table, its numbers, and how many of them this code could answer, given data and
    weights."""
    from rich.table import Table

    from audiation.backbones import BACKBONES
    from audiation.recipes.tables import TABLES

    listed = Table(title="tables", title_justify="left")
    listed.add_column("name", no_wrap=True)
    listed.add_column("what", overflow="fold")
    for title in ("cells", "can be\nanswered", "backbone\nto come", "weights not\npublished", "of others"):
        listed.add_column(title, justify="right")
    for name in TABLES:
        cells = TABLES[name].cells()
        kinds = [_kind(cell) for cell in cells]
        others, unpublished = kinds.count("published by others"), kinds.count("weights never published")
        known = sum(cell.answer.backbone in BACKBONES for cell in cells)
        rest = len(cells) - others - unpublished - known
        listed.add_row(name, TABLES[name].title, *map(str, (len(cells), known, rest, unpublished, others)))
    console.print(listed)
    _say(
        console,
        "With data and weights at hand: audiation reproduce NAME --data-root DIR; --dry-run only plans.",
    )


# The plan --------------------------------------------------------------------------------------------------


def print_plan(table: PaperTable, cells: Sequence[Cell], plan: Plan, console: Console) -> None:
    """How much there is to run, and what is missing, equal reasons together."""
    from audiation.backbones import BACKBONES
    from audiation.recipes.tables import NoAnswer

    console.print(table.title, style="bold", highlight=False, markup=False)
    _say(console, f"Protocol: {table.protocol}.")
    kinds = [_kind(cell) for cell in cells]
    others, unpublished = kinds.count("published by others"), kinds.count("weights never published")
    said = [f"{len(cells) - others - unpublished} can be answered"]
    said += [f"{others} are numbers that the paper takes from others"] if others else []
    said += [f"{unpublished} are of systems whose weights were never published"] if unpublished else []
    _say(console, f"{len(cells)} cells: {', '.join(said)}.")
    for why in dict.fromkeys(c.answer.reason for c in cells if isinstance(c.answer, NoAnswer)):
        _say(console, f"  nothing to run: {why}")
    possible, kept = len(plan.possible), sum(planned.has_result for planned in plan.runs)
    unknown = sum(planned.num_trainings is None for planned in plan.runs)
    if plan.runs:
        said = [f"{plan.num_trainings(possible_only=True):,} of {plan.num_trainings():,} trainings"]
        said += [f"{kept} of them done before"] if kept else []
        said += [f"not counting {_runs(unknown)} of backbones that are not in the zoo"] if unknown else []
        _say(console, f"{possible} of {_runs(len(plan.runs))} can be tried here, {', '.join(said)}.")
    for backbone in plan.weights_to_fetch:
        files = BACKBONES[backbone].weights.files
        sizes = [file.size_bytes for file in files]
        size = f"{sum(sizes) / 1e6:,.0f} MB" if all(sizes) else "size not recorded"
        _say(console, f"  first fetched: weights of {backbone} ({files[0].place}, {size})")
    if not plan.runs_behind:
        return
    blocked = _runs(len(plan.runs) - possible)
    _say(console, f"{blocked} cannot be carried out; one may lack several things:")
    alike: dict[tuple[str, str], list[str]] = {}
    for obstacle, stopped in plan.runs_behind.items():
        alike.setdefault((obstacle.kind, obstacle.reason), []).append(
            f"{obstacle.what} ({_runs(len(stopped))})"
        )
    for (kind, reason), named in sorted(alike.items(), key=lambda one: one[0][0]):
        _say(console, f"  {kind}: {', '.join(named)}: {reason}.")


def _kind(cell: Cell) -> str:
    """The kind of reason for which nothing answers it, or ""."""
    from audiation.recipes.tables import NoAnswer

    return cell.answer.kind if isinstance(cell.answer, NoAnswer) else ""


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


# The outcome -----------------------------------------------------------------------------------------------


def print_reproduction(reproduction: Reproduction, console: Console) -> None:
    """A row per cell that has a number; below it why others have none, and what made the numbers."""
    there = [outcome for outcome in reproduction.outcomes if outcome.ours is not None]
    if there:
        console.print(render_outcomes(reproduction.table.title, there))
    for line in notes_on(reproduction):
        _say(console, line, style="dim")
    failed: dict[str, list[CellOutcome]] = {}
    for outcome in reproduction.asked:
        if outcome.ours is None:
            failed.setdefault(outcome.reason, []).append(outcome)
    for reason, outcomes in failed.items():
        named = "; ".join(f"{o.cell.system}, {o.cell.column}" for o in outcomes[:2])
        more = f"; and {len(outcomes) - 2} more" if len(outcomes) > 2 else ""
        _say(console, f"no number: {named}{more}: {reason}", style="red")
    others = len(reproduction.outcomes) - len(reproduction.asked)
    said = f"{len(there)} of {len(reproduction.asked)} cells have a number"
    _say(
        console, said + (f"; {others} more are numbers that the paper takes from others." if others else ".")
    )


def render_outcomes(title: str, outcomes: Sequence[CellOutcome]) -> Table:
    """Ours, our interval, published, ours - published, and whether the interval holds the published number."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=f"{title}: ours beside published", title_justify="left", box=box.HORIZONTALS, padding=(0, 1, 0, 0),
        pad_edge=False,
    )  # fmt: skip
    for name in ("system", "data set, metric"):
        table.add_column(name, overflow="fold")
    for name in ("ours", "95 % interval", "published", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("to know", overflow="fold")
    previous = None
    methods = {outcome.cell.method for outcome in outcomes}
    for outcome in outcomes:
        cell = outcome.cell
        system = cell.system if len(methods) == 1 else f"{cell.system}, {cell.method}"
        if previous not in (None, system):
            table.add_section()
        published, difference, inside = cell.published, outcome.difference, outcome.published_inside
        held = {None: [], True: ["published inside"], False: ["published outside"]}[inside]
        table.add_row(
            Text(system if system != previous else ""),
            Text(cell.column),
            Text(_number(outcome.ours), style="bold"),
            "-" if outcome.interval is None else " to ".join(map(_number, outcome.interval)),
            Text("not printed" if published is None else _number(published.value), style="italic"),
            "-" if difference is None else _signed(difference),
            Text("; ".join([*held, *outcome.marks])),
        )
        previous = system
    return table


def notes_on(reproduction: Reproduction) -> list[str]:
    """What the numbers rest on: rules, tracks, machine, code."""
    from audiation.recipes.reproduce import made_with

    lines = list(reproduction.table.remarks)
    by_note: dict[str, list[str]] = {}
    for outcome in reproduction.outcomes:
        if outcome.ours is not None and outcome.cell.note:
            by_note.setdefault(outcome.cell.note, []).append(outcome.cell.column)
    lines += [f"{', '.join(dict.fromkeys(columns))}: {note}." for note, columns in by_note.items()]
    results = reproduction.results
    tracks = dict.fromkeys(
        f"{r.run['task']}: {r.num_test_tracks} of {r.num_official_test_tracks} test tracks, split {r.split_hash[:16]}"
        for r in results
    )
    lines += [f"{line}." for line in tracks]
    for made in made_with(results):
        lines.append(f"{_runs(made.num_runs)} on {_machine(made.hardware)}; {_code(made.code)}.")
    return lines


def _machine(hardware: dict[str, object]) -> str:
    device, cpu = hardware.get("device", "cpu"), hardware.get("cpu", "an unknown processor")
    cores = f"{hardware.get('cores', '?')} cores of {cpu}"
    return cores if device == "cpu" else f"{device}, {cores}"


def _code(code: dict[str, str]) -> str:
    parts = [
        f"audiation {code.get('version', 'unknown')}",
        f"sources {code.get('sources_sha256', 'unknown')[:12]}",
    ]
    if "git_commit" in code:
        parts.append(f"commit {code['git_commit'][:12]} ({code.get('git_tree', 'unknown')})")
    parts.append(f"torch {code.get('torch', 'unknown')}")
    parts.append(
        f"lock {code['lock_sha256'][:16]}"
        if "lock_sha256" in code
        else f"lock: {code.get('lock', 'unknown')}"
    )
    return ", ".join(parts)


def _number(value: float | None) -> str:
    """Three places for scores and dB; whole counts as they are."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) == 0 else f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+,.0f}" if abs(value) >= 1000 else f"{value:+.3f}"


def _say(console: Console, line: str, style: str = "") -> None:
    console.print(line, style=style or None, markup=False, highlight=False, soft_wrap=True)
