"""Score a separation model on tracks with stems: SDR per track and stem, computed block by block.

The estimates have the rate of the spectrogram, 24 kHz. Sources differ in where they are compared (D27): the released
code of MARBLE does it at that rate, MDX 2021 at 44.1 kHz, where everything above 12 kHz is missing in the estimate.
Both are computed from one separation.

Shape letters: `S` samples, `N` stems.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from audiation.audio import AudioError
from audiation.metrics_separation import EVALUATION_RATES_HZ, SdrSums, StemNames, StemScores, sdr_mdx2021
from audiation.separation import SeparationModel
from audiation.separation_filter import CHANNELS, Filtering
from audiation.separation_inference import FEATURE_CHUNK_SECONDS, Separation
from audiation.separation_mixes import UnusedTrack, readable_tracks
from audiation.separation_sources import (
    ForwardReader,
    StemTrack,
    StreamedResampler,
    TrackMixture,
    stem_blocks,
)


@dataclass(frozen=True)
class SeparationScores:
    """scores: track id -> SDR of its stems. failures: (track id, reason) of tracks that could not be read."""

    scores: dict[str, StemScores]
    failures: tuple[tuple[str, str], ...]

    def mean_sdr_db(self, stems: str | Sequence[str], evaluation_rate_hz: int) -> float:
        """Over tracks, of one stem or of the mean of several. ValueError where no track has such a score."""
        metric = sdr_mdx2021(stems, evaluation_rate_hz)
        names = StemNames((stems,) if isinstance(stems, str) else tuple(stems))
        return metric.compute([names] * len(self.scores), list(self.scores.values()))


def evaluate_separation(
    model: SeparationModel,
    tracks: Sequence[StemTrack],
    filtering: Filtering | None = None,
    *,
    evaluation_rates_hz: Sequence[int] = EVALUATION_RATES_HZ,
    max_seconds: float | None = None,
    feature_chunk_seconds: float | None = FEATURE_CHUNK_SECONDS,
    precision: str = "fp32",
    progress: Callable[[int], None] | None = None,
) -> SeparationScores:
    """Separate the mixture of every track and compare it with the track's stems.

    Args:
        model: in eval mode.
        evaluation_rates_hz: where to compare; the estimates are resampled to each of them.
        max_seconds: only the beginning of each track; None: all of it.
        filtering, feature_chunk_seconds, precision: see `separation_inference.Separation`.
        progress: called with the number of tracks that are done.

    Raises:
        ValueError: a model in training mode.
        KeyError: a track without one of the model's stems.
    """
    scores: dict[str, StemScores] = {}
    unused: list[UnusedTrack] = []
    usable = readable_tracks(tracks, "test", model.min_seconds, unused)
    failures = [(u.track_id, u.reason) for u in unused]
    for number, track in enumerate(usable):
        try:
            song = Separation(
                model,
                TrackMixture(track, max_seconds),
                filtering,
                feature_chunk_seconds=feature_chunk_seconds,
                precision=precision,
            )
            estimates = (block.stems for block in song.blocks())
            scores[track.track_id] = score_estimates(
                track,
                model.stems,
                estimates,
                model.spectrogram.sample_rate_hz,
                evaluation_rates_hz,
                max_seconds,
            )
        except AudioError as error:
            failures.append((track.track_id, str(error)))
        if progress is not None:
            progress(len(unused) + number + 1)
    return SeparationScores(scores, tuple(failures))


def score_estimates(
    track: StemTrack,
    stems: Sequence[str],
    estimates: Iterator[Tensor],
    estimate_rate_hz: int,
    evaluation_rates_hz: Sequence[int] = EVALUATION_RATES_HZ,
    max_seconds: float | None = None,
) -> StemScores:
    """The scores of stems that arrive in blocks `(N, 2, S)`, by any method.

    An estimate that is shorter than the track is followed by silence; what is longer is cut off.

    Args:
        max_seconds: how much of the track was separated.

    Raises:
        AudioError, KeyError: stems of the track that cannot be read, or do not exist.
    """
    comparisons = [
        _Comparison(track, tuple(stems), estimate_rate_hz, rate, max_seconds) for rate in evaluation_rates_hz
    ]
    for block in estimates:
        for comparison in comparisons:
            comparison.add(block)
    return StemScores({comparison.rate: comparison.finish() for comparison in comparisons})


class _Comparison:
    """Estimates of one track beside its stems, at one rate."""

    def __init__(
        self,
        track: StemTrack,
        names: tuple[str, ...],
        estimate_rate: int,
        rate: int,
        max_seconds: float | None,
    ) -> None:
        self.rate, self._names = rate, names
        self._resampler = StreamedResampler(estimate_rate, rate, CHANNELS * len(names))
        self._truth = ForwardReader(stem_blocks(track, names, rate, max_seconds))
        self._sums = {name: SdrSums() for name in names}
        self._done = 0

    def add(self, estimate: Tensor) -> None:
        """The next block, `(N, 2, S)`."""
        self._compare(self._resampler.add(estimate))

    def finish(self) -> dict[str, float]:
        self._compare(self._resampler.add(torch.zeros(len(self._names), CHANNELS, 0), last=True))
        silence = torch.zeros(len(self._names), CHANNELS, self.rate)
        while self._compare(silence) == self.rate:
            pass
        return {name: sums.sdr_db for name, sums in self._sums.items()}

    def _compare(self, estimate: Tensor) -> int:
        """How many samples of it the track still had."""
        if not estimate.shape[-1]:
            return 0
        truth = self._truth.read(self._done, self._done + estimate.shape[-1])
        num_samples = truth.shape[-1]
        for number, name in enumerate(self._names):
            self._sums[name].add(truth[number].numpy(), estimate[number, :, :num_samples].numpy())
        self._done += num_samples
        return num_samples
