"""How arousing, how positive? Two numbers per recording."""

from audiation.metrics import R2_AROUSAL, R2_MEAN, R2_VALENCE
from audiation.targets import EmotionTarget
from audiation.tasks.base import TASKS, Task

# Means and population deviations of arousal and valence over the 619 development songs, static annotations (D17).
# Windows of 5 s over the whole clip as the thesis says; MARBLE v1 hears the first 30 s only (D19).
TASKS.add(
    "emomusic",
    Task(
        name="emomusic",
        question="how much arousal and valence, on the scale of the annotators?",
        train_dataset="emomusic",
        test_dataset="emomusic",
        annotation=lambda track: track.emotion,
        target=EmotionTarget(means=(4.7561, 4.9739), deviations=(1.3860, 1.2546)),
        metrics=(R2_MEAN, R2_AROUSAL, R2_VALENCE),
        clip_seconds=5.0,
        level="high-level",
        task_type="regression",
        published_as=("emotion", "emomusic"),
    ),
)
