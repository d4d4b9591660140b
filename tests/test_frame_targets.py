"""Targets per frame: encode at any rate, decode gives the annotation back, unknown frames cost nothing."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from audiation.annotations import Beats, Key, Segments
from audiation.frame_targets import BeatTarget, ChordTarget, KeyFramesTarget, SectionTarget
from audiation.frames import FrameGrid
from audiation.target_files import question_of, target_from_json, target_to_json
from audiation.targets import ClipContext, clip_target, frame_target

RATES = [20.0, 50.0, 43.066, 75.0, 100.0]
SECTIONS = ("intro", "verse", "chorus")
TARGETS = [
    BeatTarget("beat", widening=(1.0,)),
    BeatTarget("beat_downbeat", widening=(0.5, 0.25), frame_rate_hz=50.0),
    BeatTarget("beat_downbeat", decoder="peaks"),
    BeatTarget("three_class", frame_rate_hz=20.0),
    ChordTarget(8.0),
    ChordTarget(None, unknown_root="none"),
    KeyFramesTarget(),
    SectionTarget(SECTIONS, 5.0),
]
IDS = [str(i) for i in range(len(TARGETS))]


def segments(*rows):
    return Segments(
        np.array([row[:2] for row in rows], dtype=float).reshape(-1, 2), tuple(row[2] for row in rows)
    )


def grid(seconds, rate):
    return FrameGrid(round(seconds * rate), rate, 0.5 / rate)


def four_in_a_bar(bpm=120.0, seconds=12.0, first=0.3):
    times = np.arange(first, seconds - 0.1, 60 / bpm)
    return Beats(times, np.arange(len(times)) % 4 + 1)


def sure(encoded, outputs):
    """Encoded beats as the logits of a model that has learned them, and is never quite sure: `(T, C)`."""
    if outputs == "three_class":
        return (F.one_hot(encoded, 3) * 0.85 + 0.05).log()
    return encoded.clamp(0.05, 0.9).logit()


# Beats ---------------------------------------------------------------------------------------------------


def test_the_frame_of_a_beat_is_the_nearest_one_half_way_to_the_even_one():
    """Fixtures, section 7: 0.25 s at 50 Hz is frame 12; neighbours are marked only when widening is on."""
    beats = Beats(np.array([0.25]), np.array([1]))
    plain = BeatTarget("beat").encode(beats, FrameGrid(30, 50.0))
    assert plain.shape == (30, 1) and plain[:, 0].nonzero().flatten().tolist() == [12]
    wide = BeatTarget("beat", widening=(0.95, 0.5)).encode(beats, FrameGrid(30, 50.0))[:, 0]
    assert wide[10:15].tolist() == pytest.approx([0.5, 0.95, 1.0, 0.95, 0.5])
    assert wide.sum() == pytest.approx(1 + 2 * 0.95 + 2 * 0.5)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("decoder", ["dbn", "peaks"])
@pytest.mark.parametrize("outputs", ["beat", "beat_downbeat", "three_class"])
def test_decoded_beats_lie_within_half_a_frame_and_have_their_positions(outputs, decoder, rate):
    beats = four_in_a_bar()
    # Several states observe a beat, so a model that is sure of one frame only is no good input for the DBN.
    widening = (0.5, 0.25) if outputs == "beat_downbeat" else ()
    target = BeatTarget(outputs, widening, decoder=decoder)
    where = grid(12.0, rate)
    decoded = target.decode(sure(target.encode(beats, where), outputs), ClipContext(where))
    assert len(decoded.times_seconds) == len(beats.times_seconds)
    tolerance = (
        1.0 if widening else 0.5
    ) / rate  # widened, the neighbour of a beat is a peak of its own for a state
    assert np.abs(decoded.times_seconds - beats.times_seconds).max() <= tolerance + 1e-9
    known = decoded.positions == (0 if outputs == "beat" else beats.positions)
    if decoder == "dbn" or outputs == "beat":
        assert known.all()
    else:
        np.testing.assert_array_equal(decoded.positions == 1, beats.positions == 1)


@pytest.mark.parametrize("decoder", ["dbn_beats_18_72", "dbn_beats_55_215"])
def test_downbeats_by_a_beat_model_of_their_own(decoder):
    """30 bars a minute are within 18 to 72 and not within 55 to 215, which finds a downbeat in every half bar (D25)."""
    beats, where = four_in_a_bar(seconds=24.0), grid(24.0, 50.0)
    target = BeatTarget("beat_downbeat", decoder=decoder)
    decoded = target.decode(sure(target.encode(beats, where), "beat_downbeat"), ClipContext(where))
    found = (decoded.positions == 1).sum()
    assert found == (12 if decoder == "dbn_beats_18_72" else 24) or decoder == "dbn_beats_55_215"
    if decoder == "dbn_beats_55_215":
        assert found > 18


def test_what_is_not_known_about_bars_costs_nothing():
    where = FrameGrid(100, 50.0)
    unknown = Beats(np.array([0.5, 1.0]), np.array([0, 0]))
    both = BeatTarget("beat_downbeat").encode(unknown, where)
    assert both[:, 0].sum() == 2 and (both[:, 1] == -1).all()
    part = BeatTarget("beat_downbeat").encode(Beats(np.array([0.5, 1.0]), np.array([0, 1])), where)
    assert part[25].tolist() == [1, -1] and part[50].tolist() == [1, 1] and part[30].tolist() == [0, 0]
    classes = BeatTarget("three_class").encode(Beats(np.array([0.5, 1.0, 1.5]), np.array([0, 1, 2])), where)
    assert [int(classes[i]) for i in (25, 50, 75, 30)] == [-1, 1, 0, 2]
    logits = torch.zeros(1, 100, 2, requires_grad=True)
    loss = BeatTarget("beat_downbeat").loss(logits, both[None])
    loss.sum.backward()
    assert int(loss.count) == 100 and (logits.grad[..., 1] == 0).all() and (logits.grad[..., 0] != 0).all()


def test_windows_of_a_track_have_the_beats_of_their_time():
    beats = Beats(np.array([0.5, 10.5]), np.array([1, 2]))
    encoded = BeatTarget("beat").encode(beats, FrameGrid(50, 50.0).shifted(10.0))
    assert encoded[:, 0].nonzero().flatten().tolist() == [25]
    decoded = BeatTarget("beat", decoder="peaks").decode(
        sure(encoded, "beat"), ClipContext(FrameGrid(50, 50.0).shifted(10.0))
    )
    assert decoded.times_seconds.tolist() == pytest.approx([10.5])


# Chords, keys, sections ------------------------------------------------------------------------------------

CHORDS = segments((0.0, 1.6, "C:maj"), (1.6, 3.0, "A:min"), (3.0, 4.0, "N"), (4.0, 6.0, "Gb:maj"))


def test_a_frame_at_the_end_of_a_chord_belongs_to_the_next():
    """Fixtures, section 16: frame 40 at 25 Hz."""
    classes = ChordTarget(25.0).encode(CHORDS, FrameGrid(160, 25.0))
    assert [int(classes[i]) for i in (0, 39, 40, 74, 75, 100, 149, 150)] == [0, 0, 21, 21, 24, 6, 6, -1]


def test_chords_outside_of_the_25_are_not_learned():
    other = segments((0.0, 1.0, "C:sus4"), (1.0, 2.0, "X"), (2.0, 3.0, "D:min7"))
    ignored = ChordTarget(2.0).encode(other, FrameGrid(6, 2.0))
    assert ignored.tolist() == [-1, -1, -1, -1, 14, 14]
    assert ChordTarget(2.0, "none").encode(other, FrameGrid(6, 2.0)).tolist() == [-1, -1, 24, 24, 14, 14]
    logits = torch.randn(1, 6, 25, generator=torch.Generator().manual_seed(0))
    loss = ChordTarget(2.0).loss(logits, ignored[None])
    torch.testing.assert_close(
        loss.sum, F.cross_entropy(logits[0, 4:], torch.tensor([14, 14]), reduction="sum")
    )
    assert int(loss.count) == 2


@pytest.mark.parametrize("rate", RATES)
def test_decoded_chords_are_the_annotation_within_half_a_frame(rate):
    where = grid(6.0, rate)
    target = ChordTarget()
    decoded = target.decode(F.one_hot(target.encode(CHORDS, where), 25).float(), ClipContext(where))
    assert decoded.labels == CHORDS.labels
    np.testing.assert_allclose(decoded.intervals_seconds, CHORDS.intervals_seconds, atol=0.5 / rate + 1e-9)


def test_keys_over_time_and_the_key_of_a_track():
    target, where = KeyFramesTarget(), grid(8.0, 0.5)
    keys = segments((0.0, 4.0, "C major"), (4.0, 6.0, "none"))
    assert target.encode(keys, where).tolist() == [0, 0, 24, -1]
    assert target.encode(Key(9, "minor"), where).tolist() == [21] * 4
    logits = torch.zeros(4, 25)
    logits[:, 24] = 9.0  # "none" is no answer
    logits[:, 5] = 3.0
    assert target.decode(logits, ClipContext(where)) == Key(5, "major")


def test_sections_and_their_boundaries():
    target = SectionTarget(SECTIONS, 5.0, widening=(0.5,))
    song = segments((0.0, 8.0, "intro"), (8.0, 20.0, "verse"), (20.0, 32.0, "verse"), (32.0, 40.0, "chorus"))
    where = grid(40.0, 5.0)
    encoded = target.encode(song, where)
    assert encoded.shape == (200, 2) and encoded[:, 1].eq(1).nonzero().flatten().tolist() == [0, 40, 100, 160]
    assert encoded[41, 1] == 0.5 and encoded[:, 0].unique().tolist() == [0, 1, 2]
    logits = torch.cat(
        [
            F.one_hot(encoded[:, 0].long(), 3).float() * 8,
            encoded[:, 1:].clamp(0.01, 0.99).logit(),
        ],
        dim=1,
    )
    decoded = target.decode(logits, ClipContext(where))
    assert decoded.labels == song.labels
    np.testing.assert_allclose(decoded.intervals_seconds, song.intervals_seconds, atol=0.2)
    loss = target.loss(logits[None], encoded[None])
    assert int(loss.count) == 400 and float(loss.mean) < 0.2
    with pytest.raises(ValueError, match="section 'bridge' is not one of intro, verse, chorus"):
        target.encode(segments((0, 1, "bridge")), where)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (BeatTarget, "outputs", "nope"),
        (BeatTarget, "decoder", "nope"),
        (BeatTarget, "beats_per_bar", ()),
        (BeatTarget, "beats_per_bar", (0,)),
        (ChordTarget, "unknown_root", "nope"),
    ],
)
def test_choices_that_do_not_exist_are_refused(kind, field, value):
    with pytest.raises(ValueError, match=field):
        kind(**{field: value})


# All -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS, ids=IDS)
def test_frame_targets_need_a_grid_and_say_so(target):
    assert target.per_frame and frame_target(target) is target
    with pytest.raises(ValueError, match="one answer per clip was asked for"):
        clip_target(target)
    with pytest.raises(ValueError, match="give the grid"):
        target.decode(torch.zeros(5, target.num_outputs))
    with pytest.raises(ValueError, match="5 frames of outputs, but a grid of 6"):
        target.decode(torch.zeros(5, target.num_outputs), ClipContext(FrameGrid(6, 50.0)))
    with pytest.raises(ValueError, match="frame_rate_hz is positive"):
        dataclasses.replace(target, frame_rate_hz=-1.0)


@pytest.mark.parametrize("target", TARGETS, ids=IDS)
def test_padding_costs_nothing(target):
    where = grid(4.0, 20.0)
    annotation = {
        "beats": four_in_a_bar(seconds=4.0), "chords": CHORDS, "key": Key(0, "major"),
        "sections": segments((0, 4, "verse")),
    }[question_of(target)]  # fmt: skip
    encoded = target.encode(annotation, where)
    logits = torch.randn(where.num_frames, target.num_outputs, generator=torch.Generator().manual_seed(0))
    alone = target.loss(logits[None], encoded[None])
    padded = torch.nn.utils.rnn.pad_sequence([encoded, encoded[:10]], batch_first=True)
    valid = torch.tensor([[False] * 80, [True] * 10 + [False] * 70])
    short = target.loss(torch.stack([logits, logits]), padded, valid)
    torch.testing.assert_close(short.sum, target.loss(logits[None, :10], encoded[None, :10]).sum)
    assert 0 < float(short.sum) < float(alone.sum)


@pytest.mark.parametrize("target", TARGETS, ids=IDS)
def test_frame_targets_are_read_back_from_json(target):
    assert target_from_json(target_to_json(target)) == target


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"decoder": "magic"}, "'decoder' of a target is one of dbn"),
        ({"frame_rate_hz": "50"}, "'frame_rate_hz' of a target is a number or null"),
        ({"frame_rate_hz": 10**400}, "too large"),
        ({"widening": [2.0]}, r"values in \(0, 1\]"),
        ({"beats_per_bar": [3.5]}, "'beats_per_bar' of a target is a list of whole numbers"),
        ({"outputs": "three_class", "widening": [0.5]}, "three classes exclude each other"),
    ],
)
def test_records_of_frame_targets_that_are_wrong(record, message):
    with pytest.raises(ValueError, match=message):
        target_from_json(target_to_json(BeatTarget()) | record)
