"""Fetch the files of a data set from their official place: resumed after a stop, checked, unpacked."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from audiation.datasets.base import Download
from audiation.datasets.metadata import STALL_SECONDS, HttpsOnly

READ_BYTES = 1 << 20
SPARE_BYTES = 1 << 28  # left free on the disk

Open = Callable[[urllib.request.Request], Any]


class FetchError(OSError):
    """A file that could not be fetched, is not what was published, or cannot be unpacked. Says what to do."""


@dataclass(frozen=True)
class FetchProgress:
    """done_bytes of total_bytes (None where the place does not tell) of `path`; what: "fetching" or "unpacking"."""

    path: str
    what: str
    done_bytes: int
    total_bytes: int | None


def fetch(
    download: Download,
    root: Path,
    *,
    open_url: Open | None = None,
    progress: Callable[[FetchProgress], None] | None = None,
) -> bool:
    """Have one file of a data set below `root`; False where it was there already.

    A stopped download goes on where it ended, if the place allows it. A file that somebody has put where it belongs is
    taken, after the same checks. Archives are unpacked into `root` and deleted; a small file `.fetched/NAME` remembers
    what came out of them.

    Args:
        open_url: opens a request; None: urllib over https.

    Raises:
        FetchError: no network, too little room on the disk, another size or checksum than published, or an archive
            that is damaged or reaches outside of `root`.
    """
    report = progress or (lambda _: None)
    target = root / download.path
    done = root / ".fetched" / download.path.replace("/", "_")
    if _is_done(download, done, root):
        return False
    partial = target.with_name(f".{target.name}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    by_hand = target.is_file()
    if not by_hand:
        _check_room(download, root, partial)
        _download(download, partial, open_url or _open_https, report)
    have = target if by_hand else partial
    made = [download.path]
    try:
        _check_content(download, have)
        if download.unpack:
            report(FetchProgress(download.path, "unpacking", 0, None))
            made = _unpack(download, have, root)
    except FetchError:
        if not by_hand:
            have.unlink()
        raise
    if download.unpack:
        have.unlink()
    else:
        os.replace(have, target)
    done.parent.mkdir(exist_ok=True)
    done.write_text(json.dumps([_identity(download), made]), encoding="utf-8")
    return True


def _is_done(download: Download, done: Path, root: Path) -> bool:
    """Whether it was fetched, and what came of it is there still."""
    try:
        identity, made = json.loads(done.read_text(encoding="utf-8"))
        whole = download.unpack or download.num_bytes in (None, (root / download.path).stat().st_size)
        return whole and identity == _identity(download) and all((root / name).exists() for name in made)
    except (OSError, ValueError, TypeError):
        return False


def _identity(download: Download) -> str:
    return f"{download.url}\n{download.checksum or ''}\n"


def _check_room(download: Download, root: Path, partial: Path) -> None:
    if download.num_bytes is None:
        return
    here = partial.stat().st_size if partial.is_file() else 0
    needed = download.num_bytes * (2 if download.unpack else 1) - here + SPARE_BYTES
    existing = next(p for p in (root, *root.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise FetchError(
            f"{download.path} needs {needed / 1e9:.1f} GB below {root}, and {free / 1e9:.1f} GB are free. Make room, "
            "or give another folder."
        )


# Over the network ------------------------------------------------------------------------------------------


def _open_https(request: urllib.request.Request) -> Any:
    return urllib.request.build_opener(HttpsOnly).open(request, timeout=STALL_SECONDS)


def _download(
    download: Download, partial: Path, open_url: Open, report: Callable[[FetchProgress], None]
) -> None:
    """Append what is missing to the partial file, or begin again where the place cannot go on."""
    if not download.url.startswith("https://"):
        raise ValueError(f"data sets are fetched over https only, got {download.url}")
    here = partial.stat().st_size if partial.is_file() else 0
    if download.num_bytes is not None and here >= download.num_bytes:
        if here == download.num_bytes:
            return
        here = 0
    headers = {"User-Agent": "audiation"} | ({"Range": f"bytes={here}-"} if here else {})
    try:
        with open_url(urllib.request.Request(download.url, headers=headers)) as body:
            goes_on = here > 0 and body.status == 206 and _starts_at(body.headers.get("Content-Range"), here)
            done = here if goes_on else 0
            length = body.headers.get("Content-Length")
            total = download.num_bytes or (done + int(length) if length and length.isdecimal() else None)
            with partial.open("ab" if goes_on else "wb") as file:
                while block := body.read(READ_BYTES):
                    done += len(block)
                    if download.num_bytes is not None and done > download.num_bytes:
                        partial.unlink()
                        raise FetchError(
                            f"{download.url} sends more than the {download.num_bytes} bytes that were published; "
                            "nothing was kept."
                        )
                    file.write(block)
                    report(FetchProgress(download.path, "fetching", done, total))
            if total is not None and done < total:
                raise FetchError(
                    f"{download.url} broke off after {done} of {total} bytes. Run the same command again to go on."
                )
    except FetchError:  # is an OSError too
        raise
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what is here is no beginning of what is there
            partial.unlink()
            raise FetchError(
                f"{download.url} has changed since it was begun. Run the same command again."
            ) from error
        raise FetchError(
            f"{download.url} answers {error.code} {error.reason}. Look at the page of the data set."
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise FetchError(
            f"cannot fetch {download.url} ({reason}). Run the same command again to go on, or put the file at "
            f"{partial.with_name(partial.name[1:].removesuffix('.partial'))} yourself."
        ) from error


def _starts_at(content_range: str | None, start: int) -> bool:
    """'bytes 100-199/200' starts at 100."""
    return (content_range or "").startswith(f"bytes {start}-")


def _check_content(download: Download, path: Path) -> None:
    size = path.stat().st_size
    if download.num_bytes is not None and size != download.num_bytes:
        raise FetchError(f"{path} from {download.url} has {size} bytes, {download.num_bytes} were published.")
    if download.checksum is None:
        return
    kind, _, expected = download.checksum.partition(":")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if found != expected:
        raise FetchError(
            f"{path} is not the published file: {kind} {found[:16]}..., expected {expected[:16]}.... Get it again from "
            f"{download.url}; if it stays like this, the official file has changed."
        )


# Archives --------------------------------------------------------------------------------------------------


def _unpack(download: Download, archive: Path, root: Path) -> list[str]:
    """Into `root`; a member that would leave it, or is no plain file or folder, refuses the archive.

    Returns the names at the top of the archive.
    """
    names: list[str] = []
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                for info in packed.infolist():
                    kind = stat.S_IFMT(info.external_attr >> 16)
                    _check_member(download, info.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
                    names.append(info.filename)
                packed.extractall(root)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as packed_tar:
                for member in packed_tar:
                    _check_member(download, member.name, member.isfile() or member.isdir())
                    packed_tar.extract(member, root, filter="data")
                    names.append(member.name)
        else:
            raise FetchError(f"{download.path} from {download.url} is neither a zip nor a tar archive.")
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        EOFError,
        RuntimeError,
    ) as error:  # encrypted, too
        raise FetchError(
            f"{download.path} from {download.url} is damaged ({error}). Run the same command again."
        ) from error
    return sorted({_top(name) for name in names} - {""})


def _top(name: str) -> str:
    return PurePosixPath(name).parts[0] if PurePosixPath(name).parts else ""


def _check_member(download: Download, name: str, is_plain: bool) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and ":" in path.parts[0]) or not is_plain:
        raise FetchError(
            f"{download.path} holds {name[:80]!r}, which is no file inside its folder; it was not unpacked."
        )
