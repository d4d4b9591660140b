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


class GridInputs:
    """Training and validation vectors; standardised a batch at a time, so that there is one copy of them."""

    def __init__(
        self, train: Mapping[int, Tensor], valid: Mapping[int, Tensor], device: torch.device
    ) -> None:
        self.train = {i: x.float().to(device) for i, x in train.items()}
        self.valid = {i: x.float().to(device) for i, x in valid.items()}
        self.device = device
        first = next(iter(self.train.values()))
        self.num_windows, self.dim = first.shape
        self._standardisers: dict[int, Standardiser] = {}

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
        picked = torch.stack([vectors[i][rows] for i in layers])
        if standardise:
            for x, layer in zip(picked, layers, strict=True):
                fitted = self.standardiser(layer, True)
                x.sub_(fitted.mean.to(x.device)).div_(fitted.scale.to(x.device))
        return picked


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
        self._kept: dict[int, tuple[tuple[int, int, int], np.ndarray]] = {}

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
        key = (draw, num_rows, num_columns)
        if layer not in self._kept or self._kept[layer][0] != key:
            self._kept[layer] = (key, self._draw_kept(layer, draw, num_rows, num_columns))
        mask = torch.from_numpy(self._kept[layer][1][place]).to(torch.float32)
        return mask.mul_(self.scale)

    def _draw_kept(self, layer: int, draw: int, num_rows: int, num_columns: int) -> np.ndarray:
        """`(steps, rows, columns)` bool."""
        generator, count = self._generator(1 + layer, draw), STEPS_PER_DRAW * num_rows * num_columns
        if self._levels % 256 == 0:  # one random byte says enough
            numbers = generator.bit_generator.random_raw(-(-count // 8)).view(np.uint8)[:count]
            kept = numbers >= self._levels // 256
        else:
            pairs = generator.bit_generator.random_raw(-(-count // 4)).view(np.uint16)[:count]
            kept = pairs >= self._levels
        return kept.reshape(STEPS_PER_DRAW, num_rows, num_columns)

    def _generator(self, purpose: int, draw: int) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence([*self._key, purpose, draw])))
