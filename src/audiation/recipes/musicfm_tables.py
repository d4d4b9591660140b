"""MusicFM (Won, Hung & Le 2024), table 1: nine models probed, three fine-tuned, on five questions."""

from __future__ import annotations

from audiation.recipes.tables import (
    TABLES,
    ByRun,
    Cell,
    Column,
    PaperTable,
    by_others,
    cell_of,
    never_published,
    printed_rows,
)
from audiation.run import Run

METHODS_AS_PRINTED = {"probing": "probe", "fine-tuning": "finetune"}
# Of the nine models one was trained on public data; its nearest released relative.
BACKBONES_AS_PRINTED = {"FM9": "musicfm-fma"}
TASKS_AS_PRINTED = {
    "beat": "harmonix_rhythm",
    "downbeat": "harmonix_rhythm",
    "chord": "hooktheory_chord",
    "structure": "harmonix",
    "key": "hooktheory_giantsteps_key",
    "tagging": "mtt_clean",
}
COLUMNS = (
    Column("beat", "gtzan_rhythm", "f1_beat"),
    Column("downbeat", "gtzan_rhythm", "f1_downbeat"),
    Column("chord", "hooktheory_chord", "chord_majmin"),
    Column("structure", "harmonix", "structure_frame_acc"),
    Column("structure", "harmonix", "boundary_hr05_f"),
    Column("key", "giantsteps_key", "key_weighted"),
    Column("tagging", "mtt_clean", "ap"),
    Column("tagging", "mtt_clean", "roc_auc"),
)
_RELEASED = "musicfm-fma is the released FMA checkpoint; whether it is the paper's FM9 is not known"


def table1_cells() -> list[Cell]:
    cells = []
    for row in printed_rows("musicfm", "Table 1", COLUMNS):
        if row.method not in METHODS_AS_PRINTED:
            cells.append(by_others(row))
        elif row.system not in BACKBONES_AS_PRINTED:
            why = "FM1 to FM8 were trained on music of the authors' own; the released musicfm-msd is none of them"
            cells.append(never_published(row, why))
        else:
            run = Run(
                backbone=BACKBONES_AS_PRINTED[row.system],
                task=TASKS_AS_PRINTED[row.task],
                method=METHODS_AS_PRINTED[row.method],
                protocol="musicfm",
            )
            cells.append(cell_of(row, ByRun(run, row.metric), _RELEASED))
    return cells


TABLES.add(
    "musicfm/table1",
    PaperTable(
        name="musicfm/table1",
        title="MusicFM, table 1: models probed and fine-tuned on five questions",
        protocol="musicfm: probing, and fine-tuning with 1e-5 for the backbone and 1e-4 for the head",
        make_cells=table1_cells,
        remarks=(
            "The paper leaves layer, batch size, epochs, dropout and validation sets open; they are our choice.",
            "Beats within 70 ms, mean over tracks; the paper names neither tolerance nor mean.",
        ),
    ),
)
