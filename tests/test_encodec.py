"""EnCodec against numbers of the published implementation (golden mert_tiny_encodec), pieces against the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from audiation.teachers import TEACHERS, Recorded, TeacherRequest
from audiation.teachers.encodec import EncodecTeacher, from_published, load_encodec
from audiation.teachers.encodec_network import Encodec, EncodecConfig, Stream, fresh
from audiation.weights import WeightsError, tensors_hash

GOLDEN = Path(__file__).parent / "golden" / "mert_tiny_encodec.safetensors"
TINY = EncodecConfig(num_filters=4, dim=8, num_lstm_layers=2, num_codebooks=4, codebook_size=64)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def published(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the checkpoint under their official names."""
    return {n.removeprefix("param."): t for n, t in golden.items() if n.startswith("param.")}


@pytest.fixture
def tiny() -> Encodec:
    return fresh(TINY, torch.Generator().manual_seed(0))


def noise(num_samples: int, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


def largest_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


# Parity ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bandwidth", "num_codebooks"), [("1.5", 2), ("3.0", 4), ("6.0", 8)])
def test_codes_are_the_published_ones(
    golden: dict[str, Tensor], published: dict[str, Tensor], bandwidth: str, num_codebooks: int
) -> None:
    model = from_published(published, num_codebooks)
    codes = model(golden["in.waveform"][:, 0])
    assert torch.equal(codes, golden[f"out.codes_bw{bandwidth}"][0])


def test_embedding_is_the_published_one(golden: dict[str, Tensor], published: dict[str, Tensor]) -> None:
    embedded = from_published(published).embed(golden["in.waveform"][:, 0])
    assert largest_difference(embedded, golden["out.encoder_embedding"]) < 5e-6


def test_sizes_are_those_of_the_tensors(published: dict[str, Tensor]) -> None:
    assert from_published(published).config == EncodecConfig(4, (2, 4, 5, 8), 16, 1, 8, 1024)


@pytest.mark.parametrize("num_samples", [1, 6, 7, 319, 320, 321, 700, 2560, 3199, 5000])
def test_any_length_is_encoded_as_by_the_peer(num_samples: int) -> None:
    """Ends that are reflected in every layer, recordings too short to be reflected, and a wider LSTM."""
    transformers = pytest.importorskip("transformers")
    ours = fresh(TINY, torch.Generator().manual_seed(1))
    peer = transformers.EncodecModel(
        transformers.EncodecConfig(
            target_bandwidths=[1.8],  # four codebooks of six bits at 75 Hz
            hidden_size=TINY.dim,
            num_filters=TINY.num_filters,
            codebook_size=TINY.codebook_size,
            codebook_dim=TINY.dim,
            num_lstm_layers=TINY.num_lstm_layers,
        )
    ).eval()
    state = ours.state_dict()
    for name in [
        name for name in state if name.endswith(".conv.weight")
    ]:  # the peer keeps gain and direction
        peer.get_submodule(name.removesuffix(".weight")).weight = state.pop(name)
    assert not peer.load_state_dict(state, strict=False).unexpected_keys
    waveform = noise(num_samples)
    with torch.no_grad():
        embedded = peer.encoder(waveform[None, None])
        codes = peer.quantizer.encode(embedded, 1.8).transpose(0, 1)
    assert largest_difference(ours.embed(waveform[None]), embedded) < 1e-5
    assert torch.equal(ours(waveform[None]), codes)


# Pieces ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [3 * 2560, 3 * 2560 + 1, 3 * 2560 + 319, 2 * 2560 + 1600, 2560, 100])
def test_pieces_are_the_whole(tiny: Encodec, num_samples: int) -> None:
    waveform = noise(num_samples)
    whole = tiny.embed(waveform[None])
    stream, parts = Stream(), []
    for start in range(0, num_samples, 2560):
        piece = waveform[None, start : start + 2560]
        parts.append(tiny.embed(piece, stream, is_last=start + 2560 >= num_samples))
    assert whole.shape[-1] == -(-num_samples // 320)
    assert largest_difference(torch.cat(parts, dim=-1), whole) < 1e-5
    teacher = EncodecTeacher(tiny, chunk_frames=8)
    assert torch.equal(teacher.codes(Recorded.of(waveform)), tiny(waveform[None])[0])


def test_a_frame_hears_nothing_behind_it(tiny: Encodec) -> None:
    waveform = noise(6400)
    other = torch.cat([waveform[:3200], noise(3200, seed=1)])
    before, after = tiny.embed(waveform[None]), tiny.embed(other[None])
    assert largest_difference(before[..., :10], after[..., :10]) < 1e-6
    assert largest_difference(before[..., 10:], after[..., 10:]) > 1e-2


def test_memory_holds_a_piece_at_a_time(tiny: Encodec) -> None:
    asked: list[int] = []

    def read(start: int, count: int) -> Tensor:
        asked.append(count)
        return torch.zeros(count)

    codes = EncodecTeacher(tiny, chunk_frames=8).codes(Recorded(10_000, read))
    assert asked == [2560, 2560, 2560, 2320]
    assert codes.shape == (4, 32) and codes.dtype == torch.int64


def test_silence_gives_codes(tiny: Encodec) -> None:
    codes = tiny(torch.zeros(1, 3200))
    assert int(codes.min()) >= 0 and int(codes.max()) < TINY.codebook_size


@pytest.mark.parametrize("shape", [(3200,), (1, 0), (1, 1, 3200)])
def test_other_shapes_are_refused(tiny: Encodec, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="EnCodec takes"):
        tiny(torch.zeros(shape))


def test_a_piece_that_is_not_the_last_has_whole_frames(tiny: Encodec) -> None:
    with pytest.raises(ValueError, match="multiples of 320"):
        tiny.embed(torch.zeros(1, 321), Stream(), is_last=False)


# Weights ---------------------------------------------------------------------------------------------


def test_what_encoding_does_not_need_is_not_read(published: dict[str, Tensor]) -> None:
    more = {
        "decoder.layers.0.conv.weight_g": torch.zeros(4),
        "quantizer.layers.0.codebook.cluster_size": torch.zeros(1024),
        "quantizer.layers.0.codebook.embed_avg": torch.zeros(1024, 16),
        "quantizer.layers.8.codebook.embed": torch.zeros(1024, 16),
    }
    with_more, without = from_published(published | more), from_published(published)
    assert tensors_hash(with_more.state_dict()) == tensors_hash(without.state_dict())


def without(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {n: t for n, t in tensors.items() if n != name}


def test_other_tensors_are_refused(published: dict[str, Tensor]) -> None:
    with pytest.raises(WeightsError, match=r"1 missing: 'encoder.layers.1.shortcut.conv.bias'"):
        from_published(without(published, "encoder.layers.1.shortcut.conv.bias"))
    with pytest.raises(WeightsError, match=r"1 unexpected: 'encoder.layers.0.norm.weight'"):
        from_published(published | {"encoder.layers.0.norm.weight": torch.ones(4)})
    with pytest.raises(WeightsError, match="no LSTM"):
        from_published({"encoder.weight": torch.ones(4)})
    with pytest.raises(WeightsError, match=r"'quantizer.layers.0.codebook.embed' is missing"):
        from_published(without(published, "quantizer.layers.0.codebook.embed"), num_codebooks=7)
    with pytest.raises(WeightsError, match="9 codebooks are asked for, and these tensors have 8"):
        from_published(published, num_codebooks=9)


def test_the_published_size_has_the_published_names() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in Encodec(EncodecConfig()).state_dict().items()}
    assert shapes["encoder.layers.12.conv.weight"] == (512, 256, 16)
    assert shapes["encoder.layers.13.lstm.weight_hh_l1"] == (2048, 512)
    assert shapes["encoder.layers.15.conv.weight"] == (128, 512, 7)
    assert shapes["quantizer.layers.7.codebook.embed"] == (1024, 128)
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 7_423_472 + 8 * 1024 * 128


def test_weights_are_read_from_a_file_or_a_folder(published: dict[str, Tensor], tmp_path: Path) -> None:
    save_file({n: t.contiguous() for n, t in published.items()}, tmp_path / "model.safetensors")
    expected = tensors_hash(from_published(published).state_dict())
    for weights in (tmp_path, tmp_path / "model.safetensors"):
        assert tensors_hash(load_encodec(str(weights)).state_dict()) == expected
    with pytest.raises(WeightsError, match="no file or folder here and no Hub id"):
        load_encodec(str(tmp_path / "other.safetensors"))


def test_building_leaves_the_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    fresh(TINY, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_another_rate_is_refused() -> None:
    make = TEACHERS["encodec"].teacher
    assert make is not None
    request = TeacherRequest(sample_rate_hz=16_000, weights="random")
    with pytest.raises(ValueError, match="encodec hears 24000 Hz, and the corpus has 16000 Hz"):
        make(request)
    with pytest.raises(ValueError, match="teacher 'encodec' has no backbone"):
        make(replace(request, sample_rate_hz=24_000, backbone="musicfm-msd"))
