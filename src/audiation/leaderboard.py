"""The table: results beside what others have published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from audiation.backbones import BACKBONES
from audiation.published import PublishedScore
from audiation.results import Result

_DATASET_TITLES = {"giantsteps_key": "GiantSteps", "gtzan_genre": "GTZAN", "gtzan_key": "GTZAN"}
_PAPER_TITLES = {"petl": "PETL", "musicfm": "MusicFM", "thesis": "MARBLE/MERT thesis"}


def render_table(
    results: Sequence[Result],
    published: Sequence[PublishedScore] = (),
    *,
    title: str = "Results",
) -> Table:
    """One table: a row per result and metric, then, set apart and labelled in words, the published numbers."""
    table = Table(
        title=title, title_justify="left", box=box.HORIZONTALS, padding=(0, 1, 0, 0), pad_edge=False
    )
    for name in ("representation", "task", "metric"):
        table.add_column(name, overflow="fold")
    for name in ("score", "95 % interval", "tracks"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in sorted(results, key=lambda r: r.run["task"]):
        for metric, score in result.scores.items():
            interval = result.intervals[metric]
            table.add_row(
                _representation(result),
                result.run["task"],
                metric,
                Text(f"{score:.3f}", style="bold"),
                "-" if interval is None else f"{interval.low:.3f} to {interval.high:.3f}",
                _tracks(result),
            )
    table.add_section()
    for row in published:
        data = _DATASET_TITLES.get(row.dataset, row.dataset)
        label = f"published, other\ndata: {data}" if row.other_data else f"published: {data}"
        source = f"{row.system} ({_PAPER_TITLES.get(row.paper, row.paper)})\n{label}"
        cells = (source, row.task, row.metric, f"{row.value:.3f}", "not published", "-")
        table.add_row(*(Text(cell, style="dim italic") for cell in cells))
    failed_in = Counter("test" if f.split == "test" else "training" for r in results for f in r.failures)
    notes = ["Published numbers follow the protocol of their paper."] if published else []
    if any(row.other_data for row in published):
        notes.append(
            "Those on other data are for orientation only; their row names the question they answer."
        )
    departing = [r for r in results if r.departures]
    for text in dict.fromkeys("; ".join(r.departures) for r in departing):
        protocols = ", ".join(
            sorted({r.run["protocol"] for r in departing if "; ".join(r.departures) == text})
        )
        notes.append(f"* departs from the protocol {protocols}: {text}.")
    for hours in sorted({r.run["beyond_wall_hours"] for r in results if "beyond_wall_hours" in r.run}):
        notes.append(f"! took more than the {hours:g} hours that its protocol allows.")
    if failed_in["test"]:
        notes.append(f"Failed test tracks: {failed_in['test']}; the result files say which and why.")
    if failed_in["training"]:
        notes.append(f"Tracks missing from training and validation: {failed_in['training']}.")
    table.caption, table.caption_justify = "\n".join(notes) or None, "left"
    return table


def _representation(result: Result) -> str:
    run = result.run
    parts = [run["backbone"] if run.get("weights") != "random" else f"{run['backbone']}, untrained"]
    has_layers = run["backbone"] in BACKBONES and BACKBONES[run["backbone"]].can_be_cut
    if run.get("layer") is not None and (has_layers or run["layer"]):  # one vector per clip is layer 0
        parts.append(f"layer {run['layer']}")
    if run["method"] != "probe":
        parts.append(run["method"])
    marks = "*" * bool(result.departures) + "!" * ("beyond_wall_hours" in result.run)
    return ", ".join(parts) + marks


def _tracks(result: Result) -> Text:
    """How many of the official test tracks were scored: what the coverage is made of."""
    counts = f"{result.num_test_tracks}/{result.num_official_test_tracks}"
    return Text(counts) if result.coverage == 1 else Text(f"{counts}\npartial", style="bold red")
