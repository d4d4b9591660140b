"""How a track is cut into windows, and how the answers about them become one: the published rules by name.

Shape letters: `N` windows of one track, `C` outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Remainder = Literal["drop", "keep", "pad", "backfill"]
Aggregation = Literal["majority", "max", "logits_mean", "probability_mean"]
# In the order in which jukemir prefers equals.
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)


@dataclass(frozen=True)
class WindowPolicy:
    """Consecutive windows from the beginning of a track; what is done with the rest; how outputs are combined.

    remainder: "drop"; "keep": a shorter window; "pad": with zeros at its end; "backfill": the last window is moved
        back to end with the track.
    min_ratio: share of a window that a rest must have; a shorter one is dropped.
    aggregation: of the windows' outputs, where the answer is one per track.
    overlap: share of a window that the next one hears again.
    keep_short: whether a track that is shorter than a window is one of its own length, where rests are dropped.
    source: who cuts like this.
    """

    name: str
    remainder: Remainder
    aggregation: Aggregation
    min_ratio: float = 0.0
    overlap: float = 0.0
    keep_short: bool = True
    source: str = ""

    def __post_init__(self) -> None:
        if not 0.0 <= self.overlap < 1.0 or not 0.0 <= self.min_ratio <= 1.0:
            raise ValueError(
                f"overlap and min_ratio are shares of a window, got {self.overlap} and {self.min_ratio}"
            )

    def hop_samples(self, window_samples: int) -> int:
        """From the beginning of a window to that of the next."""
        return max(1, round(window_samples * (1.0 - self.overlap)))

    def windows(self, num_samples: int, window_samples: int) -> list[Window]:
        """The windows of a track of `num_samples`, in order; none for a track whose rest is too short to keep."""
        hop = self.hop_samples(window_samples)
        if num_samples < window_samples:
            found: list[Window] = []
            rest = 0
        else:
            count = 1 + (num_samples - window_samples) // hop
            found = [Window(i * hop, window_samples) for i in range(count)]
            rest = count * hop if found[-1].end_sample < num_samples else num_samples
        left = num_samples - rest
        if left <= 0 or left < self.min_ratio * window_samples:
            return found
        if self.remainder == "drop" and (found or not self.keep_short):
            return found
        if self.remainder == "pad":
            return [*found, Window(rest, left, window_samples - left)]
        if self.remainder == "backfill" and found:
            return [*found, Window(num_samples - window_samples, window_samples)]
        return [*found, Window(rest, left)]


@dataclass(frozen=True)
class Window:
    """Samples `[start_sample, start_sample + num_samples)` of a track, and zeros behind them."""

    start_sample: int
    num_samples: int
    num_zeros: int = 0

    @property
    def end_sample(self) -> int:
        return self.start_sample + self.num_samples


WINDOW_POLICIES = {
    policy.name: policy
    for policy in (
        WindowPolicy(
            "jukemir", "drop", "logits_mean", keep_short=False, source="Castellon, Donahue & Liang 2021"
        ),
        # The other three ensembles that jukemir chooses from for keys (benchmark, 4.4).
        WindowPolicy(
            "jukemir-vote", "drop", "majority", keep_short=False, source="Castellon, Donahue & Liang 2021"
        ),
        WindowPolicy(
            "jukemir-max", "drop", "max", keep_short=False, source="Castellon, Donahue & Liang 2021"
        ),
        WindowPolicy(
            "jukemir-probability",
            "drop",
            "probability_mean",
            keep_short=False,
            source="Castellon, Donahue & Liang 2021",
        ),
        WindowPolicy("petl", "drop", "probability_mean", source="Ding & Lerch"),
        WindowPolicy("marble-v1", "backfill", "logits_mean", source="MARBLE v1, the code of the thesis"),
        WindowPolicy("marble-v2", "pad", "logits_mean", min_ratio=0.8, source="MARBLE v2, clips"),
        WindowPolicy("marble-v2-frames", "pad", "logits_mean", min_ratio=0.1, source="MARBLE v2, chords"),
        # The papers do not say how frames of whole tracks were made; nothing of a track is left out here.
        WindowPolicy("whole-track", "backfill", "logits_mean", source="ours"),
    )
}


def window_policy(name: str) -> WindowPolicy:
    """A policy by name. ValueError for others."""
    if name not in WINDOW_POLICIES:
        raise ValueError(f"there is no window policy '{name}'; policies: {', '.join(WINDOW_POLICIES)}")
    return WINDOW_POLICIES[name]


def stream_windows(
    blocks: Iterable[Tensor], window_samples: int, policy: WindowPolicy
) -> Iterator[tuple[Window, Tensor]]:
    """The windows of a track that arrives in blocks `(S,)`; no more than a window and a block are ever held.

    Gives what `policy.windows` gives, each with its samples, zeros included.
    """
    hop = policy.hop_samples(window_samples)
    held, start = torch.zeros(0), 0  # held[0] is sample `start` of the track
    next_window = 0
    for block in blocks:
        held = torch.cat([held, block])
        while start + len(held) >= next_window + window_samples:
            offset = next_window - start
            yield (
                Window(next_window, window_samples),
                held[offset : offset + window_samples].clone(),
            )
            next_window += hop
            # Backfilling needs as much of the past as a window is long.
            keep = max(0, min(next_window, start + len(held) - window_samples) - start)
            held, start = held[keep:], start + keep
    total = start + len(held)
    for window in policy.windows(total, window_samples)[next_window // hop :]:
        samples = held[window.start_sample - start : window.end_sample - start]
        yield window, torch.cat([samples, torch.zeros(window.num_zeros)])


def aggregate(logits: Tensor, rule: Aggregation) -> Tensor:
    """Outputs `(N, C)` of a track's windows, of a target with one answer out of C -> `(C,)` float64.

    "majority" counts the windows that chose each class, so that ties go to the first, and gives the logarithm of their
    share; "max" takes the largest output; "probability_mean" gives the logarithm of the mean probability (jukemir's
    four ensembles: benchmark, 4.4). One window is its own answer.
    """
    rows = logits.double()
    if len(rows) == 1 and rule in AGGREGATIONS:
        return rows[0]
    if rule == "majority":
        votes = torch.bincount(rows.argmax(-1), minlength=rows.shape[1]).double()
        return (votes / len(rows)).clamp(min=1e-12).log()
    if rule == "max":
        return rows.amax(0)
    if rule == "logits_mean":
        return rows.mean(0)
    if rule != "probability_mean":
        raise ValueError(f"an aggregation is one of {', '.join(AGGREGATIONS)}, got {rule!r}")
    return rows.log_softmax(-1).logsumexp(0) - math.log(len(rows))
