"""How arousing, how positive? Two numbers per recording."""

from audiation.metrics import R2_AROUSAL, R2_MEAN, R2_VALENCE
from audiation.targets import EmotionTarget
from audiation.tasks.base import TASKS, Task

# Means and population deviations of arousal and valence over the 619 development songs, static annotations (D17).
# jukemir has one vector per clip. The thesis cuts its 45 s into windows of 5 s and averages the outputs; the config of
# MARBLE v1 hears the first 30 s only (D19).
for _suffix, _seconds, _how in (("", None, ""), ("_5s", 5.0, ", heard 5 s at a time")):
    TASKS.add(
        f"emomusic{_suffix}",
        Task(
            name=f"emomusic{_suffix}",
            question=f"how much arousal and valence, on the scale of the annotators{_how}?",
            train_dataset="emomusic",
            test_dataset="emomusic",
            annotation=lambda track: track.emotion,
            target=EmotionTarget(means=(4.7561, 4.9739), deviations=(1.3860, 1.2546)),
            metrics=(R2_MEAN, R2_AROUSAL, R2_VALENCE),
            clip_seconds=_seconds,
            level="high-level",
            task_type="regression",
            published_as=("emotion", "emomusic"),
        ),
    )
