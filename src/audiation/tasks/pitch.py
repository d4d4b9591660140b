"""Which pitch? One MIDI number per note."""

from audiation.metrics import ACCURACY
from audiation.targets import PitchTarget
from audiation.tasks.base import TASKS, Task

TASKS.add(
    "nsynth_pitch",
    Task(
        name="nsynth_pitch",
        question="which of 128 pitches, in single notes?",
        train_dataset="nsynth",
        test_dataset="nsynth",
        annotation=lambda track: track.pitch,
        target=PitchTarget(),
        metrics=(ACCURACY,),
        level="score",
        published_as=("pitch", "nsynth_pitch"),
    ),
)
