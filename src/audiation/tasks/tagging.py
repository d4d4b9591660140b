"""Which tags? Any number of labels per recording: all sorts, genres, moods, instruments."""

from audiation.datasets.magnatagatune import TAGS as MTT_TAGS
from audiation.datasets.mtg_jamendo_lists import TAGS as MTG_TAGS
from audiation.metrics import AP, AP_UNDEFINED_SKIPPED, ROC_AUC, ROC_AUC_UNDEFINED_ZERO
from audiation.targets import TagsTarget
from audiation.tasks.base import TASKS, Task

# A tag that nothing of a split has: scikit-learn's and torchmetrics' ways, each by name. jukemir and MARBLE select by
# ROC AUC, PETL by average precision.
TAG_METRICS = (ROC_AUC, AP, ROC_AUC_UNDEFINED_ZERO, AP_UNDEFINED_SKIPPED)
CLEAN_METRICS = (AP, ROC_AUC, ROC_AUC_UNDEFINED_ZERO, AP_UNDEFINED_SKIPPED)

# All clips (jukemir, MARBLE), or only those with one of the 50 tags (musicfm, PETL). The average precision of the two
# must never be compared (D8).
TASKS.add(
    "mtt",
    Task(
        name="mtt",
        question="which of 50 tags, in all annotated clips of MagnaTagATune?",
        train_dataset="mtt",
        test_dataset="mtt",
        annotation=lambda track: track.tags,
        target=TagsTarget(MTT_TAGS),
        metrics=TAG_METRICS,
        level="high-level",
        task_type="multi-label",
        published_as=("tagging", "mtt"),
    ),
)
TASKS.add(
    "mtt_clean",
    Task(
        name="mtt_clean",
        question="which of 50 tags, in the clips of MagnaTagATune that have one?",
        train_dataset="mtt",
        test_dataset="mtt",
        annotation=lambda track: track.tags if track.has_top50_tag else None,
        target=TagsTarget(MTT_TAGS),
        metrics=CLEAN_METRICS,
        level="high-level",
        task_type="multi-label",
        published_as=("tagging", "mtt_clean"),
    ),
)


def _mtg(name: str, question: str, published: str, level: str) -> None:
    TASKS.add(
        name,
        Task(
            name=name,
            question=question,
            train_dataset=name,
            test_dataset=name,
            annotation=lambda track: track.tags,
            target=TagsTarget(MTG_TAGS[name]),
            metrics=TAG_METRICS,
            clip_seconds=30.0,
            level=level,  # type: ignore[arg-type]
            task_type="multi-label",
            published_as=(published, name),
        ),
    )


# The labels that split-0 has: 87, 56 and 40, not the 95, 59 and 41 of the unsplit files (D9). Windows of 30 s, each an
# example, whose outputs are averaged; the thesis' text averages embeddings instead (D11).
_mtg("mtg_top50", "which of the 50 commonest tags of MTG-Jamendo?", "tagging", "high-level")
_mtg("mtg_genre", "which of 87 genres?", "genre", "high-level")
_mtg("mtg_moodtheme", "which of 56 moods and themes?", "mood", "high-level")
_mtg("mtg_instrument", "which of 40 instruments?", "instrument", "acoustic")
