"""PETL paper (Ding & Lerch), tables 2 and 3 and figure 3, as values. The recipes of the same names say what is run."""

from __future__ import annotations

from audiation.backbones import BACKBONES
from audiation.parameters import TABLE3_BACKBONES, TABLE3_METHODS
from audiation.recipes.petl_figure3 import PetlFigure3
from audiation.recipes.petl_table2 import COLUMNS as COLUMNS_2
from audiation.recipes.petl_table2 import METHOD_TITLES, PetlTable2, printed_score
from audiation.recipes.tables import (
    TABLES,
    ByCount,
    ByRun,
    Cell,
    Column,
    PaperTable,
    by_others,
    cell_of,
    printed_rows,
)
from audiation.run import Run
from audiation.tasks import TASKS

COLUMNS = tuple(Column(column.question, column.task, column.metric) for column in COLUMNS_2)
COUNTS = Column("params", "none", "trainable_params")
# "DL baseline": those that the authors trained themselves, on the splits of the table.
BASELINES = {"key": "key-cnn", "tempo": "tempo-cnn"}
_NOTES = {
    "gtzan_genre": "ours is accuracy; the printed values are probably means over classes, which results hold as well"
}


def table2_cells() -> list[Cell]:
    runs = {printed_score(run): run for run in PetlTable2().runs()}
    cells = []
    for row in printed_rows("petl", "Table 2", COLUMNS):
        if row in runs:
            cells.append(cell_of(row, ByRun(runs[row], row.metric), _NOTES.get(row.dataset, "")))
        elif row.system == "DL Baseline" and "re-implementation" in row.note:
            run = Run(
                backbone=BASELINES[row.task],
                task=row.dataset,
                method="finetune",
                protocol="scratch",
                weights="random",
            )
            cells.append(
                cell_of(row, ByRun(run, row.metric), "our architecture and recipe after the cited paper")
            )
        else:
            cells.append(by_others(row))
    return cells


def table3_cells() -> list[Cell]:
    systems = {BACKBONES[name].published_names[-1]: name for name in TABLE3_BACKBONES}
    methods = {METHOD_TITLES[name]: name for name in TABLE3_METHODS}
    return [
        cell_of(row, ByCount(systems[row.system], methods[row.method]))
        for row in printed_rows("petl", "Table 3", [COUNTS])
    ]


def figure3_cells() -> list[Cell]:
    """The figure prints no numbers, so its cells have none to compare with."""
    cells = []
    for run in PetlFigure3().runs():
        metric = TASKS[run.task].metrics[0].printed_name
        column = f"{run.task}, {metric}, {run.num_layers} layers"
        title = METHOD_TITLES[run.method.partition(":")[0]]
        cells.append(
            Cell(BACKBONES[run.backbone].published_names[-1], title, column, None, ByRun(run, metric))
        )
    return cells


_SETTINGS = "Settings for genre, key and tempo were not released; the protocol says what it does there."
_PREFIXES = "MERT has 32 prefixes here, as in the paper's table 1; its table 3 needs 64 (recipe petl_table2)."

TABLES.add(
    "petl/table2",
    PaperTable(
        name="petl/table2",
        title="PETL, table 2: eight methods on two backbones and seven tasks",
        protocol="petl: backbones cut to 6 blocks; baselines by the protocol scratch",
        make_cells=table2_cells,
        remarks=(
            _SETTINGS,
            _PREFIXES,
            "Which methods beat two others significantly: `audiation recipe petl_table2`.",
        ),
    ),
)
TABLES.add(
    "petl/table3",
    PaperTable(
        name="petl/table3",
        title="PETL, table 3: parameters that each method trains",
        protocol="counted, nothing is run; backbones cut to 6 blocks, without the head",
        make_cells=table3_cells,
        remarks=(
            "MERT has 64 prefixes here, which its number needs; full fine-tuning is printed in millions.",
        ),
    ),
)
TABLES.add(
    "petl/figure3",
    PaperTable(
        name="petl/figure3",
        title="PETL, figure 3: eight methods with 3, 6, 9 and 12 layers",
        protocol="petl",
        make_cells=figure3_cells,
        remarks=(
            "The paper prints no numbers beside the figure. Chart and memory: `audiation recipe petl_figure3`, which "
            "leaves out what does not fit.",
        ),
    ),
)
