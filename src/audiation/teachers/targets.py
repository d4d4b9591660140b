"""From a name to stored codes: opening a teacher, fitting it where it has to be, and computing a whole corpus.

    CORPUS/teachers/NAME/   clusters, where there are some (`kmeans.py`)
    CORPUS/targets/NAME/    the codes (`corpus_targets.py`), and `teacher.json`, what they were computed with

Shape letters: `Q` codebooks, `N` frames, `K` codes.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from audiation.corpus import Corpus, StoredTargets
from audiation.corpus_codes import RecordingCodes, local_folder, store_targets
from audiation.corpus_targets import TargetsSpec
from audiation.teachers.base import TEACHERS, Teacher, TeacherRequest, parse_teacher
from audiation.teachers.kmeans import KMeansSettings, Report, fit_kmeans
from audiation.teachers.sampling import compute_each, recorded

READ_FRAMES = 100_000


@dataclass(frozen=True)
class CodebookUsage:
    """How the codes of one codebook are used in all of a corpus.

    num_codes: K. num_used: codes that occur. perplexity: how many there were, if all were as frequent.
    most_frequent: share of the most frequent one.
    """

    num_codes: int
    num_used: int
    perplexity: float
    most_frequent: float


def open_teacher(
    name: str,
    corpus: Corpus,
    backbone: str | None = None,
    weights: str | None = None,
    device: str = "cpu",
    workers: int = 0,
    settings: KMeansSettings | None = None,
    progress: Report | None = None,
) -> Teacher:
    """The teacher of that name for a corpus; one with clusters is fitted to the corpus first, or read where it was.

    Args:
        name: like "encodec" or "mfcc39-km500".
        backbone, weights: of features of layers; weights also those of EnCodec.
        workers: processes that compute what is fitted to.
        settings: of the fit; None: the defaults, with the clusters of the name.

    Raises:
        UnknownNameError: no such teacher.
        ValueError: arguments that do not go together, a corpus of another rate; see also `fit_kmeans`.
        WeightsError: weights that are missing or another model's.
    """
    parsed = parse_teacher(name)
    kind = TEACHERS[parsed.kind]
    request = TeacherRequest(
        corpus.sample_rate_hz, parsed.number, parsed.weights_mark, backbone, weights, device
    )
    if kind.teacher is not None:
        return kind.teacher(request)
    assert kind.features is not None and parsed.num_clusters is not None
    settings = settings or KMeansSettings(parsed.num_clusters)
    if settings.num_clusters != parsed.num_clusters:
        raise ValueError(
            f"'{name}' has {parsed.num_clusters} clusters, and the settings {settings.num_clusters}"
        )
    directory = local_folder(corpus) / "teachers" / name
    return fit_kmeans(corpus, kind.features(request), settings, directory, workers, progress)


def compute_targets(
    corpus: Corpus, name: str, teacher: Teacher, workers: int = 0, progress: Report | None = None
) -> StoredTargets:
    """Codes of every recording that has none yet, stored beside the corpus; goes on after a kill.

    workers: processes; 0: none besides this one, as a teacher on a GPU needs it.

    Raises:
        ValueError: stored codes under that name are another teacher's.
        FolderLockedError: another process computes them.
        CorpusError: a corpus in object storage, which is read only, or one that was built anew meanwhile.
        ChildProcessError: a worker was killed.
    """

    def codes(missing: Sequence[int]) -> Generator[RecordingCodes]:
        with closing(compute_each(corpus, missing, partial(_codes_of, teacher), workers)) as answers:
            for answer in answers:
                yield RecordingCodes(answer.recording, answer.result)

    spec = TargetsSpec(name, teacher.rate_hz, teacher.num_codes)
    report = None if progress is None else partial(progress, "codes")
    return store_targets(corpus, spec, codes, teacher.record(), report)


def usage_of(corpus: Corpus, targets: StoredTargets) -> tuple[CodebookUsage, ...]:
    """Of every codebook; reads all codes."""
    counts = [np.zeros(num_codes, np.int64) for num_codes in targets.num_codes]
    for recording in range(len(corpus.recordings)):
        for first in range(0, targets.num_frames(recording), READ_FRAMES):
            codes_QN = targets.read(recording, first, READ_FRAMES).numpy()
            for count, codes_N in zip(counts, codes_QN, strict=True):
                count += np.bincount(codes_N, minlength=len(count))
    return tuple(_usage(count) for count in counts)


def _codes_of(teacher: Teacher, corpus: Corpus, recording: int) -> Tensor:
    return teacher.codes(recorded(corpus, recording))


def _usage(counts_K: np.ndarray) -> CodebookUsage:
    p = counts_K[counts_K > 0] / max(1, counts_K.sum())
    perplexity = float(np.exp(-(p * np.log(p)).sum())) if len(p) else 0.0
    return CodebookUsage(len(counts_K), len(p), perplexity, float(p.max(initial=0.0)))
