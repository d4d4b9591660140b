"""What happens to one file: decoded into windows, and the windows run through a backbone into rows.

Everything here can be pickled, so that it can happen in a worker process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from audiation.audio import AudioError, Waveform, audio_info, load_audio, source_peak, stream_audio
from audiation.backbones.base import Backbone, HiddenStates
from audiation.inference import ChunkPolicy, run_clip
from audiation.store_rows import FeatureRow, TableSpec, printable, row_key

LONG_FILE_BYTES = 32 * 2**20  # of these the length is looked up first, so that progress shows inside a file


@dataclass(frozen=True)
class Job:
    """A file to be read. stored_keys: its windows that are in the store already."""

    path: Path
    content_hash: str
    num_bytes: int
    stored_keys: frozenset[str]


@dataclass(frozen=True)
class Windows:
    """Consecutive, equally long windows of a file.

    samples: `(n, S)` float32. last: no window of the file follows.
    fraction: how far into the file they reach; 0 where its length is not known.
    """

    samples: np.ndarray
    starts_seconds: tuple[float, ...]
    last: bool
    fraction: float


@dataclass(frozen=True)
class Rows:
    """What a group of windows became."""

    rows: list[FeatureRow]
    audio_seconds: float
    fraction: float


@dataclass(frozen=True)
class End:
    """The file is done. dropped_seconds: a remainder too short for the backbone."""

    dropped_seconds: float


@dataclass(frozen=True)
class Failed:
    """The file cannot be used."""

    reason: str


Message = Windows | Rows | End | Failed


@dataclass(frozen=True)
class Reader:
    """Job -> windows of its file that are not stored yet. Holds one group of them at a time.

    divides_by_file_peak: windows are divided by the largest |x| of their whole file.
    """

    backbone_name: str
    sample_rate_hz: int
    min_samples: int
    clip_seconds: float | None
    windows_per_group: int
    divides_by_file_peak: bool = False

    def __call__(self, job: Job) -> Iterator[Message]:
        try:
            yield from self._windows(job)
        except AudioError as error:
            yield Failed(error.problem)
        except Exception as error:  # whatever a decoder does with one file must not stop the others
            yield Failed(f"{type(error).__name__}: {error}")

    def _windows(self, job: Job) -> Iterator[Message]:
        is_long = job.num_bytes >= LONG_FILE_BYTES
        duration_seconds = audio_info(job.path).duration_seconds if is_long else None
        group: list[Waveform] = []
        dropped_seconds = 0.0
        for window in self._stream(job.path):
            if len(window.samples) < self.min_samples:  # only the last one can be shorter than the others
                dropped_seconds = window.duration_seconds
                break
            full = len(group) == self.windows_per_group
            if group and (full or len(window.samples) != len(group[0].samples)):
                yield from self._send(job, group, False, duration_seconds)
                group = []
            group.append(window)
        if group:
            yield from self._send(job, group, True, duration_seconds)
            yield End(dropped_seconds)
        else:
            needed_seconds = self.min_samples / self.sample_rate_hz
            yield Failed(
                f"lasts {dropped_seconds:.3f} s; {self.backbone_name} needs at least {needed_seconds:.3f} s. "
                "Leave it out."
            )

    def _stream(self, path: Path) -> Iterator[Waveform]:
        if self.clip_seconds is None:
            windows = iter([load_audio(path, self.sample_rate_hz)])
        else:
            windows = stream_audio(path, self.sample_rate_hz, window_seconds=self.clip_seconds)
        if not self.divides_by_file_peak:
            yield from windows
            return
        peak = source_peak(path) or 1.0  # silence stays silence
        for window in windows:
            yield replace(window, samples=window.samples / peak)

    def _send(
        self, job: Job, group: list[Waveform], last: bool, duration_seconds: float | None
    ) -> Iterator[Windows]:
        # A group is made anew when any of it is missing: a resumed run then has the batches of a whole one.
        keys = {row_key(job.content_hash, w.start_seconds, self.clip_seconds) for w in group}
        if not keys <= job.stored_keys:
            end_seconds = group[-1].start_seconds + group[-1].duration_seconds
            yield Windows(
                np.stack([w.samples.numpy() for w in group]),
                tuple(w.start_seconds for w in group),
                last,
                min(1.0, end_seconds / duration_seconds) if duration_seconds else 0.0,
            )


@dataclass(frozen=True)
class Model:
    """Windows of a file -> rows of the table. ValueError for windows that the backbone refuses."""

    backbone: Backbone
    policy: ChunkPolicy
    spec: TableSpec
    clip_seconds: float | None
    batch_size: int

    def rows(self, job: Job, windows: Windows) -> Rows:
        num_samples = windows.samples.shape[1]
        with torch.inference_mode():
            states = run_clip(
                self.backbone,
                torch.from_numpy(windows.samples),
                self.policy,
                self.spec.layers,
                reduce="mean" if self.spec.pooling == "mean" else None,
                batch_size=self.batch_size,
            )
        layers = {i: x.float().numpy() for i, x in states.layers.items()}
        return self.as_rows(job, windows, num_samples, layers, states)

    def as_rows(
        self,
        job: Job,
        windows: Windows,
        num_samples: int,
        layers: Mapping[int, np.ndarray],
        states: HiddenStates,
    ) -> Rows:
        """num_samples: of each of these windows; layers: `(n, T, D)` of them alone; states: whose frames they are."""
        rate = self.backbone.sample_rate_hz
        rows = [
            FeatureRow(
                job.content_hash,
                printable(job.path),
                start_seconds,
                duration_seconds=num_samples / rate,
                clip_seconds=self.clip_seconds,
                chunk_seconds=self.policy.chunks(self.backbone, num_samples)[0].num_samples / rate,
                last=windows.last and n == len(windows.starts_seconds) - 1,
                layers={i: x[n, 0] if self.spec.pooling == "mean" else x[n] for i, x in layers.items()},
                frame_rate_hz=states.frame_rate_hz,
                first_frame_seconds=states.first_frame_seconds,
            )
            for n, start_seconds in enumerate(windows.starts_seconds)
        ]
        return Rows(rows, len(rows) * num_samples / rate, windows.fraction)


@dataclass(frozen=True)
class ReaderAndModel:
    """Both, for a worker that runs the backbone itself."""

    reader: Reader
    model: Model

    def __call__(self, job: Job) -> Iterator[Message]:
        for message in self.reader(job):
            if isinstance(message, Windows):
                try:
                    yield self.model.rows(job, message)
                except ValueError as error:
                    yield Failed(str(error))
                    return
            else:
                yield message
