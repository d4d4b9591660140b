"""Official split and annotation files: other people's data, so fetched where they are needed, never packaged.

A file is looked for in this order, and the first place that has it decides:

1. `metadata_root` (`--metadata-root`, or `$AUDIATION_METADATA_ROOT`): a folder with local copies under the paths that
   the entries below name, for example `gtzan-fault-filtered/gtzan/train_filtered.txt`;
2. the cache directory, `metadata/`, where fetched files are kept;
3. its official place, at a pinned commit, over https.

Whatever the place, the content must have the expected SHA-256 or it is refused: a split that differs silently is the
commonest reason why two published numbers cannot be compared. Line endings do not count (git may convert them).
"""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import re
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from audiation.cache import cache_dir

ENVIRONMENT = "AUDIATION_METADATA_ROOT"
STALL_SECONDS, FETCH_SECONDS = 20, 120  # without a byte; for the whole file
READ_BYTES = 1 << 16

OpenUrl = Callable[[str], BinaryIO]


class MetadataError(ValueError):
    """An official file whose content is not what was published. The message says where it lies and what to do."""


class MetadataUnavailableError(FileNotFoundError):
    """An official file that is neither here nor to be fetched. The message says which file to put where."""


@dataclass(frozen=True)
class MetadataFile:
    """One official file.

    path: below the metadata root, and below the cache directory.
    url: its official place, pinned to a commit.
    num_bytes: as it is sent (with CRLF where its place has that); at most so many are fetched.
    sha256: of the content with LF line endings.
    """

    path: str
    url: str
    num_bytes: int
    sha256: str

    def matches(self, content: bytes) -> bool:
        return _sha256(content) == self.sha256


@dataclass(frozen=True)
class MetadataFolder:
    """Many small official files that are fetched as one zip archive of their repository.

    path: the folder below the metadata root.
    url: of the archive; its first path component (repository and commit) is ignored.
    folder_in_archive: where the files lie in the repository.
    pattern: regular expression of the names below that folder, with `/`. Nothing else is read.
    sha256: of `manifest` of all of them.
    """

    path: str
    url: str
    folder_in_archive: str
    pattern: str
    num_files: int
    sha256: str
    max_archive_bytes: int = 16 << 20
    max_file_bytes: int = 1 << 16


def read_metadata_file(
    item: MetadataFile, metadata_root: str | Path | None = None, open_url: OpenUrl | None = None
) -> bytes:
    """The content of an official file, checked.

    Raises:
        MetadataError: a copy with another content.
        MetadataUnavailableError: no copy here, and it cannot be fetched.
    """
    for root in _local_roots(metadata_root):
        path = root / item.path
        if path.is_file():
            content = path.read_bytes()
            if not item.matches(content):
                raise MetadataError(_differs(path, _sha256(content), item.sha256, item.url))
            return content
    put = f"save it as DIR/{item.path}"
    content = _fetch(item.url, item.num_bytes, put, open_url)
    if not item.matches(content):
        cut = f" ({len(content)} of {item.num_bytes} bytes arrived)" if len(content) < item.num_bytes else ""
        raise MetadataError(_differs(item.url, _sha256(content), item.sha256, item.url) + cut)
    _keep(cache_dir("metadata", item.path), content)
    return content


def read_metadata_folder(
    item: MetadataFolder, metadata_root: str | Path | None = None, open_url: OpenUrl | None = None
) -> dict[str, bytes]:
    """Name below the folder -> content, for all the files of an official folder, checked together.

    Nothing is ever unpacked to disk: a fetched archive is kept as it is and read from there.

    Raises: as `read_metadata_file`.
    """
    for root in _local_roots(metadata_root):
        folder = root / item.path
        if folder.is_dir():
            return _checked(_in_folder(folder, item), item, folder)
    archive = cache_dir("metadata", f"{item.path}.zip")
    if archive.is_file():
        return _checked(_in_archive(archive.read_bytes(), item, archive), item, archive)
    put = f"unpack it so that its folder {item.folder_in_archive} becomes DIR/{item.path}"
    content = _fetch(item.url, item.max_archive_bytes, put, open_url)
    files = _checked(_in_archive(content, item, item.url), item, item.url)
    _keep(archive, content)
    return files


def manifest(files: dict[str, bytes]) -> bytes:
    """A line per file, sorted by name: name, tab, SHA-256 of the content with LF line endings."""
    return "".join(f"{name}\t{_sha256(files[name])}\n" for name in sorted(files)).encode()


# Local copies --------------------------------------------------------------------------------------------


def _local_roots(metadata_root: str | Path | None) -> list[Path]:
    named = metadata_root or os.environ.get(ENVIRONMENT)
    if named and not Path(named).expanduser().is_dir():
        raise MetadataUnavailableError(
            f"metadata root {named} is not a folder (--metadata-root, ${ENVIRONMENT})"
        )
    return ([Path(named).expanduser()] if named else []) + [cache_dir("metadata")]


def _in_folder(folder: Path, item: MetadataFolder) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if re.fullmatch(item.pattern, name) and path.is_file():
            _check_size(path.stat().st_size, len(files) + 1, item, folder)
            files[name] = path.read_bytes()
    return files


def _in_archive(content: bytes, item: MetadataFolder, where: Path | str) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for info in archive.infolist():
                _, _, inside = info.filename.partition("/")
                name = inside.removeprefix(item.folder_in_archive + "/")
                if name != inside and re.fullmatch(item.pattern, name):
                    _check_size(info.file_size, len(files) + 1, item, where)
                    files[name] = archive.read(info)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise MetadataError(f"{where} is not a whole zip archive ({error}). {_advice(where)}") from None
    return files


def _check_size(num_bytes: int, num_files: int, item: MetadataFolder, where: Path | str) -> None:
    """Before reading, so that nothing made to be huge fills the memory."""
    if num_bytes > item.max_file_bytes or num_files > item.num_files:
        raise MetadataError(
            f"{where} is not the published data: {item.num_files} files of at most {item.max_file_bytes} bytes "
            f"were expected. {_advice(where)}"
        )


def _checked(files: dict[str, bytes], item: MetadataFolder, where: Path | str) -> dict[str, bytes]:
    found = hashlib.sha256(manifest(files)).hexdigest()
    if found != item.sha256:
        counted = (
            f"{len(files)} of {item.num_files} files" if len(files) != item.num_files else "other content"
        )
        raise MetadataError(f"{_differs(where, found, item.sha256, item.url)} ({counted})")
    return files


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest()


def _differs(where: Path | str, found: str, expected: str, url: str) -> str:
    return (
        f"{where} is not the published file: SHA-256 {found[:16]}..., expected {expected[:16]}.... "
        f"{_advice(where)} The official place is {url}"
    )


def _advice(where: Path | str) -> str:
    return "Delete or replace it." if isinstance(where, Path) else "Nothing was kept; try again later."


# Fetching ------------------------------------------------------------------------------------------------


class HttpsOnly(urllib.request.HTTPRedirectHandler):
    """A redirect may not leave https."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        if not newurl.startswith("https://"):
            raise urllib.error.URLError(f"refused to follow a redirect to {newurl}: not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_https(url: str) -> BinaryIO:
    """The body of an https URL as a stream; urllib's errors pass through."""
    request = urllib.request.Request(url, headers={"User-Agent": "audiation"})
    return urllib.request.build_opener(HttpsOnly).open(request, timeout=STALL_SECONDS)


def _fetch(url: str, max_bytes: int, put: str, open_url: OpenUrl | None) -> bytes:
    """At most `max_bytes`; a longer body is refused. `put`: what to do by hand where the network fails."""
    if not url.startswith("https://"):
        raise ValueError(f"official files are fetched over https only, got {url}")
    content, deadline = bytearray(), time.monotonic() + FETCH_SECONDS
    try:
        with (open_url or open_https)(url) as body:
            while block := body.read(READ_BYTES):
                content += block
                if len(content) > max_bytes:
                    raise MetadataError(
                        f"{url} sent more than the {max_bytes} bytes expected; nothing was kept"
                    )
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not finished after {FETCH_SECONDS} s")
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise MetadataUnavailableError(
            f"cannot fetch {url} ({reason}). Get that file on a machine with network, {put}, and pass "
            f"--metadata-root DIR (or set {ENVIRONMENT}=DIR)."
        ) from error
    return bytes(content)


def _keep(path: Path, content: bytes) -> None:
    """Write so that another process sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
