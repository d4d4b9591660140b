"""Windows of many files run through a backbone as one batch, where features depend on the company they are made in.

That is how jukemir ran CHOI: batches of 256 clips in a shuffled order, the last one smaller (baselines, 5.3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.nn.utils.rnn import pad_sequence

from audiation.extraction_steps import Job, Message, Model, Rows, Windows
from audiation.workers import WorkerDied


class Together:
    """Holds back what comes of files until a batch is full; `flush` at the end.

    Args:
        size: windows of a batch. Every message with windows has one, or batches would be larger.
        take: what is done with the messages of a file, in their order, with rows in the place of windows.
    """

    def __init__(self, model: Model, size: int, take: Callable[[Job, Message | WorkerDied], None]) -> None:
        self._model, self._size, self._take = model, size, take
        self._waiting: list[_Held] = []
        self._count = 0

    def add(self, job: Job, message: Message | WorkerDied) -> None:
        num_samples = 0
        if isinstance(message, Windows):
            assert len(message.starts_seconds) == 1
            num_samples = message.samples.shape[1]
            # What is not heard is not kept: a batch waits in memory.
            message = replace(
                message, samples=message.samples[:, : self._model.backbone.hears_samples].copy()
            )
            self._count += 1
        self._waiting.append(_Held(job, message, num_samples))
        if self._count == self._size:
            self.flush()

    def flush(self) -> None:
        """Compute and hand on what has been held back."""
        made = iter(self._rows())
        for held in self._waiting:
            self._take(held.job, next(made) if isinstance(held.message, Windows) else held.message)
        self._waiting, self._count = [], 0

    def _rows(self) -> list[Rows]:
        """Of every window that is held, in order."""
        batch = [(h, h.message) for h in self._waiting if isinstance(h.message, Windows)]
        if not batch:
            return []
        backbone, clips = self._model.backbone, [torch.from_numpy(w.samples[0]) for _, w in batch]
        device = next(backbone.parameters()).device
        lengths = torch.tensor([len(clip) for clip in clips], device=device)
        with torch.inference_mode():
            padded = pad_sequence(clips, batch_first=True).to(device)
            states = backbone(padded, lengths, layers=self._model.spec.layers, reduce="mean")
        layers = {i: x.float().cpu().numpy() for i, x in states.layers.items()}
        return [
            self._model.as_rows(
                held.job, windows, held.num_samples, {i: x[n : n + 1] for i, x in layers.items()}, states
            )
            for n, (held, windows) in enumerate(batch)
        ]


@dataclass(frozen=True)
class _Held:
    """num_samples: of the window as it was read."""

    job: Job
    message: Message | WorkerDied
    num_samples: int
