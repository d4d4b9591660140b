"""Windows of many files run through a backbone as one batch, where features depend on the company they are made in.

That is how jukemir ran CHOI: batches of 256 clips in a shuffled order, the last one smaller (baselines, 5.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
        self._waiting: list[tuple[Job, Message | WorkerDied]] = []
        self._count = 0

    def add(self, job: Job, message: Message | WorkerDied) -> None:
        self._waiting.append((job, message))
        if isinstance(message, Windows):
            assert len(message.starts_seconds) == 1
            self._count += 1
        if self._count == self._size:
            self.flush()

    def flush(self) -> None:
        """Compute and hand on what has been held back."""
        batch = [(job, m) for job, m in self._waiting if isinstance(m, Windows)]
        made = iter(_rows(self._model, batch) if batch else [])
        for job, message in self._waiting:
            self._take(job, next(made) if isinstance(message, Windows) else message)
        self._waiting, self._count = [], 0


def _rows(model: Model, batch: Sequence[tuple[Job, Windows]]) -> list[Rows]:
    clips = [torch.from_numpy(windows.samples[0]) for _, windows in batch]
    lengths = torch.tensor([len(clip) for clip in clips])
    with torch.inference_mode():
        states = model.backbone(
            pad_sequence(clips, batch_first=True), lengths, layers=model.spec.layers, reduce="mean"
        )
    layers = {i: x.float().numpy() for i, x in states.layers.items()}
    return [
        model.as_rows(job, windows, {i: x[n : n + 1] for i, x in layers.items()}, states)
        for n, (job, windows) in enumerate(batch)
    ]
