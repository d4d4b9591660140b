"""What a number was made with: the code, the locked packages, the machine."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch


def current_hardware(device: str = "cpu") -> dict[str, Any]:
    """The machine that computes on `device`: processor, cores, memory, GPU.

    gpus: 1 on a CUDA device, else 0.
    """
    on_gpu = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "gpus": 1 if on_gpu else 0,
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "system": platform.system(),
    }


@functools.cache
def _sources_sha256() -> str:
    """Of every source file of the package, with its name."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def current_code() -> dict[str, str]:
    """Which code is running: version, and a hash of the package's sources."""
    return {"version": importlib.metadata.version("audiation"), "sources_sha256": _sources_sha256()}
