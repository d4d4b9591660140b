"""Every backbone as an audio encoder of mteb (2.x): `mteb.evaluate(MtebAudioEncoder("musicfm-msd:layer=7"), tasks)`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from audiation.backbones import BACKBONES
from audiation.interop.embedder import Choices, ClipEmbedder


class MtebAudioEncoder:
    """What `mteb.models.EncoderProtocol` asks for, without inheriting from it: mteb is imported for the description of
    the model alone, when it is asked for.

    Clips are embedded one at a time, at their own length: nothing is padded, so no number depends on a batch.

    Args:
        model_name: the text that names a model (`ClipEmbedder`), like "musicfm-msd:layer=7".
        revision: there is none but the weights' hash, so it has to be None or that hash.
        device: torch device; None: the CPU.

    Raises:
        ValueError: another revision, and what `ClipEmbedder` refuses.
    """

    def __init__(self, model_name: str, revision: str | None = None, *, device: str | None = None) -> None:
        self.model = ClipEmbedder(model_name).to(device or "cpu")
        weights_hash = self.model.backbone.weights_hash
        if revision not in (None, weights_hash):
            raise ValueError(
                f"{self.model.name} has the weights {weights_hash} here, not {revision}. Leave the revision away, or "
                "choose the weights in the name: NAME:weights=FILE."
            )

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any = None,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        **options: Any,  # batch_size, show_progress_bar and others of mteb's, of which none changes a vector
    ) -> np.ndarray:
        """Batches of clips -> `(N, D)` float32.

        Args:
            inputs: mteb's DataLoader: batches with a list under "audio", whose items have "array" (`(S,)` or
                `(channels, S)`) and "sampling_rate".

        Raises:
            ValueError: a batch without audio, or with another modality beside it.
        """
        vectors = [self._one(item) for batch in inputs for item in _audio_of(batch)]
        return np.stack(vectors) if vectors else np.zeros((0, self.model.dim), np.float32)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines, `(N1, N2)`."""
        return _unit(embeddings1) @ _unit(embeddings2).t()

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines of corresponding vectors, `(N,)`."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(-1)

    @cached_property
    def mteb_model_meta(self) -> Any:
        """What mteb writes beside results: an `mteb.models.ModelMeta`. ImportError where mteb is not installed."""
        from mteb.models import ModelMeta

        backbone, spec = self.model.backbone, BACKBONES[self.model.name]
        num_parameters = sum(p.numel() for p in backbone.parameters())
        num_bytes = sum(p.numel() * p.element_size() for p in backbone.parameters())
        changed = {
            field.name: getattr(self.model.choices, field.name)
            for field in dataclasses.fields(Choices)
            if getattr(self.model.choices, field.name) != field.default
        }
        return ModelMeta(
            loader=None,
            name=f"audiation/{self.model.name.replace('/', '-')}",
            revision=backbone.weights_hash,
            release_date=None,
            languages=None,
            n_parameters=num_parameters,
            n_embedding_parameters=0,
            memory_usage_mb=num_bytes / 2**20,
            max_tokens=None,
            embed_dim=backbone.dim,
            license=None,
            open_weights=spec.weights is not None or num_parameters == 0,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            similarity_fn_name="cosine",
            use_instructions=False,
            training_datasets=None,
            modalities=["audio"],
            experiment_kwargs=changed,
        )

    def _one(self, item: Mapping[str, Any]) -> np.ndarray:
        samples = np.asarray(item["array"], np.float32)
        mono = samples.mean(axis=0) if samples.ndim > 1 else samples
        device = next((t.device for t in self.model.parameters()), torch.device("cpu"))
        clip = torch.from_numpy(np.ascontiguousarray(mono)).to(device)
        return self.model.scene(clip[None], int(item["sampling_rate"]))[0].cpu().numpy()


def _audio_of(batch: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    others = sorted({"text", "image", "video"} & batch.keys())
    if "audio" not in batch or others:
        there = ", ".join(sorted(batch)) or "nothing"
        raise ValueError(
            f"these models hear audio and nothing else; a batch has {there}. Choose tasks of audio alone."
        )
    return list(batch["audio"])


def _unit(vectors: Any) -> Tensor:
    return F.normalize(torch.as_tensor(vectors, dtype=torch.float32), dim=-1)
