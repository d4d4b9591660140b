"""Everything in a folder is read or counted."""

from audiation.music_files import find_music


def test_everything_is_found_or_counted(tmp_path):
    for name in (
        "b/2.FLAC",
        "b/10.mp3",
        "a.wav",
        "c.m4a",
        "cover.jpg",
        "b/notes.txt",
        ".x.wav",
        ".git/y.wav",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "b")
    (tmp_path / "broken.ogg").symlink_to(tmp_path / "nowhere")
    found = find_music([tmp_path, tmp_path / "cover.jpg", tmp_path / "missing.xyz", tmp_path / "a.wav"])
    names = [str(p.relative_to(tmp_path)) for p in found.files]
    # "again" comes before "b" and leads to the same folder, which is searched once
    assert names == [
        "a.wav", "broken.ogg", "c.m4a", "again/10.mp3", "again/2.FLAC", "cover.jpg", "missing.xyz",
    ]  # fmt: skip
    assert (found.num_other, found.num_hidden, found.problems) == (2, 2, ())


def test_nothing_is_found_in_nothing(tmp_path):
    found = find_music([tmp_path])
    assert found.files == () and found.num_other == 0


def test_names_that_cannot_be_looked_at_stop_nothing(tmp_path):
    (tmp_path / "a.wav").touch()
    (tmp_path / "self.wav").symlink_to("self.wav")
    too_long = tmp_path / ("n" * 300)
    found = find_music([too_long, tmp_path])
    assert found.files == (too_long, tmp_path / "a.wav")  # reading the first says what is wrong with it
    assert [path for path, _ in found.problems] == [tmp_path / "self.wav"]
    assert found.problems[0][1].startswith("cannot be followed (Too many levels of symbolic links).")
