"""Extra training recordings: pitch shift and time stretch, with the annotation moved along.

As Ding & Lerch train key and tempo (PETL paper, sections 4.1.2 and 4.1.3; benchmark, 4.4 and 4.6). The stretching is
Signalsmith Stretch, through python-stretch (the optional extra `augment`, imported inside functions only).

Shape letters: `S` samples.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from audiation.annotations import (
    PITCH_CLASSES,
    Annotation,
    Beats,
    Key,
    Label,
    Pitch,
    Segments,
    Tags,
    Tempo,
    parse_pitch_class,
)
from audiation.audio import MIN_SOURCE_RATE_HZ, QUALITY, content_hash, load_audio

MIN_SECONDS = 0.12  # one block of the stretcher
# Near twice the length the stretcher begins to randomise phases, and tones lose level.
MAX_SEMITONES = 7
MIN_RATE, MAX_RATE = 0.6, 1.6
COPY_VERSION = 1  # raised whenever copies made before and after a change differ

SegmentLabels = Literal["chords", "keys", "sections"]
TempoLabel = Literal["exact", "rounded"]


@dataclass(frozen=True)
class PitchShift:
    """All pitches moved by whole semitones, in equal temperament; length and rhythm stay.

    semitones: -7 to 7. 0 leaves the samples as they are.
    """

    semitones: int

    def __post_init__(self) -> None:
        if type(self.semitones) is not int or abs(self.semitones) > MAX_SEMITONES:
            raise ValueError(
                f"semitones is a whole number from -{MAX_SEMITONES} to {MAX_SEMITONES}, got {self.semitones!r}"
            )

    def __str__(self) -> str:
        return f"pitch_shift:semitones={self.semitones}"

    def num_samples(self, num_samples: int) -> int:
        """Length of what `apply` makes of so many samples."""
        return num_samples

    def apply(self, samples: Tensor, sample_rate_hz: int) -> Tensor:
        """`(S,)` mono -> `(S,)` float32 on the CPU, in time with the input, the same bits at every call.

        Raises:
            ValueError: not one channel, empty or shorter than 0.12 s, not finite, or an impossible rate.
            ImportError: python-stretch is not installed.
        """
        x = _checked(samples, sample_rate_hz)
        if self.semitones == 0:
            return torch.from_numpy(x)
        # Stretched and played faster or slower. The stretcher's own transposition is up to 40 cents off in the bass;
        # its stretching is exact, and so is the resampling.
        factor = 2.0 ** (self.semitones / 12)
        num_zeros = _num_zeros(sample_rate_hz)
        stretched = _stretched(np.pad(x, num_zeros), 1.0 / factor, sample_rate_hz)
        shifted = soxr.resample(stretched, sample_rate_hz * factor, sample_rate_hz, quality=QUALITY)
        return _cut(shifted, num_zeros, len(x))

    def annotation(self, annotation: Annotation, segment_labels: SegmentLabels | None = None) -> Annotation:
        """What is true of the shifted recording. Tonics, chord roots and pitches move; modes and times stay.

        Args:
            segment_labels: what the labels of `Segments` are, which "A" alone does not say.

        Raises:
            ValueError: segments without `segment_labels`, a label that cannot be read, a pitch that leaves the MIDI
                range, or an annotation of which it is not known how it moves (emotion, values).
        """
        _check_segment_labels(segment_labels)
        if isinstance(annotation, Key):
            return replace(annotation, tonic=(annotation.tonic + self.semitones) % 12)
        if isinstance(annotation, Pitch):
            midi = annotation.midi + self.semitones
            if not 0 <= midi <= 127:
                raise ValueError(
                    f"{annotation} moved by {self.semitones} semitones is MIDI pitch {midi}, outside 0..127. "
                    "Leave this copy of the recording out."
                )
            return Pitch(midi)
        if isinstance(annotation, Segments):
            return replace(annotation, labels=self._labels(annotation.labels, segment_labels))
        if isinstance(annotation, Tempo | Beats | Label | Tags):
            return annotation
        raise ValueError(_unknown_move("a pitch shift", annotation))

    def _labels(self, labels: tuple[str, ...], kind: SegmentLabels | None) -> tuple[str, ...]:
        if kind is None:
            raise ValueError(
                "segments may hold chords, keys or sections, and only the first two move with the pitch. Give "
                f"segment_labels as one of {', '.join(get_args(SegmentLabels))}."
            )
        if kind == "chords":
            return tuple(_transposed_chord(label, self.semitones) for label in labels)
        if kind == "keys":
            return tuple(
                label if label == "none" else str(self.annotation(Key.parse(label))) for label in labels
            )
        return labels


@dataclass(frozen=True)
class TimeStretch:
    """Played `rate` times as fast, pitches stay: 1.05 is shorter and quicker.

    rate: 0.6 to 1.6. 1 leaves the samples as they are.
    tempo_label: "exact": BPM x rate. "rounded": of the tempo rounded to whole BPM, rounded again, as in the labels
        that PETL released (126.39 BPM x 0.975 is 123, and not 123.23).
    """

    rate: float
    tempo_label: TempoLabel = "exact"

    def __post_init__(self) -> None:
        is_number = isinstance(self.rate, int | float) and not isinstance(self.rate, bool)
        if not is_number or not MIN_RATE <= self.rate <= MAX_RATE:
            raise ValueError(f"rate is a number from {MIN_RATE} to {MAX_RATE}, got {self.rate!r}")
        if self.tempo_label not in get_args(TempoLabel):
            raise ValueError(f"tempo_label is 'exact' or 'rounded', got {self.tempo_label!r}")
        object.__setattr__(self, "rate", float(self.rate))

    def __str__(self) -> str:
        label = "" if self.tempo_label == "exact" else f",tempo_label={self.tempo_label}"
        return f"time_stretch:rate={self.rate!r}{label}"

    def num_samples(self, num_samples: int) -> int:
        """Length of what `apply` makes of so many samples: round(S / rate)."""
        return round(num_samples / self.rate)

    def apply(self, samples: Tensor, sample_rate_hz: int) -> Tensor:
        """`(S,)` mono -> `(round(S / rate),)` float32 on the CPU: what was at t is at t / rate. The same bits at every
        call.

        Raises:
            ValueError: not one channel, empty or shorter than 0.12 s, not finite, or an impossible rate.
            ImportError: python-stretch is not installed.
        """
        x = _checked(samples, sample_rate_hz)
        if self.rate == 1.0:
            return torch.from_numpy(x)
        num_zeros = _num_zeros(sample_rate_hz)
        padded = np.pad(x, num_zeros)
        stretched = _stretched(padded, self.rate, sample_rate_hz)
        return _cut(stretched, round(num_zeros * len(stretched) / len(padded)), self.num_samples(len(x)))

    def annotation(self, annotation: Annotation, segment_labels: SegmentLabels | None = None) -> Annotation:
        """What is true of the stretched recording. Times are divided by the rate, tempi multiplied; labels stay.

        Args:
            segment_labels: as for `PitchShift.annotation`; a stretch moves segments of every kind alike.

        Raises:
            ValueError: an annotation of which it is not known how it moves (emotion, values).
        """
        _check_segment_labels(segment_labels)
        if isinstance(annotation, Tempo):
            if self.tempo_label == "rounded":
                return Tempo(float(round(round(annotation.bpm) * self.rate)))
            return Tempo(annotation.bpm * self.rate)
        if isinstance(annotation, Beats):
            return replace(annotation, times_seconds=annotation.times_seconds / self.rate)
        if isinstance(annotation, Segments):
            return replace(annotation, intervals_seconds=annotation.intervals_seconds / self.rate)
        if isinstance(annotation, Key | Pitch | Label | Tags):
            return annotation
        raise ValueError(_unknown_move("a time stretch", annotation))


Augmentation = PitchShift | TimeStretch

# In the paper a training recording stays, and these stand beside it.
_PETL_COPIES: dict[str, tuple[Augmentation, ...]] = {
    "key": tuple(PitchShift(semitones) for semitones in range(-4, 5) if semitones),
    "tempo": tuple(TimeStretch(rate, "rounded") for rate in (0.95, 0.975, 1.025, 1.05)),
}


def petl_copies(kind: Literal["key", "tempo"]) -> tuple[Augmentation, ...]:
    """The extra copies of a training recording in the PETL paper: eight pitch shifts for keys, four time stretches
    for tempi.

    The paper augments the training split; its released tempo manifest has stretched validation tracks too (D16).

    Raises:
        ValueError: the paper augments nothing else.
    """
    if kind not in _PETL_COPIES:
        raise ValueError(f"the paper augments the training of {' and '.join(_PETL_COPIES)}, not of {kind!r}")
    return _PETL_COPIES[kind]


def parse_augmentation(text: str) -> Augmentation:
    """What `str` of an augmentation gives, back: 'pitch_shift:semitones=3', 'time_stretch:rate=0.95'. Raises
    ValueError for anything else."""
    name, _, choices = text.partition(":")
    fields = dict(_field(choice, text) for choice in choices.split(","))
    if len(fields) != choices.count(",") + 1:
        raise ValueError(f"a field is given twice in '{text}'")
    try:
        if name == "pitch_shift" and fields.keys() == {"semitones"}:
            return PitchShift(int(fields["semitones"]))
        if name == "time_stretch" and {"rate"} <= fields.keys() <= {"rate", "tempo_label"}:
            tempo_label: Any = fields.get("tempo_label", "exact")
            return TimeStretch(float(fields["rate"]), tempo_label)
    except ValueError as error:
        raise ValueError(f"'{text}': {error}") from None
    raise ValueError(f"'{text}' is no augmentation. {_FORMS}")


def augmented_copy(
    path: Path,
    augmentation: Augmentation,
    sample_rate_hz: int,
    directory: Path,
    *,
    span_seconds: tuple[float, float] | None = None,
) -> Path:
    """An augmented recording as a file of its own: mono FLAC of 24 bits at `sample_rate_hz`, in `directory`.

    The file is named after the content of the recording and everything asked for; one that is there is not made again.
    It is written all or nothing. Where peaks exceed full scale, the whole copy is turned down to it.

    Args:
        span_seconds: (start, end) of the part of the file that is the track; None: the whole file. The copy holds
            the track only.

    Raises:
        AudioError: a recording that cannot be read, or is shorter than 0.12 s.
        OSError: the copy cannot be written.
        ImportError: python-stretch is not installed.
    """
    asked = [COPY_VERSION, content_hash(path), str(augmentation), sample_rate_hz, span_seconds]
    copy = directory / f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()}.flac"
    if copy.is_file():
        return copy
    start, end = (0.0, None) if span_seconds is None else span_seconds
    # Both ends rounded as everywhere, and not the length.
    first = round(start * sample_rate_hz)
    seconds = None if end is None else (round(end * sample_rate_hz) - first) / sample_rate_hz
    track = load_audio(
        path, sample_rate_hz, start_seconds=start, duration_seconds=seconds, min_seconds=MIN_SECONDS
    )
    samples = augmentation.apply(track.samples, sample_rate_hz)
    samples = samples / max(1.0, float(samples.abs().max()))
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".part-") as folder:
        part = Path(folder) / copy.name
        soundfile.write(part, samples.numpy(), sample_rate_hz, format="FLAC", subtype="PCM_24")
        os.replace(part, copy)
    return copy


# Samples ---------------------------------------------------------------------------------------------------


def _checked(samples: Tensor, sample_rate_hz: int) -> np.ndarray:
    """A float32 copy of acceptable samples. ValueError for others."""
    if type(sample_rate_hz) is not int or sample_rate_hz < MIN_SOURCE_RATE_HZ:
        raise ValueError(f"sample_rate_hz is a whole number >= {MIN_SOURCE_RATE_HZ}, got {sample_rate_hz!r}")
    if samples.ndim != 1:
        raise ValueError(
            f"an augmentation takes one channel, shaped (S,), got {tuple(samples.shape)}. "
            "Take the mean over channels first."
        )
    if not samples.is_floating_point():
        raise ValueError(f"samples are floating-point numbers, got {samples.dtype}")
    if len(samples) < MIN_SECONDS * sample_rate_hz:
        raise ValueError(
            f"{len(samples)} samples last {len(samples) / sample_rate_hz:.3f} s; an augmentation needs at least "
            f"{MIN_SECONDS} s"
        )
    x = samples.detach().to("cpu", torch.float32, copy=True).numpy()
    if not np.isfinite(x).all():
        raise ValueError(
            f"{np.count_nonzero(~np.isfinite(x))} of {len(x)} samples are NaN or infinite. Check the recording."
        )
    return x


def _num_zeros(sample_rate_hz: int) -> int:
    """Silence at both ends, so that no block of the stretcher reaches beyond what it is given: two blocks."""
    return round(2 * MIN_SECONDS * sample_rate_hz)


def _stretched(x: np.ndarray, rate: float, sample_rate_hz: int) -> np.ndarray:
    """`(S,)` -> about `(S / rate,)`; the stretcher takes out its own latency."""
    # Every random number the stretcher may draw comes from this seed.
    stretch = _signalsmith().Stretch(0)
    stretch.preset(1, sample_rate_hz)
    stretch.setTimeFactor(rate)
    return np.asarray(stretch.process(x[None]))[0]


def _cut(x: np.ndarray, first: int, num_samples: int) -> Tensor:
    assert len(x) >= first + num_samples, f"{len(x)} samples cannot give {num_samples} from {first} on"
    return torch.from_numpy(x[first : first + num_samples].copy())


def _signalsmith() -> Any:
    try:
        from python_stretch import Signalsmith
    except ImportError as error:
        raise ImportError(
            "augmenting recordings needs python-stretch, which is not installed. "
            'Install the extra: pip install "audiation[augment]"'
        ) from error
    return Signalsmith


# Labels ----------------------------------------------------------------------------------------------------

_CHORD = re.compile(r"(?P<root>[A-G][#b]*)(?P<quality>(?::[^/]+|\([^/]+\))?)(?P<bass>(?:/.+)?)")
_FORMS = "Write 'pitch_shift:semitones=3' or 'time_stretch:rate=0.95[,tempo_label=rounded]'."


def _transposed_chord(label: str, semitones: int) -> str:
    """'C:maj7/3' by 3 -> 'Eb:maj7/3'. A bass that is a note moves, one that is a degree does not."""
    if label in ("N", "X") or semitones == 0:
        return label
    chord = _CHORD.fullmatch(label)
    if chord is None:
        raise ValueError(
            f"'{label}' is no chord in Harte's notation. Write C, C:min7, Bb:maj/3, N for none or X for unknown."
        )
    bass = chord["bass"]
    if re.fullmatch(r"/[A-G][#b]*", bass):
        bass = "/" + _transposed_note(bass[1:], semitones)
    return _transposed_note(chord["root"], semitones) + chord["quality"] + bass


def _transposed_note(name: str, semitones: int) -> str:
    return PITCH_CLASSES[(parse_pitch_class(name) + semitones) % 12]


def _check_segment_labels(segment_labels: str | None) -> None:
    if segment_labels is not None and segment_labels not in get_args(SegmentLabels):
        allowed = ", ".join(get_args(SegmentLabels))
        raise ValueError(f"segment_labels is one of {allowed}, or None, got {segment_labels!r}")


def _unknown_move(what: str, annotation: object) -> str:
    return (
        f"it is not known what {what} makes of an annotation of type {type(annotation).__name__}. Augment tasks of "
        "keys, tempi, beats, chords, sections, pitches, classes or tags."
    )


def _field(choice: str, text: str) -> tuple[str, str]:
    name, equals, value = choice.partition("=")
    if not equals or not value:
        raise ValueError(f"'{text}' is no augmentation: '{choice}' is not of the form field=value. {_FORMS}")
    return name.strip(), value.strip()
