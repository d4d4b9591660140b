"""MusicHuBERT and its speech original: the HuBERT layout at 16 kHz.

Hsu et al. 2021, "HuBERT: Self-Supervised Speech Representation Learning by Masked Prediction of Hidden Units"; for
music, chapter 4 of Yuan's thesis (see `mert.THESIS`).

MusicHuBERT was never released. Weights of one's own load as `load_backbone("musichubert", PATH)`, under the names of
Hugging Face or of fairseq, whose heads of pre-training are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from audiation.backbones.base import BACKBONES, BackboneSpec, Pretraining
from audiation.backbones.hubert_config import BASE
from audiation.backbones.hubert_layout import HubertBackbone, build, from_published, outline
from audiation.backbones.mert import THESIS
from audiation.weights import OfficialFile, OfficialWeights

SAMPLE_RATE_HZ = 16_000
CONTEXT_SECONDS = 15.625  # crops of 250,000 samples in the recipe of HuBERT base
MUSIC, SPEECH = "musichubert", "hubert-base-ls960"
_NOTES = (
    "Never padded: the group norm runs over the whole clip. Keep one chunk length (15.6 s, as pre-training cropped).",
    "Clips are brought to zero mean and unit variance, which pre-training did not do: it matters for quiet clips only.",
)


def from_own_file(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], num_layers: int | None = None
) -> HubertBackbone:
    """A MusicHuBERT from somebody's own tensors, see `hubert_layout.from_published`.

    config: fields that differ from those of HuBERT base; empty where a checkpoint lies there without a config.
    Raises ValueError as `hubert_layout.from_published`.
    """
    return from_published(
        tensors,
        BASE | dict(config),
        num_layers,
        name=MUSIC,
        sample_rate_hz=SAMPLE_RATE_HZ,
        max_seconds=CONTEXT_SECONDS,
    )


# Names of thesis tables 4.1, 4.2 and 5.1: one run, 2,000 clusters of 39 coefficients.
BACKBONES.add(
    MUSIC,
    BackboneSpec(
        MUSIC,
        "1k h of music, K-means of MFCC as teacher; the user's own weights only",
        build=partial(build, BASE, MUSIC, SAMPLE_RATE_HZ, max_seconds=CONTEXT_SECONDS),
        from_published=from_own_file,
        weights_licence="never released",
        published_names=("k=2000 MFCC dim=39", "HuBERT-base^music", "MuHubert base"),
        notes=(
            *_NOTES,
            "Weights are whose you take them from, and so are their licence and training.",
            "Files of fairseq: final_proj, label_embs_concat and encoder_cqt_model are left out.",
        ),
        pretraining=Pretraining(
            "a private collection of 30 s excerpts of pop songs and instrumental music; that of the model in the "
            "thesis, not of weights that somebody else gives",
            (),
            1_000,
        ),
        paper=THESIS,
        outline=partial(outline, BASE, MUSIC, SAMPLE_RATE_HZ, max_seconds=CONTEXT_SECONDS),
    ),
)
# Names of thesis tables 4.1 and 4.2.
BACKBONES.add(
    SPEECH,
    BackboneSpec(
        SPEECH,
        "HuBERT base, on speech: a baseline",
        build=partial(build, BASE, SPEECH, SAMPLE_RATE_HZ, max_seconds=CONTEXT_SECONDS),
        from_published=partial(
            from_published, name=SPEECH, sample_rate_hz=SAMPLE_RATE_HZ, max_seconds=CONTEXT_SECONDS
        ),
        weights=OfficialWeights(
            checkpoint=OfficialFile("facebook/hubert-base-ls960", "pytorch_model.bin"),
            config=OfficialFile("facebook/hubert-base-ls960", "config.json"),
            licence="Apache-2.0",
            licence_note="See https://huggingface.co/facebook/hubert-base-ls960.",
            default_config=BASE,
        ),
        weights_licence="Apache-2.0",
        published_parameters=94_371_712,
        published_names=("Hubert base", "Hubert"),
        notes=(
            *_NOTES,
            "masked_spec_embed of the published file is for pre-training only and not registered.",
        ),
        pretraining=Pretraining("LibriSpeech, read English speech", ("librispeech",), 960),
        paper="Hsu et al.: HuBERT, IEEE/ACM TASLP 2021, arXiv 2106.07447",
        outline=partial(outline, BASE, SPEECH, SAMPLE_RATE_HZ, max_seconds=CONTEXT_SECONDS),
    ),
)
