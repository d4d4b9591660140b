"""Which genre? One label out of a closed list per recording."""

from audiation.datasets.gtzan import GENRES
from audiation.metrics import ACCURACY, ACCURACY_CLASS_MACRO
from audiation.targets import ClassTarget
from audiation.tasks.base import TASKS, Task

# Whole clips of 30 s. jukemir and MARBLE print the micro accuracy, PETL probably the class-macro mean (D1).
TASKS.add(
    "gtzan_genre",
    Task(
        name="gtzan_genre",
        question="which of ten genres?",
        train_dataset="gtzan",
        test_dataset="gtzan",
        annotation=lambda track: track.genre,
        target=ClassTarget(GENRES),
        metrics=(ACCURACY, ACCURACY_CLASS_MACRO),
        level="high-level",
        published_as=("genre", "gtzan_genre"),
    ),
)
