"""`audiation datasets list|get|verify|match` on generated data; an opener stands in for the network."""

import csv
import dataclasses
import hashlib
import io
import shutil
import sys
import zipfile
from email.message import Message

import numpy as np
import pytest
import soundfile
from rich.console import Console

from audiation import cli, dataset_commands, fetching
from audiation.annotations import Segments
from audiation.dataset_commands import Match, get, match, verify
from audiation.datasets import DATASETS, harmonix, metadata
from audiation.datasets.base import Download, Track
from audiation.fetching import FetchError
from audiation.registry import UnknownNameError

RATE_HZ = 22_050
HEADER = (
    "File,Title,Artist,Release,Duration,BPM,Ratio Bars in 4,Time Signature,Genre,MusicBrainz Id,Acoustid Id\n"
)
SONGS = ("0001_shifted", "0002_early", "0003_noise")
OFFSETS = {"0001_shifted": 0.37, "0002_early": -0.25}


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch, tmp_path):
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv(metadata.ENVIRONMENT, raising=False)
    monkeypatch.delenv("AUDIATION_DATA_ROOT", raising=False)

    def offline(*arguments):
        raise OSError("no network in tests")

    monkeypatch.setattr(metadata, "open_https", offline)
    monkeypatch.setattr(fetching, "_open_https", offline)


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


def text(console):
    return console.file.getvalue()


def command(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["audiation", "datasets", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


# list ------------------------------------------------------------------------------------------------------


def test_list_names_every_data_set_with_size_licence_and_place(monkeypatch, capsys):
    assert command(monkeypatch, "list") == 0
    shown = capsys.readouterr().out
    told = " ".join(shown.split())
    for name in DATASETS:
        info = DATASETS[name].info
        use = "commercial use allowed" if info.commercial_use else "no commercial use"
        where = f"audiation datasets get {name}" if info.downloads else " ".join(info.where.split())
        for words in (f"{name}: {info.title}", info.size, f"{info.licence} ({use})", where):
            assert words in told, (name, words)


# get -------------------------------------------------------------------------------------------------------


class Place:
    """Serves bytes by address; counts."""

    def __init__(self, files):
        self.files, self.asked = files, []

    def __call__(self, request):
        self.asked.append(request.full_url)
        body = io.BytesIO(self.files[request.full_url])
        body.status, body.headers = 200, Message()
        return body


@pytest.fixture
def place(monkeypatch):
    """Two files of `scores`, one of them an archive."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("audio/a.txt", "sound")
    files = {"https://example.org/a.zip": packed.getvalue(), "https://example.org/list.csv": b"a,b\n"}
    downloads = tuple(
        Download(
            url, url.rpartition("/")[2], len(data), f"sha256:{hashlib.sha256(data).hexdigest()}", "zip" in url
        )
        for url, data in files.items()
    )
    monkeypatch.setattr(
        DATASETS["scores"], "info", dataclasses.replace(DATASETS["scores"].info, downloads=downloads)
    )
    served = Place(files)
    monkeypatch.setattr(fetching, "_open_https", served)
    return served


def test_get_shows_size_and_licence_fetches_and_remembers(place, tmp_path, console):
    root = get("scores", tmp_path / "data", agreed=True, console=console)
    assert root == tmp_path / "data" / "scores"
    assert (root / "audio" / "a.txt").read_text() == "sound" and (root / "list.csv").read_bytes() == b"a,b\n"
    assert not (root / "a.zip").exists()
    shown = text(console)
    info = DATASETS["scores"].info
    for words in (
        info.title,
        info.size,
        "no commercial use",
        info.citation,
        "audiation datasets verify scores",
    ):
        assert words in shown
    assert shown.index("licence:") < shown.index("Fetched into")
    get("scores", tmp_path / "data", agreed=True, console=console)
    assert len(place.asked) == 2 and "list.csv: there already" in text(console)


def test_get_asks_and_takes_no_answer_for_no(place, tmp_path, console, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for typed, fetched in (("", False), ("n\n", False), ("why?\n", False), ("Y\n", True)):
        monkeypatch.setattr(sys, "stdin", Terminal(typed or "\n"))
        if fetched:
            get("scores", tmp_path, agreed=False, console=console)
        else:
            with pytest.raises(ValueError, match="not fetched"):
                get("scores", tmp_path, agreed=False, console=console)
        assert (tmp_path / "scores").exists() == fetched
    assert f"Fetch into {tmp_path / 'scores'}? [y/N]" in text(console)


def test_get_without_a_terminal_or_yes_fetches_nothing(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert command(monkeypatch, "get", "scores", "--data-root", tmp_path) == 2
    assert "not fetched. With --yes nobody is asked." in capsys.readouterr().err
    assert place.asked == [] and not (tmp_path / "scores").exists()
    assert command(monkeypatch, "get", "scores", "--data-root", tmp_path, "--yes") == 0
    assert (tmp_path / "scores" / "list.csv").is_file()


def test_get_of_what_comes_from_elsewhere_says_where(tmp_path, console):
    with pytest.raises(
        ValueError, match=r"harmonix cannot be fetched by a program: .*docs/datasets\.md.*verify"
    ):
        get("harmonix", tmp_path, agreed=True, console=console)
    assert "Harmonix Set" in text(console)
    with pytest.raises(UnknownNameError, match="harmonix"):
        get("harmonics", tmp_path, agreed=True, console=console)


def test_get_without_network_or_a_place_to_put_it(tmp_path, console, monkeypatch):
    room = type(shutil.disk_usage(tmp_path))(10**15, 0, 10**15)  # whatever this machine has left
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
    with pytest.raises(FetchError, match="no network in tests"):
        get("musdb18", tmp_path, agreed=True, console=console)
    with pytest.raises(ValueError, match=r"--data-root DIR, or \$AUDIATION_DATA_ROOT"):
        get("musdb18", None, agreed=True, console=console)


def test_get_takes_the_place_from_the_environment(place, tmp_path, console, monkeypatch):
    monkeypatch.setenv("AUDIATION_DATA_ROOT", str(tmp_path / "env"))
    assert get("scores", None, agreed=True, console=console) == tmp_path / "env" / "scores"


def test_what_was_changed_on_the_way_is_not_kept(place, tmp_path, console):
    place.files["https://example.org/list.csv"] = b"a,c\n"
    with pytest.raises(FetchError, match="is not the published file"):
        get("scores", tmp_path, agreed=True, console=console)
    assert not (tmp_path / "scores" / "list.csv").exists()


def test_every_data_set_that_can_be_fetched_says_what_is_needed():
    for name in DATASETS:
        for download in DATASETS[name].info.downloads:
            assert download.url.startswith("https://") and ".." not in download.path
            assert download.checksum is None or download.checksum.partition(":")[0] in ("md5", "sha256")


# A copy of Harmonix ------------------------------------------------------------------------------------------


def annotated_beats(number):
    """As steady as people play, so that no shift by a beat fits as well."""
    rng = np.random.default_rng(number)
    return 1.0 + np.cumsum(0.5 + 0.03 * rng.standard_normal(24))


def write_annotations(folder):
    dataset = folder / "dataset"
    for kind in ("beats_and_downbeats", "segments"):
        (dataset / kind).mkdir(parents=True)
    rows = "".join(f"{song},T,Artist {i},R,15.0,120,100.0,4|4,Pop,,\n" for i, song in enumerate(SONGS))
    (dataset / "metadata.csv").write_text(HEADER + rows)
    for i, song in enumerate(SONGS):
        lines = [f"{t:.4f}\t{k % 4 + 1}\t{k // 4 + 1}\n" for k, t in enumerate(annotated_beats(i))]
        (dataset / "beats_and_downbeats" / f"{song}.txt").write_text("".join(lines))
        (dataset / "segments" / f"{song}.txt").write_text("0.0 intro\n5.0 verse\n14.0 end\n")


def recording(number):
    """Clicks where the beats are, moved; the third is another recording altogether."""
    song, rng = SONGS[number], np.random.default_rng(10 + number)
    wave = 0.005 * rng.standard_normal(15 * RATE_HZ)
    if song not in OFFSETS:
        return 0.2 * rng.standard_normal(15 * RATE_HZ)
    for time in annotated_beats(number) + OFFSETS[song]:
        start = round(time * RATE_HZ)
        wave[start : start + 110] += 0.5 * rng.standard_normal(110)
    return wave


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """The user's own files: one is called like the song, one like its title, and one like nothing."""
    folder = tmp_path_factory.mktemp("mine")
    for number, name in enumerate(("0001_shifted.wav", "Early.flac", "0003_noise.wav")):
        soundfile.write(folder / name, recording(number), RATE_HZ)
    soundfile.write(folder / "other.wav", np.zeros(100), RATE_HZ)
    (folder / "notes.txt").write_text("x")
    return folder


def copy_of_harmonix(folder, recordings):
    """A clone of the repository with audio."""
    write_annotations(folder)
    (folder / "audio").mkdir()
    for song, path in zip(SONGS, ("0001_shifted.wav", "Early.flac", "0003_noise.wav"), strict=True):
        (folder / "audio" / f"{song}.wav").symlink_to(recordings / path)
    return folder


# verify ------------------------------------------------------------------------------------------------------


def test_verify_prints_what_is_missing_and_counts_it(recordings, tmp_path, console):
    root = copy_of_harmonix(tmp_path / "harmonix", recordings)
    (root / "audio" / "0002_early.wav").unlink()
    with pytest.warns(UserWarning, match="1 of 3 listed recordings left out"):
        count = verify("harmonix", tmp_path, None, console)
    lines = text(console).splitlines()
    assert lines[0] == "harmonix: 2 train, 0 valid, 0 test; 1 listed recordings left out"
    assert lines[1].startswith("split ") and len(lines[1]) == len("split ") + 16
    assert lines[2] == "  0002_early: no audio/0002_early.* of a known kind"
    assert lines[-1] == f"{count} missing or different" and len(lines) == 3 + count and count == 4


def test_verify_shows_the_first_of_many_and_ends_with_1(monkeypatch, capsys, tmp_path):
    class Many(DATASETS["scores"]):
        def __init__(self, root, *, metadata_root=None):
            self.tracks, self.skipped, self.lines = (), (), int((root / "n").read_text())

        def verify(self):
            return [f"[red]{i}: is missing" for i in range(self.lines)]

    monkeypatch.setattr("audiation.splits.DATASETS", {"scores": Many})
    (tmp_path / "scores").mkdir()
    for count, code in ((0, 0), (1, 1), (25, 1)):
        (tmp_path / "scores" / "n").write_text(str(count))
        assert command(monkeypatch, "verify", "scores", "--data-root", tmp_path) == code
        shown = capsys.readouterr().out
        assert shown.count(": is missing") == min(count, dataset_commands.SHOWN_LINES)
        assert ("and 5 more" in shown) == (count == 25) and ("[red]0: is missing" in shown) == (count > 0)
        assert shown.endswith("all there\n" if count == 0 else f"{count} missing or different\n")


def test_verify_of_what_is_not_there(monkeypatch, capsys, tmp_path):
    for arguments, message in (
        (("verify", "gtzan", "--data-root", tmp_path), "gtzan not found at"),
        (("verify", "gtzan:jazz_00054=burn", "--data-root", tmp_path), "burn"),
        (("verify", "gtzam"), "Did you mean 'gtzan'?"),
        (("verify",), "datasets verify needs a name"),
        (("get",), "datasets get needs a name"),
        (("match",), "datasets match needs a name"),
        (("match", "harmonix"), "--data-root DIR"),
    ):
        assert command(monkeypatch, *arguments) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error


# match -------------------------------------------------------------------------------------------------------


def by_id(found):
    return {m.track_id: m for m in found}


def offsets_in(path):
    with path.open(newline="") as file:
        return {row["File"]: float(row["offset_seconds"]) for row in csv.DictReader(file)}


def check(found):
    for song, offset in OFFSETS.items():
        assert found[song].is_clear and found[song].offset_seconds == pytest.approx(offset, abs=0.01)
    assert not found["0003_noise"].is_clear and not found["0003_noise"].problem


def test_match_finds_shifts_writes_them_and_the_reader_uses_them(recordings, tmp_path, console):
    root = copy_of_harmonix(tmp_path / "harmonix", recordings)
    check(by_id(match("harmonix", None, tmp_path, None, console)))
    shown = text(console)
    assert "2 of 3 are clear" in shown and "doubtful: another recording?" in shown
    written = offsets_in(root / "offsets.csv")
    assert written == {song: pytest.approx(offset, abs=0.01) for song, offset in OFFSETS.items()}
    tracks = {t.track_id: t for t in DATASETS["harmonix"](root).tracks}
    for number, song in enumerate(SONGS):
        moved = tracks[song].beats.times_seconds - np.round(annotated_beats(number), 4)
        np.testing.assert_allclose(moved, OFFSETS.get(song, 0.0), atol=0.01)


def test_match_again_finds_the_same(recordings, tmp_path, console):
    root = copy_of_harmonix(tmp_path / "harmonix", recordings)
    match("harmonix", None, tmp_path, None, console)
    first = (root / "offsets.csv").read_text()
    match("harmonix", None, tmp_path, None, console)
    assert (root / "offsets.csv").read_text() == first


def test_offsets_lie_where_the_reader_found_the_data(recordings, tmp_path, console):
    """A clone of the repository is called harmonixset; and the data root may be the data set itself."""
    root = copy_of_harmonix(tmp_path / "a" / "harmonixset", recordings)
    match("harmonix", None, tmp_path / "a", None, console)
    assert set(offsets_in(root / "offsets.csv")) == set(OFFSETS)
    assert not (tmp_path / "a" / "harmonix").exists()
    root = copy_of_harmonix(tmp_path / "b", recordings)
    match("harmonix", None, tmp_path / "b", None, console)
    assert set(offsets_in(root / "offsets.csv")) == set(OFFSETS)


def test_match_links_recordings_that_are_called_like_songs(recordings, tmp_path, console, monkeypatch):
    root = tmp_path / "data" / "harmonix"
    write_annotations(root)
    content = (root / "dataset" / "metadata.csv").read_bytes()
    monkeypatch.setattr(harmonix, "read_metadata_file", lambda *arguments: content)  # the official list
    found = by_id(match("harmonix", recordings, tmp_path / "data", None, console))
    check(found)
    linked = sorted((root / "audio").iterdir())
    assert [p.name for p in linked] == ["0001_shifted.wav", "0002_early.flac", "0003_noise.wav"]
    assert linked[1].is_symlink() and linked[1].resolve() == (recordings / "Early.flac").resolve()
    assert f"3 recordings of {recordings} are linked" in text(console)
    match("harmonix", recordings, tmp_path / "data", None, console)
    assert f"0 recordings of {recordings} are linked" in text(console)
    with pytest.raises(FileNotFoundError, match="no audio file in"):
        match("harmonix", root / "dataset", tmp_path / "data", None, console)


def test_recordings_are_linked_into_a_clone_of_the_repository(recordings, tmp_path, console):
    """Its own list of songs says what they are called: nothing official is needed beside it."""
    root = tmp_path / "harmonixset"
    write_annotations(root)
    check(by_id(match("harmonix", recordings, tmp_path, None, console)))
    assert len(list((root / "audio").iterdir())) == 3 and not (tmp_path / "harmonix").exists()


def test_recordings_that_nothing_can_be_said_about(recordings, tmp_path, console):
    root = copy_of_harmonix(tmp_path / "harmonix", recordings)
    for song, content in (("0001_shifted", b"not audio"), ("0003_noise", None)):
        (root / "audio" / f"{song}.wav").unlink()
        if content is not None:
            (root / "audio" / f"{song}.wav").write_bytes(content)
        else:
            soundfile.write(root / "audio" / f"{song}.wav", np.zeros(3 * RATE_HZ), RATE_HZ)
    (root / "dataset" / "beats_and_downbeats" / "0002_early.txt").write_text("x\t1\t1\n")
    found = by_id(match("harmonix", None, tmp_path, None, console))
    assert "0001_shifted.wav" in found["0001_shifted"].problem
    assert "0002_early.txt, line 1" in found["0002_early"].problem
    assert "is it silent or empty?" in found["0003_noise"].problem
    assert not any(m.is_clear for m in found.values()) and "0 of 3 are clear" in text(console)
    assert offsets_in(root / "offsets.csv") == {}


def test_offsets_that_were_written_by_hand_stay_where_nothing_better_is_known(recordings, tmp_path, console):
    root = copy_of_harmonix(tmp_path / "harmonix", recordings)
    (root / "audio" / "0002_early.wav").unlink()
    (root / "offsets.csv").write_text(
        "File,offset_seconds\n0003_noise,1.5\n0002_early,-0.3\n0001_shifted,9.0\n"
    )
    with pytest.warns(UserWarning, match="1 of 3 listed recordings left out"):
        match("harmonix", None, tmp_path, None, console)
    written = offsets_in(root / "offsets.csv")
    assert written == {"0003_noise": 1.5, "0002_early": -0.3, "0001_shifted": pytest.approx(0.37, abs=0.01)}


@pytest.fixture
def plain(monkeypatch, tmp_path):
    """A data set whose tracks have chords, or nothing that happens at a time."""

    @dataclasses.dataclass(frozen=True)
    class WithChords(Track):
        @property
        def chords(self):
            times = np.array([0.0, *np.round(annotated_beats(0)[::2], 4), 14.5])
            labels = ["N", *("C:maj", "G:maj") * 12]
            return Segments(np.stack([times[:-1], times[1:]], axis=1), tuple(labels[: len(times) - 1]))

    class Reader(DATASETS["scores"]):
        def __init__(self, root, *, metadata_root=None):
            kind = WithChords if (root / "chords").exists() else Track
            self.tracks, self.skipped = (kind("a", root / "a.wav", "test"),), ()

    monkeypatch.setattr("audiation.splits.DATASETS", {"plain": Reader})
    (tmp_path / "plain").mkdir()
    wave = 0.005 * np.random.default_rng(0).standard_normal(15 * RATE_HZ)
    for time in annotated_beats(0)[::2] + 0.1:
        wave[round(time * RATE_HZ) :][:110] += 0.5 * np.random.default_rng(1).standard_normal(110)
    soundfile.write(tmp_path / "plain" / "a.wav", wave, RATE_HZ)
    return tmp_path


def test_chord_changes_are_fitted_where_there_are_no_beats_and_nothing_is_written(plain, console):
    (plain / "plain" / "chords").touch()
    (one,) = match("plain", None, plain, None, console)
    assert one.is_clear and one.offset_seconds == pytest.approx(0.1, abs=0.01)
    assert sorted(p.name for p in (plain / "plain").iterdir()) == ["a.wav", "chords"]


def test_match_of_data_with_neither_beats_nor_chords_is_refused(plain, console):
    with pytest.raises(ValueError, match="neither beats nor chords"):
        match("plain", None, plain, None, console)


def test_audio_is_linked_for_harmonix_alone(tmp_path, console):
    with pytest.raises(ValueError, match="--audio links recordings for harmonix; put those of gtzan"):
        match("gtzan", tmp_path, tmp_path, None, console)


@pytest.mark.parametrize(
    ("correlation", "second_best", "problem", "clear"),
    [(0.5, 0.1, "", True), (0.5, 0.49, "", False), (0.14, 0.0, "", False), (0.5, 0.1, "x", False)],
)
def test_a_shift_is_clear_where_it_stands_out(correlation, second_best, problem, clear):
    one = Match("a", 0.1, correlation, second_best, problem)
    assert one.is_clear == clear and one.lead == pytest.approx(correlation - second_best)
