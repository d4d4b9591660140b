"""What recipes of pre-training share: a table whose rows are trained within a budget, probed, and compared.

A row is trained, its backbone is probed, and pairs of rows are compared on the tracks that both answered, beside the
difference that the paper prints. Everything is kept and goes on where it stopped.

    OUT/runs/ROW.json        every row as a `PretrainRun`
    OUT/ROW/                 budget and run of a row that was trained (`pretrain_budget`)
    OUT/results/             a result per row and task
    OUT/contrasts.csv        every contrast, ours and the paper's
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from rich.console import Console

from audiation.recipes.petl_table2 import names_in
from audiation.recipes.pretrain_budget import (
    TrainedRows,
    check_positive,
    render_budgets,
    render_failed,
    train_rows,
)
from audiation.recipes.pretrain_contrasts import (
    PrintedTable,
    Probed,
    Question,
    contrast_cells,
    pairs_of,
    printed_cells,
    probe_rows,
    render_contrasts,
    render_scores,
    write_contrasts,
)
from audiation.recipes.pretrain_differences import Contrast, render_pairs
from audiation.recipes.pretrain_rows import PretrainRow, Size, render_rows, write_runs

PROVES_NOTHING = (
    "These are small models, trained for minutes on little music. What differs between them proves nothing about the "
    "sizes of the paper."
)


@dataclass(frozen=True)
class PretrainTable:
    """A table of a paper at one size.

    corpora: name of a corpus, as in `PretrainRow.corpus` -> its folder; "": there is none.
    minutes_each: of training, per row. Only at size "mini" is anything trained, and questions asked.
    """

    title: str
    size: Size
    rows: Sequence[PretrainRow]
    contrasts: Sequence[Contrast]
    printed: PrintedTable
    questions: Sequence[Question] = ()
    corpora: Mapping[str, str] = field(default_factory=dict)
    minutes_each: float = 0.0

    def carry_out(self, out: Path, device: str, console: Console) -> None:
        """Write the runs; at size mini train, probe, and print the contrasts with intervals beside the paper's."""
        console.print(render_rows(f"{self.title}, size {self.size}", self.rows, self.size))
        for row in self.rows:
            if row.note and row.run is not None:
                console.print(f"{row.name}: {row.note}", style="dim", highlight=False)
        console.print(f"Runs: {write_runs(self.rows, out)}", highlight=False)
        printed = printed_cells(self.contrasts, self.rows, self.printed)
        if self.size == "paper":
            console.print(render_contrasts("Contrasts as printed", printed))
            console.print(render_pairs(pairs_of(printed)))
            console.print(f"Written: {write_contrasts(printed, out)}", highlight=False)
            return
        trained = train_rows(self.rows, self.corpora, out, self.minutes_each, device, console)
        probed = probe_rows(trained, self.questions, out, device, console)
        self._report(trained, probed, out, console)

    def _report(self, trained: TrainedRows, probed: Probed, out: Path, console: Console) -> None:
        console.print(render_budgets(trained))
        if failed := _failures(trained, probed):
            console.print(render_failed(failed))
        console.print(render_scores(probed))
        cells = contrast_cells(self.contrasts, self.rows, self.questions, self.printed, trained, probed)
        console.print(render_contrasts("Contrasts: ours, 95 % interval (printed)", cells))
        console.print(render_pairs(pairs_of(cells)))
        console.print(
            "*: the interval of the difference (paired bootstrap over test tracks) lies on one side of 0. Each "
            "interval is for itself: of twenty that hold nothing, one lies so by chance. Rows have equal minutes, and "
            f"the steps that fit into them. {PROVES_NOTHING}",
            highlight=False,
        )
        cells += printed_cells(self.contrasts, self.rows, self.printed)
        console.print(f"Written: {write_contrasts(cells, out)}", highlight=False)


def check_table(size: str, minutes_each: float, batch_seconds: float) -> None:
    """ValueError for a size that is not there, or a budget that is none."""
    if size not in get_args(Size):
        raise ValueError(f"size is {' or '.join(get_args(Size))}, got '{size}'")
    check_positive("minutes_each", minutes_each)
    check_positive("batch_seconds", batch_seconds)


def chosen_names(text: str, field: str, known: Sequence[str]) -> list[str]:
    """'a+b' -> ['a', 'b']. ValueError for one that is not known, as well as those of `names_in`."""
    names = names_in(text, field)
    for name in names:
        if name not in known:
            raise ValueError(f"{field} are {', '.join(known)}, got '{name}'")
    return names


def _failures(trained: TrainedRows, probed: Probed) -> dict[str, str]:
    """Everything that has no number, by what it is."""
    return {
        **{name: f"not trained: {reason}" for name, reason in trained.failed.items()},
        **{f"{name}, {task}": f"not probed: {reason}" for (name, task), reason in probed.failed.items()},
    }
