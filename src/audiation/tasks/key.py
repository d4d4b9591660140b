"""Which key? One of 24 per recording."""

from typing import Any

from audiation.annotations import Key, Segments
from audiation.frame_targets import KeyFramesTarget
from audiation.metrics import KEY_WEIGHTED, KEY_WEIGHTED_SYMMETRIC
from audiation.targets import KeyTarget
from audiation.tasks.base import TASKS, Task

# PETL's released metric counts the fifth below as well (D2), so both scores are given.
KEY_METRICS = (KEY_WEIGHTED, KEY_WEIGHTED_SYMMETRIC)

# jukemir and MARBLE cut windows of 30 s; PETL hears whole clips, and drops the four test tracks that are shorter than
# two minutes. GiantSteps-MTG with one key and full confidence, artists apart (D13, D14).
TASKS.add(
    "giantsteps_key",
    Task(
        name="giantsteps_key",
        question="which of 24 keys, in electronic dance music?",
        train_dataset="giantsteps_mtg_key",
        test_dataset="giantsteps_key",
        annotation=lambda track: track.key,
        target=KeyTarget(),
        metrics=KEY_METRICS,
        clip_seconds=30.0,
        level="high-level",
        published_as=("key", "giantsteps_key"),
    ),
)

# Tracks without a key (modulating or unknown) are no part of the task.
TASKS.add(
    "gtzan_key",
    Task(
        name="gtzan_key",
        question="which of 24 keys, in recordings of ten genres?",
        train_dataset="gtzan",
        test_dataset="gtzan",
        annotation=lambda track: track.key,
        target=KeyTarget(),
        metrics=KEY_METRICS,
        level="high-level",
        published_as=("key", "gtzan_key"),
    ),
)

# MARBLE v2 answers for a video and gives all its clips the label of the first one (D34).
TASKS.add(
    "hooktheory_key",
    Task(
        name="hooktheory_key",
        question="which of 24 keys, in excerpts of popular songs?",
        train_dataset="hooktheory_key_jsonl",
        test_dataset="hooktheory_key_jsonl",
        annotation=lambda track: track.key,
        target=KeyTarget(),
        metrics=KEY_METRICS,
        clip_seconds=15.0,
        answer_group=lambda track: track.song_id,
        level="high-level",
    ),
)


def _keys_to_learn_or_key_to_find(track: Any) -> Key | Segments | None:
    """Keys over time in training; in validation and test the one key of a recording, where it has one."""
    return track.keys if track.split == "train" else track.key


# As MusicFM trains it: 25 classes every two seconds on HookTheory, one key for each GiantSteps track.
TASKS.add(
    "hooktheory_giantsteps_key",
    Task(
        name="hooktheory_giantsteps_key",
        question="which key every two seconds, learned from popular songs, asked of electronic dance music?",
        task_type="sequence",
        train_dataset="hooktheory",
        test_dataset="giantsteps_key",
        annotation=_keys_to_learn_or_key_to_find,
        target=KeyFramesTarget(),
        metrics=KEY_METRICS,
        clip_seconds=12.0,
        level="high-level",
        published_as=("key", "giantsteps_key"),
        published_train_on="hooktheory_key",
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
