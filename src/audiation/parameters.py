"""How many parameters each method trains, beside the numbers that were printed (PETL paper, table 3)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from audiation.backbones import BACKBONES
from audiation.methods import METHODS, ParameterCount, format_method, inject, parse_method
from audiation.published import published_rows

# The order of the paper's table. Prefix with 64 tokens is what its number for MERT needs (D36).
TABLE3_METHODS = ("finetune", "probe", "adapter", "prompt", "prefix", "bitfit", "ssf", "lora")
TABLE3_PRESETS = {("mert-v1-95m", "prefix"): "prefix:num_tokens=64"}
TABLE3_BACKBONES = ("musicfm-msd", "mert-v1-95m")
TABLE3_LAYERS = 6
_PRINTED_NAMES = {"finetune": "FT", "probe": "Probing", "adapter": "Adapter", "prompt": "Prompt"}
_PRINTED_NAMES |= {"prefix": "Prefix", "bitfit": "BitFit", "ssf": "SSF", "lora": "LoRA"}


@dataclass(frozen=True)
class CountRow:
    """printed: what the paper's table has for it, as printed; None where it has nothing."""

    backbone: str
    method: str
    count: ParameterCount
    printed: str | None

    @property
    def agrees(self) -> bool | None:
        """Whether the count rounds or truncates to what is printed; None where nothing is."""
        if self.printed is None:
            return None
        if self.printed.endswith("M"):
            millions = self.count.published_layout / 1e6
            return int(self.printed[:-1]) in (int(millions), round(millions))
        return int(self.printed) == self.count.published_layout


def count_parameters(
    backbones: Sequence[str] = TABLE3_BACKBONES,
    methods: Sequence[str] | None = None,
    num_layers: int | None = TABLE3_LAYERS,
) -> list[CountRow]:
    """A row per backbone and method, in the order of table 3.

    Args:
        methods: short forms, like "lora:rank=8"; None: all, as in table 3.
        num_layers: first blocks of every backbone; None: all.

    Raises:
        UnknownNameError, ValueError: no such backbone, method or number of layers; a backbone without encoder.
    """
    rows = []
    for backbone in backbones:
        plain = BACKBONES[backbone].build(num_layers=num_layers).to("meta")  # shapes are all that counts
        plain.name = backbone
        for name in methods or [*TABLE3_METHODS, *(m for m in METHODS if m not in TABLE3_METHODS)]:
            text = TABLE3_PRESETS.get((backbone, name), name) if methods is None else name
            method = parse_method(text)
            count = inject(copy.deepcopy(plain), method)
            printed = _printed(backbone, format_method(method), num_layers)
            rows.append(CountRow(backbone, format_method(method), count, printed))
    return rows


def _printed(backbone: str, method: str, num_layers: int | None) -> str | None:
    name, _, choices = method.partition(":")
    if num_layers != TABLE3_LAYERS or backbone not in TABLE3_BACKBONES or name not in _PRINTED_NAMES:
        return None
    if choices != TABLE3_PRESETS.get((backbone, name), name).partition(":")[2]:
        return None
    system = BACKBONES[backbone].published_names[-1]
    for row in published_rows("params", "none", "trainable_params", [system]):
        if row.method == _PRINTED_NAMES[name]:
            number = int(row.value)
            return f"{number // 10**6}M" if name == "finetune" else str(number)
    return None
