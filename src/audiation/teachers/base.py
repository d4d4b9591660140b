"""What a teacher is: whole recordings in, codes out, and how teachers are named.

`encodec` gives codes by itself. Other names are features and a number of clusters, like `mfcc39-km500`; one with a
number inside, like `layer6-km2000`, is of kind `layer`. Behind that number the weights may be named, by the first
eight digits of their hash: `layer6.1a2b3c4d-km2000`.

Shape letters: `S` samples, `Q` codebooks, `N` frames, `F` features.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from audiation.registry import Registry


@dataclass(frozen=True)
class Recorded:
    """A recording that is read piece by piece.

    num_samples: of the whole. read: (first sample, number of samples) -> `(S,)` float32.
    """

    num_samples: int
    read: Callable[[int, int], Tensor]

    @classmethod
    def of(cls, waveform: Tensor) -> Recorded:
        """One that is in memory, `(S,)`."""
        return cls(len(waveform), lambda start, count: waveform[start : start + count])

    def between(self, start: int, stop: int) -> Tensor:
        """Samples [start, stop), `(S,)`; silence before the beginning and behind the end."""
        before = max(0, min(stop, 0) - start)
        behind = max(0, stop - max(start, self.num_samples))
        count = stop - start - before - behind
        samples = self.read(start + before, count) if count else torch.zeros(0)
        return F.pad(samples, (before, behind))


class Teacher(Protocol):
    """Gives codes of whole recordings.

    sample_rate_hz: of the waveform. rate_hz: frames per second. num_codes: of each of Q codebooks.
    """

    sample_rate_hz: int
    rate_hz: float
    num_codes: tuple[int, ...]

    def codes(self, recording: Recorded) -> Tensor:
        """`(Q, N)` int64 on the CPU, at least one frame; memory does not grow with the recording but for the codes."""
        ...

    def record(self) -> dict[str, Any]:
        """All that decides the codes, for JSON: teachers with equal records give equal codes."""
        ...


class FrameFeatures(Protocol):
    """Numbers per frame that are clustered to make codes; any frames can be asked for, and are those of the whole.

    block_frames: how many are best asked for at once.
    """

    sample_rate_hz: int
    rate_hz: float
    num_features: int
    block_frames: int

    def num_frames(self, num_samples: int) -> int:
        """N of a recording; at least 1."""
        ...

    def frames(self, recording: Recorded, first: int, count: int) -> Tensor:
        """Frames [first, first + count), `(count, F)` float32 on the CPU."""
        ...

    def record(self) -> dict[str, Any]:
        """All that decides the features, for JSON."""
        ...


@dataclass(frozen=True)
class TeacherRequest:
    """What is asked of a kind of teacher.

    sample_rate_hz: of the corpus.
    number: inside the name, like 6 in "layer6"; None: there is none. weights_mark: how the hash of the weights must
        begin; None: any weights.
    backbone, weights, device: as in `load_backbone`; weights also those of EnCodec.
    """

    sample_rate_hz: int
    number: int | None = None
    weights_mark: str | None = None
    backbone: str | None = None
    weights: str | None = None
    device: str = "cpu"

    def refuse(self, kind: str, *unused: str) -> None:
        """ValueError where something was given that this kind does not use."""
        for name in unused:
            if getattr(self, name) is not None:
                raise ValueError(
                    f"teacher '{kind}' has no {name}, got {getattr(self, name)!r}. Leave it away."
                )


@dataclass(frozen=True)
class TeacherKind:
    """An entry of `TEACHERS`: one of the two makers.

    summary: a line for people.
    teacher: of those that give codes by themselves.
    features: of those whose features are clustered.
    clusters: numbers that were published.
    """

    summary: str
    teacher: Callable[[TeacherRequest], Teacher] | None = None
    features: Callable[[TeacherRequest], FrameFeatures] | None = None
    clusters: tuple[int, ...] = ()


@dataclass(frozen=True)
class TeacherName:
    """A name of stored targets, taken apart: "layer6.1a2b3c4d-km2000" is kind "layer", number 6, 2,000 clusters, of
    weights whose hash begins with 1a2b3c4d."""

    text: str
    kind: str
    number: int | None = None
    num_clusters: int | None = None
    weights_mark: str | None = None


TEACHERS: Registry[TeacherKind] = Registry("teacher", "audiation.teachers")


def parse_teacher(text: str) -> TeacherName:
    """Raises UnknownNameError where there is no such kind, ValueError for clusters that are missing or too many."""
    base, dash, clusters = text.partition("-km")
    kind, number, mark = base, None, None
    if base not in TEACHERS and (found := re.fullmatch(r"([^.]*[^.\d])(\d+)(?:\.([0-9a-f]{8}))?", base)):
        kind, number, mark = found[1], int(found[2]), found[3]
    entry = TEACHERS[kind]
    if entry.features is None:
        if dash or number is not None:
            raise ValueError(f"teacher '{kind}' gives codes by itself, got '{text}'. Use '{kind}'.")
        return TeacherName(text, kind)
    if not re.fullmatch(r"[1-9]\d*", clusters) or int(clusters) < 2:
        raise ValueError(
            f"teacher '{base}' needs a number of clusters, got '{text}'. Use a name like "
            f"'{base}-km{entry.clusters[0]}'."
        )
    return TeacherName(text, kind, number, int(clusters), mark)
