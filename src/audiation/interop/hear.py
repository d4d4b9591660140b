"""The HEAR API (Turian et al. 2022) over every backbone: this module is what HEAR's tools import.

    hear-validator audiation.interop.hear --model musicfm-msd:layer=7
    python -m heareval.embeddings.runner audiation.interop.hear --model choice.txt --tasks-dir tasks

The model is named by the text that HEAR calls the path of the weights; tools that insist on a file are given one whose
first line is that text. Scene embeddings are means over time.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from audiation.interop.embedder import ClipEmbedder

SAMPLE_RATES_HZ = (16_000, 22_050, 44_100, 48_000)  # that HEAR provides its audio at
MAX_CHOICE_BYTES = 4096


class HearModel(ClipEmbedder):
    """A `ClipEmbedder` with the attributes that HEAR asks for.

    sample_rate: the backbone's where HEAR has it; else audio is resampled, from a multiple of the backbone's rate if
        HEAR has one (48,000 for 24,000), or the next higher rate.
    scene_embedding_size, timestamp_embedding_size: D.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        own = self.backbone.sample_rate_hz
        higher = [r for r in SAMPLE_RATES_HZ if r >= own] or [SAMPLE_RATES_HZ[-1]]
        self.sample_rate = min(higher, key=lambda r: (r % own != 0, r))
        self.sample_rate_hz = self.sample_rate
        self.scene_embedding_size = self.timestamp_embedding_size = self.dim


def load_model(model_file_path: str = "") -> HearModel:
    """The model that a text names, like "musicfm-msd:layer=7", or the first line of the file of that name.

    Raises:
        ValueError: nothing is named, a file that holds no such line, and what `ClipEmbedder` refuses.
    """
    text = str(model_file_path).strip()
    if not text:
        raise ValueError(
            "say which model: load_model('musicfm-msd:layer=7'), or the path of a file with that text in it. Names: "
            "`audiation list backbones`."
        )
    path = Path(text)
    if path.is_file():
        if path.stat().st_size > MAX_CHOICE_BYTES:
            raise ValueError(
                f"{path} is not a text that names a model. For weights of your own write a file with one line, like "
                f"musicfm-msd:layer=7,weights={path}, and give that."
            )
        text = path.read_text(encoding="utf-8").partition("\n")[0].strip()
    return HearModel(text)


def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """`(n_sounds, n_samples)` at `model.sample_rate` -> `(n_sounds, scene_embedding_size)` float32."""
    return model.scene(audio)


def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Embeddings `(n_sounds, n_timestamps, timestamp_embedding_size)` float32, and the times that they are centred on,
    `(n_sounds, n_timestamps)` in milliseconds.

    Raises:
        ValueError: a backbone that gives one vector per clip.
    """
    frames = model.frames(audio)
    milliseconds = (1000.0 * frames.times_seconds).to(torch.float32).to(audio.device)
    return frames.vectors, milliseconds.expand(len(audio), -1)
