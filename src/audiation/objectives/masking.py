"""Which frames are masked: spans as HuBERT, MERT and data2vec draw them (MERT spec 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor


def span_mask(
    num_clips: int,
    num_frames: int,
    probability: float,
    length: int,
    generator: torch.Generator,
    min_spans: int = 2,
) -> Tensor:
    """`(B, T)` bool, as many masked frames in every clip; on the device of the generator.

    A clip gets `int(probability * T / length + U[0, 1))` spans, at least `min_spans`, with distinct starts in
    [0, T - length); spans may overlap. Then random masked frames are given back until every clip of the batch has as
    many as the one with the fewest. Where no span fits, and where T is at most `length`, nothing is masked.

    Raises:
        ValueError: a probability outside [0, 1], or a length or number of spans below 1.
    """
    if not 0.0 <= probability <= 1.0 or length < 1 or min_spans < 1:
        raise ValueError(
            "masking needs a probability from 0 to 1, a length and min_spans of at least 1, got "
            f"{probability}, {length} and {min_spans}"
        )
    device = generator.device
    mask = torch.zeros(num_clips, max(num_frames, 0), dtype=torch.bool, device=device)
    places = num_frames - length
    if places < 1 or probability == 0.0 or num_clips == 0:
        return mask
    chance = torch.rand(num_clips, generator=generator, device=device)
    num_spans = (probability * num_frames / length + chance).long().clamp(min_spans).clamp(max=places)
    # The places of a random order that come first are a draw without replacement.
    order = torch.rand(num_clips, places, generator=generator, device=device).argsort(1).argsort(1)
    starts = order < num_spans[:, None]
    for offset in range(length):
        mask[:, offset : offset + places] |= starts
    # Rank of every masked frame in a random order among the masked ones of its clip; those beyond the least go back.
    drawn = torch.rand(num_clips, num_frames, generator=generator, device=device).masked_fill(~mask, 2.0)
    rank = drawn.argsort(1).argsort(1)
    return mask & (rank < mask.sum(1).min())
