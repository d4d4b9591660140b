"""Codes of the recordings of a corpus -> stored targets beside it; goes on after a kill.

Shape letters: `Q` codebooks, `N` frames.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from audiation.corpus import Corpus, CorpusError
from audiation.corpus_targets import StoredTargets, TargetsSpec, TargetsWriter
from audiation.folder_lock import locked


@dataclass(frozen=True, eq=False)
class RecordingCodes:
    """codes: `(Q, N)` whole numbers of all of recording number `recording`."""

    recording: int
    codes: Tensor


def write_targets(
    corpus: Corpus,
    name: str,
    rate_hz: float,
    num_codes: tuple[int, ...],
    compute: Callable[[int], Tensor],
    progress: Callable[[int, int], None] | None = None,
) -> StoredTargets:
    """`store_targets` for a function: number of a recording -> codes `(Q, N)` of the whole of it."""

    def one_by_one(missing: Sequence[int]) -> Generator[RecordingCodes]:
        for recording in missing:
            yield RecordingCodes(recording, compute(recording))

    return store_targets(corpus, TargetsSpec(name, rate_hz, num_codes), one_by_one, progress=progress)


def store_targets(
    corpus: Corpus,
    spec: TargetsSpec,
    compute: Callable[[Sequence[int]], Generator[RecordingCodes]],
    record: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> StoredTargets:
    """Compute what a teacher says about every recording, and store it beside the corpus; goes on after a kill.

    Args:
        compute: numbers of the recordings that have no codes yet -> their codes, in any order.
        record: what the codes are computed with, for JSON; None: nobody says.
        progress: (recordings that have codes, all recordings).

    Raises:
        ValueError: codes that are not what they are said to be, or other targets under that name.
        FolderLockedError: another process computes targets of that name.
        CorpusError: a corpus in object storage, which is read only.
    """
    directory = local_folder(corpus) / "targets" / spec.name
    keys = corpus.recordings.content_hashes()
    with (
        locked(directory, f"computing targets '{spec.name}'"),
        TargetsWriter(directory, spec, record) as writer,
    ):
        missing = [i for i, key in enumerate(keys) if key not in writer.places]
        num_done = len(keys) - len(missing)
        with closing(compute(missing)) as answers:
            for answer in answers:
                seconds = int(corpus.num_samples[answer.recording]) / corpus.sample_rate_hz
                writer.append(keys[answer.recording], answer.codes, seconds * spec.rate_hz)
                num_done += 1
                if progress is not None:
                    progress(num_done, len(keys))
    return corpus.open_targets(spec.name)


def local_folder(corpus: Corpus) -> Path:
    """Where what is computed about a corpus lies. CorpusError where it is in object storage."""
    if corpus.directory is None:
        raise CorpusError(
            f"{corpus.location} is only read. Compute targets beside a local copy, and copy both with "
            "`audiation corpus to-lance`."
        )
    return corpus.directory
