"""`extract`: files and folders of music -> hidden states in a store, resumable at any moment.

Each file is hashed; one whose windows are all stored is not decoded again. The others are streamed in
windows, so memory does not grow with a file's length, and every window becomes one row. Where the model has
parameters it runs in this process while workers decode; a backbone without (chroma, MFCC) runs in the workers.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from audiation.audio import AudioError, content_hash
from audiation.backbones.base import Backbone
from audiation.backbones.choi import python2_shuffle
from audiation.extraction_steps import End, Failed, Job, Message, Model, Reader, ReaderAndModel, Rows, Windows
from audiation.extraction_together import Together
from audiation.inference import ChunkPolicy
from audiation.loading import check_device
from audiation.music_files import FoundFiles, find_music
from audiation.store import FeatureStore
from audiation.store_rows import Failure, FeatureRangeError, Pooling, TableSpec, printable
from audiation.workers import WorkerDied, available_cores, serve

MAX_CLIP_SECONDS = 86_400.0  # longer windows are whole files in all but name


@dataclass(frozen=True)
class ExtractProgress:
    """Where an extraction stands. Seconds and bytes count the work of this run, not what was stored before.

    files_total: with folders and links that could not be looked into, which are among files_failed.
    files_resumed: stored before; files_duplicate: same bytes as another file of this run.
    bytes_left: of files that are still to be read (some may turn out to be stored already).
    """

    files_total: int
    files_done: int = 0
    files_resumed: int = 0
    files_duplicate: int = 0
    files_failed: int = 0
    audio_seconds: float = 0.0
    wall_seconds: float = 0.0
    bytes_done: float = 0.0
    bytes_left: float = 0.0

    @property
    def audio_hours_per_hour(self) -> float:
        return self.audio_seconds / self.wall_seconds if self.wall_seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """None until there is something to go by."""
        return self.wall_seconds * self.bytes_left / self.bytes_done if self.bytes_done > 0 else None


@dataclass(frozen=True)
class ExtractReport:
    """What an extraction did. Every file is in exactly one of done, resumed, duplicates and failures.

    table: where the features are (`FeatureStore.open`). spec: what its rows hold.
    num_done: files extracted now. num_resumed: files that were stored before. num_duplicates: files with the
        same bytes as another one of this run.
    num_other, num_hidden: files in the folders that are not audio by their suffix, and hidden entries.
    num_rows: rows written now, without those of files that failed half-way.
    failures: files that gave no features, folders that could not be listed, links that could not be followed.
    dropped_seconds: audio in remainders at the end of files that are shorter than the backbone's minimum.
    """

    table: Path
    spec: TableSpec
    num_done: int
    num_resumed: int
    num_duplicates: int
    num_other: int
    num_hidden: int
    num_rows: int
    failures: tuple[Failure, ...]
    audio_seconds: float
    dropped_seconds: float
    wall_seconds: float


def extract(
    paths: Iterable[str | os.PathLike[str]] | str | os.PathLike[str],
    backbone: Backbone,
    store_dir: str | os.PathLike[str],
    *,
    layers: Iterable[int] | None = None,
    pooling: Pooling = "mean",
    clip_seconds: float | None = 30.0,
    chunk_seconds: float | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 4,
    workers: int = 0,
    threads: int | None = None,
    progress: Callable[[ExtractProgress], None] | None = None,
    on_failure: Callable[[Failure], None] | None = None,
) -> ExtractReport:
    """Store the hidden states of every audio file in `paths`.

    Can be killed at any moment and called again: rows that are stored stay and are not made twice. A file
    that cannot be used never stops the run; it is in `ExtractReport.failures`, and in the store until a retry
    works.

    Args:
        paths: files, and folders that are searched recursively (`music_files.find_music`).
        backbone: as `load_backbone` gives it; its weights hash and precision are recorded.
        store_dir: folder of the store; made if it is not there.
        layers: which of 0..L; None: all. Where a table with more layers is there, it is continued.
        pooling: "mean" over the frames of each window, or "frames" (float16).
        clip_seconds: files are cut into windows of this length, a row each; the last window of a file is what
            is left. None: each file is one row, and is in memory as a whole.
        chunk_seconds: how much audio the model sees at a time; None: what it was trained on (`max_seconds`).
        device: where the backbone is moved to; None: it stays where it is.
        batch_size: chunks per forward pass, all from one file, so that no result depends on other files.
        workers: processes that decode ahead; for a backbone without parameters, that do everything. 0: none.
            They are spawned, so a script needs `if __name__ == "__main__":`.
        threads: CPU threads of each process that runs the backbone. None: torch's setting in this process; in
            workers the cores divided among them.
        progress: called after every group of windows and every file.
        on_failure: called when a file fails.

    Raises:
        ValueError: arguments that do not go together, or nothing to extract.
        StoreLockedError: another process writes this table.
    """
    started = time.monotonic()
    if clip_seconds is not None and not 0 < clip_seconds <= MAX_CLIP_SECONDS:
        raise ValueError(
            f"clip_seconds must be positive and at most {MAX_CLIP_SECONDS:g}, or None (--whole-files) for a row "
            f"per file, got {clip_seconds}"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    found = find_music([paths] if isinstance(paths, (str, os.PathLike)) else paths)
    if not found.files and not found.problems:
        raise ValueError(
            f"no audio files there ({found.num_other} other files, {found.num_hidden} hidden). "
            "Name files, or folders that hold some."
        )
    policy = ChunkPolicy(chunk_seconds) if chunk_seconds is not None else ChunkPolicy.of(backbone)
    spec = _table_spec(backbone, policy, pooling, layers)
    company = _company(found, batch_size) if backbone.mixes_batch else None
    if company is not None:  # another company gives other features: a table of their own
        found = company.files
        spec = replace(spec, weights_hash=f"{spec.weights_hash}~{company.digest[:12]}")
    chunks_per_window = _check_cut(backbone, policy, pooling, clip_seconds)
    in_workers = workers > 0 and next(backbone.parameters(), None) is None
    worker_threads = _worker_threads(workers, threads, in_workers)
    if device is not None:
        check_device(device)
        backbone.to(device)

    with (
        FeatureStore.create(Path(store_dir), spec) as store,
        _eval_mode(backbone, None if in_workers else threads),
    ):
        reader = Reader(
            backbone.name,
            backbone.sample_rate_hz,
            backbone.min_samples,
            clip_seconds,
            windows_per_group=1 if backbone.mixes_batch else max(1, batch_size // chunks_per_window),
            divides_by_file_peak=backbone.normalisation == "file-peak",
        )
        model = Model(backbone, policy, store.spec, clip_seconds, batch_size)
        if company is not None:
            company.begin_anew_unless_whole(store, clip_seconds)
        run = _Run(store, clip_seconds, found, progress, on_failure, started)
        for folder, reason in found.problems:
            run.fail(folder, reason)
        answer = ReaderAndModel(reader, model) if in_workers else reader
        take = partial(run.take, model=model)
        together = Together(model, batch_size, take) if backbone.mixes_batch else None
        with closing(serve(run.jobs(), answer, 0 if together else workers, worker_threads)) as answers:
            for got in answers:
                (take if together is None else together.add)(got.job, got.message)
        if together is not None:
            together.flush()
        run.settle_duplicates()
        store.compact()
        return ExtractReport(
            store.directory,
            store.spec,
            num_done=run.state.files_done,
            num_resumed=run.state.files_resumed,
            num_duplicates=run.state.files_duplicate,
            num_other=found.num_other,
            num_hidden=found.num_hidden,
            num_rows=run.num_rows,
            failures=tuple(run.failures),
            audio_seconds=run.state.audio_seconds,
            dropped_seconds=run.dropped_seconds,
            wall_seconds=time.monotonic() - started,
        )


# The main process -----------------------------------------------------------------------------------------


class _Run:
    """Bookkeeping of one extraction: which files are left, what became of the others."""

    def __init__(
        self,
        store: FeatureStore,
        clip_seconds: float | None,
        found: FoundFiles,
        progress: Callable[[ExtractProgress], None] | None,
        on_failure: Callable[[Failure], None] | None,
        started: float,
    ) -> None:
        self.store, self.clip_seconds, self.files = store, clip_seconds, found.files
        self.progress, self.on_failure, self.started = progress, on_failure, started
        self.failures: list[Failure] = []
        self.dropped_seconds = 0.0
        self.sizes = {path: _size(path) for path in found.files}
        files_total = len(found.files) + len(found.problems)
        self.state = ExtractProgress(files_total, bytes_left=sum(self.sizes.values()))
        self.first_with: dict[str, Path] = {}  # content hash -> the file that stands for it
        self.duplicates: list[tuple[Path, str]] = []
        self.failed: dict[str, str] = {}  # content hash -> reason
        self.counted: dict[str, float] = {}  # content hash -> bytes of it counted as done
        self.new_rows: dict[str, int] = {}  # content hash -> rows of it written now

    @property
    def num_rows(self) -> int:
        return sum(self.new_rows.values())

    def jobs(self) -> Iterator[Job]:
        """The files that have to be read, hashed when they are asked for."""
        for path in self.files:
            left = self.state.bytes_left - self.sizes[path]
            try:
                digest = content_hash(path)
            except AudioError as error:
                self.fail(path, error.problem)
                self._report(bytes_left=left)
                continue
            if digest in self.first_with:
                self.duplicates.append((path, digest))
                self._report(files_duplicate=len(self.duplicates), bytes_left=left)
                continue
            self.first_with[digest] = path
            if self.store.is_complete(digest, self.clip_seconds):
                self.store.clear_failure(path)
                self._report(files_resumed=self.state.files_resumed + 1, bytes_left=left)
            else:
                yield Job(path, digest, self.sizes[path], self.store.keys_of(digest, self.clip_seconds))

    def take(self, job: Job, message: Message | WorkerDied, model: Model) -> None:
        """Act on what came back about a file."""
        if job.content_hash in self.failed:
            return  # its reader went on, not knowing
        if isinstance(message, Windows):
            try:
                message = model.rows(job, message)
            except ValueError as error:  # the backbone refuses; any other error is a fault and stops the run
                message = Failed(str(error))
        if isinstance(message, Rows):
            try:
                added = self.store.append(message.rows)
                self.new_rows[job.content_hash] = self.new_rows.get(job.content_hash, 0) + added
            except FeatureRangeError as error:
                message = Failed(str(error))
        if isinstance(message, Rows):
            audio_seconds = self.state.audio_seconds + message.audio_seconds
            self._count_bytes(job, message.fraction, audio_seconds=audio_seconds)
        elif isinstance(message, End):
            self.dropped_seconds += message.dropped_seconds
            self.store.clear_failure(job.path)
            self._count_bytes(job, 1.0, files_done=self.state.files_done + 1)
        else:
            assert isinstance(message, (Failed, WorkerDied))
            self.failed[job.content_hash] = _reason(message)
            self.store.discard(job.content_hash, self.clip_seconds)
            self.new_rows.pop(job.content_hash, None)
            self.fail(job.path, _reason(message))
            self._count_bytes(job, 1.0)

    def fail(self, path: Path, reason: str) -> None:
        failure = self.store.record_failure(path, reason)
        self.failures.append(failure)
        self.state = replace(self.state, files_failed=self.state.files_failed + 1)
        if self.on_failure is not None:
            self.on_failure(failure)

    def settle_duplicates(self) -> None:
        """Same bytes, same fate."""
        for path, digest in self.duplicates:
            if digest in self.failed:
                self.state = replace(self.state, files_duplicate=self.state.files_duplicate - 1)
                self.fail(
                    path, f"{self.failed[digest]} (same content as {printable(self.first_with[digest])})"
                )
            else:
                self.store.clear_failure(path)
        if self.duplicates:
            self._report()

    def _count_bytes(self, job: Job, fraction: float, **changes: float) -> None:
        new = fraction * job.num_bytes - self.counted.get(job.content_hash, 0.0)
        if new > 0:
            self.counted[job.content_hash] = fraction * job.num_bytes
            changes["bytes_done"] = self.state.bytes_done + new
            changes["bytes_left"] = self.state.bytes_left - new
        self._report(**changes)

    def _report(self, **changes: float) -> None:
        self.state = replace(self.state, wall_seconds=time.monotonic() - self.started, **changes)  # type: ignore[arg-type]
        if self.progress is not None:
            self.progress(self.state)


@dataclass(frozen=True)
class _Company:
    """Files whose features depend on each other, in jukemir's order.

    digests: path -> hash of its content, of those that could be read. digest: of all of them in this order, and of the
        size of a batch.
    """

    files: FoundFiles
    digests: dict[Path, str]
    digest: str

    def begin_anew_unless_whole(self, store: FeatureStore, clip_seconds: float | None) -> None:
        """Discard everything where something is missing that did not fail: a part cannot be made apart."""
        failed = {failure.path for failure in store.failures()}
        missing = [
            path
            for path, digest in self.digests.items()
            if not store.is_complete(digest, clip_seconds) and printable(path) not in failed
        ]
        if missing:
            for digest in self.digests.values():
                store.discard(digest, clip_seconds)


def _company(found: FoundFiles, batch_size: int) -> _Company:
    files = replace(found, files=tuple(python2_shuffle(sorted(found.files), 0)))
    digests: dict[Path, str] = {}
    for path in files.files:
        try:
            digests[path] = content_hash(path)
        except AudioError:  # said where the file is read
            continue
    text = " ".join([str(batch_size), *digests.values()])
    return _Company(files, digests, hashlib.sha256(text.encode()).hexdigest())


def _table_spec(
    backbone: Backbone, policy: ChunkPolicy, pooling: Pooling, layers: Iterable[int] | None
) -> TableSpec:
    wanted, _ = backbone.resolve_layers(None if layers is None else list(layers), None)
    return TableSpec(
        backbone=backbone.name,
        weights_hash=backbone.weights_hash,
        precision=backbone.precision,
        chunk_seconds=policy.chunk_seconds,
        pooling=pooling,
        layers=tuple(sorted(wanted)),
        dim=backbone.dim,
        sample_rate_hz=backbone.sample_rate_hz,
        normalisation=backbone.normalisation,
    )


def _check_cut(backbone: Backbone, policy: ChunkPolicy, pooling: Pooling, clip_seconds: float | None) -> int:
    """Chunks in a full window (1 for whole files). ValueError where every file would fail."""
    if pooling == "frames" and backbone.frame_rate_hz is None:
        raise ValueError(f"{backbone.name} gives one vector per clip and no frames. Use pooling='mean'.")
    seconds = clip_seconds if clip_seconds is not None else policy.chunk_seconds
    if seconds is None:
        return 1
    return len(policy.chunks(backbone, round(seconds * backbone.sample_rate_hz)))


def _worker_threads(workers: int, threads: int | None, in_workers: bool) -> int:
    """Threads per worker. ValueError where the processes would fight for the cores.

    Workers that only decode have one thread and mostly wait for the model, so they are not added to it.
    """
    cores = available_cores()
    if workers < 0 or (threads is not None and threads < 1):
        raise ValueError(f"workers must be >= 0 and threads >= 1, got {workers} and {threads}")
    busy = workers * (threads or 1) if in_workers else max(workers, threads or 1)
    if busy > cores:
        raise ValueError(
            f"{workers} workers and {threads or 1} threads each do not fit the {cores} cores here. "
            f"Use fewer: at most {cores} workers of 1 thread."
        )
    return (threads or max(1, cores // workers)) if in_workers else 1


@contextmanager
def _eval_mode(backbone: Backbone, threads: int | None) -> Iterator[None]:
    """The backbone in eval mode and torch at so many threads, and both as they were afterwards."""
    training, before = backbone.training, torch.get_num_threads()
    backbone.eval()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        backbone.train(training)
        torch.set_num_threads(before)


def _reason(message: Failed | WorkerDied) -> str:
    if isinstance(message, Failed):
        return message.reason
    code = message.exit_code
    how = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    return f"the worker process that read it ended ({how}); perhaps out of memory"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
