"""What a result says about its code, its packages and its machine; and the lock and the image that fix them."""

import getpass
import hashlib
import json
import math
import re
import shlex
import socket
import subprocess
from pathlib import Path

import pytest
import torch

from audiation import provenance

ROOT = Path(__file__).resolve().parent.parent
BUILD_TOOLS = {"setuptools"}  # the lock has them, since building the wheel is locked as well
GIT = (
    *("git", "-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"),
    *("-c", "init.defaultBranch=main"),
)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """-> write(path below /proc or /sys/fs/cgroup, text)."""
    monkeypatch.setattr(provenance, "PROC", tmp_path / "proc")
    monkeypatch.setattr(provenance, "CGROUPS", tmp_path / "cgroup")
    provenance._processor.cache_clear()

    def write(path, text):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    yield write
    provenance._processor.cache_clear()


# Hardware ----------------------------------------------------------------------------------------------


def test_hardware_of_this_machine_is_whole_and_names_nobody():
    found = provenance.current_hardware()
    assert set(found) == {
        *("device", "gpus", "cpu", "cores", "torch_threads", "memory_gib", "instruction_sets"),
        *("torch_instruction_set", "machine", "system"),
    }
    assert found["device"] == "cpu" and found["gpus"] == 0 and found["cpu"]
    assert found["cores"] > 0 and found["memory_gib"] > 0
    assert found["torch_threads"] == torch.get_num_threads()
    assert set(found["instruction_sets"]) <= set(provenance.INSTRUCTION_SETS)
    text = json.dumps(found) + json.dumps(provenance.current_code())
    words = set(re.split(r"[^\w./-]+", text))
    assert not words & {socket.gethostname(), getpass.getuser(), str(Path.home()), str(ROOT)}
    assert str(ROOT) not in text


def test_processor_of_linux(machine, monkeypatch):
    monkeypatch.setattr(provenance.platform, "system", lambda: "Linux")
    core = "processor\t: 0\nmodel name\t: Some  CPU @ 2.00GHz\nflags\t\t: fpu fma avx2 amx_bf16 avx\n"
    machine("proc/cpuinfo", f"{core}\n{core.replace('Some', 'Other')}")
    assert provenance._processor() == ("Some CPU @ 2.00GHz", ("avx2", "fma", "amx_bf16"))


def test_processor_of_arm_linux_has_no_name_but_its_instructions(machine, monkeypatch):
    monkeypatch.setattr(provenance.platform, "system", lambda: "Linux")
    monkeypatch.setattr(provenance.platform, "machine", lambda: "aarch64")
    machine("proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd sve bf16\nCPU part\t: 0xd40\n")
    assert provenance._processor() == ("aarch64", ("asimd", "sve", "bf16"))


def test_processor_of_macos(machine, monkeypatch):
    asked = []

    def answer(*command, **_):
        asked.append(command)
        return "machdep.cpu.brand_string: Apple M2\nhw.optional.AdvSIMD: 1\nhw.optional.arm.FEAT_BF16: 0\n"

    monkeypatch.setattr(provenance.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(provenance, "_output", answer)
    assert provenance._processor() == ("Apple M2", ("asimd",))
    assert asked[0][:2] == ("sysctl", "machdep.cpu.brand_string")


def test_a_machine_that_tells_nothing_is_described_all_the_same(machine, monkeypatch):
    monkeypatch.setattr(provenance.platform, "machine", lambda: "riscv64")
    monkeypatch.delattr(provenance.os, "sysconf")
    found = provenance.current_hardware()
    assert (found["cpu"], found["instruction_sets"], found["memory_gib"]) == ("riscv64", [], None)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/a/b\n", "cgroup/a/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/a/b\n", "cgroup/a/b/cpu.max": "3200000 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/../..\n", "cgroup/cpu.max": "400000 100000\n"}, 4),
        (
            {
                "proc/self/cgroup": "5:memory:/a\n4:cpu:/a\n0::/\n",
                "cgroup/cpu/a/cpu.cfs_quota_us": "300000\n",
                "cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
                "cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        ({"proc/self/cgroup": "what is this\n"}, 8),
        ({}, 8),
    ],
)
def test_cores_are_those_that_are_allowed(machine, monkeypatch, files, cores):
    monkeypatch.setattr(provenance.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for path, text in files.items():
        machine(path, text)
    found = provenance.current_hardware()["cores"]
    assert found == cores and isinstance(found, int) == (cores != 1.5)


@pytest.mark.parametrize(
    ("files", "gib"),
    [
        ({"proc/self/cgroup": "0::/a\n", "cgroup/a/memory.max": "max\n", "cgroup/memory.max": "max\n"}, 16.0),
        ({"proc/self/cgroup": "0::/a\n", "cgroup/memory.max": f"{4 * 2**30}\n"}, 4.0),
        ({"proc/self/cgroup": "3:memory:/a\n", "cgroup/memory/a/memory.limit_in_bytes": f"{2**31}\n"}, 2.0),
        (
            {
                "proc/self/cgroup": "3:memory:/\n",
                "cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            16.0,
        ),
    ],
)
def test_memory_is_that_of_the_container(machine, monkeypatch, files, gib):
    pages = {"SC_PHYS_PAGES": 2**22, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(provenance.os, "sysconf", pages.__getitem__)
    for path, text in files.items():
        machine(path, text)
    assert provenance.current_hardware()["memory_gib"] == gib


def test_a_gpu_has_a_name_and_memory(monkeypatch):
    class Properties:
        name, total_memory = "NVIDIA RTX 3090", 24 * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    found = provenance.current_hardware("cuda:0")
    assert (found["device"], found["gpus"], found["gpu_memory_gib"]) == ("NVIDIA RTX 3090", 1, 24.0)


def test_a_gpu_that_cannot_be_asked_keeps_the_name_of_its_device(monkeypatch):
    def fail(device):
        raise RuntimeError("no driver")

    monkeypatch.setattr(torch.cuda, "get_device_properties", fail)
    found = provenance.current_hardware("cuda:7")
    assert (found["device"], found["gpus"]) == ("cuda:7", 1) and "gpu_memory_gib" not in found


# Code --------------------------------------------------------------------------------------------------


def test_code_of_this_process():
    code = provenance.current_code()
    assert {"version", "sources_sha256", "python", "torch", "lock"} <= set(code)
    assert all(isinstance(value, str) and value for value in code.values())
    assert re.fullmatch("[0-9a-f]{64}", code["sources_sha256"])
    assert code["torch"] == torch.__version__
    assert ("lock_sha256" in code) == (code["lock"] == "matches")
    assert code == provenance.current_code()


def test_code_that_is_not_installed_has_no_version(monkeypatch):
    def missing(name):
        raise provenance.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(provenance.importlib.metadata, "version", missing)
    assert provenance.current_code()["version"] == "not installed"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A clone with one commit. -> folder of its package."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "no-such-file"))
    root = tmp_path / "clone"
    package = root / "src" / "audiation"
    package.mkdir(parents=True)
    (package / "a.py").write_text("A = 1\n")
    (root / "pyproject.toml").write_text('[project]\nname = "audiation"\n')
    (root / "notes.txt").write_text("1\n")
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "first"]):
        subprocess.run([*GIT, *command], cwd=root, check=True)
    provenance._git_state.cache_clear()
    yield package
    provenance._git_state.cache_clear()


def test_commit_of_a_checkout_and_whether_its_sources_changed(checkout):
    root = checkout.parent.parent
    commit = subprocess.check_output([*GIT, "rev-parse", "HEAD"], cwd=root, text=True).strip()
    assert provenance._git_state(checkout) == {"git_commit": commit, "git_tree": "clean"}
    (root / "notes.txt").write_text("2\n")  # changes no number
    changes = {
        "clean": lambda: None,
        "edited": lambda: (checkout / "a.py").write_text("A = 2\n"),
        "staged": lambda: subprocess.run([*GIT, "add", "src"], cwd=root, check=True),
    }
    for name, change in changes.items():
        change()
        provenance._git_state.cache_clear()
        assert provenance._git_state(checkout)["git_tree"] == ("clean" if name == "clean" else "changed")


def test_a_new_source_file_is_a_change(checkout):
    (checkout / "new.py").write_text("")
    assert provenance._git_state(checkout)["git_tree"] == "changed"


def test_git_variables_of_another_repository_are_not_followed(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert provenance._git_state(checkout)["git_tree"] == "clean"


def test_an_installed_package_and_another_project_have_no_commit(checkout, tmp_path):
    root = checkout.parent.parent
    installed = root / ".venv" / "lib" / "python3.11" / "site-packages" / "audiation"
    assert provenance._git_state(installed) == {}
    (root / "pyproject.toml").write_text('[project]\nname = "other"\n')
    assert provenance._git_state(checkout) == {}
    provenance._git_state.cache_clear()
    (root / "pyproject.toml").write_text("[project\n")
    assert provenance._git_state(checkout) == {}


def test_without_git_and_with_a_broken_repository_there_is_no_commit(checkout, monkeypatch):
    (checkout.parent.parent / ".git" / "HEAD").write_text("rubbish\n")
    assert provenance._git_state(checkout) == {}
    provenance._git_state.cache_clear()
    monkeypatch.setenv("PATH", "")
    assert provenance._git_state(checkout) == {}


# Lock --------------------------------------------------------------------------------------------------


@pytest.fixture
def lock(tmp_path, monkeypatch):
    """-> state(text of the lock, installed versions)."""

    def state(text, **installed):
        path = tmp_path / "requirements.lock"
        path.write_text(text)
        monkeypatch.setattr(provenance, "_installed_versions", lambda: installed)
        provenance._lock_state.cache_clear()
        return provenance._lock_state(path)

    yield state
    provenance._lock_state.cache_clear()


def test_an_environment_of_the_locked_versions_matches(lock):
    text = "# a comment\ntorch==2.8.0+cpu \\\n    --hash=sha256:00\nNumPy==2.1\n"
    found = lock(text, torch="2.8.0+cpu", numpy="2.1", pytest="9.0")
    assert found == {"lock": "matches", "lock_sha256": hashlib.sha256(text.encode()).hexdigest()}


def test_what_differs_from_the_lock_is_named(lock):
    found = lock("torch==2.8.0\nnumpy==2.1\nrich==13.0\n", torch="2.9.0", numpy="2.1")
    assert found == {
        "lock": "not locked; differs in: torch 2.9.0 (lock 2.8.0), rich not installed (lock 13.0)"
    }


def test_without_a_lock_nothing_is_locked(lock, tmp_path):
    message = "not locked; no requirements.lock beside this installation"
    assert provenance._lock_state(None) == {"lock": message}
    assert lock("# nothing in it\n") == {"lock": message}


def test_the_lock_of_the_environment_goes_before_that_of_the_checkout(checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(provenance.sys, "prefix", str(tmp_path))
    assert provenance._lock_path(checkout) is None
    beside = checkout.parent.parent / "requirements.lock"
    beside.write_text("")
    assert provenance._lock_path(checkout) == beside
    stamp = tmp_path / "audiation-requirements.lock"
    stamp.write_text("")
    assert provenance._lock_path(checkout) == stamp
    assert provenance._lock_path(tmp_path / "site-packages" / "audiation") == stamp


def test_installed_versions_are_those_that_would_be_imported(tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, name in (
        (first, "Some_Name-2024.07.04.dist-info"),
        (second, "some_name-1.0.dist-info"),
        (second, "other-2.13.0+cpu.dist-info"),
        (second, "other"),
    ):
        (folder / name).mkdir(parents=True)
    monkeypatch.setattr(provenance.sys, "path", [str(first), str(tmp_path / "missing.zip"), str(second)])
    assert provenance._installed_versions() == {"some-name": "2024.7.4", "other": "2.13.0+cpu"}


def test_installed_versions_are_what_their_metadata_say():
    found = provenance._installed_versions()
    for name in ("torch", "numpy", "scikit-learn", "huggingface_hub", "certifi"):
        version = provenance.importlib.metadata.version(name)
        assert found[provenance._normal_name(name)] == provenance._normal_version(version)


@pytest.mark.parametrize(
    ("given", "normal"),
    [("2024.07.04", "2024.7.4"), ("1.0", "1.0"), ("10.20.post1", "10.20.post1"), ("2.0+CPU", "2.0+cpu")],
)
def test_normal_versions(given, normal):
    assert provenance._normal_version(given) == normal


# The files of this project -----------------------------------------------------------------------------


def locked_entries():
    """(name==version, its hashes) of requirements.lock."""
    text = (ROOT / "requirements.lock").read_text()
    joined = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return [(line.split()[0], line.split()[1:]) for line in joined.splitlines() if line.strip()]


def test_every_entry_of_the_lock_is_one_version_with_hashes():
    entries = locked_entries()
    for pin, options in entries:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][A-Za-z0-9.+]*", pin), pin
        assert options, pin
        assert all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", option) for option in options), pin
    names = [pin.split("==")[0] for pin, _ in entries]
    assert (
        len(names)
        == len(set(names))
        == len(provenance.locked_versions((ROOT / "requirements.lock").read_text()))
    )


def test_the_lock_and_the_constraints_agree():
    locked = provenance.locked_versions((ROOT / "requirements.lock").read_text())
    constraints = provenance.locked_versions((ROOT / "constraints.txt").read_text())
    assert locked.pop("torch") == constraints["torch"] + "+cpu"  # the constraints leave the build open
    for name in set(locked) - set(constraints):
        assert name in BUILD_TOOLS
        del locked[name]
    assert locked == {name: constraints[name] for name in locked}


def test_the_lock_has_what_the_project_and_its_locked_extras_need():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    for extra in ("scores", "figures", "augment"):
        needed += project["project"]["optional-dependencies"][extra]
    names = {provenance._normal_name(re.match(r"[\w.-]+", requirement)[0]) for requirement in needed}
    assert names <= set(provenance.locked_versions((ROOT / "requirements.lock").read_text()))


def test_the_locked_torch_is_the_build_without_cuda():
    names = [pin for pin, _ in locked_entries()]
    assert not [n for n in names if n.startswith(("nvidia-", "triton", "cuda-"))]


@pytest.mark.parametrize("name", ["requirements.lock", "constraints.txt", "Containerfile"])
def test_hosts_are_public_ones(name):
    hosts = set(re.findall(r"https?://([^/\s\"']+)", (ROOT / name).read_text()))
    assert hosts <= {"download.pytorch.org"}


def container_steps():
    """(instruction, its words) of the Containerfile."""
    lines = [line for line in (ROOT / "Containerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def test_the_image_copies_files_that_are_there_and_not_ignored():
    ignored = (ROOT / ".containerignore").read_text().splitlines()
    assert "*" in ignored
    copied = [s for step, rest in container_steps() if step == "COPY" for s in shlex.split(rest)[:-1]]
    assert set(copied) == {line[1:] for line in ignored if line.startswith("!")}
    assert all((ROOT / path).exists() for path in copied)


def test_the_image_is_pinned_installs_checked_files_and_runs_as_nobody_in_particular():
    steps = container_steps()
    (base,) = [rest for step, rest in steps if step == "FROM"]
    assert re.search(r" docker\.io/library/python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}$", base)
    installs = [shlex.split(rest) for step, rest in steps if step == "RUN" and "pip install" in rest]
    packages, project = installs
    assert "--require-hashes" in packages and "requirements.lock" in packages
    assert packages[packages.index("--only-binary") + 1] == ":all:"
    assert {"--no-deps", "--no-build-isolation", "."} <= set(project)
    assert f"/{provenance.INSTALLED_LOCK_NAME}" in packages[-1]
    order = [step for step, _ in steps]
    assert order.index("USER") > max(i for i, step in enumerate(order) if step == "RUN")
    assert dict(steps)["USER"] not in ("root", "0")
    assert json.loads(dict(steps)["ENTRYPOINT"]) == ["audiation"]
    assert "AUDIATION_DATA_ROOT=/data" in dict(steps)["ENV"]


def test_the_image_the_lock_and_dev_mean_the_same_python_and_the_same_torch():
    named = {}
    for name in ("TORCH_WHEELS", "LOCK_PYTHON"):
        (named[name],) = re.findall(rf'^{name} = "(.+?)"', (ROOT / "dev").read_text(), re.MULTILINE)
    steps = container_steps()
    assert dict(steps)["ARG"] == f"TORCH_WHEELS={named['TORCH_WHEELS']}"
    assert f"/python:{named['LOCK_PYTHON']}." in dict(steps)["FROM"]
    header = "".join(re.findall("^#.*", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert named["TORCH_WHEELS"] in header and f"Python {named['LOCK_PYTHON']} on Linux x86_64" in header


def test_sizes_are_finite_numbers_in_json():
    text = json.dumps(provenance.current_hardware(), allow_nan=False)
    assert math.isfinite(json.loads(text)["cores"])
