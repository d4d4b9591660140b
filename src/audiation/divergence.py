"""What is kept of a step whose loss or gradient was not finite, so that it can be looked into.

    diverged/step-S.json                 step, seed, what happened, and every micro-batch it may come from
    diverged/step-S-index-I.safetensors  what was in micro-batch I

The same micro-batch gets the same random numbers again from `micro_batches.random_stream(device, seed, step, index)`,
with step and index from 0 as they stand in the file.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from audiation.micro_batches import Batches, Place

MAX_TENSOR_FILES = 16  # after a gradient that is not finite, all micro-batches of the step are suspects


def keep_evidence(
    directory: Path, batches: Batches, places: Sequence[Place], facts: Mapping[str, Any]
) -> Path:
    """Write down the micro-batches at these places, of one step; the path of the JSON file.

    Beyond the first `MAX_TENSOR_FILES` micro-batches, names are written, but no tensors.

    facts: seed, losses and the like, as JSON values.
    """
    directory.mkdir(parents=True, exist_ok=True)
    step = places[0].step
    suspects = []
    for number, place in enumerate(places):
        micro_batch = batches.micro_batch(place.step, place.index)
        tensors = {name: t.detach().cpu().contiguous() for name, t in _tensors(micro_batch, "")}
        suspect: dict[str, Any] = {
            "index": place.index,
            "names": [str(name) for name in getattr(micro_batch, "names", ())],
            "tensors": None,
            "not_finite": sorted(
                n for n, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()
            ),
        }
        if tensors and number < MAX_TENSOR_FILES:
            suspect["tensors"] = f"step-{step}-index-{place.index}.safetensors"
            save_file({n: t.clone() for n, t in tensors.items()}, directory / suspect["tensors"])
        suspects.append(suspect)
    path = directory / f"step-{step}.json"
    path.write_text(json.dumps({"step": step, **facts, "micro_batches": suspects}, indent=1) + "\n")
    return path


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Name -> tensor of what a micro-batch consists of: fields, entries, items, joined by dots."""
    if isinstance(value, Tensor):
        yield name or "tensor", value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name), _joined(name, field.name))
    elif isinstance(value, Mapping):
        for key in value:
            yield from _tensors(value[key], _joined(name, str(key)))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _tensors(item, _joined(name, str(number)))


def _joined(name: str, part: str) -> str:
    return f"{name}.{part}" if name else part
