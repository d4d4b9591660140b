"""Hundreds of damaged checkpoints: each is refused as such, or read; nothing runs, and memory stays small."""

from __future__ import annotations

import tracemalloc
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from audiation.checkpoints import WeightsError, read_checkpoint
from checkpoint_files import FORMATS, attacks, example, write

MAX_BYTES = 32 << 20
CHECKED = {"torch zip", "lightning", "keras", "tensor bundle"}  # formats that have checksums over the data


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """One way in which files are damaged, or made to attack."""
    data = bytearray(content)
    place = int(rng.integers(len(data)))
    match int(rng.integers(6)):
        case 0:  # a bit
            data[place] ^= 1 << int(rng.integers(8))
        case 1:  # the end
            del data[place:]
        case 2:  # a length or an offset
            width = int(rng.choice([1, 2, 4, 8]))
            value = int(rng.choice([0, 1, 0x7F, 0x80, (1 << 8 * width) - 1, 1 << (8 * width - 1), len(data)]))
            data[place : place + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
        case 3:  # opcodes, or two bytes
            other = int(rng.integers(len(data)))
            data[place], data[other] = data[other], data[place]
        case 4:  # a piece that is missing
            del data[place : place + int(rng.integers(1, 64))]
        case _:  # a piece that is there twice
            data[place:place] = data[place : place + int(rng.integers(1, 64))]
    return bytes(data)


def near_the_start(content: bytes, rng: np.random.Generator) -> bytes:
    """Headers are short, so that most random damage misses them."""
    cut = min(len(content), 400)
    return mutate(content[:cut], rng) + content[cut:]


def outcome(path: Path, expected: dict[str, torch.Tensor]) -> str:
    try:
        found = {name: tensor for name, tensor in read_checkpoint(path).items()}
    except WeightsError as error:
        assert path.name in str(error) or path.parent.name in str(error)
        return "refused"
    whole = found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in expected)
    return "the same" if whole else "other"


def run(tmp_path: Path, per_format: int, seed: int) -> Counter[tuple[str, str]]:
    rng, counts = np.random.default_rng(seed), Counter[tuple[str, str]]()
    expected = example()
    for kind in FORMATS:
        path = write(kind, tmp_path / kind.replace(" ", "-"), expected)
        files = sorted(p for p in path.parent.iterdir()) if kind == "tensor bundle" else [path]
        contents = {file: file.read_bytes() for file in files}
        assert outcome(path, expected) == "the same"
        for number in range(per_format):
            victim = files[number % len(files)]
            change = near_the_start if number % 3 == 0 else mutate
            victim.write_bytes(change(contents[victim], rng))
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                counts[kind, outcome(path, expected)] += 1
            victim.write_bytes(contents[victim])
    return counts


def check(tmp_path: Path, per_format: int, seed: int) -> None:
    tracemalloc.start()
    try:
        counts = run(tmp_path, per_format, seed)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(counts.values()) == per_format * len(FORMATS)
    assert peak < MAX_BYTES
    for kind in FORMATS:
        assert counts[kind, "refused"] > per_format // 5, kind


def test_five_hundred_damaged_checkpoints(tmp_path: Path):
    check(tmp_path, per_format=64, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_ten_thousand_damaged_checkpoints(tmp_path: Path, seed: int):
    check(tmp_path, per_format=320, seed=seed)


def test_one_changed_bit_of_data_is_noticed_where_there_are_checksums(tmp_path: Path):
    rng, expected = np.random.default_rng(3), example()
    data = expected["block/kernel"].numpy().tobytes()
    for kind in FORMATS:
        path = write(kind, tmp_path / kind.replace(" ", "-"), expected)
        victim = path.with_name("model.data-00000-of-00001") if kind == "tensor bundle" else path
        content = victim.read_bytes()
        start = content.index(data)
        for _ in range(5):
            changed = bytearray(content)
            changed[start + int(rng.integers(len(data)))] ^= 1 << int(rng.integers(7))
            victim.write_bytes(changed)
            assert outcome(path, expected) == ("refused" if kind in CHECKED else "other"), kind


def test_damaged_attacks_do_nothing(tmp_path: Path):
    rng, marker = np.random.default_rng(5), tmp_path / "owned"
    path = tmp_path / "x.pt"
    for attack in attacks(marker).values():
        for _ in range(20):
            path.write_bytes(mutate(b"\x80\x02" + attack, rng) if rng.integers(2) else b"\x80\x02" + attack)
            with pytest.raises(WeightsError):
                read_checkpoint(path)
    assert list(tmp_path.iterdir()) == [path]
