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
    """Batches and dropout masks of a stack, each a function of the step: nothing needs to be kept to go on later."""

    def __init__(self, config: ProbeConfig, schedule: ProbeSchedule, num_windows: int) -> None:
        self._key = [config.seed, config.batch_size, round(config.dropout * 65536), config.hidden_size or 0]
        self._num_windows, self._epochs = num_windows, schedule.sampling == "epochs"
        self.batch_size = min(config.batch_size, num_windows)
        self.batches_per_epoch = math.ceil(num_windows / self.batch_size)
        self._share = round(config.dropout * 65536) / 65536
        self.scale = 1 / (1 - self._share)
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def batch(self, step: int) -> Tensor:
        """Indices of training windows."""
        if not self._epochs:
            drawn = self._generator(0, step).choice(self._num_windows, self.batch_size, replace=False)
            return torch.from_numpy(drawn)
        epoch, place = divmod(step, self.batches_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, self._generator(1, epoch).permutation(self._num_windows))
        start = place * self.batch_size
        return torch.from_numpy(self._order[1][start : start + self.batch_size])

    def dropout(self, layer: int, step: int, num_rows: int, num_columns: int) -> Tensor | None:
        """`(rows, columns)` of 0 and 1 / (1 - p), float32; None where nothing is dropped. layer: 0 input, 1 hidden."""
        if self._share == 0:
            return None
        generator, size = self._generator(2 + layer, step), num_rows * num_columns
        threshold = round(self._share * 65536)
        if threshold % 256 == 0:  # one random byte says enough
            bits = generator.bit_generator.random_raw(math.ceil(size / 8)).view(np.uint8)[:size]
            keep = bits >= threshold // 256
        else:
            bits16 = generator.bit_generator.random_raw(math.ceil(size / 4)).view(np.uint16)[:size]
            keep = bits16 >= threshold
        mask = torch.from_numpy(keep.reshape(num_rows, num_columns)).to(torch.float32)
        return mask.mul_(self.scale)

    def _generator(self, purpose: int, step: int) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence([*self._key, purpose, step])))
