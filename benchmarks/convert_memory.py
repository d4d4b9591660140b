"""Peak memory of converting a full-width Jukebox prior from its official format to safetensors.

    python benchmarks/convert_memory.py [--blocks 4] [--folder DIR]

Writes a file of random values in torch's format before 1.6, with the names, shapes and dtypes of the 5b prior (piece by
piece, so that it needs no memory either), converts it in a process of its own, and prints the peak of that process.
With 4 blocks the two files take 1.7 GB of disk; --blocks 72 is the whole prior, 10.3 GB and as much again.
Linux only (reads VmHWM).
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

LIMIT_MIB = 1.5 * 1024
WIDTH, ATTENTION, CONTEXT, VOCABULARY = 4800, 1200, 8192, 2048
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
PIECE = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument(
        "--folder", type=Path, help="where the files go for a while (default: a temporary folder)"
    )
    parser.add_argument("--measure", nargs=2, metavar=("FILE", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source, out = Path(folder) / "prior_level_2.pth.tar", Path(folder) / "model.safetensors"
        layout = prior_layout(options.blocks)
        write_legacy(source, layout)
        command = [sys.executable, __file__, "--measure", str(source), str(out)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        largest = max(math.prod(shape) * dtype.itemsize for shape, dtype in layout.values())
        print(
            f"{options.blocks} blocks, {len(layout)} tensors, {source.stat().st_size / 2**20:,.0f} MiB, "
            f"the largest tensor {largest / 2**20:,.0f} MiB: {found['wall_seconds']:.1f} s"
        )
    print(
        f"peak {found['peak_mib']:,.0f} MiB, {found['peak_mib'] - found['before_mib']:,.0f} MiB of them added "
        f"(limit of the peak {LIMIT_MIB:,.0f} MiB)"
    )
    sys.exit(found["peak_mib"] >= LIMIT_MIB)


def measure(source: str, out: str) -> dict[str, float]:
    from audiation.checkpoints.conversion import convert

    before_mib, started = peak_mib(), time.perf_counter()
    convert(source, out)
    return {
        "before_mib": before_mib, "peak_mib": peak_mib(), "wall_seconds": time.perf_counter() - started,
    }  # fmt: skip


def peak_mib() -> float:
    """Largest resident set of this process so far."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def prior_layout(num_blocks: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Names, shapes and dtypes of the official prior, as the baselines spec, section 8.3, has them."""
    full, half = torch.float32, torch.float16
    layout: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "y_emb.bow_genre_emb.emb.weight": ((120, WIDTH), full),
        "y_emb.artist_emb.emb.weight": ((4111, WIDTH), full),
        "y_emb.total_length_emb.emb.weight": ((128, WIDTH), full),
        "y_emb.absolute_pos_emb.emb.weight": ((128, WIDTH), full),
        "y_emb.relative_pos_emb.emb.weight": ((128, WIDTH), full),
        "prior.x_emb.weight": ((VOCABULARY, WIDTH), full),
        "prior.pos_emb.pos_emb": ((CONTEXT, WIDTH), full),
    }
    linears = {
        "attn.c_attn": (WIDTH, 3 * ATTENTION),
        "attn.c_proj": (ATTENTION, WIDTH),
        "mlp.c_fc": (WIDTH, WIDTH),
        "mlp.c_proj": (WIDTH, WIDTH),
    }
    for block in range(num_blocks):
        prefix = f"prior.transformer._attn_mods.{block}"
        for norm in ("ln_0", "ln_1"):
            layout |= {f"{prefix}.{norm}.{leaf}": ((WIDTH,), full) for leaf in ("weight", "bias")}
        for name, shape in linears.items():
            layout[f"{prefix}.{name}.w"] = (shape, half)
            layout[f"{prefix}.{name}.b"] = (shape[1:], full)
    return layout | {"prior.x_out.weight": ((VOCABULARY, WIDTH), full)}


class _Storage:
    def __init__(self, key: str, kind: Any, num_elements: int) -> None:
        self.saved = ("storage", kind, key, "cuda:0", num_elements, None)


class _Tensor:
    """Pickles as torch pickles a tensor, without having one."""

    def __init__(self, storage: _Storage, shape: tuple[int, ...]) -> None:
        self.storage, self.shape = storage, shape

    def __reduce__(self) -> Any:
        stride = tuple(math.prod(self.shape[i + 1 :]) for i in range(len(self.shape)))
        arguments: tuple[Any, ...] = (self.storage, 0, self.shape, stride, False, collections.OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.saved if isinstance(obj, _Storage) else None


def write_legacy(path: Path, layout: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
    model, keys = collections.OrderedDict(), []
    for index, (name, (shape, dtype)) in enumerate(layout.items()):
        kind = torch.HalfStorage if dtype == torch.float16 else torch.FloatStorage
        keys.append(str(94_000_000_000_000 + index))
        model[name] = _Tensor(_Storage(keys[-1], kind, math.prod(shape)), shape)
    system = {
        "protocol_version": PROTOCOL,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    content = {"hps": {"prior_width": WIDTH}, "model": model, "opt": None, "step": 1}
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for value in (MAGIC, PROTOCOL, system, content, keys):
            _Pickler(file, protocol=2).dump(value)
        for shape, dtype in layout.values():
            _write_values(file, math.prod(shape), np.float16 if dtype == torch.float16 else np.float32, rng)


def _write_values(file: BinaryIO, count: int, dtype: Any, rng: np.random.Generator) -> None:
    file.write(count.to_bytes(8, "little"))
    for start in range(0, count, PIECE):
        values = rng.standard_normal(min(PIECE, count - start), dtype=np.float32) * 0.02
        file.write(values.astype(dtype).tobytes())


if __name__ == "__main__":
    main()
