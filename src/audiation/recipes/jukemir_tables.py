"""jukemir (Castellon, Donahue & Liang 2021), table 3: six representations on four tasks, 216 probes each."""

from __future__ import annotations

from audiation.recipes.tables import (
    AVERAGE,
    TABLES,
    ByAverage,
    ByRun,
    Cell,
    Column,
    PaperTable,
    average_tasks,
    by_others,
    cell_of,
    printed_rows,
)
from audiation.run import Run

# As printed -> our backbone.
BACKBONES_AS_PRINTED = {
    "CHROMA": "chroma",
    "MFCC": "mfcc",
    "CHOI": "choi",
    "MUSICNN": "musicnn-msd-big",
    "CLMR": "clmr",
    "JUKEBOX": "jukebox-5b",
}
TASKS_AS_PRINTED = {
    ("tagging", "mtt"): "mtt",
    ("genre", "gtzan_genre"): "gtzan_genre",
    ("key", "giantsteps_key"): "giantsteps_key",
    ("emotion", "emomusic"): "emomusic",
}
COLUMNS = (
    Column("tagging", "mtt", "roc_auc"),
    Column("tagging", "mtt", "ap"),
    Column("genre", "gtzan_genre", "accuracy"),
    Column("key", "giantsteps_key", "key_weighted"),
    Column("emotion", "emomusic", "r2_arousal"),
    Column("emotion", "emomusic", "r2_valence"),
    AVERAGE,
)


def table3_cells() -> list[Cell]:
    cells = []
    for row in printed_rows("jukemir", "Table 3", COLUMNS):
        backbone = BACKBONES_AS_PRINTED.get(row.system)
        if backbone is None:  # "State-of-the-art", "Pre-trained", "From scratch"
            cells.append(by_others(row))
        elif row.metric == "average":
            runs = tuple(_run(backbone, task) for task in average_tasks("jukemir-3", TASKS_AS_PRINTED))
            cells.append(cell_of(row, ByAverage("jukemir-3", runs)))
        else:
            run = _run(backbone, TASKS_AS_PRINTED[row.task, row.dataset])
            cells.append(cell_of(row, ByRun(run, row.metric)))
    return cells


def _run(backbone: str, task: str) -> Run:
    return Run(backbone=backbone, task=task, protocol="jukemir")


TABLES.add(
    "jukemir/table3",
    PaperTable(
        name="jukemir/table3",
        title="jukemir, table 3: six representations on four tasks",
        protocol="jukemir: 216 probes per run, the best on validation tested once",
        make_cells=table3_cells,
        remarks=(
            "Equal validation scores keep the configuration that comes first here; there, in the order of a folder.",
        ),
    ),
)
