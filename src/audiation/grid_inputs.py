"""What a grid reads: stored vectors, and random streams that are functions of the step.

Shape letters: `N`, `M` training and validation windows, `B` batch, `D` width of a vector, `L` layers of a sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiation.probe import ProbeConfig, ProbeSchedule, Standardiser

STEPS_PER_DRAW = 8
SMALL_SET_BYTES = 2**26  # of one layer: up to here it is kept standardised as well


class GridInputs:
    """Training and validation vectors. Large sets are standardised a batch at a time, so that there is one copy."""

    def __init__(
        self, train: Mapping[int, Tensor], valid: Mapping[int, Tensor], device: torch.device
    ) -> None:
        self.train = {i: x.float().to(device) for i, x in train.items()}
        self.valid = {i: x.float().to(device) for i, x in valid.items()}
        self.device = device
        first = next(iter(self.train.values()))
        self.num_windows, self.dim = first.shape
        self._standardisers: dict[int, Standardiser] = {}
        self._standardised: dict[tuple[int, int], Tensor] = {}

    def standardiser(self, layer: int, fitted: bool) -> Standardiser:
        if not fitted:
            return Standardiser.identity(self.dim)
        if layer not in self._standardisers:
            self._standardisers[layer] = Standardiser.fit(self.train[layer].cpu())
        return self._standardisers[layer]

    def rows(
        self, vectors: Mapping[int, Tensor], rows: Any, layers: Sequence[int], standardise: bool
    ) -> Tensor:
        """`(L, B, D)`, a copy."""
        if len(layers) == 1:
            return self._one(vectors, rows, layers[0], standardise)[None]
        return torch.stack([self._one(vectors, rows, layer, standardise) for layer in layers])

    def _one(self, vectors: Mapping[int, Tensor], rows: Any, layer: int, standardise: bool) -> Tensor:
        if not standardise:
            return vectors[layer][rows].clone() if isinstance(rows, slice) else vectors[layer][rows]
        fitted = self.standardiser(layer, True)
        if vectors[layer].nbytes <= SMALL_SET_BYTES:
            key = (id(vectors), layer)
            if key not in self._standardised:
                self._standardised[key] = fitted(vectors[layer])
            return self._one({layer: self._standardised[key]}, rows, layer, False)
        picked = self._one(vectors, rows, layer, False)
        return picked.sub_(fitted.mean.to(picked.device)).div_(fitted.scale.to(picked.device))


class GridStream:
    """Batches and dropout masks of a stack, each a function of the step: nothing needs to be kept to go on later.

    They are drawn for `STEPS_PER_DRAW` steps at a time, because a generator costs as much to set up as a small step.
    """

    def __init__(self, config: ProbeConfig, schedule: ProbeSchedule, num_windows: int) -> None:
        levels = round(config.dropout * 65536)
        self._key = [config.seed, config.batch_size, levels, config.hidden_size or 0]
        self._num_windows, self._epochs = num_windows, schedule.sampling == "epochs"
        self.batch_size = min(config.batch_size, num_windows)
        self.batches_per_epoch = math.ceil(num_windows / self.batch_size)
        self._levels = levels
        self.scale = 1 / (1 - levels / 65536)
        self._orders: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))
        self._kept: dict[int, tuple[tuple[int, int], np.ndarray]] = {}

    def batch(self, step: int) -> Tensor:
        """Indices of training windows."""
        period = self.batches_per_epoch if self._epochs else STEPS_PER_DRAW
        draw, place = divmod(step, period)
        if self._orders[0] != draw:
            self._orders = (draw, self._draw_order(draw))
        if self._epochs:
            start = place * self.batch_size
            return torch.from_numpy(self._orders[1][start : start + self.batch_size])
        return torch.from_numpy(self._orders[1][place])

    def _draw_order(self, draw: int) -> np.ndarray:
        """The order of an epoch `(N,)`, or the batches of some steps `(steps, B)`."""
        generator = self._generator(0, draw)
        if self._epochs:
            return generator.permutation(self._num_windows)
        rows = [
            generator.choice(self._num_windows, self.batch_size, replace=False) for _ in range(STEPS_PER_DRAW)
        ]
        return np.stack(rows)

    def dropout(self, layer: int, step: int, num_rows: int, num_columns: int) -> Tensor | None:
        """`(rows, columns)` of 0 and 1 / (1 - p), float32; None where nothing is dropped. layer: 0 input, 1 hidden."""
        if self._levels == 0:
            return None
        draw, place = divmod(step, STEPS_PER_DRAW)
        key = (draw, num_columns)
        if layer not in self._kept or self._kept[layer][0] != key:
            self._kept[layer] = (key, self._draw_kept(layer, draw, num_columns))
        mask = torch.from_numpy(self._kept[layer][1][place, :num_rows]).to(torch.float32)
        return mask.mul_(self.scale)

    def _draw_kept(self, layer: int, draw: int, num_columns: int) -> np.ndarray:
        """`(steps, B, columns)` bool; a last batch of an epoch takes the first rows."""
        generator, count = self._generator(1 + layer, draw), STEPS_PER_DRAW * self.batch_size * num_columns
        if self._levels % 256 == 0:  # one random byte says enough
            numbers = generator.bit_generator.random_raw(-(-count // 8)).view(np.uint8)[:count]
            kept = numbers >= self._levels // 256
        else:
            pairs = generator.bit_generator.random_raw(-(-count // 4)).view(np.uint16)[:count]
            kept = pairs >= self._levels
        return kept.reshape(STEPS_PER_DRAW, self.batch_size, num_columns)

    def _generator(self, purpose: int, draw: int) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence([*self._key, purpose, draw])))
