"""The data set `scores`: the synthesiser's exactness and sound, the truth taken from a score, splits, resuming."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from audiation.annotations import Key
from audiation.datasets import DATASETS, chorales, scores
from audiation.datasets.chorales import Chorale, ScoreNote
from audiation.datasets.scores import Scores, make_scores, plan_clips, render_clips
from audiation.datasets.synthesis import SAMPLE_RATE_HZ, TIMBRES, Draws, Note, frequency_hz, render

SECOND = SAMPLE_RATE_HZ
PHRASE = [
    Note(start * SECOND // 2, SECOND // 2 - 600, midi, 0.8)
    for start, chord in enumerate(((72, 67, 64, 48), (74, 67, 59, 43), (72, 67, 64, 48)))
    for midi in chord
]
GOLDEN_PHRASE = "09c945ea9e1154257c73f8af2386e5657b31c75f119cd407b8a98547dd88cd46"
PHRASE_SCRIPT = (
    "import sys; sys.path.insert(0, sys.argv[1]); from test_scores import phrase_hash; print(phrase_hash())"
)


def phrase_hash() -> str:
    digest = hashlib.sha256()
    for timbre in TIMBRES:
        digest.update(render(PHRASE, timbre, 2 * SECOND, Draws(0, "golden", timbre)).astype("<i2").tobytes())
    return digest.hexdigest()


def no_progress(done: int, total: int, what: str) -> None:
    pass


# ---------------------------------------------------------------------------------------------- synthesis


def test_a_phrase_in_every_timbre_has_the_recorded_bytes():
    assert phrase_hash() == GOLDEN_PHRASE


def test_another_process_without_simd_dispatch_gives_the_same_bytes():
    umath = np._core._multiarray_umath
    fast = [f for f in umath.__cpu_dispatch__ if umath.__cpu_features__.get(f)]
    environment = os.environ | {"NPY_DISABLE_CPU_FEATURES": " ".join(fast)}
    command = [sys.executable, "-c", PHRASE_SCRIPT, os.path.dirname(__file__)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == phrase_hash()


def test_draws_are_splitmix64_and_depend_on_the_name_only():
    draws = Draws("any")
    draws._counter = 0
    assert [int(x) for x in draws._bits(2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]  # Vigna's reference
    assert Draws(0, "a").uniform(0, 1) == Draws(0, "a").uniform(0, 1) != Draws(1, "a").uniform(0, 1)
    noise = Draws("n").noise(50_000)
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 3**-0.5) < 0.01
    assert sorted(Draws("s").shuffled(range(20))) == list(range(20)) != Draws("s").shuffled(range(20))


@pytest.mark.parametrize("timbre", TIMBRES)
def test_a4_is_440_hz_and_nothing_clips(timbre):
    pcm = render([Note(0, 2 * SECOND, 69, 1.0)], timbre, 2 * SECOND, Draws(0, timbre))
    assert 0.1 < np.abs(pcm.astype(int)).max() / 32768 < 0.96
    spectrum = np.abs(np.fft.rfft(pcm * np.hanning(len(pcm)), n=8 * len(pcm)))
    hz = np.fft.rfftfreq(8 * len(pcm), 1 / SECOND)
    near = (hz > 415) & (hz < 467)  # up to a semitone away
    # vibrato and detuned desks spread the line, so its centre of mass is what is heard as the pitch
    assert abs(np.average(hz[near], weights=spectrum[near] ** 2) - 440) < 1.5


def test_frequencies_are_equal_tempered():
    for midi in range(21, 109):
        assert abs(frequency_hz(midi) / (440 * 2 ** ((midi - 69) / 12)) - 1) < 1e-14


def spectral_features(pcm: np.ndarray) -> np.ndarray:
    """Energy in 16 bands relative to the whole in dB, and how much of it falls away after the onset."""
    samples = pcm / 32768
    spectrum = np.abs(np.fft.rfft(samples)) ** 2
    hz = np.fft.rfftfreq(len(samples), 1 / SECOND)
    edges = np.geomspace(100, 11_000, 17)
    bands = [spectrum[(hz >= a) & (hz < b)].sum() for a, b in pairwise(edges)]
    bands_db = 10 * np.log10(np.array(bands) / spectrum.sum() + 1e-6)
    power = [np.mean(p**2) for p in np.array_split(samples[:SECOND], 8)]
    return np.append(bands_db, 30 * np.log10((power[1] + 1e-9) / (power[6] + 1e-9)))


def test_a_nearest_centroid_tells_the_timbres_apart():
    def sample(timbre: str, take: int) -> np.ndarray:
        draws = Draws("take", take)
        notes = [
            Note(0, SECOND, midi + draws.below(9) - 4, draws.uniform(0.7, 1)) for midi in (72, 67, 60, 48)
        ]
        return spectral_features(render(notes, timbre, SECOND * 3 // 2, Draws(timbre, take)))

    learnt = {timbre: np.mean([sample(timbre, k) for k in range(8)], axis=0) for timbre in TIMBRES}
    right = [
        min(learnt, key=lambda name: np.abs(learnt[name] - features).sum()) == timbre
        for timbre in TIMBRES
        for features in (sample(timbre, k) for k in range(8, 16))
    ]
    assert np.mean(right) >= 0.9


def test_a_timbre_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="flute"):
        render(PHRASE, "kazoo", SECOND, Draws(0))


# ---------------------------------------------------------------------------------------------- truth


def test_krumhansl_is_the_best_correlation():
    rng = np.random.default_rng(0)
    durations = rng.random((200, 12))
    profiles = [np.roll(p, t) for p in (chorales._MAJOR, chorales._MINOR) for t in range(12)]
    best = [int(np.argmax([np.corrcoef(p, row)[0, 1] for p in profiles])) for row in durations]
    assert chorales.krumhansl(durations).tolist() == best
    g_major = np.array([2, 0, 2, 0, 2, 0, 1, 4, 0, 2, 0, 3.0])
    assert Key.from_index(int(chorales.krumhansl(g_major))) == Key(7, "major")


@pytest.mark.parametrize(
    ("lengths", "beats_per_bar", "positions"),
    [
        ([1, 4, 3], 4, (4, 1, 2, 3, 4, 1, 2, 3)),  # upbeat
        ([4, 3, 1, 4], 4, (1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4)),  # a bar split at a repeat
        ([2, 3, 1], 3, (2, 3, 1, 2, 3, 1)),
        ([4, 3, 4, 4], 4, None),  # a beat is missing
        ([4, 10, 4], 4, None),
        ([4, 2.5, 4], 4, None),
    ],
)
def test_bar_positions(lengths, beats_per_bar, positions):
    assert chorales.bar_positions(lengths, beats_per_bar) == positions


@pytest.mark.parametrize(
    ("midi", "label"),
    [
        ((48, 64, 67, 72), "C:maj"),
        ((45, 60, 64, 69), "A:min"),
        ((46, 62, 65, 70), "Bb:maj"),
        ((43, 59, 62, 65), "X"),
        ((48, 60, 67), "X"),
        ((), "N"),
    ],
)
def test_chord_labels(midi, label):
    assert chorales.chord_label([ScoreNote(3.0, 1.0, m) for m in midi], 3.0, 4.0) == label


def test_a_passing_note_of_half_a_beat_does_not_change_the_chord():
    triad = [ScoreNote(0.0, 1.0, m) for m in (48, 64, 67, 72)]
    assert chorales.chord_label([*triad, ScoreNote(0.5, 0.5, 77)], 0.0, 1.0) == "C:maj"
    assert chorales.chord_label([*triad, ScoreNote(0.25, 0.75, 77)], 0.0, 1.0) == "X"


def test_files_share_a_tune_directly_or_through_others():
    found = chorales.tunes(
        {"c": [("k", 1)], "a": [("k", 2), ("k", 3)], "b": [("k", 1), ("k", 2)], "d": [("k", 4)]}
    )
    assert found == {"a": "a", "b": "a", "c": "a", "d": "d"}


@pytest.fixture
def music21_scratch(tmp_path):
    """music21 makes its scratch folder whenever it parses: here, not in the system's temporary folder."""
    environment = pytest.importorskip("music21.environment").Environment()
    before, environment["directoryScratch"] = environment["directoryScratch"], str(tmp_path)
    yield
    environment["directoryScratch"] = before


def test_real_chorales(tmp_path, music21_scratch):
    """Facts read off the printed scores, and music21's own Krumhansl-Schmuckler."""
    from music21 import converter

    files = {f.name: f for f in chorales.chorale_files()}
    assert len(files) == 413
    for name, key, beats_per_bar in (
        ("bwv66.6.mxl", "Gb minor", 4),  # F sharp minor
        ("bwv269.mxl", "G major", 3),
        ("bwv277.krn", None, 4),  # states no mode
    ):
        chorale = chorales.read_chorale(files[name], tmp_path)
        assert (str(chorale.written_key) if chorale.written_key else None) == key
        assert chorale.beat_positions[0] == beats_per_bar or name == "bwv277.krn"  # both have an upbeat
        assert max(chorale.beat_positions) == beats_per_bar
        assert len(chorale.beat_positions) * chorale.beat_quarters == chorale.end_quarters
        durations = chorales.pitch_class_durations(chorale.note_table, 0, chorale.end_quarters)
        theirs = converter.parse(files[name], forceSource=True, storePickle=False)
        theirs_key = theirs.analyze("KrumhanslSchmuckler")
        ours = Key.from_index(int(chorales.krumhansl(durations)))
        assert (ours.tonic, ours.mode) == (theirs_key.tonic.pitchClass, theirs_key.mode)
    assert chorales.read_chorale(files["bwv846.mxl"], tmp_path) is None
    first = chorales.read_chorale(files["bwv66.6.mxl"], tmp_path)
    assert sorted(n.midi for n in first.notes if n.onset == 0.0) == [57, 57, 64, 73]  # A A E C sharp


# ---------------------------------------------------------------------------------------------- planning


def written_by_hand(index: int, tonic: int, mode: str) -> Chorale:
    """40 beats of I IV V I with a soprano of its own, in 4/4 with an upbeat."""
    third = 4 if mode == "major" else 3
    one, four, five = (0, third, 7), (5, 5 + third, 12), (7, 11, 14)
    draws = Draws("by hand", index)
    notes = []
    for beat in range(41):
        chord = (one, four, five, one, one)[beat % 5]
        for voice, pitch in enumerate((*chord, chord[0] - 12)):
            octave = 12 * draws.below(2) if voice == 0 else 0
            notes.append(ScoreNote(float(beat), 1.0, 55 + tonic + pitch + octave))
    return Chorale(
        name=f"hand{index}",
        notes=tuple(notes),
        beat_quarters=1.0,
        beat_positions=tuple((beat + 3) % 4 + 1 for beat in range(41)),
        written_key=Key((55 + tonic) % 12, mode),
        final_bass=(55 + tonic) % 12,
        incipits=(("by hand", index // 2),),  # two by two the same tune
    )


@pytest.fixture(scope="module")
def corpus():
    good = [written_by_hand(i, i % 12, "major" if (i // 2) % 2 else "minor") for i in range(24)]
    bad_bass = replace(good[0], name="bass", final_bass=1)
    bad_key = replace(good[0], name="key", written_key=Key(8, "major"), final_bass=8)
    bad_bars = replace(good[0], name="bars", beat_positions=None)
    return [*good, bad_bass, bad_key, bad_bars, "keyboard"]


@pytest.fixture(scope="module")
def plan(corpus):
    header = {"version": scores.VERSION, "seed": 3, "num_clips": 96}
    return json.loads(json.dumps(header | plan_clips(corpus, seed=3, num_clips=96)))


def test_drops_are_counted_by_reason(plan):
    assert plan["drops"] == {
        "has no four sung parts": ["keyboard"],
        "final bass is not the tonic of the written key": ["bass"],
        "Krumhansl key of the whole score is not the written key": ["key"],
        "bars do not follow one time signature": ["bars"],
    }
    assert plan["windows"]["looked at"] > plan["windows"]["own key differs"]


def test_keys_and_timbres_are_balanced_and_no_tune_is_in_two_splits(plan):
    homes: dict[str, set[str]] = {}
    for split, count in (("train", 24), ("valid", 24), ("test", 48)):
        clips = [c for c in plan["clips"] if c["split"] == split]
        assert len(clips) == count
        assert set(Counter(c["key"] for c in clips).values()) == {count // 24}
        assert set(Counter(c["timbre"] for c in clips).values()) == {count // 8}
        for c in clips:
            homes.setdefault(c["group"], set()).add(split)
    assert all(len(splits) == 1 for splits in homes.values())


def test_the_truth_of_a_clip_fits_its_notes(plan):
    for clip in plan["clips"]:
        durations = np.zeros(12)
        for _, num_samples, midi, _ in clip["notes"]:
            durations[midi % 12] += num_samples
        assert str(Key.from_index(int(chorales.krumhansl(durations)))) == clip["key"]
        onsets = {note[0] for note in clip["notes"]}
        assert {
            round(t * SECOND) for t in clip["beats"]
        } == onsets  # the hand-written music moves beat by beat
        assert np.allclose(np.diff(clip["beats"]), 60 / clip["bpm"])
        assert all(b == a % 4 + 1 for a, b in pairwise(clip["positions"]))
        intervals = np.array(clip["chord_intervals"])
        assert intervals[0, 0] == 0 and intervals[-1, 1] == scores.CLIP_SECONDS
        assert np.array_equal(intervals[1:, 0], intervals[:-1, 1])
        assert 60 <= clip["bpm"] <= 150 and -6 <= clip["transposition"] <= 5
        chord_of_the_key = clip["key"].replace(" major", ":maj").replace(" minor", ":min")
        assert chord_of_the_key in clip["chords"]


def test_the_plan_depends_on_the_seed_only(plan, corpus):
    again, other = (plan_clips(corpus, seed=seed, num_clips=96) for seed in (3, 4))
    assert json.loads(json.dumps(again["clips"])) == plan["clips"]
    assert json.loads(json.dumps(other["clips"])) != plan["clips"]


def test_clip_counts_of_the_full_set():
    assert scores._clips_per_key(480) == {"train": 7, "valid": 3, "test": 10}
    for wrong in (0, 72, 100):
        with pytest.raises(ValueError, match="multiple of 24"):
            scores._clips_per_key(wrong)


def test_a_corpus_without_minor_keys_is_refused(corpus):
    major = [c for c in corpus if isinstance(c, Chorale) and c.written_key and c.written_key.mode == "major"]
    with pytest.raises(ValueError, match="minor"):
        plan_clips(major, seed=0, num_clips=96)


# ---------------------------------------------------------------------------------------------- files


class StoppedError(Exception):
    pass


def small(plan, count=4):
    return plan | {"clips": plan["clips"][:count]}


def bytes_of(root):
    return {p.name: p.read_bytes() for p in sorted((root / "clips").iterdir())}


@pytest.fixture(scope="module")
def made_once(tmp_path_factory, plan):
    root = tmp_path_factory.mktemp("scores")
    render_clips(root, small(plan), 0, no_progress)
    (root / "plan.json").write_text(json.dumps(small(plan)))
    return root


@pytest.fixture
def made(tmp_path, made_once):
    return shutil.copytree(made_once, tmp_path / "scores")


def test_interrupted_rendering_resumes_to_the_same_bytes(tmp_path, plan, made_once):
    whole, parts = made_once, tmp_path

    def stop_after_two(done, total, what):
        if done == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        render_clips(parts, small(plan), 0, stop_after_two)
    assert not (parts / "index.json").exists()
    kept, broken = sorted((parts / "clips").iterdir())
    broken.write_bytes(broken.read_bytes()[:-100])
    (parts / "clips" / "train-003.wav.1.tmp").write_bytes(b"half a file")
    with (parts / "rendered.jsonl").open("a") as journal:
        journal.write('{"id": "train-003", "sha')  # a kill in the middle of a line
    before, seen = kept.stat().st_mtime_ns, []
    render_clips(parts, small(plan), 0, lambda *step: seen.append(step[:2]))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert kept.stat().st_mtime_ns == before
    assert bytes_of(parts) == bytes_of(whole)
    assert (parts / "index.json").read_bytes() == (whole / "index.json").read_bytes()


def test_a_complete_set_is_recognised_quickly_and_without_music21(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "music21", None)
    start = time.perf_counter()
    dataset = make_scores(made, seed=3, num_clips=96)
    assert time.perf_counter() - start < 1.0
    assert len(dataset.tracks) == 4 and dataset.verify() == []


def test_a_changed_file_is_found_and_rendered_again(made):
    before = bytes_of(made)
    first, second = sorted((made / "clips").iterdir())[:2]
    first.write_bytes(first.read_bytes()[:1000])
    second.unlink()
    assert [line.split(":")[0] for line in Scores(made).verify()] == [first.stem, second.stem]
    make_scores(made, seed=3, num_clips=96, workers=0)
    assert bytes_of(made) == before and Scores(made).verify() == []


def test_tracks_load_with_their_annotations(made, plan):
    assert DATASETS["scores"] is Scores
    dataset = Scores(made)
    dataset.check_groups()
    assert dataset.skipped == () and dataset.counts == {"train": 4, "valid": 0, "test": 0}
    for track, clip in zip(dataset.tracks, plan["clips"], strict=False):
        assert track.load(SAMPLE_RATE_HZ).shape == (12 * SECOND,)
        assert str(track.key) == clip["key"] and track.tempo.bpm == clip["bpm"]
        assert track.timbre.name == clip["timbre"] and track.source == clip["source"]
        assert track.beats.times_seconds.tolist() == clip["beats"]
        assert track.beats.positions.tolist() == clip["positions"]
        assert track.chords.labels == tuple(clip["chords"])


def test_what_is_heard_begins_at_the_first_beat(made):
    for track in Scores(made).tracks:
        samples = track.load(SAMPLE_RATE_HZ).abs()
        first = round(track.beats.times_seconds[0] * SECOND)
        assert samples[:first].max() == 0 and samples[first : first + SECOND // 4].max() > 0.01


def test_another_seed_in_the_same_folder_is_refused(made):
    with pytest.raises(ValueError, match="Remove that folder"):
        make_scores(made, seed=4, num_clips=96)


def test_a_folder_without_the_set_says_how_to_make_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="make_scores"):
        Scores(tmp_path)


def test_without_music21_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "music21", None)
    with pytest.raises(ImportError, match=r"audiation\[scores\]"):
        make_scores(tmp_path, num_clips=96, workers=0)


FULL = """
import sys
from pathlib import Path
from audiation.datasets.scores import make_scores
if __name__ == "__main__":
    make_scores(Path(sys.argv[1]), progress=lambda done, total, what: print(what, done, flush=True))
"""


@pytest.mark.slow
def test_the_full_set_killed_once_has_the_promised_counts(tmp_path):
    pytest.importorskip("music21")
    script, root = tmp_path / "full.py", tmp_path / "scores"
    script.write_text(FULL)
    with subprocess.Popen([sys.executable, script, root], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("rendering clips 40"):
                process.kill()
                break
    assert not (root / "index.json").exists()
    dataset = make_scores(root)
    assert dataset.counts == {"train": 168, "valid": 72, "test": 240}
    assert dataset.verify() == []
    dataset.check_groups()
    for split in ("train", "valid", "test"):
        tracks = dataset.split(split)
        assert set(Counter(t.key.index for t in tracks).values()) == {len(tracks) // 24}
        assert set(Counter(t.timbre.name for t in tracks).values()) == {len(tracks) // 8}
    assert {reason: len(files) for reason, files in dataset.drops.items()} == {
        "has no four sung parts": 1,
        "states no key": 4,
        "final bass is not the tonic of the written key": 85,
        "Krumhansl key of the whole score is not the written key": 66,
        "bars do not follow one time signature": 12,
    }
    index = json.loads((root / "index.json").read_text())
    assert index["tunes"]["long incipit groups"] == 54
    assert index["tunes"]["files in long incipit groups"] == 139
    assert sorted(p.name for p in root.iterdir()) == [
        ".lock",
        "clips",
        "index.json",
        "plan.json",
        "rendered.jsonl",
    ]
