"""Music2Vec and its speech original: the layout of data2vec-audio.

Li et al. 2022, "MAP-Music2Vec: A Simple and Effective Baseline for Self-Supervised Music Audio Representation
Learning"; Baevski et al. 2022, "data2vec: A General Framework for Self-supervised Learning in Speech, Vision and
Language".

Layer norms after all seven convolutions of the stem, five positional convolutions (`positional_stack.py`), post-norm
blocks. No norm runs over time, so clips of several lengths can share a batch: give `num_samples`. Every clip is brought
to zero mean and unit variance over its own samples, as the models were trained (MERT spec, sections 1.2, 2.2, 6.2).
"""

from __future__ import annotations

from functools import partial

from audiation.backbones.base import BACKBONES, BackboneSpec, Pretraining
from audiation.backbones.hubert_config import BASE
from audiation.backbones.hubert_layout import build, from_published, outline
from audiation.weights import OfficialFile, OfficialWeights

SAMPLE_RATE_HZ = 16_000
PARAMETERS = 93_164_288
DATA2VEC = BASE | {
    "feat_extract_norm": "layer",
    "num_conv_pos_embeddings": 5,
    "conv_pos_kernel_size": 19,
    "feat_proj_dropout": 0.0,
}
_NOTES = (
    "Clips of several lengths can share a batch (num_samples): no norm runs over time.",
    "A padded clip gives what it gives alone; in the published code padding reaches into the end of a clip.",
    "masked_spec_embed of the published file is for pre-training only and not registered.",
)


def _register(
    name: str,
    repo_id: str,
    licence: str,
    *,
    summary: str,
    max_seconds: float,
    commercial_use: bool,
    published_names: tuple[str, ...],
    pretraining: Pretraining,
    paper: str,
) -> None:
    weights = OfficialWeights(
        checkpoint=OfficialFile(repo_id, "pytorch_model.bin"),
        config=OfficialFile(repo_id, "config.json"),
        licence=licence,
        licence_note=f"See https://huggingface.co/{repo_id}.",
        default_config=DATA2VEC,
    )
    spec = BackboneSpec(
        name,
        summary,
        build=partial(build, DATA2VEC, name, SAMPLE_RATE_HZ, max_seconds=max_seconds),
        from_published=partial(
            from_published, name=name, sample_rate_hz=SAMPLE_RATE_HZ, max_seconds=max_seconds
        ),
        weights=weights,
        weights_licence=licence,
        commercial_use=commercial_use,
        published_parameters=PARAMETERS,
        published_names=published_names,
        notes=(
            *_NOTES,
            f"Trained on crops of {max_seconds:g} s; longer clips are cut into these, shorter ones taken as they are.",
        ),
        pretraining=pretraining,
        paper=paper,
        outline=partial(outline, DATA2VEC, name, SAMPLE_RATE_HZ, max_seconds=max_seconds),
    )
    BACKBONES.add(name, spec)


# Names of thesis tables 4.1, 4.3, 5.1 and 6.2: the release is the "vanilla" run, 30 s crops and the top 8 layers.
_register(
    "music2vec",
    "m-a-p/music2vec-v1",
    "CC-BY-NC-4.0",
    summary="1k h of music, regresses its own slow copy (data2vec)",
    max_seconds=30.0,
    commercial_use=False,
    published_names=("Music2vec vanilla", "vanilla", "data2vec-base^music", "Music2Vec"),
    pretraining=Pretraining(
        "a private collection of 30 s excerpts of pop songs and instrumental music", (), 1_000
    ),
    paper="Li et al.: MAP-Music2Vec, ISMIR late-breaking demo 2022, arXiv 2212.02508",
)
_register(
    "data2vec-audio-base",
    "facebook/data2vec-audio-base",
    "Apache-2.0",
    summary="as music2vec, on speech: a baseline",
    max_seconds=20.0,
    commercial_use=True,
    published_names=("data2vec audio base", "data2vec"),
    pretraining=Pretraining("LibriSpeech, read English speech", ("librispeech",), 960),
    paper="Baevski et al.: data2vec, ICML 2022, arXiv 2202.03555",
)
