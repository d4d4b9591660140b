"""MERT: music models of the HuBERT layout, that of 330M with norms in front and a wider encoder.

Li et al. 2024, "MERT: Acoustic Music Understanding Model with Large-Scale Self-supervised Training".
"""

from __future__ import annotations

from functools import partial
from typing import Any

from audiation.backbones.base import BACKBONES, BackboneSpec, Pretraining
from audiation.backbones.hubert_config import BASE, HubertConfig
from audiation.backbones.hubert_layout import HubertBackbone, build, from_published, official_names, outline
from audiation.backbones.hubert_stem import unit_variance
from audiation.weights import OfficialFile, OfficialWeights

__all__ = ["Mert", "MertConfig", "build", "from_published", "official_names", "outline", "unit_variance"]

# MERT computes what HuBERT does; these are its names for it.
Mert, MertConfig = HubertBackbone, HubertConfig

LARGE = BASE | {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "do_stable_layer_norm": True,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
}
THESIS = "Yuan: Benchmarking music audio pre-trained representations, thesis, Carnegie Mellon University 2023"


def _register(
    name: str,
    repo_id: str,
    summary: str,
    sample_rate_hz: int,
    config: dict[str, Any],
    parameters: int,
    published_names: tuple[str, ...],
    pretraining: Pretraining,
) -> None:
    # Dropout rates differ between copies of a published config and do not touch inference: not checked.
    decisive = {key: value for key, value in config.items() if not key.endswith("_dropout")}
    weights = OfficialWeights(
        checkpoint=OfficialFile(repo_id, "pytorch_model.bin"),
        config=OfficialFile(repo_id, "config.json"),
        licence="CC-BY-NC-4.0",
        licence_note=f"See https://huggingface.co/{repo_id}.",
        default_config=decisive,
    )
    BACKBONES.add(
        name,
        BackboneSpec(
            name,
            summary,
            build=partial(build, config, name, sample_rate_hz),
            from_published=partial(from_published, name=name, sample_rate_hz=sample_rate_hz),
            weights=weights,
            weights_licence="CC-BY-NC-4.0",
            commercial_use=False,
            published_parameters=parameters,
            published_names=published_names,
            notes=(
                "Never padded: the group norm runs over the whole clip. Keep one chunk length (5 s).",
                "masked_spec_embed of the published file is for pre-training only and not registered.",
            ),
            pretraining=pretraining,
            paper=THESIS,
            outline=partial(outline, config, name, sample_rate_hz),
        ),
    )


# Names of the thesis, table 6.2; the PETL paper calls v1-95M just "MERT". Hours are those of its table 6.1, to which
# scores are compared there; MERT spec 1.1 has the other sources.
_register(
    "mert-v0",
    "m-a-p/MERT-v0",
    "1k h of music, K-means and CQT teachers",
    16000,
    BASE,
    94_371_712,
    ("MERT-v0-95M",),
    Pretraining("a private collection of 30 s excerpts of pop songs and instrumental music", (), 1_000),
)
_register(
    "mert-v0-public",
    "m-a-p/MERT-v0-public",
    "as mert-v0, on public music only",
    16000,
    BASE,
    94_371_712,
    ("MERT-v0-95M-public",),
    Pretraining(
        "Music4All (thesis); a mirror of the model adds a filtered part of FMA", ("music4all", "fma"), 910
    ),
)
_register(
    "mert-v1-95m",
    "m-a-p/MERT-v1-95M",
    "EnCodec and CQT teachers",
    24000,
    BASE,
    94_371_712,
    ("MERT-v1-95M", "MERT"),
    Pretraining(
        "recordings mined from the Internet; sources disagree: 1,000 hours (thesis, chapter 5), 17,000 (its table "
        "6.1), 20,000 (model card)",
        (),
        17_000,
    ),
)
_register(
    "mert-v1-330m",
    "m-a-p/MERT-v1-330M",
    "160k h, EnCodec and CQT teachers",
    24000,
    LARGE,
    315_428_992,
    ("MERT-v1-330M",),
    Pretraining("recordings mined from the Internet", (), 160_000),
)
