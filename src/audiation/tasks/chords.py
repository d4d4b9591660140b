"""Which chord, when? Major, minor or none on twelve roots."""

from audiation.frame_targets import ChordTarget
from audiation.metrics import CHORD_FRAME_ACCURACY, CHORD_MAJMIN_WCSR, CHORD_MAJMIN_WCSR_BY_DURATION, Metric
from audiation.tasks.base import TASKS, Task

# Time that is right, as mir_eval has it, or frames that are right, as MARBLE v2 has it: not to be compared (D30).
RECALL = (CHORD_MAJMIN_WCSR, CHORD_MAJMIN_WCSR_BY_DURATION, CHORD_FRAME_ACCURACY)
FRAMES = (CHORD_FRAME_ACCURACY, CHORD_MAJMIN_WCSR, CHORD_MAJMIN_WCSR_BY_DURATION)


def _chords(
    name: str,
    question: str,
    data: str,
    target: ChordTarget,
    metrics: tuple[Metric, ...],
    clip_seconds: float | None,
    published: str = "",
) -> None:
    TASKS.add(
        name,
        Task(
            name=name,
            question=question,
            train_dataset=data,
            test_dataset=data,
            annotation=lambda track: track.chords,
            target=target,
            metrics=metrics,
            clip_seconds=clip_seconds,
            level="score",
            task_type="sequence",
            published_as=("chord", published) if published else None,
            compare_with=("chord", "hooktheory_chord") if data == "scores" else None,
        ),
    )


# musicfm's paper has 8 frames a second, its README 16 (D28).
for _suffix, _rate in (("", 8.0), ("_readme", 16.0)):
    _chords(
        f"hooktheory_chord{_suffix}",
        f"which of 25 chords, in popular songs at {_rate:g} Hz?",
        "hooktheory",
        ChordTarget(_rate),
        RECALL,
        12.0,
        "hooktheory_chord",
    )
_chords(
    "chords1217",
    "which of 25 chords, in 1,217 songs?",
    "chords1217",
    ChordTarget(None, unknown_root="none"),
    FRAMES,
    15.0,
)
_chords(
    "scores-chords", "which of 25 chords, in rendered chorales?", "scores", ChordTarget(8.0), RECALL, None
)
_chords(
    "beatles_chord",
    "which of 25 chords, in songs of the Beatles?",
    "beatles_chord",
    ChordTarget(None),
    RECALL,
    12.0,
)
