"""Which technique, which singer? One label per piece of singing."""

from audiation.datasets.vocalset import SINGERS, TECHNIQUES
from audiation.metrics import ACCURACY
from audiation.targets import ClassTarget
from audiation.tasks.base import TASKS, Task

# Pieces of 3 s. MARBLE v1 scores each of them; here the pieces of a recording give one answer, so its numbers stand
# beside ours for orientation only. There a recording and its pieces stay together, but the same singers are on both
# sides of training and validation; here they are apart (D21).
TASKS.add(
    "vocalset_technique",
    Task(
        name="vocalset_technique",
        question="which of ten vocal techniques?",
        train_dataset="vocalset_technique",
        test_dataset="vocalset_technique",
        annotation=lambda track: track.technique,
        target=ClassTarget(TECHNIQUES),
        metrics=(ACCURACY,),
        clip_seconds=3.0,
        level="performance",
        compare_with=("vocal_technique", "vocalset_technique"),
    ),
)
TASKS.add(
    "vocalset_singer",
    Task(
        name="vocalset_singer",
        question="which of twenty singers?",
        train_dataset="vocalset_singer",
        test_dataset="vocalset_singer",
        annotation=lambda track: track.singer,
        target=ClassTarget(SINGERS),
        metrics=(ACCURACY,),
        clip_seconds=3.0,
        level="acoustic",
        compare_with=("singer_id", "vocalset_singer"),
    ),
)
