"""Which instrument? One label out of a closed list per recording."""

from audiation.datasets.nsynth import FAMILIES
from audiation.datasets.scores import TIMBRES
from audiation.metrics import ACCURACY
from audiation.targets import ClassTarget
from audiation.tasks.base import TASKS, Task

# Eleven families; synth_lead is said to occur in training only.
TASKS.add(
    "nsynth_instrument",
    Task(
        name="nsynth_instrument",
        question="which of eleven families of instruments, in single notes?",
        train_dataset="nsynth",
        test_dataset="nsynth",
        annotation=lambda track: track.instrument,
        target=ClassTarget(FAMILIES),
        metrics=(ACCURACY,),
        level="acoustic",
        published_as=("instrument", "nsynth_instrument"),
    ),
)

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
