"""What pre-training leaves and goes on from: the backbone as `load_backbone` reads it, and the objective beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from audiation.backbones import Backbone
from audiation.backbones.architecture import BuiltBackbone, published_config, published_tensors
from audiation.backbones.hubert_layout import HubertBackbone, official_names
from audiation.backbones.hubert_names import MASK_VECTOR
from audiation.backbones.musicfm import MusicFM
from audiation.backbones.musicfm_checkpoint import official_tensors
from audiation.cache import whole_file, write_text
from audiation.loading import published_checkpoint
from audiation.methods import merge
from audiation.objectives import Objective
from audiation.pretrain_run import PretrainRun
from audiation.weights import OWN_MARK, tensors_hash

BACKBONE, OBJECTIVE = "backbone", "objective.safetensors"


def save_pretrained(backbone: Backbone, objective: Objective, run: PretrainRun, directory: Path) -> str:
    """Write backbone and objective into the folder of a run, each file as a whole; the hash of the backbone's weights.

    The backbone is merged where a method was put into it and can be folded.
    """
    if backbone.adapted_with is not None:
        backbone = merge(backbone)
    tensors, config = published_form(backbone, objective, run)
    directory = directory / BACKBONE
    _save(tensors, directory / "model.safetensors")
    write_text(directory / "config.json", json.dumps(config, indent=1, sort_keys=True) + "\n")
    _save(objective.state_dict(), directory.parent / OBJECTIVE)
    return tensors_hash(backbone.state_dict())


def go_on(objective: Objective, run: PretrainRun) -> bool:
    """Heads, codebooks, mask vector and teacher of the run that the weights are from, where they are beside them and of
    the same form: true. Else the mask vector alone, from there or from official weights, where they have one that fits;
    all else starts fresh: false."""
    kept = None if run.weights is None else Path(run.weights).expanduser()
    mask = getattr(objective, "mask_vector", None)
    held: Tensor | None = None
    if kept is not None and kept.is_dir() and (kept.parent / OBJECTIVE).is_file():
        tensors, own = load_file(kept.parent / OBJECTIVE), objective.state_dict()
        if {n: t.shape for n, t in tensors.items()} == {n: t.shape for n, t in own.items()}:
            objective.load_state_dict(tensors)
            return True
        held = tensors.get("mask_vector")
    if isinstance(mask, nn.Parameter):
        if held is None:
            held = dict(published_checkpoint(run.backbone, run.weights)).get(MASK_VECTOR)
        if held is not None and held.shape == mask.shape:
            with torch.no_grad():
                mask.copy_(held)
    return False


def published_form(
    backbone: Backbone, objective: Objective, run: PretrainRun
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and config as `load_backbone` reads them. Raises ValueError where there is no such form."""
    if isinstance(backbone, BuiltBackbone):
        return published_tensors(backbone), published_config(backbone)
    state = backbone.state_dict()
    if isinstance(backbone, HubertBackbone):
        config = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(backbone.config).items()}
        tensors = {official: state[own] for official, own in official_names(backbone)}
        if isinstance(mask := getattr(objective, "mask_vector", None), nn.Parameter):
            tensors[MASK_VECTOR] = mask
        return tensors, config
    if type(backbone) is MusicFM:
        statistics = backbone.stem.statistics
        config = {"melspec_2048_mean": statistics.mean_db, "melspec_2048_std": statistics.std_db}
        return official_tensors(state, backbone.encoder.config), config
    raise ValueError(
        f"'{run.backbone}' cannot be written under published names, so it cannot be pre-trained here"
    )


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole_file(path) as stream:
        stream.write(save(whole, metadata=dict([OWN_MARK])))
