"""Which instrument? One label out of a closed list per recording."""

from audiation.datasets.scores import TIMBRES
from audiation.metrics import ACCURACY
from audiation.targets import ClassTarget
from audiation.tasks.base import TASKS, Task

TASKS.add(
    "scores-timbre",
    Task(
        name="scores-timbre",
        question=f"which of {len(TIMBRES)} timbres, in rendered chorales?",
        train_dataset="scores",
        test_dataset="scores",
        annotation=lambda track: track.timbre,
        target=ClassTarget(tuple(TIMBRES)),
        metrics=(ACCURACY,),
        level="acoustic",
        compare_with=("genre", "gtzan_genre"),  # another question: the nearest that sound colour answers
    ),
)
