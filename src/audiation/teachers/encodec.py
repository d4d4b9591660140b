"""EnCodec as a teacher: waveform -> residual codes, eight of 1,024 at 75 Hz (MERT-v1).

Défossez et al. 2022, "High Fidelity Neural Audio Compression"; MERT spec, section 3.1. Only the encoder and its
codebooks are here (`encodec_network.py`). The published code is under the MIT licence. The card of the 24 kHz weights
was last seen without a licence; that of the 48 kHz ones of the same authors states MIT.

Shape letters: `Q` codebooks, `N` frames of codes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiation.teachers.base import TEACHERS, Recorded, TeacherKind, TeacherRequest
from audiation.teachers.encodec_network import (
    NUM_CODEBOOKS,
    Encodec,
    EncodecConfig,
    Stream,
    empty,
    fresh,
)
from audiation.weights import (
    OfficialFile,
    OfficialWeights,
    WeightsError,
    check_tensors,
    fetch,
    find_checkpoint,
    fuse_weight_norm,
    read_checkpoint,
    tensors_hash,
)

NAME = "encodec"
SAMPLE_RATE_HZ = 24_000
CHUNK_FRAMES = 750  # of a recording at once: 10 s, for which the widest layer takes 31 MB
WEIGHTS = OfficialWeights(
    checkpoint=OfficialFile("facebook/encodec_24khz", "model.safetensors"),
    config=None,
    licence="not stated on its card (that of the 48 kHz model states MIT)",
)
LSTM = re.compile(r"encoder\.layers\.(\d+)\.lstm\.weight_ih_l")
EMBED = re.compile(r"quantizer\.layers\.(\d+)\.codebook\.embed")
UNREAD = re.compile(r"decoder\.|quantizer\.layers\.\d+\.codebook\.(cluster_size|embed_avg|inited)$")


class EncodecTeacher:
    """`Encodec` on whole recordings, piece by piece, see `Teacher`; the pieces change nothing but the rounding."""

    def __init__(self, model: Encodec, chunk_frames: int = CHUNK_FRAMES) -> None:
        config = model.config
        self.sample_rate_hz, self.rate_hz = SAMPLE_RATE_HZ, SAMPLE_RATE_HZ / config.hop_samples
        self.num_codes = (config.codebook_size,) * config.num_codebooks
        self._model, self._chunk_samples = model.eval(), chunk_frames * config.hop_samples

    def codes(self, recording: Recorded) -> Tensor:
        device, stream = next(self._model.parameters()).device, Stream()
        parts = []
        for start, stop in self._pieces(recording.num_samples):
            piece = recording.read(start, stop - start).to(device)
            x_BDN = self._model.embed(piece.unsqueeze(0), stream, is_last=stop == recording.num_samples)
            parts.append(self._model.quantise(x_BDN)[0].cpu())
        return torch.cat(parts, dim=1)

    def record(self) -> dict[str, Any]:
        weights = tensors_hash(self._model.state_dict())
        return {"teacher": NAME, "weights": weights, "config": asdict(self._model.config)}

    def _pieces(self, num_samples: int) -> Iterator[tuple[int, int]]:
        for start in range(0, num_samples, self._chunk_samples):
            yield start, min(start + self._chunk_samples, num_samples)


def from_published(tensors: Mapping[str, Tensor], num_codebooks: int = NUM_CODEBOOKS) -> Encodec:
    """From the tensors of a checkpoint in the Hugging Face layout; sizes are those of the tensors.

    Raises:
        WeightsError: tensors that are not those of such a model, or fewer codebooks.
    """
    kept = {name: tensors[name] for name in tensors if not UNREAD.match(name)}
    fused = fuse_weight_norm(kept)
    config = _config_of(fused, num_codebooks)
    read = {
        name: tensor.float()
        for name, tensor in fused.items()
        if not (found := EMBED.fullmatch(name)) or int(found[1]) < num_codebooks
    }
    model = empty(config)
    check_tensors(read, model.state_dict(), "an EnCodec with weight norm and one residual unit per rate")
    model.load_state_dict(read)
    return model.eval()


def load_encodec(weights: str | None = None, seed: int = 0) -> Encodec:
    """weights: None: the official file, fetched once; "random"; a checkpoint, a folder with one, or a Hub id.

    Raises:
        WeightsError: weights that are missing, damaged, or another model's.
    """
    if weights == "random":
        return fresh(EncodecConfig(), torch.Generator().manual_seed(seed))
    return from_published(read_checkpoint(_checkpoint(weights)))


# Checkpoints ----------------------------------------------------------------------------------------------


def _config_of(tensors: Mapping[str, Tensor], num_codebooks: int) -> EncodecConfig:
    """Sizes as the shapes have them. Raises WeightsError."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise WeightsError(f"these tensors are not an EnCodec: '{name}' is missing")
        return tuple(tensors[name].shape)

    lstm = next((int(found[1]) for name in tensors if (found := LSTM.match(name))), 0)
    if lstm % 3 != 1:
        raise WeightsError("these tensors are not an EnCodec: no LSTM behind its convolutions")
    places = range(3, lstm, 3)
    last = lstm + 2
    num_lstm_layers = sum(bool(LSTM.match(name)) for name in tensors)
    held = sum(bool(EMBED.fullmatch(name)) for name in tensors)
    if held < num_codebooks:
        raise WeightsError(f"{num_codebooks} codebooks are asked for, and these tensors have {held}")
    return EncodecConfig(
        shape("encoder.layers.0.conv.weight")[0],
        tuple(shape(f"encoder.layers.{place}.conv.weight")[-1] // 2 for place in places),
        shape(f"encoder.layers.{last}.conv.weight")[0],
        num_lstm_layers,
        num_codebooks,
        shape("quantizer.layers.0.codebook.embed")[0],
    )


def _checkpoint(weights: str | None) -> Path:
    if weights is None:
        try:
            return fetch(WEIGHTS.checkpoint, local_files_only=True)
        except WeightsError:
            return fetch(WEIGHTS.checkpoint)
    path = Path(weights).expanduser()
    if path.is_dir():
        return find_checkpoint(path, WEIGHTS.checkpoint.filename)
    if path.is_file():
        return path
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", weights) and path.suffix not in (".safetensors", ".bin", ".pt"):
        return fetch(OfficialFile(weights, WEIGHTS.checkpoint.filename))
    raise WeightsError(
        f"weights='{weights}' is no file or folder here and no Hub id (owner/name). Leave it away for the official "
        "weights of EnCodec, or use 'random'."
    )


def _teacher(request: TeacherRequest) -> EncodecTeacher:
    request.refuse(NAME, "backbone", "number")
    if request.sample_rate_hz != SAMPLE_RATE_HZ:
        raise ValueError(
            f"{NAME} hears {SAMPLE_RATE_HZ} Hz, and the corpus has {request.sample_rate_hz} Hz. Build one with "
            f"--rate {SAMPLE_RATE_HZ}."
        )
    model = load_encodec(request.weights).to(request.device)
    return EncodecTeacher(model)


TEACHERS.add(
    NAME,
    TeacherKind(
        f"EnCodec, {NUM_CODEBOOKS} codebooks of 1,024 at 75 Hz (MERT-v1); weights {WEIGHTS.checkpoint.repo_id}",
        teacher=_teacher,
    ),
)
