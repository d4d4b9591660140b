"""When are the beats, and which of them begin a bar?"""

from audiation.frame_targets import BeatTarget
from audiation.metrics import (
    BEAT_F_20MS_PER_TRACK,
    BEAT_F_20MS_POOLED,
    BEAT_F_70MS_PER_TRACK,
    BEAT_F_70MS_POOLED,
    DOWNBEAT_F_70MS_PER_TRACK,
    beat_f,
)
from audiation.tasks.base import TASKS, Task

# Tolerance, pooling and the first five seconds differ between sources (D3, D4, D5): each variant has its name.
BEAT_METRICS = (
    BEAT_F_70MS_PER_TRACK,
    BEAT_F_70MS_POOLED,
    BEAT_F_20MS_PER_TRACK,
    BEAT_F_20MS_POOLED,
    beat_f(trim_seconds=5.0),
)
DOWNBEAT_METRICS = (
    *BEAT_METRICS,
    DOWNBEAT_F_70MS_PER_TRACK,
    beat_f(pooling="pooled", events="downbeat"),
    beat_f(trim_seconds=5.0, events="downbeat"),
)


def _beats(
    name: str,
    question: str,
    train: str,
    test: str,
    target: BeatTarget,
    clip_seconds: float | None = None,
    published: bool = True,
) -> None:
    TASKS.add(
        name,
        Task(
            name=name,
            question=question,
            train_dataset=train,
            test_dataset=test,
            annotation=lambda track: track.beats,
            target=target,
            clip_seconds=clip_seconds,
            metrics=BEAT_METRICS if target.outputs == "beat" else DOWNBEAT_METRICS,
            level="score",
            task_type="sequence",
            published_as=("beat", "gtzan_rhythm") if published else None,
            published_train_on="harmonix" if train == "harmonix" else "",
            compare_with=None if published else ("beat", "gtzan_rhythm"),
        ),
    )


# MARBLE: trained and tested inside GTZAN, beats with their neighbours, at the frame rate of the model.
_beats(
    "gtzan_rhythm",
    "when are the beats, learned and asked in GTZAN?",
    "gtzan_rhythm",
    "gtzan_rhythm",
    BeatTarget("beat", widening=(1.0,)),
    clip_seconds=10.0,
)
# musicfm: trained on Harmonix, tested on all of GTZAN: another benchmark than the one above (D23). Its paper has
# 20 frames a second, its README 50 (D24).
for _suffix, _rate in (("", 20.0), ("_readme", 50.0)):
    _beats(
        f"harmonix_rhythm{_suffix}",
        f"when are the beats and downbeats, learned from pop music at {_rate:g} Hz, asked in GTZAN?",
        "harmonix",
        "gtzan_rhythm:split=all",
        BeatTarget("three_class", frame_rate_hz=_rate),
        clip_seconds=6.0,
    )
_beats(
    "scores-beats",
    "when are the beats and downbeats, in rendered chorales?",
    "scores",
    "scores",
    BeatTarget("beat_downbeat", frame_rate_hz=50.0),
    published=False,
)
