"""Music of Debian packages -> folders of audio files: fetched, checked, unpacked; nothing is installed.

DIR/debs/          .deb files
DIR/music/NAME/    audio files, as they lie below usr/share
DIR/licences/      statements on copyright
DIR/.fetched/      a file per package that is complete
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import soundfile

from audiation.mini_files import read_json, size_of, write_json
from audiation.mini_packages import MusicPackage, mini_packages

LEAST_SECONDS = 20.0  # shorter files are jingles and fanfares

Progress = Callable[[int, int, str], None]
"""(done, total, what is being done)"""

Run = Callable[[Sequence[str], Path], None]
"""Runs a program (its name, its arguments) in a folder. Raises CommandError, or ToolMissingError: there is none."""


class ToolMissingError(OSError):
    """A program that only Debian and its descendants have is not here. Says what to do."""


class CommandError(OSError):
    """A program ended with an error; the text is the last line that it wrote."""


@dataclass(frozen=True)
class Failure:
    """A package whose music could not be had, and why."""

    package: str
    reason: str


def run_command(arguments: Sequence[str], folder: Path) -> None:
    """Run a program in a folder, without a shell.

    Raises:
        ToolMissingError: there is no such program.
        CommandError: it ended with an error.
    """
    try:
        done = subprocess.run(
            list(arguments), cwd=folder, capture_output=True, text=True, errors="replace", check=False,
            env=os.environ | {"LC_ALL": "C"},
        )  # fmt: skip
    except FileNotFoundError as error:
        raise ToolMissingError(
            f"{arguments[0]} was not found: the music comes from Debian packages. On Debian and Ubuntu it is there; "
            "elsewhere install the packages apt and dpkg, or work in a container of debian:bookworm."
        ) from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise CommandError(f"{arguments[0]}: {lines[-1]}")


def fetch_packages(
    directory: Path,
    packages: Sequence[MusicPackage] | None = None,
    *,
    run: Run = run_command,
    progress: Progress | None = None,
) -> list[Failure]:
    """Music of the packages -> `directory/music/PACKAGE/...`, audio files only, as they lie below usr/share.

    A .deb that is in `directory/debs` already is taken, others come from `apt-get download`; all are checked against
    their SHA-256. The statements on copyright are kept in `directory/licences`. May be killed and called again: what
    is complete is not done twice.

    Args:
        packages: None: all of `mini_packages()`.
        run: runs apt-get and dpkg-deb.

    Returns:
        The packages that gave nothing, with the reason; the others are complete.

    Raises:
        ToolMissingError: this system has no apt-get or no dpkg-deb.
    """
    directory, report = Path(directory), progress or (lambda done, total, what: None)
    packages = mini_packages() if packages is None else packages
    failures = []
    for i, package in enumerate(packages):
        report(i, len(packages), package.name)
        try:
            if not _is_complete(directory, package):
                _fetch_package(directory, package, run)
        except ToolMissingError:  # nothing else would work either
            raise
        except (OSError, ValueError, zipfile.BadZipFile, soundfile.SoundFileError) as error:
            failures.append(Failure(package.name, str(error)))
    report(len(packages), len(packages), "packages")
    return failures


def _fetch_package(directory: Path, package: MusicPackage, run: Run) -> None:
    for name in ("debs", "music", "licences", ".fetched", ".work"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    deb = _have_deb(directory, package, run)
    work = directory / ".work" / package.name
    shutil.rmtree(work, ignore_errors=True)  # of a call that was killed
    unpacked, kept = work / "unpacked", work / "kept"
    unpacked.mkdir(parents=True)
    kept.mkdir()
    run(["dpkg-deb", "-x", str(deb.absolute()), str(unpacked.absolute())], work)
    files = _keep_music(package, unpacked, kept)
    if len(files) != package.num_files:
        raise ValueError(f"{package.deb_name} gave {len(files)} files of music, not {package.num_files}")
    home = directory / "music" / package.name
    shutil.rmtree(home, ignore_errors=True)
    os.replace(kept, home)
    statement = unpacked / "usr/share/doc" / package.name / "copyright"
    if statement.is_file() and not statement.is_symlink():
        shutil.copyfile(statement, directory / "licences" / f"{package.name}.txt")
    shutil.rmtree(work)
    write_json(_marker(directory, package), {"sha256": package.sha256, "files": files})


def _have_deb(directory: Path, package: MusicPackage, run: Run) -> Path:
    """The checked .deb. apt-get writes into a folder of its own, so that a file under its name is a whole one."""
    deb = directory / "debs" / package.deb_name
    if not deb.is_file():
        getting = directory / ".work" / f"{package.name}.deb"
        shutil.rmtree(getting, ignore_errors=True)
        getting.mkdir()
        try:
            run(["apt-get", "download", "-q", f"{package.name}={package.version}"], getting)
        except CommandError as error:
            raise CommandError(
                f"{error}. `apt-get update` first, with Debian 12 (bookworm) among the sources; or put "
                f"{package.deb_name} (snapshot.debian.org keeps every version) into {deb.parent}."
            ) from error
        found = sorted(getting.glob("*.deb"))
        if not found:
            raise CommandError(f"apt-get download left no file for {package.name}={package.version}.")
        _check_sha256(found[0], package)
        os.replace(found[0], deb)
        shutil.rmtree(getting)
    _check_sha256(deb, package)
    return deb


def _check_sha256(path: Path, package: MusicPackage) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise ValueError(
            f"{path} is not {package.name} {package.version}: sha256 {found[:16]}..., expected "
            f"{package.sha256[:16]}.... Remove it and call again."
        )


def _keep_music(package: MusicPackage, unpacked: Path, kept: Path) -> dict[str, int]:
    """Move what is music and long enough to `kept`: path below it -> bytes."""
    for archive in [path for path in _plain_files(unpacked) if path.suffix.lower() == ".pk3"]:
        _unpack_music(package, archive, unpacked)
    files = {}
    for path in _plain_files(unpacked):
        inside = path.relative_to(unpacked).as_posix()
        if package.is_music(inside) and soundfile.info(path).duration >= LEAST_SECONDS:
            home = inside.removeprefix("usr/share/")
            (kept / home).parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, kept / home)
            files[home] = (kept / home).stat().st_size
    return files


def _plain_files(folder: Path) -> list[Path]:
    """Files below `folder` in order of path; links lead elsewhere and are neither taken nor followed."""
    found = [Path(at) / name for at, _, names in os.walk(folder) for name in names]
    return sorted(path for path in found if path.is_file() and not path.is_symlink())


def _unpack_music(package: MusicPackage, archive: Path, root: Path) -> None:
    """The music of a zip archive, into the folder that it lies in. A member that would leave it refuses all."""
    with zipfile.ZipFile(archive) as packed:
        for info in packed.infolist():
            inside, kind = (
                PurePosixPath(info.filename.replace("\\", "/")),
                stat.S_IFMT(info.external_attr >> 16),
            )
            if inside.is_absolute() or ".." in inside.parts or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ValueError(
                    f"{archive.name} holds {info.filename[:80]!r}, which is no file inside its folder; nothing of "
                    f"{package.name} was kept."
                )
        for info in packed.infolist():
            target = archive.parent / info.filename
            if not info.is_dir() and package.is_music(target.relative_to(root).as_posix()):
                target.parent.mkdir(parents=True, exist_ok=True)
                with packed.open(info) as source, target.open("xb") as file:
                    shutil.copyfileobj(source, file)


def _marker(directory: Path, package: MusicPackage) -> Path:
    return directory / ".fetched" / f"{package.name}.json"


def _is_complete(directory: Path, package: MusicPackage) -> bool:
    path, home = _marker(directory, package), directory / "music" / package.name
    done = read_json(path)
    try:
        if done is None or done["sha256"] != package.sha256:
            return False
        return all(size_of(home / name) == num_bytes for name, num_bytes in done["files"].items())
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not say what was fetched. Remove it and call again.") from error
