"""Fetching data sets: resumed, checked, unpacked inside their folder only. No network: an opener stands in."""

import hashlib
import io
import shutil
import stat
import tarfile
import urllib.error
import zipfile
from dataclasses import replace
from email.message import Message

import pytest

from audiation import fetching
from audiation.datasets.base import Download
from audiation.fetching import FetchError, fetch

CONTENT = bytes(range(256)) * 40
FILE = Download(
    "https://example.org/a.bin", "sub/a.bin", len(CONTENT), f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
)


class Body(io.BytesIO):
    def __init__(self, content, status, headers):
        super().__init__(content)
        self.status, self.headers = status, Message()
        for name, value in headers.items():
            self.headers[name] = value


class Place:
    """Serves one file. breaks_after: bytes after which the connection ends, once."""

    def __init__(self, content=CONTENT, breaks_after=None, ranges=True):
        self.content, self.breaks_after, self.ranges, self.asked = content, breaks_after, ranges, []

    def __call__(self, request):
        start = int(request.get_header("Range", "bytes=0-")[6:-1])
        self.asked.append(start)
        if start and not self.ranges:
            start = 0
        if start > len(self.content):
            raise urllib.error.HTTPError(request.full_url, 416, "range", Message(), None)
        part = self.content[start:]
        headers = {"Content-Length": str(len(part))}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        if self.breaks_after is not None:
            part, self.breaks_after = part[: self.breaks_after], None
        return Body(part, 206 if start else 200, headers)


def test_a_file_is_fetched_once(tmp_path):
    place, states = Place(), []
    assert fetch(FILE, tmp_path, open_url=place, progress=states.append)
    assert (tmp_path / "sub/a.bin").read_bytes() == CONTENT
    assert states[-1].done_bytes == states[-1].total_bytes == len(CONTENT)
    assert not fetch(FILE, tmp_path, open_url=place) and place.asked == [0]
    (tmp_path / "sub/a.bin").unlink()
    assert fetch(FILE, tmp_path, open_url=place) and place.asked == [0, 0]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on_where_it_ended_or_begins_again(tmp_path, ranges):
    place = Place(breaks_after=1000, ranges=ranges)
    with pytest.raises(FetchError, match=r"broke off after 1000 of 10240 bytes.* same command again"):
        fetch(FILE, tmp_path, open_url=place)
    assert not (tmp_path / "sub/a.bin").exists()
    assert fetch(FILE, tmp_path, open_url=place) and place.asked == [0, 1000]
    assert (tmp_path / "sub/a.bin").read_bytes() == CONTENT


def test_a_complete_partial_file_is_not_fetched_again(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/.a.bin.partial").write_bytes(CONTENT)
    place = Place()
    assert fetch(FILE, tmp_path, open_url=place) and place.asked == []


def test_a_file_that_changed_at_its_place_is_begun_again(tmp_path):
    unsized = replace(FILE, num_bytes=None)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/.a.bin.partial").write_bytes(CONTENT + b"more")
    with pytest.raises(FetchError, match="has changed since it was begun"):
        fetch(unsized, tmp_path, open_url=Place())
    assert fetch(unsized, tmp_path, open_url=Place())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONTENT[:-1] + b"x", "is not the published file: sha256"),
        (CONTENT + b"x", "sends more than the 10240 bytes"),
    ],
)
def test_other_content_is_refused_and_not_kept(tmp_path, content, message):
    with pytest.raises(FetchError, match=message):
        fetch(FILE, tmp_path, open_url=Place(content))
    assert list(tmp_path.rglob("*.bin*")) == []


def test_no_network_and_places_that_refuse(tmp_path):
    def dead(request):
        raise urllib.error.URLError("no route to host")

    with pytest.raises(
        FetchError, match=r"cannot fetch https://example.org/a.bin \(no route.* put the file at .*sub/a.bin"
    ):
        fetch(FILE, tmp_path, open_url=dead)

    def gone(request):
        raise urllib.error.HTTPError(request.full_url, 404, "Not Found", Message(), None)

    with pytest.raises(FetchError, match="answers 404 Not Found"):
        fetch(FILE, tmp_path, open_url=gone)
    with pytest.raises(ValueError, match="https only"):
        fetch(replace(FILE, url="http://example.org/a.bin"), tmp_path, open_url=dead)


def test_too_little_room_is_said_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: type("U", (), {"free": 1000})())
    place = Place()
    with pytest.raises(FetchError, match="Make room"):
        fetch(FILE, tmp_path, open_url=place)
    assert place.asked == []


# Archives --------------------------------------------------------------------------------------------------


def zipped(names, link=False):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for name in names:
            info = zipfile.ZipInfo(name)
            if link:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            packed.writestr(info, "content")
    return out.getvalue()


def tarred(names, kind=tarfile.REGTYPE):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as packed:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = (7 if kind == tarfile.REGTYPE else 0), kind, "/etc/passwd"
            packed.addfile(info, io.BytesIO(b"content"))
    return out.getvalue()


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_archives_are_unpacked_once_and_deleted(tmp_path, pack):
    archive = Download("https://example.org/a.zip", "a.zip", unpack=True)
    place = Place(pack(["set/1.wav", "set/deep/2.wav"]))
    assert fetch(archive, tmp_path, open_url=place) and not fetch(archive, tmp_path, open_url=place)
    assert (tmp_path / "set/deep/2.wav").read_text() == "content" and not list(tmp_path.glob("*a.zip*"))
    shutil.rmtree(tmp_path / "set")  # somebody tidied up
    assert fetch(archive, tmp_path, open_url=place) and (tmp_path / "set/1.wav").is_file()


def test_a_file_that_was_put_where_it_belongs_is_taken_and_checked(tmp_path):
    place = Place()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.bin").write_bytes(CONTENT)
    assert fetch(FILE, tmp_path, open_url=place) and place.asked == []
    archive = Download("https://example.org/a.zip", "a.zip", unpack=True)
    (tmp_path / "a.zip").write_bytes(zipped(["set/1.wav"]))
    assert (
        fetch(archive, tmp_path, open_url=place) and place.asked == [] and (tmp_path / "set/1.wav").is_file()
    )
    other = replace(FILE, path="other.bin")
    (tmp_path / "other.bin").write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(FetchError, match=r"other.bin is not the published file"):
        fetch(other, tmp_path, open_url=place)
    assert (tmp_path / "other.bin").is_file()  # it is not ours to delete


@pytest.mark.parametrize(
    "content",
    [
        zipped(["good.wav", "../evil"]), zipped(["/evil"]), zipped(["C:/evil"]), zipped(["..\\evil"]),
        zipped(["link"], link=True), tarred(["../evil"]), tarred(["/evil"]), tarred(["link"], tarfile.SYMTYPE),
        tarred(["device"], tarfile.CHRTYPE),
    ],
)  # fmt: skip
def test_archives_that_reach_outside_are_refused(tmp_path, content):
    archive = Download("https://example.org/a.zip", "a.zip", unpack=True)
    with pytest.raises(FetchError, match="no file inside its folder"):
        fetch(archive, tmp_path / "root", open_url=Place(content))
    assert [p.name for p in tmp_path.rglob("*evil*")] == [] and not (tmp_path / "root/link").exists()


def test_damaged_archives(tmp_path):
    archive = Download("https://example.org/a.zip", "a.zip", unpack=True)
    with pytest.raises(FetchError, match="neither a zip nor a tar"):
        fetch(archive, tmp_path, open_url=Place(b"<html>"))
    broken = bytearray(zipped(["a.wav"]))
    broken[40] ^= 0xFF
    with pytest.raises(FetchError, match="is damaged"):
        fetch(replace(archive, path="b.zip"), tmp_path, open_url=Place(bytes(broken)))
