"""Teachers: what tells MERT and HuBERT which codes to predict. A file per kind; docs/teachers.md.

Codes of whole recordings are computed once and stored beside the corpus (`targets.compute_targets`).
"""

from __future__ import annotations

from audiation.teachers.base import (
    TEACHERS,
    FrameFeatures,
    Recorded,
    Teacher,
    TeacherKind,
    TeacherName,
    TeacherRequest,
    parse_teacher,
)

__all__ = [
    "TEACHERS",
    "FrameFeatures",
    "Recorded",
    "Teacher",
    "TeacherKind",
    "TeacherName",
    "TeacherRequest",
    "parse_teacher",
]
