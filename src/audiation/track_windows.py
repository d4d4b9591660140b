"""Windows of labelled recordings, in micro-batches that are a function of their place.

Shape letters: `B` windows, `S` samples, `T` frames, `D` model width.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiation.adapted import AdaptedModel, Stage
from audiation.audio import AudioError, audio_info, content_hash
from audiation.augmentation import Augmentation, SegmentLabels, augmented_copy
from audiation.output_cache import CachePlan, Clip, Crops, OutputCache, Prepared, load_window
from audiation.target_files import question_of
from audiation.targets import Target
from audiation.training import TrainConfig
from audiation.windows import Window, WindowPolicy

SUBSTITUTES = 16  # tries to find a readable recording in place of one that is not


@dataclass(frozen=True)
class Example:
    """A labelled recording. span_seconds: (start, end) of the part that is the track; None: the whole file. Times of
    the annotation count from its start."""

    track_id: str
    path: Path
    annotation: Any
    span_seconds: tuple[float, float] | None = None


@dataclass(frozen=True)
class Unused:
    """A recording that could not be read, and why."""

    track_id: str
    split: str
    reason: str


def augmented_examples(
    examples: Sequence[Example],
    copies: Sequence[Augmentation],
    directory: Path,
    sample_rate_hz: int,
    target: Target,
    unused: list[Unused],
    progress: Callable[[int, int], None] | None = None,
) -> list[Example]:
    """Every recording, and its augmented copies as files in `directory`, each with its annotation moved along.

    A copy that is there already is used again. One that cannot be made is reported in `unused`.

    Args:
        progress: called with (copies that are there, all copies).
    """
    labels = _SEGMENT_LABELS.get(question_of(target))
    found: list[Example] = []
    for number, example in enumerate(examples):
        found.append(example)
        for place, augmentation in enumerate(copies):
            if progress is not None:
                progress(number * len(copies) + place, len(examples) * len(copies))
            track_id = f"{example.track_id} ({augmentation})"
            try:
                path = augmented_copy(
                    example.path, augmentation, sample_rate_hz, directory, span_seconds=example.span_seconds
                )
            except AudioError as error:
                unused.append(Unused(track_id, "train", str(error)))
                continue
            # A copy holds the track only.
            found.append(Example(track_id, path, augmentation.annotation(example.annotation, labels)))
    return found


_SEGMENT_LABELS: dict[str, SegmentLabels] = {"chords": "chords", "key": "keys", "sections": "sections"}


@dataclass(frozen=True)
class Recording:
    """A readable recording and where its windows may lie.

    num_samples: of the track at the backbone's rate. window_samples: of one window, at most all of them.
    first_sample: where the track begins in its file. file_samples: of the whole file.
    crop_samples: of a window of a track that is long enough; None: the whole track is one.
    target: encoded, where one value holds for every window; None for targets that answer per frame.
    """

    example: Example
    content: str
    num_samples: int
    window_samples: int
    target: Tensor | None = field(repr=False)
    first_sample: int = 0
    crop_samples: int | None = None
    file_samples: int = 0

    @property
    def is_longer_than_a_window(self) -> bool:
        return self.num_samples > self.window_samples

    @property
    def num_windows(self) -> int:
        """Windows that follow one another from the beginning; a rest is dropped."""
        return self.num_samples // self.window_samples

    def windows(self, policy: WindowPolicy) -> list[Window]:
        """Those that an answer is made of."""
        return policy.windows(self.num_samples, self.crop_samples or self.num_samples)

    def clip(self, window: Window) -> Clip:
        """Where a window of the track lies in its file."""
        return Clip(
            self.example.path,
            self.content,
            self.first_sample + window.start_sample,
            window.num_samples + window.num_zeros,
            window.num_zeros,
        )


def readable_recordings(
    model: AdaptedModel, examples: Sequence[Example], split: str, unused: list[Unused]
) -> list[Recording]:
    backbone, found = model.backbone, []
    rate = backbone.sample_rate_hz
    hash_of = functools.cache(content_hash)  # parts of one file are many
    for example in examples:
        try:
            info = audio_info(example.path)
            num_samples = (2 * info.num_frames * rate + info.sample_rate_hz) // (2 * info.sample_rate_hz)
            content, file_samples = hash_of(example.path), num_samples
            first_sample = 0
            if example.span_seconds is not None:
                start, end = (min(num_samples, max(0, round(t * rate))) for t in example.span_seconds)
                first_sample, num_samples = start, end - start
        except AudioError as error:
            unused.append(Unused(example.track_id, split, str(error)))
            continue
        if num_samples < backbone.min_samples:
            lasts, least = num_samples / rate, backbone.min_samples / rate
            unused.append(Unused(example.track_id, split, f"lasts {lasts:.3f} s, needs {least:.3f} s"))
            continue
        crop = None if model.crop_seconds is None else round(model.crop_seconds * rate)
        window = num_samples if crop is None else min(num_samples, crop)
        if window < backbone.min_samples:
            raise ValueError(
                f"{backbone.name} needs windows of at least {backbone.min_samples / rate:.3f} s, got "
                f"crop_seconds={model.crop_seconds}"
            )
        # Frames are encoded window by window; here only so that a bad label is found before training.
        encoded = model.target.encode(example.annotation, model.frame_grid(window))
        target = encoded if model.frames is None else None
        recording = Recording(example, content, num_samples, window, target, first_sample, crop, file_samples)
        if split == "valid" and not recording.windows(model.policy):
            reason = f"no window is long enough for the rule '{model.policy.name}'"
            unused.append(Unused(example.track_id, split, reason))
            continue
        found.append(recording)
    return found


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """groups: windows of one length each, decoded `(B, S)` or prepared by the cache; together in the order of `names`
    and `targets`. valid: `(B, T)`, which frames of the targets are no padding; None where there are no frames."""

    groups: tuple[Tensor | Prepared, ...]
    targets: Tensor
    names: tuple[str, ...]
    valid: Tensor | None = None

    def inputs(self, cache: OutputCache | None, device: torch.device) -> tuple[list[Tensor], Stage]:
        """What the model takes, and at which stage."""
        inputs = []
        for group in self.groups:
            if isinstance(group, Tensor):
                inputs.append(group.to(device))
            else:
                assert cache is not None
                inputs.append(cache.outputs(group))
        return inputs, "waveform" if cache is None else cache.stage


def load_windows(
    clips: Sequence[Clip], cache: OutputCache | None, rate: int, crops: Crops = "fixed"
) -> Tensor | Prepared:
    """Windows of one length, as the cache wants them or decoded, `(B, S)`. Raises AudioError."""
    if cache is not None:
        return cache.prepare(clips, crops)
    return torch.stack([load_window(clip, rate) for clip in clips])


class WindowBatches:
    """Every micro-batch as a function of its place: epochs are permutations, and windows are drawn, from hashes."""

    def __init__(
        self,
        recordings: list[Recording],
        model: AdaptedModel,
        config: TrainConfig,
        crops: Crops,
        plan: CachePlan,
        unused: list[Unused],
    ) -> None:
        self.recordings, self.model, self.config, self.drawn = recordings, model, config, crops
        self.cache = plan.cache if plan.training_crops is not None else None
        self.crops: Crops = plan.training_crops or "fixed"
        self.rate = model.backbone.sample_rate_hz
        local = model.backbone.local_stem
        # With or without cache, so that it changes no window.
        self.step_samples = 1 if local is None else local.step_samples
        self._unused, self._broken = unused, set[str]()
        self._order = functools.lru_cache(maxsize=2)(self._permutation)

    def micro_batch(self, step: int, index: int) -> MicroBatch:
        size = self.config.micro_batch_size or self.config.batch_size
        first = step * self.config.batch_size + index * size
        chosen = [self._example(position) for position in range(first, first + size)]
        groups: dict[int, list[_Chosen]] = {}
        for one in chosen:
            groups.setdefault(one.clip.num_samples, []).append(one)
        ordered = [one for group in groups.values() for one in group]
        encoded = [self._target(one) for one in ordered]
        valid = None
        if self.model.frames is not None:
            lengths = torch.tensor([len(target) for target in encoded])
            valid = torch.arange(int(lengths.max())) < lengths[:, None]
        return MicroBatch(
            tuple(_joined([one.loaded for one in group], self.cache) for group in groups.values()),
            torch.nn.utils.rnn.pad_sequence(encoded, batch_first=True)
            if valid is not None
            else torch.stack(encoded),
            tuple(str(one.clip.path) for one in ordered),
            valid,
        )

    def _target(self, one: _Chosen) -> Tensor:
        """What the loss compares a window with; frames have times of the whole track."""
        if one.recording.target is not None:
            return one.recording.target
        grid = self.model.frame_grid(one.window.num_samples, one.window.start_sample / self.rate)
        return self.model.target.encode(one.recording.example.annotation, grid)

    def _example(self, position: int) -> _Chosen:
        """The example at a place in the endless row of epochs; where it cannot be read, another of its epoch."""
        total = len(self.recordings)
        draw = random.Random(_number(self.config.seed, "window", position))
        place = position % total
        for _ in range(SUBSTITUTES):
            recording = self.recordings[self._order(position // total)[place]]
            window = self._window(recording, draw)
            clip = recording.clip(window)
            try:
                return _Chosen(
                    recording, window, clip, load_windows([clip], self.cache, self.rate, self.crops)
                )
            except AudioError as error:
                self._report(recording, error)
                place = draw.randrange(total)
        raise ValueError(
            f"{len(self._broken)} recordings break off while they are read, the last {recording.example.path}. "
            "Check the files, or leave them out."
        )

    def _window(self, recording: Recording, draw: random.Random) -> Window:
        size = recording.window_samples
        if not recording.is_longer_than_a_window:
            return Window(0, size)
        if self.drawn == "fixed":
            return Window(draw.randrange(recording.num_windows) * size, size)
        # Crops of a kept output begin where frames of the file do.
        first = -recording.first_sample % self.step_samples
        places = (recording.num_samples - size - first) // self.step_samples
        return Window(first + draw.randint(0, places) * self.step_samples if places >= 0 else 0, size)

    def _permutation(self, epoch: int) -> list[int]:
        order = list(range(len(self.recordings)))
        random.Random(_number(self.config.seed, "order", epoch)).shuffle(order)
        return order

    def _report(self, recording: Recording, error: AudioError) -> None:
        track_id = recording.example.track_id
        if track_id not in self._broken:
            self._broken.add(track_id)
            self._unused.append(Unused(track_id, "train", str(error)))


@dataclass(frozen=True)
class _Chosen:
    recording: Recording
    window: Window
    clip: Clip
    loaded: Any


def _joined(parts: list[Any], cache: OutputCache | None) -> Any:
    return torch.cat(parts) if cache is None else cache.join(parts)


def _number(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")
