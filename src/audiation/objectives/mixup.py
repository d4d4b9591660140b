"""In-batch noise mixup: pieces of the other clips of a batch on top of a clip, which its targets do not know of (MERT
spec 3.5).

Shape letters: `B` batch, `S` samples, `G` segments.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_SEGMENTS = 3


@dataclass(frozen=True)
class MixupDraws:
    """What goes where. The pool of a clip is the other clips of the batch, end to end; a segment may straddle two.

    num_segments: `(B,)` int64; 0 where a clip stays as it is.
    length, pool_start, position: `(B, G)` int64 samples: so many, from there in the pool, to there in the clip. Only
        the first `num_segments` of a row count.
    """

    num_segments: Tensor
    length: Tensor
    pool_start: Tensor
    position: Tensor


def draw_mixup(
    num_clips: int,
    num_samples: int,
    probability: float,
    min_samples: int,
    max_samples: int,
    generator: torch.Generator,
) -> MixupDraws:
    """Draws for a batch of `(num_clips, num_samples)`, on the device of the generator.

    A clip is mixed with `probability`. (The published code mixes where a uniform number exceeds it: with 1 - p, which
    is the same at its 0.5.) It then gets one to three segments of `min_samples` to `max_samples`, from anywhere in
    its pool, to anywhere in it; each equally likely. Segments are never longer than a clip. A batch of one has no pool:
    nothing is mixed.

    Raises:
        ValueError: a probability outside [0, 1], or lengths that are not 1 <= min_samples <= max_samples.
    """
    if not 0.0 <= probability <= 1.0 or not 1 <= min_samples <= max_samples:
        raise ValueError(
            "mixup needs a probability from 0 to 1 and 1 <= min_samples <= max_samples, got "
            f"{probability}, {min_samples} and {max_samples}"
        )
    device = generator.device
    shape = (num_clips, MAX_SEGMENTS)
    if num_clips < 2 or num_samples < 1 or probability == 0.0:
        none = torch.zeros(shape, dtype=torch.int64, device=device)
        return MixupDraws(none[:, 0], none, none, none)
    longest = min(max_samples, num_samples)
    shortest = min(min_samples, num_samples)
    mixed = torch.rand(num_clips, generator=generator, device=device) < probability
    wanted = torch.randint(1, MAX_SEGMENTS + 1, (num_clips,), generator=generator, device=device)
    length = torch.randint(shortest, longest + 1, shape, generator=generator, device=device)
    # Whatever its length, a segment begins where the longest one would fit.
    last_start = (num_clips - 1) * num_samples - longest
    pool_start = torch.randint(0, last_start + 1, shape, generator=generator, device=device)
    # Double: the places are more than the numbers that a float distinguishes.
    place = torch.rand(shape, generator=generator, device=device, dtype=torch.float64)
    position = (place * (num_samples - length + 1)).long()
    return MixupDraws(wanted * mixed, length, pool_start, position)


def mix(waveform: Tensor, draws: MixupDraws) -> Tensor:
    """`(B, S)` with the segments added, a new tensor. They always come from the clips as given; nothing is rescaled or
    clipped."""
    num_clips, num_samples = waveform.shape
    flat, mixed = waveform.reshape(-1), waveform.clone()
    sample_S = torch.arange(num_samples, device=waveform.device)
    own_B1 = torch.arange(num_clips, device=waveform.device)[:, None] * num_samples
    for g in range(draws.length.shape[1]):
        length, start, position = (t[:, g, None] for t in (draws.length, draws.pool_start, draws.position))
        offset_BS = sample_S - position
        heard_BS = (offset_BS >= 0) & (offset_BS < length) & (g < draws.num_segments[:, None])
        source_BS = start + offset_BS.clamp(min=0)
        source_BS = source_BS + num_samples * (source_BS >= own_B1)  # the pool leaves the clip itself out
        added_BS = flat[source_BS.clamp(max=flat.numel() - 1)]
        mixed = mixed + torch.where(heard_BS, added_BS, torch.zeros_like(added_BS))
    return mixed
