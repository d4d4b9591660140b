"""`audiation-mini`: the table of packages, fetching them with fake and real .debs, renderings that are no chorales."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiation import mini_corpus, mini_renderings
from audiation.datasets import chorales
from audiation.datasets.chorales import ScoreNote
from audiation.datasets.synthesis import SAMPLE_RATE_HZ, TIMBRES, Draws, Note
from audiation.folder_lock import FolderLockedError, locked
from audiation.mini_fetching import CommandError, Failure, ToolMissingError, fetch_packages, run_command
from audiation.mini_packages import ALLOWED_LICENCES, MusicPackage, mini_packages
from audiation.mini_renderings import clip_parts, plan_renderings, render_scores
from audiation.mini_scores import ChoraleTunes, Piece, ScoreSource

# ---------------------------------------------------------------------------------------------- the table


def test_the_table_is_well_formed():
    packages = mini_packages()
    assert len({p.name for p in packages}) == len(packages) == 23
    for p in packages:
        assert p.licences and set(p.licences) <= ALLOWED_LICENCES, p.name
        assert p.num_files > 0 and p.hours > 0.0 and p.num_bytes > 0, p.name
        assert len(p.sha256) == 64 and set(p.sha256) <= set("0123456789abcdef"), p.name
        assert p.music and all(pattern.startswith("usr/share/") for pattern in p.music), p.name
    assert sum(p.num_files for p in packages) == 471
    assert sum(p.hours for p in packages) == pytest.approx(27.78)


def test_no_licence_forbids_changes_or_commerce():
    assert not [name for name in ALLOWED_LICENCES if "NC" in name or "ND" in name]


def test_packages_are_taken_by_name():
    assert [p.name for p in mini_packages(["torcs-data", "asc-music"])] == ["torcs-data", "asc-music"]
    with pytest.raises(KeyError, match=r"asc-musik.*Known: warzone2100-music"):
        mini_packages(["asc-musik"])


def test_apts_name_of_a_version_with_an_epoch():
    (wesnoth,) = mini_packages(["wesnoth-1.16-music"])
    assert wesnoth.deb_name == "wesnoth-1.16-music_1%3a1.16.9-1_all.deb"


# ---------------------------------------------------------------------------------------------- fetching

DEB = b"not really an archive"
MUSIC = "usr/share/games/tune/music"


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """What the package holds: 3 files of music, one of them in an archive, and much that is not music."""
    root = tmp_path_factory.mktemp("tree")
    for name, seconds in (
        (f"{MUSIC}/long.flac", 21),
        (f"{MUSIC}/albums/one/Long.FLAC", 20),
        (f"{MUSIC}/fanfare.flac", 19),
        ("usr/share/games/tune/speech/story.flac", 30),
    ):
        write_audio(root / name, seconds)
    (root / MUSIC / "cover.png").write_bytes(b"png")
    (root / MUSIC / "link.flac").symlink_to("long.flac")
    (root / "usr/share/doc/tune-music").mkdir(parents=True)
    (root / "usr/share/doc/tune-music/copyright").write_text("License: CC-BY-3.0\n")
    packed = root / "usr/share/games/tune/data.pk3"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(root / MUSIC / "long.flac", "music/packed.flac")
        archive.write(root / MUSIC / "fanfare.flac", "maps/fanfare.flac")
        archive.writestr("music/readme.txt", "text")
    return root


def write_audio(path: Path, seconds: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.sin(np.arange(seconds * 8000) * 0.2) * 0.1
    soundfile.write(path, samples, 8000, format="FLAC")


@pytest.fixture
def package() -> MusicPackage:
    return MusicPackage(
        name="tune-music",
        version="1:2.0-1",
        sha256=hashlib.sha256(DEB).hexdigest(),
        num_bytes=len(DEB),
        licences=("CC-BY-3.0",),
        music=(f"{MUSIC}/*",),
        num_files=3,
        hours=0.02,
    )


@dataclass
class FakeDebian:
    """Runs apt-get and dpkg-deb as a Debian would that has one package."""

    tree: Path
    deb: bytes = DEB
    stops: bool = False
    calls: list[str] = field(default_factory=list)

    def __call__(self, arguments: Sequence[str], folder: Path) -> None:
        self.calls.append(arguments[0])
        if arguments[0] == "apt-get":
            if "tune-music=1:2.0-1" not in arguments:
                raise CommandError("E: no such version")
            (folder / "tune-music_1%3a2.0-1_all.deb").write_bytes(self.deb)
        else:
            assert arguments[:2] == ["dpkg-deb", "-x"] and Path(arguments[2]).read_bytes() == DEB
            shutil.copytree(self.tree, arguments[3], symlinks=True, dirs_exist_ok=True)
            if self.stops:
                raise KeyboardInterrupt


KEPT = {"albums/one/Long.FLAC", "long.flac", "packed.flac"}


def kept(directory: Path) -> set[str]:
    home = directory / "music/tune-music/games/tune/music"
    found = {p for p in (directory / "music").rglob("*") if not p.is_dir()}
    assert all(p.is_relative_to(home) for p in found)
    return {p.relative_to(home).as_posix() for p in found}


def test_music_and_nothing_else_is_kept(tmp_path, tree, package):
    debian = FakeDebian(tree)
    assert fetch_packages(tmp_path, [package], run=debian) == []
    assert kept(tmp_path) == KEPT
    packed = tmp_path / "music/tune-music/games/tune/music/packed.flac"
    assert packed.read_bytes() == (tree / MUSIC / "long.flac").read_bytes()
    assert (tmp_path / "licences/tune-music.txt").read_text() == "License: CC-BY-3.0\n"
    assert list((tmp_path / ".work").iterdir()) == []
    assert debian.calls == ["apt-get", "dpkg-deb"]


def test_what_is_complete_is_not_done_twice(tmp_path, tree, package):
    fetch_packages(tmp_path, [package], run=FakeDebian(tree))
    again = FakeDebian(tree)
    assert fetch_packages(tmp_path, [package], run=again) == [] and again.calls == []
    (tmp_path / "music/tune-music/games/tune/music/long.flac").unlink()
    assert fetch_packages(tmp_path, [package], run=again) == [] and again.calls == ["dpkg-deb"]
    assert kept(tmp_path) == KEPT


@pytest.mark.parametrize(
    ("content", "message"), [("[", "is damaged"), ("[]", "does not say what was fetched")]
)
def test_a_damaged_marker_is_a_failure_that_says_what_to_do(tmp_path, tree, package, content, message):
    fetch_packages(tmp_path, [package], run=FakeDebian(tree))
    (tmp_path / ".fetched/tune-music.json").write_text(content)
    (failure,) = fetch_packages(tmp_path, [package], run=FakeDebian(tree))
    assert message in failure.reason and failure.reason.endswith("Remove it and call again.")


def test_a_stop_is_made_good(tmp_path, tree, package):
    with pytest.raises(KeyboardInterrupt):
        fetch_packages(tmp_path, [package], run=FakeDebian(tree, stops=True))
    assert kept(tmp_path) == set()
    debian = FakeDebian(tree)
    assert fetch_packages(tmp_path, [package], run=debian) == [] and debian.calls == ["dpkg-deb"]
    assert kept(tmp_path) == KEPT


@pytest.mark.parametrize("lies_there", [True, False])
def test_a_wrong_hash_is_refused(tmp_path, tree, package, lies_there):
    if lies_there:
        (tmp_path / "debs").mkdir()
        (tmp_path / "debs" / package.deb_name).write_bytes(b"other")
    debian = FakeDebian(tree, deb=b"other")
    (failure,) = fetch_packages(tmp_path, [package], run=debian)
    assert failure.package == "tune-music"
    assert "is not tune-music 1:2.0-1: sha256 d9298a10d1b07358" in failure.reason
    assert debian.calls == ([] if lies_there else ["apt-get"]) and kept(tmp_path) == set()
    assert (tmp_path / "debs" / package.deb_name).exists() == lies_there  # a bad download is not kept


@pytest.mark.parametrize("name", ["../../escaped.flac", "/tmp/escaped.flac", "music/..\\..\\escaped.flac"])
def test_an_archive_that_reaches_outside_is_refused(tmp_path, tree, package, name):
    bad = tmp_path / "tree"
    shutil.copytree(tree, bad, symlinks=True)
    with zipfile.ZipFile(bad / "usr/share/games/tune/data.pk3", "a") as archive:
        archive.writestr(name, b"sound")
    (failure,) = fetch_packages(tmp_path / "out", [package], run=FakeDebian(bad))
    assert "which is no file inside its folder" in failure.reason
    assert kept(tmp_path / "out") == set() and not list(tmp_path.rglob("escaped.flac"))


def test_a_link_in_an_archive_is_refused(tmp_path, tree, package):
    bad = tmp_path / "tree"
    shutil.copytree(tree, bad, symlinks=True)
    link = zipfile.ZipInfo("music/link.flac")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(bad / "usr/share/games/tune/data.pk3", "a") as archive:
        archive.writestr(link, "/etc/passwd")
    (failure,) = fetch_packages(tmp_path / "out", [package], run=FakeDebian(bad))
    assert "'music/link.flac', which is no file inside its folder" in failure.reason


def test_failures_are_listed_and_the_others_are_fetched(tmp_path, tree, package):
    gone, fewer = replace(package, name="gone-music"), replace(package, num_files=4)
    found = fetch_packages(tmp_path, [gone, package], run=FakeDebian(tree))
    assert [f.package for f in found] == ["gone-music"] and kept(tmp_path) == KEPT
    assert found[0].reason.startswith("E: no such version. `apt-get update` first")
    assert "gone-music_1%3a2.0-1_all.deb (snapshot.debian.org" in found[0].reason
    assert fetch_packages(tmp_path / "other", [fewer], run=FakeDebian(tree)) == [
        Failure("tune-music", "tune-music_1%3a2.0-1_all.deb gave 3 files of music, not 4")
    ]


def test_no_debian(tmp_path, package):
    def elsewhere(arguments: Sequence[str], folder: Path) -> None:
        run_command(["no-such-program-as-this", *arguments[1:]], folder)

    with pytest.raises(ToolMissingError, match=r"no-such-program-as-this was not found.*debian:bookworm"):
        fetch_packages(tmp_path, [package], run=elsewhere)


def test_a_program_that_fails_says_why(tmp_path):
    with pytest.raises(CommandError, match=r"no such version$"):
        run_command([sys.executable, "-c", "import sys; sys.exit('first line\\nno such version')"], tmp_path)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb, which only Debian has")
def test_a_real_deb(tmp_path, tree, package):
    control = tmp_path / "build/DEBIAN/control"
    shutil.copytree(tree, tmp_path / "build", symlinks=True)
    control.parent.mkdir()
    control.write_text(
        "Package: tune-music\nVersion: 1:2.0-1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: tunes\n"
    )
    deb = tmp_path / "debs" / package.deb_name
    deb.parent.mkdir()
    subprocess.run(
        ["dpkg-deb", "--build", str(tmp_path / "build"), str(deb)], check=True, capture_output=True
    )
    real = replace(package, sha256=hashlib.sha256(deb.read_bytes()).hexdigest())
    assert fetch_packages(tmp_path, [real]) == []
    assert kept(tmp_path) == KEPT


# ---------------------------------------------------------------------------------------------- renderings

CHORALE = "bach/bwv66.6.mxl"
TINY = (
    ScoreSource("voices", "josquin/fortunaDunGranTempo.abc", "GPL-2+", parts_apart=True),
    ScoreSource("tunes", "ryansMammoth/7thRegimentReel.abc"),
    ScoreSource("tunes", CHORALE),  # which is refused by its content
    ScoreSource("tunes", "palestrina/Agnus_00.krn"),  # whose rights are reserved
)


@pytest.fixture
def small(monkeypatch):
    """Clips of 3 to 5 s, and a corpus with three chorales."""
    pytest.importorskip("music21")
    files = {f.name: f for f in chorales.chorale_files()}
    few = [files[name] for name in ("bwv10.7.mxl", "bwv66.6.mxl", "bwv269.mxl")]
    monkeypatch.setattr(chorales, "chorale_files", lambda: few)
    monkeypatch.setattr(mini_renderings, "CLIP_SECONDS", (3, 5))


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((directory / "clips").iterdir())}


def test_renderings_are_the_same_bytes_and_no_chorales(tmp_path, small):
    made = render_scores(tmp_path / "a", hours=0.003, workers=0, sources=TINY)
    render_scores(tmp_path / "b", hours=0.003, workers=0, sources=TINY)
    clips = json.loads((tmp_path / "a/index.json").read_text())["clips"]
    assert made.drops == {
        "begins like a chorale of `scores`": [CHORALE],
        "its encoding may not be used freely": ["palestrina/Agnus_00.krn"],
    }
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    assert made.num_clips == len(clips) == len(bytes_of(tmp_path / "a")) >= 3
    assert made.hours == sum(c["seconds"] for c in clips) / 3600 >= 0.003
    sources = ["ryansMammoth/7thRegimentReel.abc", "josquin/fortunaDunGranTempo.abc"]
    assert [c["source"] for c in clips] == [sources[i % 2] for i in range(len(clips))]
    for clip in clips:
        path = tmp_path / "a/clips" / f"{clip['id']}.flac"
        samples, rate_hz = soundfile.read(path, dtype="int16")
        assert rate_hz == SAMPLE_RATE_HZ and samples.shape == (clip["seconds"] * SAMPLE_RATE_HZ,)
        assert 0.12 < np.abs(samples / 32768.0).max() < 0.95
        assert len(set(clip["timbres"])) == len(clip["timbres"]) == (2 if clip["doubling"] else 3)
        assert set(clip["timbres"]) <= set(TIMBRES) and -6 <= clip["transposition"] <= 5
        assert clip["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert clips[1]["licence"] == "GPL-2+"


@pytest.mark.slow
def test_interrupted_renderings_resume_to_the_same_bytes(tmp_path, small):
    render_scores(tmp_path, hours=0.003, workers=0, sources=TINY[:2])
    before, files = bytes_of(tmp_path), sorted((tmp_path / "clips").iterdir())
    (tmp_path / "index.json").unlink()
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-9])
    os.utime(files[2], (1, 1))
    (tmp_path / "clips/0000.flac.123.tmp").write_bytes(b"half")
    steps = []
    render_scores(
        tmp_path, hours=0.003, workers=0, sources=TINY[:2], progress=lambda *step: steps.append(step)
    )
    assert bytes_of(tmp_path) == before
    assert files[2].stat().st_mtime == 1
    total = len(files)
    assert [done for done, _, what in steps if what == "rendering clips"] == [total - 2, total - 1, total]
    assert not any(what == "reading chorales" for _, _, what in steps)


def test_other_settings_and_impossible_hours_are_refused(tmp_path, small):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_scores(tmp_path, hours=0.001, workers=0, sources=TINY[:2], progress=stop)
    with pytest.raises(ValueError, match=r"made with other settings \(hours, seed differ\)"):
        render_scores(tmp_path, seed=1, hours=0.002, workers=0, sources=TINY[:2])
    with pytest.raises(ValueError, match="hours must be greater than 0, got 0"):
        render_scores(tmp_path / "other", hours=0, workers=0, sources=TINY[:2])


@pytest.mark.slow
def test_a_corpus_without_scores_is_refused(tmp_path, small):
    with pytest.raises(ValueError, match="no score is left to play"):
        render_scores(tmp_path / "none", hours=0.001, workers=0, sources=TINY[2:])


def test_two_processes_do_not_render_into_one_folder(tmp_path, small):
    with locked(tmp_path, "rendering"), pytest.raises(FolderLockedError, match="is in use by process"):
        render_scores(tmp_path, hours=0.001, workers=0, sources=TINY[:2])


def line(name: str, midi: Sequence[int], length: float = 1.0) -> Piece:
    notes = tuple(ScoreNote(i * length, length, m) for i, m in enumerate(midi))
    return Piece(name, "tunes", "CC0", (notes,))


def test_a_chorale_is_known_in_any_key_rhythm_and_part():
    melody = [60, 62, 64, 65, 67, 65, 64, 62, 60, 59]
    steps = tuple(np.diff(melody).tolist())
    tunes = ChoraleTunes(frozenset(), frozenset({steps[:8]}))
    chorale = line("a", [m + 5 for m in melody], length=0.5)
    under = Piece("b", "tunes", "CC0", (line("c", [48] * 10).parts[0], chorale.parts[0]))
    assert tunes.hold(chorale) and tunes.hold(under)
    assert not tunes.hold(line("d", [60, 62, 64, 65, 67, 65, 64, 63, 60, 59]))
    long = [*melody, 60, 62, 64, 65, 64, 62, 60, 64, 67]
    first_parts = ChoraleTunes(frozenset({tuple(np.diff(long[:17]).tolist())}), frozenset())
    assert first_parts.hold(line("e", long)) and not first_parts.hold(chorale)  # 16 intervals are asked there


def test_a_clip_plays_the_notes_of_its_window_and_begins_again():
    piece = line("a", [60, 62, 64, 65])  # 4 quarters
    clip = {"seconds": 3, "bpm": 120.0, "start_quarters": 1.0, "transposition": 2, "doubling": -12}
    upper, lower = clip_parts(clip, piece, Draws("test"))
    half = SAMPLE_RATE_HZ // 2
    assert [(n.start_sample, n.midi) for n in upper] == [
        (0, 64), (half, 66), (2 * half, 67), (3 * half, 62), (4 * half, 64), (5 * half, 66),
    ]  # fmt: skip
    assert [n.midi for n in lower] == [n.midi - 12 for n in upper]
    assert all(isinstance(n, Note) and 0.8 * half - 1 <= n.num_samples <= 0.98 * half for n in upper)


def test_repertories_take_turns_and_fill_the_hours():
    quartets = [replace(line(f"q{i}", range(40, 80)), repertory="quartets") for i in range(3)]
    tunes = [line(f"t{i}", range(40, 80), length=0.25) for i in range(5)]
    plan = plan_renderings([*tunes, *quartets], seed=4, hours=0.5)
    assert plan == plan_renderings([*tunes, *quartets], seed=4, hours=0.5)
    assert plan != plan_renderings([*tunes, *quartets], seed=5, hours=0.5)
    seconds = [clip["seconds"] for clip, _ in plan]
    assert sum(seconds[:-1]) < 1800 <= sum(seconds) and 30 <= min(seconds) and max(seconds) <= 120
    assert {piece.repertory for _, piece in plan[::2]} == {"quartets"}
    assert {piece.name for _, piece in plan[1:10:2]} == {t.name for t in tunes}  # all before one comes again
    for clip, piece in plan:
        assert 0.159 < 60.0 / clip["bpm"] * piece.typical_quarters < 0.505


# ---------------------------------------------------------------------------------------------- commands


def command(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["mini_corpus", *arguments])
    mini_corpus.main()


def test_list_prints_licences_and_hours(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "160")
    command(monkeypatch, "list")
    out = capsys.readouterr().out
    row = next(text for text in out.splitlines() if "singularity-music" in text)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "singularity-music", "007-2", "CC-BY-SA-3.0", "16", "1.07", "52",
    ]  # fmt: skip
    assert "27.78" in out


def test_an_unknown_package_ends_the_command_with_2(monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, "fetch", str(tmp_path), "--packages", "nothing-music")
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("mini_corpus: 'nothing-music' is no package of audiation-mini.")
