"""What a number was made with: the code, the locked packages, the machine."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import math
import os
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

LOCK_NAME = "requirements.lock"
INSTALLED_LOCK_NAME = "audiation-requirements.lock"  # in sys.prefix: the lock an image was installed from
X86_INSTRUCTION_SETS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16")
ARM_INSTRUCTION_SETS = ("asimd", "sve", "bf16", "i8mm")
# They decide which kernels run, and so the last bits of a sum.
INSTRUCTION_SETS = (*X86_INSTRUCTION_SETS, *ARM_INSTRUCTION_SETS)
SYSCTL_NAMES = {  # macOS -> the name Linux has for it
    "hw.optional.avx2_0": "avx2",
    "hw.optional.fma": "fma",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
}
BYTES_PER_GIB = 2**30
COMMAND_SECONDS = 2.0  # a command that says nothing by then is given up
PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def current_hardware(device: str = "cpu") -> dict[str, Any]:
    """The machine that computes on `device`. Never raises, and names no machine, path or person.

    device: name of the GPU; "cpu", or the device as given where it cannot be asked.
    gpus: 1 on a CUDA device, else 0. gpu_memory_gib: only there.
    cpu: the processor's name, or its architecture where the system does not tell.
    cores: that this process may use; a container's share can be a fraction.
    torch_threads: of one operation on the CPU.
    memory_gib: of the machine, or of the container where that has less; None: unknown.
    instruction_sets: those of `INSTRUCTION_SETS` that the processor has.
    torch_instruction_set: what torch's own kernels are chosen for, "AVX512" say.
    """
    processor = _processor()
    return {
        **_accelerator(device),
        "cpu": processor.name,
        "cores": _usable_cores(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "instruction_sets": list(processor.instruction_sets),
        "torch_instruction_set": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "system": platform.system(),
    }


def current_code() -> dict[str, str]:
    """Which code is running. Never raises.

    version, sources_sha256: of the package; the hash is over every source file and its name.
    python, torch: versions; torch's tells the build ("2.13.0+cpu").
    git_commit, git_tree: only where the package runs from a checkout of this project and git answers. "clean": the
        sources and pyproject.toml are those of the commit, "changed": they are not.
    lock: "matches": every package of requirements.lock is installed in the version it has there. Else "not locked",
        and why. Versions are compared, not files: only an installation with --require-hashes has checked those.
    lock_sha256: of the lock; only where it matches.
    """
    return {
        "version": _package_version(),
        "sources_sha256": sources_sha256(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **_git_state(Path(__file__).parent),
        **_lock_state(_lock_path(Path(__file__).parent)),
    }


# Code --------------------------------------------------------------------------------------------------


def _package_version() -> str:
    try:
        return importlib.metadata.version("audiation")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@functools.cache
def sources_sha256() -> str:
    """Of every source file of the package, with its name."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def _checkout(package: Path) -> Path | None:
    """The clone that holds the package's folder as src/audiation. An installed package lies in no clone, even where
    its environment lies in one."""
    root = package.parent.parent
    if package != root / "src" / "audiation":
        return None
    try:
        project = tomllib.loads(_read(root / "pyproject.toml")).get("project", {})
    except tomllib.TOMLDecodeError:
        return None
    return root if project.get("name") == "audiation" else None


@functools.cache
def _git_state(package: Path) -> dict[str, str]:
    """Commit, and whether the sources are those of it; empty where there is no checkout or git does not answer."""
    root = _checkout(package)
    # A folder above may be under git as well, for other things.
    if root is None or not (root / ".git").exists():
        return {}
    answer = _output(
        *("git", "--no-optional-locks", "-c", "core.fsmonitor=false", "status", "--porcelain=v2", "--branch"),
        *("--untracked-files=all", "--", "src/audiation", "pyproject.toml"),
        folder=root,
        without="GIT_",  # GIT_DIR would point to another repository
    )
    commit = re.search(r"^# branch\.oid ([0-9a-f]{40,64})$", answer, re.MULTILINE)
    if commit is None:
        return {}
    changed = any(line and not line.startswith("#") for line in answer.splitlines())
    return {"git_commit": commit[1], "git_tree": "changed" if changed else "clean"}


def _lock_path(package: Path) -> Path | None:
    """The lock that this environment was installed from, else that of the checkout."""
    stamp = Path(sys.prefix) / INSTALLED_LOCK_NAME
    if stamp.is_file():
        return stamp
    root = _checkout(package)
    return root / LOCK_NAME if root is not None and (root / LOCK_NAME).is_file() else None


@functools.cache
def _lock_state(path: Path | None) -> dict[str, str]:
    text = _read(path) if path is not None else ""
    locked = locked_versions(text)
    if path is None or not locked:
        return {"lock": f"not locked; no {LOCK_NAME} beside this installation"}
    installed = _installed_versions()
    differing = [
        f"{name} {installed.get(name, 'not installed')} (lock {version})"
        for name, version in locked.items()
        if installed.get(name) != version
    ]
    if differing:
        return {"lock": "not locked; differs in: " + ", ".join(differing)}
    return {"lock": "matches", "lock_sha256": hashlib.sha256(text.encode()).hexdigest()}


def locked_versions(text: str) -> dict[str, str]:
    """Text of a requirements or constraints file -> the versions it pins, by name, both in their normal form."""
    pins = re.findall(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", text, re.MULTILINE)
    return {_normal_name(name): _normal_version(version) for name, version in pins}


def _installed_versions() -> dict[str, str]:
    """Of all packages that can be imported, from the names of their metadata folders: opening each took 50 ms."""
    found: dict[str, str] = {}
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except OSError:  # a zip file, or nothing
            continue
        for entry in names:
            name, _, version = entry.removesuffix(".dist-info").partition("-")
            if entry.endswith(".dist-info") and version:
                # The first on the path is the one imported.
                found.setdefault(_normal_name(name), _normal_version(version))
    return found


def _normal_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _normal_version(version: str) -> str:
    """2024.07.04 is 2024.7.4: the same release, written by its author and by an installer."""
    return re.sub(r"(?<![0-9A-Za-z])0+(?=\d)", "", version.lower())


# Hardware ----------------------------------------------------------------------------------------------


class _Processor(NamedTuple):
    name: str
    instruction_sets: tuple[str, ...]


@functools.cache
def _processor() -> _Processor:
    fields, present = {}, set()
    if platform.system() == "Darwin":
        # It leaves out the names it does not know.
        answer = _output("sysctl", "machdep.cpu.brand_string", *SYSCTL_NAMES)
        fields = _fields(answer.splitlines())
        present = {ours for theirs, ours in SYSCTL_NAMES.items() if fields.get(theirs) == "1"}
    else:
        fields = _fields(_first_block(PROC / "cpuinfo"))
        present = set((fields.get("flags") or fields.get("Features") or "").split())
    name = fields.get("model name") or fields.get("machdep.cpu.brand_string") or platform.machine()
    return _Processor(" ".join(name.split()), tuple(i for i in INSTRUCTION_SETS if i in present))


def _fields(lines: list[str]) -> dict[str, str]:
    """'model name : X' -> {"model name": "X"}."""
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _first_block(path: Path) -> list[str]:
    """Up to the first empty line: of the first core, the others say the same and take their time on a large machine."""
    lines = []
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if not line.strip():
                    break
                lines.append(line)
    except OSError:
        pass
    return lines


def _accelerator(device: str) -> dict[str, Any]:
    if not device.startswith("cuda"):
        return {"device": device, "gpus": 0}
    try:
        properties = torch.cuda.get_device_properties(device)
    except (RuntimeError, AssertionError, ValueError):  # no driver, no CUDA build, no such GPU
        return {"device": device, "gpus": 1}
    memory_gib = round(properties.total_memory / BYTES_PER_GIB, 1)
    return {"device": properties.name, "gpus": 1, "gpu_memory_gib": memory_gib}


def _usable_cores() -> float:
    """int where it is a whole number."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [float(allowed)]
    pairs = [text.split() for text in _cgroup_values("cpu", "cpu.max")]
    pairs += [
        [quota.strip(), period.strip()]
        for quota, period in zip(
            _cgroup_values("cpu", "cpu.cfs_quota_us"), _cgroup_values("cpu", "cpu.cfs_period_us"), strict=True
        )
    ]
    for pair in pairs:
        if len(pair) == 2 and all(part.isdigit() and int(part) for part in pair):  # "max" and -1: no limit
            quotas.append(int(pair[0]) / int(pair[1]))
    cores = min(quotas)
    return int(cores) if cores.is_integer() else round(cores, 2)


def _memory_gib() -> float | None:
    try:
        sizes = [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    except (AttributeError, OSError, ValueError):  # the system does not know the question
        sizes = [math.inf]
    for name in ("memory.max", "memory.limit_in_bytes"):
        limits = (text.strip() for text in _cgroup_values("memory", name))
        sizes += [float(limit) for limit in limits if limit.isdigit()]
    smallest = min(sizes)
    return round(smallest / BYTES_PER_GIB, 1) if math.isfinite(smallest) else None


def _cgroup_values(controller: str, file_name: str) -> Iterator[str]:
    """Text of a limit in this process's control group and all that hold it; "" where it has no such file.

    Version 2 has one tree ("0::/path"), version 1 one for each controller ("4:cpu,cpuacct:/path").
    """
    for line in _read(PROC / "self" / "cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUPS / controller if controllers else CGROUPS
        here = root / path.lstrip("/")
        for folder in (here, *here.parents):
            yield _read(folder / file_name)
            if folder == root:
                break


def _read(path: Path) -> str:
    """ "" where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _output(*command: str, folder: Path | None = None, without: str | None = None) -> str:
    """What a command prints; "" where it is not there, fails to start or takes too long.

    without: prefix of environment variables that the command does not see.
    """
    environment = {k: v for k, v in os.environ.items() if without is None or not k.startswith(without)}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", errors="replace")
