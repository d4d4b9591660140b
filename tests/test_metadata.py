"""Official files: local copy, cache, fetch; anything that is not the published content is refused."""

import hashlib
import http.client
import io
import urllib.error
import urllib.request
import zipfile

import pytest

from audiation.datasets import metadata
from audiation.datasets.metadata import (
    MetadataError,
    MetadataFile,
    MetadataFolder,
    MetadataUnavailableError,
    read_metadata_file,
    read_metadata_folder,
)

CONTENT = b"blues/blues.00000.wav\nrock/rock.00001.wav\n"
FILE = MetadataFile(
    "set/list.txt", "https://official/list.txt", len(CONTENT), hashlib.sha256(CONTENT).hexdigest()
)
KEYS = {"blues/0.key": b"3", "rock/1.key": b"-1\n"}
FOLDER = MetadataFolder(
    path="set/keys",
    url="https://official/archive.zip",
    folder_in_archive="data/keys",
    pattern=r"(blues|rock)/\d\.key",
    num_files=2,
    sha256=hashlib.sha256(metadata.manifest(KEYS)).hexdigest(),
    max_archive_bytes=2000,
    max_file_bytes=10,
)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(metadata.ENVIRONMENT, raising=False)


class Network:
    """Stands in for the network: one body for every URL, and a list of what was asked for."""

    def __init__(self, body):
        self.body, self.asked = body, []

    def __call__(self, url):
        self.asked.append(url)
        if isinstance(self.body, Exception):
            raise self.body
        return io.BytesIO(self.body)


def no_network(url):
    raise AssertionError(f"{url} must not be fetched here")


def archive(files, top="repository-1234567"):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(f"{top}/{name}", content)
    return stream.getvalue()


PUBLISHED = {f"data/keys/{name}": content for name, content in KEYS.items()}


def kept(tmp_path):
    cache = tmp_path / "cache"
    return sorted(p.relative_to(cache).as_posix() for p in cache.rglob("*") if p.is_file())


def test_a_file_is_fetched_once_and_then_read_from_the_cache(tmp_path):
    network = Network(CONTENT)
    assert read_metadata_file(FILE, open_url=network) == CONTENT
    assert read_metadata_file(FILE, open_url=no_network) == CONTENT
    assert network.asked == [FILE.url]
    assert kept(tmp_path) == ["metadata/set/list.txt"]


@pytest.mark.parametrize("content", [CONTENT, CONTENT.replace(b"\n", b"\r\n")], ids=["LF", "CRLF"])
@pytest.mark.parametrize("by", ["argument", "environment"])
def test_a_local_copy_comes_first(tmp_path, monkeypatch, content, by):
    local = tmp_path / "local" / FILE.path
    local.parent.mkdir(parents=True)
    local.write_bytes(content)
    if by == "environment":
        monkeypatch.setenv(metadata.ENVIRONMENT, str(tmp_path / "local"))
        assert read_metadata_file(FILE, open_url=no_network) == content
    else:
        assert read_metadata_file(FILE, tmp_path / "local", no_network) == content
    assert kept(tmp_path) == []


@pytest.mark.parametrize("place", ["local", "cache/metadata"])
def test_a_copy_that_differs_is_refused_by_name_and_never_replaced_in_silence(tmp_path, place):
    (tmp_path / "local").mkdir()
    copy = tmp_path / place / FILE.path
    copy.parent.mkdir(parents=True)
    copy.write_bytes(CONTENT + b"rock/rock.00002.wav\n")
    with pytest.raises(
        MetadataError, match=r"list\.txt is not the published file: SHA-256 .*Delete or replace"
    ):
        read_metadata_file(FILE, tmp_path / "local", no_network)


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (CONTENT.replace(b"blues", b"bluez"), MetadataError, "not the published file"),
        (CONTENT[:20], MetadataError, f"20 of {len(CONTENT)} bytes arrived"),
        (CONTENT + b"x" * 100_000, MetadataError, f"more than the {len(CONTENT)} bytes"),
        (urllib.error.URLError("no route to host"), MetadataUnavailableError, "no route to host"),
        (TimeoutError("timed out"), MetadataUnavailableError, "timed out"),
        (http.client.IncompleteRead(b""), MetadataUnavailableError, "IncompleteRead"),
        (urllib.error.HTTPError(FILE.url, 404, "Not Found", {}, None), MetadataUnavailableError, "Not Found"),
    ],
)
def test_a_bad_download_is_refused_and_nothing_is_kept(tmp_path, body, error, message):
    with pytest.raises(error, match=message):
        read_metadata_file(FILE, open_url=Network(body))
    assert kept(tmp_path) == []


def test_without_network_the_error_says_which_file_to_put_where():
    with pytest.raises(FileNotFoundError) as caught:
        read_metadata_file(FILE, open_url=Network(urllib.error.URLError("offline")))
    for part in (FILE.url, "save it as DIR/set/list.txt", "--metadata-root DIR", "AUDIATION_METADATA_ROOT"):
        assert part in str(caught.value)


def test_a_metadata_root_that_is_no_folder_is_not_passed_over(tmp_path):
    with pytest.raises(MetadataUnavailableError, match="nowhere is not a folder"):
        read_metadata_file(FILE, tmp_path / "nowhere", no_network)


def test_a_slow_server_is_given_up(monkeypatch):
    monkeypatch.setattr(metadata, "FETCH_SECONDS", -1)
    with pytest.raises(MetadataUnavailableError, match="not finished after"):
        read_metadata_file(FILE, open_url=Network(CONTENT))


def test_only_https_and_redirects_may_not_leave_it():
    with pytest.raises(ValueError, match="https only"):
        read_metadata_file(MetadataFile("a", "http://official/a", 1, "0"), open_url=no_network)
    request = urllib.request.Request("https://official/a")
    handler = metadata.HttpsOnly()
    followed = handler.redirect_request(request, None, 302, "", {}, "https://elsewhere/a")
    assert followed.full_url == "https://elsewhere/a"
    with pytest.raises(urllib.error.URLError, match="not https"):
        handler.redirect_request(request, None, 302, "", {}, "http://elsewhere/a")


def test_an_archive_is_fetched_once_and_only_its_official_files_are_read(tmp_path):
    stray = {"README.md": b"x" * 100, "data/keys/blues/0.pk": b"\x80", "data/keys/blues/deep/0.key": b"9"}
    network = Network(archive(PUBLISHED | stray))
    assert read_metadata_folder(FOLDER, open_url=network) == KEYS
    assert read_metadata_folder(FOLDER, open_url=no_network) == KEYS
    assert kept(tmp_path) == ["metadata/set/keys.zip"]


def test_names_that_climb_out_of_an_archive_are_never_read_or_written(tmp_path):
    evil = {"data/keys/../../../blues/1.key": b"1", "../evil.key": b"1", "data/keys//blues/1.key": b"1"}
    assert read_metadata_folder(FOLDER, open_url=Network(archive(PUBLISHED | evil))) == KEYS
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["keys.zip"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (archive(PUBLISHED)[:-30], "not a whole zip archive"),
        (b"<html>try again later</html>", "not a whole zip archive"),
        (archive(PUBLISHED | {"data/keys/rock/1.key": b"2"}), "other content"),
        (archive(dict(list(PUBLISHED.items())[:1])), "1 of 2 files"),
        (archive(PUBLISHED | {"data/keys/rock/2.key": b"2"}), "2 files of at most 10 bytes were expected"),
        (archive({"data/keys/rock/1.key": b"0" * 5000}), "2 files of at most 10 bytes were expected"),
        (b"x" * 3000, "more than the 2000 bytes"),
    ],
)
def test_an_archive_with_other_content_is_refused_and_not_kept(tmp_path, body, message):
    with pytest.raises(MetadataError, match=message):
        read_metadata_folder(FOLDER, open_url=Network(body))
    assert kept(tmp_path) == []


def test_damaged_compressed_data_is_refused():
    good = archive({"data/keys/blues/0.key": bytes(range(10)), "data/keys/rock/1.key": b"-1\n"})
    damaged = bytearray(good)
    at = good.index(b"0.key") + len("0.key")
    damaged[at : at + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(MetadataError, match="not a whole zip archive"):
        read_metadata_folder(FOLDER, open_url=Network(bytes(damaged)))


def test_a_local_folder_is_checked_as_a_whole(tmp_path):
    folder = tmp_path / "local" / FOLDER.path
    for name, content in KEYS.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(content)
    (folder / "blues" / "0.pk").write_bytes(b"\x80")
    assert read_metadata_folder(FOLDER, tmp_path / "local", no_network) == KEYS
    (folder / "rock" / "1.key").write_bytes(b"1")
    with pytest.raises(MetadataError, match="other content"):
        read_metadata_folder(FOLDER, tmp_path / "local", no_network)
    (folder / "rock" / "1.key").unlink()
    with pytest.raises(MetadataError, match="1 of 2 files"):
        read_metadata_folder(FOLDER, tmp_path / "local", no_network)


def test_without_network_the_error_says_how_to_lay_out_a_folder():
    with pytest.raises(MetadataUnavailableError, match="its folder data/keys becomes DIR/set/keys"):
        read_metadata_folder(FOLDER, open_url=Network(urllib.error.URLError("offline")))
