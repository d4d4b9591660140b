"""How clips are cut and normalised: part of a protocol, of what is stored, and of who shares a batch."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiation.audio import load_audio
from audiation.backbones import BACKBONES, Backbone, BackboneSpec
from audiation.backbones.base import HiddenStates
from audiation.backbones.choi import python2_shuffle
from audiation.extraction import extract
from audiation.loading import convention_of, load_backbone
from audiation.probe_evaluation import judge_probes
from audiation.profile_layers import profile_layers
from audiation.protocols import PROTOCOLS
from audiation.run import Run
from audiation.store import FeatureStore
from audiation.stored_vectors import load_for_run
from audiation.tasks import TASKS

RATE_HZ = 12_000
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def files(tmp_path):
    """Five clips of other lengths and levels."""
    rng = np.random.default_rng(0)
    paths = []
    for n in range(5):
        paths.append(tmp_path / "music" / f"{n}.wav")
        paths[-1].parent.mkdir(exist_ok=True)
        noise = rng.standard_normal(RATE_HZ + 500 * n) * 0.02 * (n + 1)
        soundfile.write(paths[-1], np.clip(noise, -0.9, 0.9), RATE_HZ, subtype="FLOAT")
    return paths


def stored(report, paths, clip_seconds=30.0):
    from audiation.audio import content_hash

    with FeatureStore.open(report.table) as store:
        keys = store.keys_by_file(clip_seconds)
        return torch.stack([torch.tensor(store.read(0, keys[content_hash(p)]))[0] for p in paths])


def test_a_convention_is_part_of_the_hash():
    plain = load_backbone("clmr", "random")
    quirky = load_backbone("clmr", "random", convention="jukemir")
    assert quirky.weights_hash == f"{plain.weights_hash}@jukemir" and quirky.convention == "jukemir"
    assert (convention_of(plain.weights_hash), convention_of(quirky.weights_hash)) == ("default", "jukemir")
    with pytest.raises(ValueError, match="'mfcc' has the conventions default, got 'jukemir'"):
        load_backbone("mfcc", convention="jukemir")


@pytest.mark.parametrize(
    ("backbone", "protocol", "expected"),
    [
        ("clmr", "jukemir", "jukemir"),
        ("clmr", "marble-constrained", "default"),
        ("mfcc", "jukemir", "default"),
    ],
)
def test_the_protocol_decides(backbone, protocol, expected):
    weights = None if backbone == "mfcc" else "random"
    assert (
        load_for_run(Run(backbone, "gtzan_genre", protocol=protocol, weights=weights)).convention == expected
    )
    assert ("cut and normalised as jukemir" in PROTOCOLS[protocol].describe()) == (protocol == "jukemir")


def test_clips_that_share_a_batch_are_those_of_jukemir(files, tmp_path):
    choi = load_backbone("choi", "random", convention="jukemir")
    report = extract(files, choi, tmp_path / "store", batch_size=2)
    order = python2_shuffle(sorted(files), 0)
    expected = {}
    for batch in (order[:2], order[2:4], order[4:]):
        clips = [load_audio(path, RATE_HZ).samples for path in batch]
        lengths = torch.tensor([len(clip) for clip in clips])
        padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
        with torch.inference_mode():
            made = choi(padded, lengths).layers[0][:, 0]
        expected |= dict(zip(batch, made, strict=True))
    got = stored(report, files)
    torch.testing.assert_close(got, torch.stack([expected[p] for p in files]), atol=1e-5, rtol=1e-5)
    alone = extract(files, load_backbone("choi", "random"), tmp_path / "store", batch_size=2)
    assert (stored(alone, files) - got).abs().max() > 0.01


def test_features_that_depend_on_company_are_made_anew_with_it(files, tmp_path):
    choi = load_backbone("choi", "random", convention="jukemir")
    extract(files[:3], choi, tmp_path / "store", batch_size=8)
    again = extract(files[:3], choi, tmp_path / "store", batch_size=8)
    assert (again.num_done, again.num_resumed) == (0, 3)
    grown = extract(files, choi, tmp_path / "store", batch_size=8)
    assert (grown.num_done, grown.num_resumed) == (5, 0)
    again = extract(files[:3], choi, tmp_path / "store", batch_size=8)
    assert (again.num_done, again.num_resumed) == (0, 3)  # each company has a table of its own
    assert extract(files[:3], choi, tmp_path / "store", batch_size=2).num_done == 3  # another company
    whole = extract(files, choi, tmp_path / "other", batch_size=8)
    torch.testing.assert_close(stored(grown, files), stored(whole, files), atol=0, rtol=0)


class Peak(Backbone):
    """The largest |x| of what it is given."""

    def __init__(self):
        super().__init__()
        self.name, self.sample_rate_hz, self.frame_rate_hz, self.hop_samples = "peak", RATE_HZ, None, None
        self.num_layers, self.dim, self.min_samples, self.max_seconds = 0, 1, 1, None
        self.normalisation, self.accepts_padding = "file-peak", False

    def forward(self, waveform, num_samples=None, layers=None, last_layer=None, reduce=None):
        valid = torch.ones(len(waveform), 1, dtype=torch.bool)
        return HiddenStates({0: waveform.abs().amax(1)[:, None, None]}, valid, None, 0.0)

    def num_frames(self, num_samples):
        return 1


@pytest.mark.parametrize("clip_seconds", [None, 0.5])
def test_windows_are_divided_by_the_peak_of_their_whole_file(files, tmp_path, clip_seconds):
    """The first window of a file that is loud at its end stays soft."""
    samples = np.zeros(RATE_HZ, np.float32)
    samples[100], samples[-100] = 0.2, 0.8
    soundfile.write(tmp_path / "crescendo.wav", samples, RATE_HZ, subtype="FLOAT")
    soundfile.write(tmp_path / "silence.wav", 0 * samples, RATE_HZ, subtype="FLOAT")
    paths = [tmp_path / "crescendo.wav", tmp_path / "silence.wav"]
    report = extract(paths, Peak(), tmp_path / "store", clip_seconds=clip_seconds)
    first = stored(report, paths, clip_seconds)[:, 0]
    assert first.tolist() == pytest.approx([1.0 if clip_seconds is None else 0.25, 0.0], abs=1e-6)


def test_every_convention_of_the_registry_can_be_chosen():
    for name in BACKBONES:
        spec: BackboneSpec = BACKBONES[name]
        assert spec.conventions[0] == "default"
        model = (spec.outline or spec.build)()
        for convention in spec.conventions:
            model.use_convention(convention)
        with pytest.raises(ValueError, match="convention"):
            model.use_convention("nobody's")


def test_a_bad_file_does_not_make_the_others_anew_at_every_call(files, tmp_path):
    (tmp_path / "music" / "bad.wav").write_bytes(b"RIFF, and then nothing")
    choi = load_backbone("choi", "random", convention="jukemir")
    first = extract(tmp_path / "music", choi, tmp_path / "store", batch_size=8)
    assert (first.num_done, len(first.failures)) == (5, 1)
    again = extract(tmp_path / "music", choi, tmp_path / "store", batch_size=8)
    assert (again.num_done, again.num_resumed, len(again.failures)) == (0, 5, 1)


def test_a_window_keeps_its_length_although_its_end_is_not_heard(tmp_path):
    noise = np.random.default_rng(0).standard_normal(31 * RATE_HZ) * 0.1
    soundfile.write(tmp_path / "long.wav", noise, RATE_HZ, subtype="FLOAT")
    choi = load_backbone("choi", "random", convention="jukemir")
    report = extract(tmp_path / "long.wav", choi, tmp_path / "store", batch_size=8)
    with FeatureStore.open(report.table) as store:
        (keys,) = store.keys_by_file(30.0).values()
        assert [info.duration_seconds for info in store.infos(keys)] == pytest.approx([30.0, 1.0])


def test_a_model_that_hears_windows_alone_is_not_written_where_others_are_heard(tmp_path):
    run = Run("choi", "scores-key", protocol="jukemir", weights="random", train="batch_size=64")
    task = TASKS["scores-key"]
    with pytest.raises(
        ValueError, match="under the convention 'jukemir' what choi hears depends on other clips"
    ):
        judge_probes(
            load_for_run(run), task, PROTOCOLS["jukemir"], {}, "", run, store_dir=None, batch_size=1, workers=0,
            device="cpu", progress=lambda p: None, model_out=tmp_path,
        )  # fmt: skip


def test_a_profile_has_the_convention_of_its_protocol(monkeypatch):
    seen = []

    def stop(run, device):
        seen.append(load_for_run(run).convention)
        raise ValueError("enough")

    monkeypatch.setattr("audiation.profile_layers.load_for_run", stop)
    for protocol in ("jukemir-single", "marble-constrained"):
        with pytest.raises(ValueError, match="enough"):
            profile_layers("clmr", ["gtzan_genre"], protocol=protocol, weights="random")
    assert seen == ["jukemir", "default"]


def test_a_config_that_nothing_reads_is_refused():
    with pytest.raises(ValueError, match="'musicnn-mtt' has nothing to configure"):
        load_backbone("musicnn-mtt", GOLDEN / "musicnn_mtt_weights.safetensors", config={"artist": 3})
