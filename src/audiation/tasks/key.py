"""Which key? One of 24 per recording."""

from audiation.metrics import KEY_WEIGHTED, KEY_WEIGHTED_SYMMETRIC
from audiation.targets import KeyTarget
from audiation.tasks.base import TASKS, Task

# Tracks without a key (modulating or unknown) are no part of the task. PETL's released metric counts the fifth below
# as well (D2), so both scores are given.
TASKS.add(
    "gtzan_key",
    Task(
        name="gtzan_key",
        question="which of 24 keys, in recordings of ten genres?",
        train_dataset="gtzan",
        test_dataset="gtzan",
        annotation=lambda track: track.key,
        target=KeyTarget(),
        metrics=(KEY_WEIGHTED, KEY_WEIGHTED_SYMMETRIC),
        level="high-level",
        published_as=("key", "gtzan_key"),
    ),
)

TASKS.add(
    "scores-key",
    Task(
        name="scores-key",
        question="which of 24 keys, in rendered chorales?",
        train_dataset="scores",
        test_dataset="scores",
        annotation=lambda track: track.key,
        target=KeyTarget(),
        metrics=(KEY_WEIGHTED,),
        level="high-level",
        compare_with=("key", "giantsteps_key"),
    ),
)
