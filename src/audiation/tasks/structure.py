"""Which part of the song, and where does it begin?"""

from audiation.datasets.harmonix import SECTIONS
from audiation.datasets.hooktheory_jsonl import SECTIONS as CLIP_SECTIONS
from audiation.frame_targets import SectionTarget
from audiation.metrics import ACCURACY, BOUNDARY_HR05_F, BOUNDARY_HR3_F, STRUCTURE_FRAME_ACCURACY, boundary_f
from audiation.targets import ClassTarget
from audiation.tasks.base import TASKS, Task

# musicfm's paper has 5 frames a second, its README 8 (D31). Trimming and averaging are not stated (D6).
for _suffix, _rate in (("", 5.0), ("_readme", 8.0)):
    TASKS.add(
        f"harmonix{_suffix}",
        Task(
            name=f"harmonix{_suffix}",
            question=f"which of seven functions has each part of a song, and where does it begin, at {_rate:g} Hz?",
            train_dataset="harmonix",
            test_dataset="harmonix",
            annotation=lambda track: track.sections,
            target=SectionTarget(SECTIONS, _rate),
            metrics=(BOUNDARY_HR05_F, STRUCTURE_FRAME_ACCURACY, BOUNDARY_HR3_F, boundary_f(trim=True)),
            clip_seconds=24.0,
            level="high-level",
            task_type="sequence",
            published_as=("structure", "harmonix"),
        ),
    )

# One label per excerpt, out of other seven than above: pre-chorus is a class, silence is none (D32).
TASKS.add(
    "hooktheory_structure",
    Task(
        name="hooktheory_structure",
        question="which of seven parts of a song is this excerpt?",
        train_dataset="hooktheory_structure",
        test_dataset="hooktheory_structure",
        annotation=lambda track: track.section,
        target=ClassTarget(CLIP_SECTIONS),
        metrics=(ACCURACY,),
        clip_seconds=15.0,
        level="high-level",
    ),
)
