"""Which tempo? Beats per minute of a recording."""

from audiation.metrics import TEMPO_ACCURACY1, TEMPO_ACCURACY2
from audiation.targets import TempoTarget
from audiation.tasks.base import TASKS, Task

# 300 bins as in PETL. The reference is the annotated tempo, not its rounded bin as in the released code.
# MARBLE v2's tempo counts the beats of a window and is another question (D33).
METRICS = (TEMPO_ACCURACY1, TEMPO_ACCURACY2)

TASKS.add(
    "gtzan_tempo",
    Task(
        name="gtzan_tempo",
        question="which tempo, in recordings of ten genres?",
        train_dataset="gtzan",
        test_dataset="gtzan",
        annotation=lambda track: track.tempo,
        target=TempoTarget(),
        metrics=METRICS,
        level="score",
        published_as=("tempo", "gtzan_tempo"),
    ),
)
# PETL does not say how it split GiantSteps, nor which of the two annotations it took; this is our split.
TASKS.add(
    "giantsteps_tempo",
    Task(
        name="giantsteps_tempo",
        question="which tempo, in electronic dance music?",
        train_dataset="giantsteps_tempo",
        test_dataset="giantsteps_tempo",
        annotation=lambda track: track.tempo,
        target=TempoTarget(),
        metrics=METRICS,
        level="score",
        published_as=("tempo", "giantsteps_tempo"),
    ),
)
TASKS.add(
    "scores-tempo",
    Task(
        name="scores-tempo",
        question="which tempo, in rendered chorales?",
        train_dataset="scores",
        test_dataset="scores",
        annotation=lambda track: track.tempo,
        target=TempoTarget(),
        metrics=METRICS,
        level="score",
        compare_with=("tempo", "gtzan_tempo"),
    ),
)
