"""`audiation-mini`: 28 h of freely licensed music from Debian packages, and renderings of scores, to pre-train on.

Nothing of it is shipped. `python -m audiation.mini_corpus list` names packages, licences and hours, `fetch DIR` gets
the music, `render DIR` plays scores of the music21 corpus that are not in the data set `scores`. docs/mini-corpus.md.
"""

from __future__ import annotations

import fnmatch
import hashlib
import importlib.resources
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import soundfile
import tyro

from audiation.mini_renderings import render_scores

LEAST_SECONDS = 20.0  # shorter files are jingles and fanfares
AUDIO_SUFFIXES = (".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav")
ALLOWED_LICENCES = frozenset(
    {
        "CC-BY-3.0",
        "CC-BY-SA-3.0",
        "CC-BY-SA-3.0+",
        "CC-BY-SA-4.0",
        "GPL",
        "GPL-2",
        "GPL-2+",
        "GPL-3",
        "GPL-3+",
        "public-domain",
    }
)
"""Licences of music files that allow use, changes and redistribution, as debian/copyright writes them."""

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


@dataclass(frozen=True)
class MusicPackage:
    """A package of Debian's main section and the music in it.

    sha256, num_bytes: of the .deb file.
    licences: of the music files, as usr/share/doc/NAME/copyright states them.
    music: patterns of their paths in the package; what lies in a .pk3 archive counts as lying beside it.
    num_files, hours: what was measured, without files under 20 s.
    """

    name: str
    version: str
    sha256: str
    num_bytes: int
    licences: tuple[str, ...]
    music: tuple[str, ...]
    num_files: int
    hours: float

    @property
    def deb_name(self) -> str:
        """What apt calls the file; the epoch's colon is escaped."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_all.deb"

    def is_music(self, path: str) -> bool:
        """Whether a file of the package, by its path in it, is music."""
        is_audio = PurePosixPath(path).suffix.lower() in AUDIO_SUFFIXES
        return is_audio and any(fnmatch.fnmatchcase(path, pattern) for pattern in self.music)


def mini_packages(names: Sequence[str] | None = None) -> tuple[MusicPackage, ...]:
    """The packages of `audiation-mini`, or those named. KeyError for a name that is not among them."""
    path = importlib.resources.files("audiation").joinpath("data/mini_packages.json")
    rows = json.loads(path.read_text(encoding="utf-8"))["packages"]
    known = {
        row["name"]: MusicPackage(**row | {k: tuple(row[k]) for k in ("licences", "music")}) for row in rows
    }
    for name in names or ():
        if name not in known:
            raise KeyError(f"'{name}' is no package of audiation-mini. Known: {', '.join(known)}.")
    return tuple(known[name] for name in (known if names is None else names))


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
    _write_json(_marker(directory, package), {"sha256": package.sha256, "files": files})


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
    done, home = _read_json(_marker(directory, package)), directory / "music" / package.name
    if done is None or done["sha256"] != package.sha256:
        return False
    return all(_size(home / name) == num_bytes for name, num_bytes in done["files"].items())


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _write_json(path: Path, value: Any) -> None:
    part = path.with_name(f"{path.name}.tmp")
    part.write_text(json.dumps(value, indent=1), encoding="utf-8")
    os.replace(part, path)


# ------------------------------------------------------------------------------------------------ commands


def list_() -> None:
    """The packages: version, licences of the music, files, hours, size of the download."""
    from rich.console import Console
    from rich.table import Table

    packages = mini_packages()
    table = Table(title="audiation-mini, from Debian 12 (bookworm)", title_justify="left")
    for column in ("package", "version", "licences of the music"):
        table.add_column(column, overflow="fold")
    for column in ("files", "hours", "MB"):
        table.add_column(column, justify="right")
    for p in packages:
        size = f"{p.num_bytes / 1e6:,.0f}"
        table.add_row(p.name, p.version, ", ".join(p.licences), str(p.num_files), f"{p.hours:.2f}", size)
    files, hours = sum(p.num_files for p in packages), sum(p.hours for p in packages)
    table.add_section()
    table.add_row(
        "all", "", "", str(files), f"{hours:.2f}", f"{sum(p.num_bytes for p in packages) / 1e6:,.0f}"
    )
    Console().print(table)


def fetch(directory: tyro.conf.Positional[Path], /, packages: tuple[str, ...] = ()) -> None:
    """Get the music of the packages into DIRECTORY/music. The same command goes on after a stop.

    Args:
        directory: also keeps the .deb files (debs) and the statements on copyright (licences).
        packages: only these.
    """
    failures = fetch_packages(directory, mini_packages(packages or None), progress=_show)
    for failure in failures:
        print(f"{failure.package}: {failure.reason}", file=sys.stderr)
    if failures:
        sys.exit(1)


def render_(
    directory: tyro.conf.Positional[Path], /, hours: float = 4.0, seed: int = 0, workers: int = 1
) -> None:
    """Play scores into DIRECTORY/clips. The same command goes on after a stop.

    Args:
        hours: of audio.
        seed: of pieces, instruments, speeds and transpositions.
        workers: processes.
    """
    made = render_scores(directory, seed=seed, hours=hours, workers=workers, progress=_show)
    print(f"{made.num_clips} clips, {made.hours:.2f} h in {directory / 'clips'}")
    for reason, names in made.drops.items():
        print(f"not played, {reason}: {len(names)}")


def _show(done: int, total: int, what: str) -> None:
    print(f"\r\x1b[K{done}/{total} {what}", end="" if done < total else "\n", file=sys.stderr, flush=True)


def main() -> None:
    """Entry point of `python -m audiation.mini_corpus`. User errors print one message and exit with 2."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            {"list": list_, "fetch": fetch, "render": render_},
            prog="python -m audiation.mini_corpus",
            description="Freely licensed music and rendered scores, to pre-train on.",
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except (ValueError, KeyError, OSError, ImportError) as error:
        print(f"mini_corpus: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
