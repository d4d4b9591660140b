"""Source separation scores: the SDR of the Music Demixing Challenge 2021, per stem and as their mean.

No audio reaches a `Metric`: whoever separates a track scores it at once (`SdrSums`, block by block) and keeps a
`StemScores`, so that a thousand resamples of a bootstrap cost nothing and no song is held.

Conventions: dB; larger is better; there is no perfect value, because the constant of the definition limits it by the
energy of the reference. A silent estimate scores 0 dB, and the mixture itself less than that for a soft stem.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from audiation.metrics import Metric, mean_over_tracks

STEMS = ("vocals", "drums", "bass", "other")
SDR_EPSILON = 1e-7  # MDX 2021; added to both energies, so that silence is defined
MDX_RATE_HZ = 44_100  # MDX 2021 scores stereo at this rate; the released code of MARBLE at 24 kHz (D27)
RELEASED_RATE_HZ = 24_000
EVALUATION_RATES_HZ = (RELEASED_RATE_HZ, MDX_RATE_HZ)


@dataclass(frozen=True)
class StemNames:
    """What a track asks for: the stems that it is mixed from. The reference that a separation metric takes."""

    names: tuple[str, ...] = STEMS

    def __str__(self) -> str:
        return ", ".join(self.names)


@dataclass(frozen=True)
class StemScores:
    """How well the stems of one track were separated. The estimate that a separation metric takes.

    sdr_db: sample rate in Hz at which estimate and reference were compared -> stem -> SDR in dB.
    """

    sdr_db: Mapping[int, Mapping[str, float]]

    def __post_init__(self) -> None:
        for rate, stems in self.sdr_db.items():
            for stem, value in stems.items():
                if not math.isfinite(value):
                    raise ValueError(f"the SDR of {stem} at {rate} Hz is {value}; scores are finite")

    def __str__(self) -> str:
        return "; ".join(
            f"{rate} Hz: " + ", ".join(f"{stem} {value!r} dB" for stem, value in stems.items())
            for rate, stems in self.sdr_db.items()
        )


def sdr_mdx2021_db(reference: Any, estimate: Any) -> float:
    """10 log10((sum s^2 + 1e-7) / (sum (s - estimate)^2 + 1e-7)) over all samples of all channels, in float64.

    This is the energy of what is wrong, whatever kind of wrong it is, over the whole recording. BSS Eval, version 4,
    gives the same number (without the 1e-7) for one window as long as the recording; what is printed of it is usually
    the median over windows of 1 s, which is another number.

    Args:
        reference, estimate: `(2, S)` arrays or CPU tensors; any number of channels.

    Raises:
        ValueError: different shapes, no sample, or values that are not finite.
    """
    sums = SdrSums()
    sums.add(reference, estimate)
    return sums.sdr_db


class SdrSums:
    """The SDR of a recording that arrives in blocks. Memory does not grow with its length."""

    def __init__(self) -> None:
        self.num_values = 0
        self._reference_energy = self._error_energy = 0.0

    def add(self, reference: Any, estimate: Any) -> None:
        """A block `(2, S)` of both. Raises ValueError for different shapes or values that are not finite."""
        truth, answer = (np.asarray(x, dtype=np.float64) for x in (reference, estimate))
        if truth.shape != answer.shape:
            raise ValueError(
                f"reference and estimate must have the same shape, got {truth.shape} and {answer.shape}. Cut or pad "
                "one of them."
            )
        reference_energy = float(np.square(truth).sum())
        error_energy = float(np.square(truth - answer).sum())
        if not math.isfinite(reference_energy + error_energy):
            raise ValueError("reference or estimate holds NaN or infinite samples, so there is no SDR")
        self.num_values += truth.size
        self._reference_energy += reference_energy
        self._error_energy += error_energy

    @property
    def sdr_db(self) -> float:
        """Of all blocks so far. Raises ValueError before the first sample."""
        if not self.num_values:
            raise ValueError("an SDR needs at least one sample")
        return 10.0 * math.log10((self._reference_energy + SDR_EPSILON) / (self._error_energy + SDR_EPSILON))


def sdr_mdx2021(stems: str | Sequence[str] = STEMS, evaluation_rate_hz: int = MDX_RATE_HZ) -> Metric:
    """The mean over tracks of the SDR of one stem, or of the mean over several.

    The name says which: `sdr_mdx2021_vocals`; `sdr_mdx2021` is the mean over the four; at the rate of the released
    code, which is no MDX score, `sdr_mdx2021_24khz_vocals` (D27).

    Args:
        evaluation_rate_hz: at which estimates and references are compared; one that the `StemScores` hold.
    """
    names = (stems,) if isinstance(stems, str) else tuple(stems)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"name one stem or more, each once, got {', '.join(names) or 'none'}")
    name = "sdr_mdx2021" + ("" if evaluation_rate_hz == MDX_RATE_HZ else f"_{evaluation_rate_hz / 1000:g}khz")
    if names != STEMS:
        name += "_" + "_".join(names)
    published = f"sdr_{names[0]}" if len(names) == 1 else ""
    return mean_over_tracks(name, _mean_of(names, evaluation_rate_hz), published_name=published)


def _mean_of(names: tuple[str, ...], rate: int) -> Callable[[StemNames, StemScores], float]:
    def per_track(reference: StemNames, estimate: StemScores) -> float:
        if not isinstance(reference, StemNames) or not isinstance(estimate, StemScores):
            raise ValueError(
                f"a separation score compares StemNames with StemScores, got {reference!r} and {estimate!r}"
            )
        scores = estimate.sdr_db.get(rate)
        if scores is None:
            held = ", ".join(str(r) for r in estimate.sdr_db)
            raise ValueError(
                f"this track was scored at {held or 'no rate'}, not at {rate} Hz. Evaluate at that rate too."
            )
        if missing := [n for n in names if n not in scores or n not in reference.names]:
            raise ValueError(
                f"no score of {', '.join(missing)}: the track has {reference}, scored are {', '.join(scores)}"
            )
        return float(np.mean([scores[n] for n in names]))

    return per_track


SDR_MDX2021 = sdr_mdx2021()  # the four averaged to one number
SDR_MDX2021_VOCALS = sdr_mdx2021("vocals")
SDR_MDX2021_DRUMS = sdr_mdx2021("drums")
SDR_MDX2021_BASS = sdr_mdx2021("bass")
SDR_MDX2021_OTHER = sdr_mdx2021("other")
SDR_MDX2021_24KHZ = sdr_mdx2021(evaluation_rate_hz=RELEASED_RATE_HZ)
SDR_MDX2021_24KHZ_VOCALS = sdr_mdx2021("vocals", RELEASED_RATE_HZ)
SDR_MDX2021_24KHZ_DRUMS = sdr_mdx2021("drums", RELEASED_RATE_HZ)
SDR_MDX2021_24KHZ_BASS = sdr_mdx2021("bass", RELEASED_RATE_HZ)
SDR_MDX2021_24KHZ_OTHER = sdr_mdx2021("other", RELEASED_RATE_HZ)
SEPARATION_METRICS = (  # of a task: the first selects, and compares with what MARBLE's code prints
    SDR_MDX2021_24KHZ,
    SDR_MDX2021_24KHZ_VOCALS,
    SDR_MDX2021_24KHZ_DRUMS,
    SDR_MDX2021_24KHZ_BASS,
    SDR_MDX2021_24KHZ_OTHER,
    SDR_MDX2021,
    SDR_MDX2021_VOCALS,
    SDR_MDX2021_DRUMS,
    SDR_MDX2021_BASS,
    SDR_MDX2021_OTHER,
)
