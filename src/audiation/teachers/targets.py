"""From a name to stored codes: opening a teacher, fitting it where it has to be, and computing a whole corpus.

    CORPUS/teachers/NAME/   clusters, where there are some (`kmeans.py`)
    CORPUS/targets/NAME/    the codes (`corpus_targets.py`), and `teacher.json`, what they were computed with

Shape letters: `Q` codebooks, `N` frames, `K` codes.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from audiation.cache import write_text
from audiation.corpus import Corpus, CorpusError, StoredTargets
from audiation.corpus_targets import TargetsSpec, TargetsWriter
from audiation.teachers.base import TEACHERS, Teacher, TeacherRequest, parse_teacher
from audiation.teachers.kmeans import KMeansSettings, Report, fit_kmeans
from audiation.teachers.sampling import recorded, threads_of
from audiation.workers import WorkerDied, serve

TEACHER_FILE = "teacher.json"
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
    request = TeacherRequest(corpus.sample_rate_hz, parsed.number, backbone, weights, device)
    if kind.teacher is not None:
        return kind.teacher(request)
    assert kind.features is not None and parsed.num_clusters is not None
    settings = settings or KMeansSettings(parsed.num_clusters)
    if settings.num_clusters != parsed.num_clusters:
        raise ValueError(
            f"'{name}' has {parsed.num_clusters} clusters, and the settings {settings.num_clusters}"
        )
    directory = _directory(corpus) / "teachers" / name
    return fit_kmeans(corpus, kind.features(request), settings, directory, workers, progress)


def compute_targets(
    corpus: Corpus, name: str, teacher: Teacher, workers: int = 0, progress: Report | None = None
) -> StoredTargets:
    """Codes of every recording that has none yet, stored beside the corpus; goes on after a kill.

    workers: processes; 0: none besides this one, as a teacher on a GPU needs it.

    Raises:
        ValueError: stored codes under that name are another teacher's.
        CorpusError: a corpus in object storage, which is read only.
        ChildProcessError: a worker was killed.
    """
    directory = _directory(corpus) / "targets" / name
    spec = TargetsSpec(name, teacher.rate_hz, teacher.num_codes)
    _keep_record(directory, teacher.record())
    keys = corpus.recordings.content_hashes()
    with TargetsWriter(directory, spec) as writer:
        missing = [i for i, key in enumerate(keys) if key not in writer.places]
        num_done = len(keys) - len(missing)
        answers = serve(missing, _Codes(corpus.location, teacher), workers, threads_of(workers))
        try:
            for answer in answers:
                if isinstance(answer.message, WorkerDied):
                    raise ChildProcessError(
                        f"a worker ended with exit code {answer.message.exit_code} at recording "
                        f"'{corpus.recordings[answer.job].name}'. Call again to go on, with fewer workers where memory "
                        "is short."
                    )
                seconds = int(corpus.num_samples[answer.job]) / corpus.sample_rate_hz
                writer.append(keys[answer.job], answer.message, seconds * teacher.rate_hz)
                num_done += 1
                if progress is not None:
                    progress("codes", num_done, len(keys))
        finally:
            answers.close()
            writer.commit()
    return corpus.open_targets(name)


def usage_of(corpus: Corpus, targets: StoredTargets) -> tuple[CodebookUsage, ...]:
    """Of every codebook; reads all codes."""
    counts = [np.zeros(num_codes, np.int64) for num_codes in targets.num_codes]
    for recording in range(len(corpus.recordings)):
        for first in range(0, targets.num_frames(recording), READ_FRAMES):
            codes_QN = targets.read(recording, first, READ_FRAMES).numpy()
            for count, codes_N in zip(counts, codes_QN, strict=True):
                count += np.bincount(codes_N, minlength=len(count))
    return tuple(_usage(count) for count in counts)


@dataclass(frozen=True)
class _Codes:
    """In a worker: number of a recording -> its codes `(Q, N)`."""

    location: str
    teacher: Teacher

    def __call__(self, recording: int) -> Iterator[Tensor]:
        yield self.teacher.codes(recorded(self._corpus, recording))

    @functools.cached_property
    def _corpus(self) -> Corpus:
        return Corpus(self.location)


def _usage(counts_K: np.ndarray) -> CodebookUsage:
    p = counts_K[counts_K > 0] / max(1, counts_K.sum())
    perplexity = float(np.exp(-(p * np.log(p)).sum())) if len(p) else 0.0
    return CodebookUsage(len(counts_K), len(p), perplexity, float(p.max(initial=0.0)))


def _directory(corpus: Corpus) -> Path:
    if corpus.directory is None:
        raise CorpusError(
            f"{corpus.location} is only read. Compute targets beside a local copy, and copy both with "
            "`audiation corpus to-lance`."
        )
    return corpus.directory


def _keep_record(directory: Path, record: dict[str, Any]) -> None:
    """Remember what the codes are computed with. ValueError where those that are there are another teacher's."""
    path = directory / TEACHER_FILE
    record = json.loads(json.dumps(record))
    if not path.exists():
        write_text(path, json.dumps(record, indent=1) + "\n")
    elif (held := json.loads(path.read_text(encoding="utf-8"))) != record:
        raise ValueError(
            f"{directory} has codes of {held}, not of {record}. Delete the folder to compute them anew."
        )
