"""What do vocals, drums, bass and the rest sound like alone?"""

from audiation.magnitudes import MagnitudeTarget
from audiation.metrics_separation import SEPARATION_METRICS, StemNames
from audiation.tasks.base import TASKS, Task

# MARBLE's code evaluates at 24 kHz, MDX 2021 scores at 44.1 kHz stereo: both are given, by name (D27).
TASKS.add(
    "musdb18",
    Task(
        name="musdb18",
        question="what do vocals, drums, bass and the rest of a song sound like alone?",
        train_dataset="musdb18",
        test_dataset="musdb18",
        annotation=lambda track: StemNames(),
        target=MagnitudeTarget(),
        metrics=SEPARATION_METRICS,
        level="acoustic",
        task_type="separation",
        published_as=("source_separation", "musdb18"),
    ),
)
