"""LoRA in the directory format of Hugging Face `peft`, to and fro.

    adapter_config.json         rank, scale, and which modules of the published implementation have an update
    adapter_model.safetensors   their matrices, under the names of the published implementation

So an adapter that was trained here runs in the published implementation, and the reverse. The format has no place for
the head: keep that with `adapters.save_adapter`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from audiation.backbones import Backbone
from audiation.backbones.base import OfficialModule
from audiation.backbones.encoder import Block, Linear
from audiation.methods import ParameterCount, format_method, inject
from audiation.methods.base import sockets_of
from audiation.methods.lora import LoRA, LowRankUpdate
from audiation.weights import WeightsError, check_tensors, read_checkpoint, read_config

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
PREFIX = "base_model.model."

# Fields of a config with no bearing on the numbers that a trained LoRA computes; where updates are is said by the
# tensors. Any other field that this page does not know has to be empty.
_IMMATERIAL = {
    *("auto_mapping", "base_model_name_or_path", "peft_version", "revision", "task_type", "inference_mode"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("lora_dropout", "megatron_core", "qalora_group_size", "ensure_weight_tying"),
}
_EMPTY: tuple[Any, ...] = (None, False, {}, [])


class PeftFormatError(ValueError):
    """A directory of `peft` that cannot be written or read. Names the file, the reason, and what to do next."""


def save_peft(backbone: Backbone, directory: str | os.PathLike[str]) -> Path:
    """Write the LoRA of a backbone so that `peft.PeftModel.from_pretrained(official_model, directory)` reads it.

    `lora_alpha` is scale times rank. Modules are named in full, so a model with more blocks gets no more updates.

    Raises:
        PeftFormatError: another method than LoRA or none, numbers that are not finite, or a directory that holds
            something else.
        ValueError: no published implementation of the backbone is known, or it has no encoder.
    """
    directory, method = Path(directory), backbone.adapted_with
    if not isinstance(method, LoRA):
        found = "is not adapted" if method is None else f"is adapted with '{format_method(method)}'"
        raise PeftFormatError(f"{backbone.name} {found}; what has the format of peft is 'lora'")
    tensors, paths = {}, []
    for place in _places(backbone):
        update = place.linear.adaptation
        if isinstance(update, LowRankUpdate):
            paths.append(place.official.path)
            for name, matrix in (("A", update.A), ("B", update.B)):
                values = matrix.detach().to("cpu", copy=True)
                tensors[place.key(name)] = values.unsqueeze(-1) if place.official.is_convolution else values
    if bad := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise PeftFormatError(
            f"'{bad[0]}' holds numbers that are not finite. Take an earlier state of the training."
        )
    if directory.is_dir() and not (directory / CONFIG).exists() and any(directory.iterdir()):
        raise PeftFormatError(
            f"{directory} holds something else. Name a new directory, or one of peft to replace."
        )
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / TENSORS, safetensors.torch.save(tensors, metadata={"format": "pt"}))
    _write(directory / CONFIG, (json.dumps(_config(backbone, method, paths), indent=2) + "\n").encode())
    return directory


@torch.inference_mode(mode=False)  # as `inject`
def load_peft(backbone: Backbone, directory: str | os.PathLike[str]) -> ParameterCount:
    """Put a LoRA that `peft` wrote into a plain backbone, in place, as `methods.inject` does.

    Its dropout does not come along: there is none here. A backbone that cannot take the LoRA stays plain.

    Raises:
        PeftFormatError: a pickle, another method, a kind of LoRA that is not here (DoRA, trained biases, ranks that
            differ between modules, updates in some blocks only), modules that this backbone does not have, wrong
            shapes, or damage.
        ValueError: the backbone is adapted already, or no published implementation of it is known.
    """
    directory = Path(directory)
    places = {place.official.path: place for place in _places(backbone)}
    config, path = _read_config(directory), directory / TENSORS
    if (directory / PICKLE).exists() and not path.exists():
        raise PeftFormatError(
            f"{directory / PICKLE} is a pickle, which may run code, and is not opened. If you trust it, load it with "
            "peft and write it with save_pretrained(directory, safe_serialization=True)."
        )
    _check_file(path)
    try:
        tensors = read_checkpoint(path)
    except WeightsError as error:
        raise PeftFormatError(str(error)) from error
    updated = [places[name] for name in _modules(tensors, places, path)]
    method = LoRA(config.rank, config.scale, _roles(updated, list(places.values()), path))
    expected = {}
    for place in updated:
        tail = (1,) if place.official.is_convolution else ()
        expected[place.key("A")] = (config.rank, place.linear.in_features, *tail)
        expected[place.key("B")] = (place.linear.out_features, config.rank, *tail)
    try:
        shapes = {name: torch.empty(shape, device="meta") for name, shape in expected.items()}
        check_tensors(tensors, shapes, f"a LoRA of rank {config.rank} of {backbone.name}")
    except WeightsError as error:
        raise PeftFormatError(f"cannot use {path}: {error}") from error
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise PeftFormatError(f"cannot use {path}: '{name}' is {tensor.dtype}, expected floating point")
        if not torch.isfinite(tensor).all():
            raise PeftFormatError(f"cannot use {path}: '{name}' holds numbers that are not finite")
    count = inject(backbone, method)
    with torch.no_grad():
        for place in updated:
            update = place.linear.adaptation
            assert isinstance(update, LowRankUpdate)
            update.A.copy_(tensors[place.key("A")].view_as(update.A))
            update.B.copy_(tensors[place.key("B")].view_as(update.B))
    return count


# Modules ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Place:
    """A linear map of the encoder: its role, and where it is in the published implementation."""

    role: str
    linear: Linear
    official: OfficialModule

    def key(self, matrix: str) -> str:
        """Name of its matrix "A" or "B" in a file."""
        return f"{PREFIX}{self.official.path}.lora_{matrix}.weight"


def _places(backbone: Backbone) -> Iterator[_Place]:
    """Every linear map that may have an update, in order."""
    names = {id(module): name for name, module in backbone.named_modules()}
    for block in sockets_of(backbone, "lora").blocks:
        assert isinstance(block, Block)
        for role, linears in block.linears().items():
            for linear in linears:
                yield _Place(role, linear, backbone.official_module(names[id(linear)]))


def _modules(tensors: Mapping[str, Tensor], places: Mapping[str, _Place], path: Path) -> list[str]:
    """Official paths of the modules with an update, in the order of the model."""
    found = set()
    for name in tensors:
        module = name.removeprefix(PREFIX).removesuffix(".lora_A.weight").removesuffix(".lora_B.weight")
        if module not in places:
            example = next(iter(places.values())).key("A")
            raise PeftFormatError(
                f"cannot use {path}: '{name}' belongs to no linear map that can have a LoRA here. Names look like "
                f"'{example}'; if the number of a layer is too high, load the backbone with more layers."
            )
        found.add(module)
    return [module for module in places if module in found]


def _roles(updated: list[_Place], every: list[_Place], path: Path) -> str:
    """As `LoRA.roles` has them. Refuses updates that are in some blocks only."""
    roles = list(dict.fromkeys(place.role for place in updated))
    have = {place.official.path for place in updated}
    for place in every:
        if place.role in roles and place.official.path not in have:
            raise PeftFormatError(
                f"cannot use {path}: '{place.official.path}' has no update, but others with its role ({place.role}) "
                "have. A LoRA here is in all blocks alike."
            )
    return "all" if roles == list(dict.fromkeys(place.role for place in every)) else "+".join(roles)


# adapter_config.json ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Config:
    rank: int
    scale: float


def _config(backbone: Backbone, method: LoRA, paths: list[str]) -> dict[str, Any]:
    hub, source, alpha = "hub:", backbone.weights_source, float(method.scale * method.rank)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": source.removeprefix(hub) if source.startswith(hub) else None,
        "inference_mode": True,
        "r": method.rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": 0.0,
        "target_modules": paths,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


def _read_config(directory: Path) -> _Config:
    path = directory / CONFIG
    _check_file(path)
    try:
        fields = read_config(path)
    except WeightsError as error:
        raise PeftFormatError(str(error)) from error
    if fields.get("peft_type") != "LORA":
        raise PeftFormatError(f"{path} is about {fields.get('peft_type')!r}; only 'LORA' can be read")
    # What these start with is not in the weights any more, unless it was taken out of the frozen ones (PiSSA, OLoRA).
    if (start := fields.get("init_lora_weights", True)) not in (True, False, "gaussian"):
        raise _unsupported(path, "init_lora_weights", start, "true, false or 'gaussian'")
    if (bias := fields.get("bias", "none")) != "none":
        raise _unsupported(path, "bias", bias, "'none'")
    read = {"peft_type", "r", "lora_alpha", "use_rslora", "init_lora_weights", "bias"}
    for name, value in fields.items():
        if name not in read | _IMMATERIAL and value not in _EMPTY:
            raise _unsupported(path, name, value, "nothing")
    rank, alpha, root = fields.get("r"), fields.get("lora_alpha"), fields.get("use_rslora", False)
    if type(rank) is not int or rank < 1:
        raise _unsupported(path, "r", rank, "a whole number >= 1")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < abs(alpha) < math.inf:
        raise _unsupported(path, "lora_alpha", alpha, "a finite number other than 0")
    if type(root) is not bool:
        raise _unsupported(path, "use_rslora", root, "true or false")
    return _Config(rank, alpha / (math.sqrt(rank) if root else rank))


def _unsupported(path: Path, name: str, value: Any, allowed: str) -> PeftFormatError:
    return PeftFormatError(f"{path} has {name} = {value!r:.80}; what can be read here has {allowed} there")


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise PeftFormatError(
            f"{path.parent} has no file {path.name}. Name the directory that peft's save_pretrained wrote."
        )


def _write(path: Path, data: bytes) -> None:
    """All or nothing."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)
