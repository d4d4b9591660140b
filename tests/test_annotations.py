"""Annotations: what they accept, and that everything else is refused when they are made."""

import dataclasses
import math

import numpy as np
import pytest

from audiation.annotations import (
    PITCH_CLASSES,
    Beats,
    Emotion,
    Key,
    Label,
    Pitch,
    Segments,
    Tags,
    Tempo,
    Values,
    parse_pitch_class,
)


@pytest.mark.parametrize(
    ("name", "pitch_class"),
    [
        *((n, i) for i, n in enumerate(PITCH_CLASSES)),
        ("C#", 1),
        ("d#", 3),
        ("Cb", 11),
        ("B#", 0),
        (" f ", 5),
        ("gb", 6),
    ],
)
def test_pitch_classes(name, pitch_class):
    assert parse_pitch_class(name) == pitch_class


@pytest.mark.parametrize("name", ["", "H", "C!", "#", "C major", "Ces"])
def test_what_is_no_pitch_class(name):
    with pytest.raises(ValueError, match="is not a pitch class"):
        parse_pitch_class(name)


def test_the_24_keys_survive_index_and_text():
    keys = [Key.from_index(i) for i in range(24)]
    assert [k.index for k in keys] == list(range(24)) and len(set(keys)) == 24
    assert [Key.parse(str(k)) for k in keys] == keys
    assert str(keys[0]) == "C major" and str(keys[21]) == "A minor"
    assert Key.parse("  D# MINOR\n") == Key(3, "minor")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Key(12, "major"),
        lambda: Key(-1, "minor"),
        lambda: Key(0, "dorian"),
        lambda: Key.from_index(24),
        lambda: Key.parse("C"),
        lambda: Key.parse("C minor / F# minor"),
        lambda: Key.parse("H major"),
        lambda: Beats(np.array([1.0, 1.0]), np.array([1, 2])),
        lambda: Beats(np.array([2.0, 1.0]), np.array([1, 2])),
        lambda: Beats(np.array([-0.1, 1.0]), np.array([1, 2])),
        lambda: Beats(np.array([0.0, math.nan]), np.array([1, 2])),
        lambda: Beats(np.array([0.0, math.inf]), np.array([1, 2])),
        lambda: Beats(np.array([0.0, 1.0]), np.array([1])),
        lambda: Beats(np.array([0.0, 1.0]), np.array([1, -2])),
        lambda: Segments(np.array([[0.0, 1.0]]), ("C:maj", "N")),
        lambda: Segments(np.array([[1.0, 1.0]]), ("N",)),
        lambda: Segments(np.array([[0.0, math.inf]]), ("N",)),
        lambda: Segments(np.array([[0.0, 2.0], [1.0, 3.0]]), ("N", "N")),
        lambda: Segments(np.array([[2.0, 3.0], [0.0, 1.0]]), ("N", "N")),
        lambda: Tempo(0.0),
        lambda: Tempo(-120.0),
        lambda: Tempo(math.nan),
        lambda: Tempo(math.inf),
        lambda: Emotion(math.nan, 0.0),
        lambda: Emotion(0.0, math.inf),
        lambda: Tags({"rock": 1.1}),
        lambda: Tags({"rock": math.nan}),
        lambda: Values({}),
        lambda: Values({"year": 1999.0, "loudness": -math.inf}),
        lambda: Values({"year": math.nan}),
    ],
)
def test_nonsense_is_refused_when_it_is_made(make):
    with pytest.raises(ValueError, match=r"\w"):
        make()


def test_arrays_become_float_seconds_and_whole_positions():
    beats = Beats([0, 1, 2], [1.0, 2.0, 0.0])
    assert beats.times_seconds.dtype == np.float64 and beats.positions.dtype == np.int64
    assert Beats([], []).times_seconds.shape == (0,)
    assert Segments([], ()).intervals_seconds.shape == (0, 2)
    assert Segments([[0, 1], [1, 2]], ("a", "b")).intervals_seconds.dtype == np.float64


@pytest.mark.parametrize(
    "value",
    [Key(0, "major"), Tempo(60), Label("rock"), Tags({"rock": 1.0}), Emotion(0, 1), Values({"year": 1999})],
)
def test_annotations_are_frozen(value):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, None)


WRITTEN = [
    Key(3, "minor"),
    Label("drum & bass"),
    Tempo(1 / 3),
    Pitch(0),
    Pitch(70),
    Emotion(0.1, -1e-300),
    Tags({"no vocals": 1.0, "été": 0.1 + 0.2}),
    Values({"year": 1999.0}),
    Beats(np.array([0.1, 1 / 3]), np.array([0, 1])),
    Beats(np.zeros(0), np.zeros(0)),
    Segments(np.array([[0.0, 1 / 3], [1 / 3, 2.0]]), ("C:maj", "N")),
    Segments(np.zeros((0, 2)), ()),
]


@pytest.mark.parametrize("annotation", WRITTEN, ids=lambda a: type(a).__name__)
def test_text_of_an_annotation_gives_it_back(annotation):
    text = str(annotation)
    again = type(annotation).parse(text)
    assert "\n" not in text and str(again) == text
    if isinstance(annotation, Beats):
        np.testing.assert_array_equal(again.times_seconds, annotation.times_seconds)
        np.testing.assert_array_equal(again.positions, annotation.positions)
    elif isinstance(annotation, Segments):
        np.testing.assert_array_equal(again.intervals_seconds, annotation.intervals_seconds)
        assert again.labels == annotation.labels
    else:
        assert again == annotation


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Tempo, "120"), (Tempo, "fast BPM"), (Tempo, "nan BPM"), (Pitch, "C"), (Pitch, "H4"), (Pitch, "C99"),
        (Emotion, '{"arousal": 1}'), (Tags, '["rock"]'), (Tags, '{"rock": "yes"}'), (Tags, '{"rock": 2}'),
        (Values, "{}"), (Values, '{"a": true}'), (Values, '{"a": NaN}'), (Beats, "[[1]]"), (Beats, "[[1, 2], [0, 1]]"),
        (Beats, "{}"), (Segments, '[[0, 1, 2]]'), (Segments, '[[1, 0, "N"]]'), (Segments, "[" * 100_000),
    ],
)  # fmt: skip
def test_text_that_is_no_annotation_is_refused(kind, text):
    with pytest.raises(ValueError, match=r"\w"):
        kind.parse(text)
