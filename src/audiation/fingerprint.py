"""Is this still the model it was? What a backbone computes on a fixed waveform, kept from its first load.

Weights can be right and the features wrong: a new torch, another machine, a changed front end. Fingerprints
are small JSON files, `fingerprints/<weights hash>.json` in the cache directory, and may be copied to other
machines. One costs a forward pass over 2 s of audio on the CPU in float32.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiation.backbones import Backbone
from audiation.cache import cache_dir, keep_text
from audiation.weights import WeightsError, read_config

FORMAT = 1
WAVEFORM_SECONDS = 2.0
TOLERANCE = 1e-3  # of a layer's standard deviation
VALUES_PER_LAYER = 8


def check_fingerprint(backbone: Backbone) -> None:
    """Compare what the backbone computes with its first load; the first load stores it.

    Raises:
        WeightsError: another result than before, or no finite one; tells what differs.
    """
    now = fingerprint(backbone)
    path = cache_dir("fingerprints", f"{backbone.weights_hash}.json")
    stored = read_config(path) if path.is_file() else None
    if stored is None or stored.get("format") != FORMAT:
        keep_text(path, json.dumps(now, indent=1))
        return
    try:
        differences, then = (
            compare_fingerprints(stored, now),
            f"torch {stored['torch']} on {stored['machine']}",
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} is not a fingerprint ({error!r}); delete it") from error
    if differences:
        raise WeightsError(
            f"{backbone.name} is not what it was when these weights were first loaded: "
            f"{'; '.join(differences[:3])}. Then: {then}; now: torch {now['torch']} on {now['machine']}. "
            f"If now is right, delete {path}."
        )


def fingerprint(backbone: Backbone) -> dict[str, Any]:
    """Statistics of every layer on the fixed waveform, as JSON: mean, standard deviation, a few values.

    Raises:
        WeightsError: values that are not finite.
    """
    seconds = min(WAVEFORM_SECONDS, backbone.max_seconds or WAVEFORM_SECONDS)
    num_samples = max(round(seconds * backbone.sample_rate_hz), backbone.min_samples)
    was_training = backbone.training
    with torch.inference_mode():
        states = backbone.eval()(fixed_waveform(num_samples, backbone.sample_rate_hz)[None])
    backbone.train(was_training)
    return {
        "format": FORMAT,
        "backbone": backbone.name,
        "weights_hash": backbone.weights_hash,
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "layers": {
            str(index): _layer_numbers(x_BTD[0].double(), f"{backbone.name}, layer {index}")
            for index, x_BTD in states.layers.items()
        },
    }


def compare_fingerprints(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, in words; empty where both are the same model.

    Numbers may differ by `TOLERANCE` of their layer's standard deviation.
    """
    if stored["backbone"] != now["backbone"]:
        return [f"the same tensors were loaded as {stored['backbone']} before, so one of the names is wrong"]
    if stored["layers"].keys() != now["layers"].keys():
        return [f"it had {len(stored['layers'])} layers and has {len(now['layers'])}"]
    differences = []
    for index, before in stored["layers"].items():
        after = now["layers"][index]
        pairs = [("mean", before["mean"], after["mean"]), ("deviation", before["std"], after["std"])]
        pairs += [("value", b, a) for b, a in zip(before["values"], after["values"], strict=True)]
        what, b, a = max(pairs, key=lambda pair: abs(pair[1] - pair[2]))
        if abs(b - a) > TOLERANCE * before["std"]:
            differences.append(f"layer {index}: {what} {b:.6g} is now {a:.6g}")
    return differences


def fixed_waveform(num_samples: int, sample_rate_hz: int) -> Tensor:
    """`(S,)` float32: a chord, a sweep and noise 40 dB below, from formulas that are equal everywhere.

    The noise fills every mel band: a logarithm of rounding errors would differ between machines.
    """
    n = np.arange(num_samples, dtype=np.uint64)
    seconds = n / sample_rate_hz
    chord = np.sum([np.sin(2 * np.pi * hz * seconds) for hz in (110.0, 220.0, 277.18, 329.63)], axis=0)
    sweep = np.sin(2 * np.pi * (50.0 + 900.0 * seconds) * seconds)
    bits = (n + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)  # an integer hash of the sample number
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    noise = (bits >> np.uint64(40)) / 2**23 - 1.0
    return torch.from_numpy((0.1 * chord + 0.2 * sweep + 0.005 * noise).astype(np.float32))


def _layer_numbers(x_TD: Tensor, where: str) -> dict[str, Any]:
    if not torch.isfinite(x_TD).all():
        raise WeightsError(f"{where}: infinite or undefined values, so these weights are damaged")
    frames = torch.linspace(0, x_TD.shape[0] - 1, VALUES_PER_LAYER).long()
    channels = torch.linspace(0, x_TD.shape[1] - 1, VALUES_PER_LAYER).long()
    numbers = [x_TD.mean(), x_TD.std(), *x_TD[frames, channels]]
    mean, std, *values = (float(f"{number.item():.9g}") for number in numbers)
    return {"mean": mean, "std": std, "values": values}
