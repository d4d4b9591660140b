"""Small checkpoints of every format, and pickles that attack. Nothing here is taken from the code under test."""

from __future__ import annotations

import argparse
import io
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path

import h5py
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

FORMATS = (
    "safetensors", "torch zip", "torch legacy", "lightning", "fairseq", "keras h5", "keras", "tensor bundle",
)  # fmt: skip
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def example() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "block/kernel": torch.randn(7, 5, generator=generator),
        "block/bias": torch.randn(5, generator=generator),
        "half": torch.randn(3, 4, generator=generator).half(),
        "steps": torch.tensor(95489),
    }


def write(kind: str, folder: Path, tensors: dict[str, Tensor]) -> Path:
    """A checkpoint of that kind; returns the path to read."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "weights.bin"
    if kind == "safetensors":
        save_file(tensors, path)
    elif kind in ("torch zip", "torch legacy"):
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "torch zip")
    elif kind == "lightning":
        extra = {"epoch": 3, "hyper_parameters": argparse.Namespace(rate=1e-3, sizes=[1, 2])}
        best = {"best": np.float64(0.5), "path": Path("a/b")}
        torch.save({"state_dict": tensors, **extra, "callbacks": best}, path)
    elif kind == "fairseq":
        config, enum = foreign_object("fairseq.dataclass.configs", "Config"), {"seed": {1, 2}}
        content = {"args": None, "cfg": config, "model": tensors, "extra_state": enum}
        with known_module(config):
            torch.save(content, path, _use_new_zipfile_serialization=False, pickle_protocol=4)
    elif kind == "keras h5":
        write_h5(path, tensors)
    elif kind == "keras":
        packed = io.BytesIO()
        write_h5(packed, tensors)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("metadata.json", "{}")
            archive.writestr("model.weights.h5", packed.getvalue())
    else:
        write_bundle(folder / "model", tensors)
        return folder / "model.index"
    return path


def write_h5(target: Path | io.BytesIO, tensors: dict[str, Tensor]) -> None:
    with h5py.File(target, "w") as file:
        file.attrs["keras_version"] = b"1.2.2"
        for name, tensor in tensors.items():
            file.create_dataset(name, data=tensor.numpy())


def foreign_object(module: str, name: str) -> object:
    """An instance of a class that cannot be imported where the file is read."""
    kind = type(name, (), {"__module__": module})
    made = kind()
    made.depth = 3
    return made


class known_module:  # noqa: N801 (reads as a function)
    """So that pickle writes the class of an object by name."""

    def __init__(self, made: object) -> None:
        self.kind = type(made)

    def __enter__(self) -> None:
        parts = self.kind.__module__.split(".")
        self.names = [".".join(parts[: i + 1]) for i in range(len(parts))]
        for name in self.names:
            sys.modules[name] = types.ModuleType(name)
        setattr(sys.modules[self.kind.__module__], self.kind.__name__, self.kind)

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            del sys.modules[name]


# TensorFlow 1 -----------------------------------------------------------------------------------------------

TENSORFLOW_TYPES = {torch.float32: 1, torch.float64: 2, torch.int32: 3, torch.int64: 9, torch.float16: 19}


def crc32c(data: bytes) -> int:
    """Bit by bit, as the definition has it."""
    state = 0xFFFFFFFF
    for octet in data:
        state ^= octet
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    """Keys share prefixes with the key before."""
    out, last = b"", b""
    for key, value in entries:
        shared = 0
        while shared < min(len(key), len(last)) and key[shared] == last[shared]:
            shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    return out + struct.pack("<II", 0, 1)


def write_index(path: Path, first: bytes, handles: int = 1) -> None:
    """An index of one block, which the table names again and again. block: as `block` gives it."""
    table = first + b"\0" + masked(first + b"\0")
    top = block([(b"%04d" % i, varint(0) + varint(len(first))) for i in range(handles)])
    footer = (varint(0) + varint(0) + varint(len(table)) + varint(len(top))).ljust(40, b"\0")
    footer += bytes.fromhex("57fb808b247547db")
    path.write_bytes(table + top + b"\0" + masked(top + b"\0") + footer)


def write_bundle(prefix: Path, tensors: dict[str, Tensor], header: bytes = field(1, 1)) -> None:
    data, entries = b"", [(b"", header)]
    for name in sorted(tensors):
        tensor = tensors[name]
        octets = tensor.numpy().tobytes()
        shape = b"".join(field(2, field(1, size)) for size in tensor.shape)
        entry = field(1, TENSORFLOW_TYPES[tensor.dtype]) + field(2, shape) + field(4, len(data))
        entry += field(5, len(octets)) + varint(6 << 3 | 5) + masked(octets)
        entries.append((name.encode(), entry))
        data += octets
    first = block(entries)
    table = first + b"\0" + masked(first + b"\0")
    meta = block([])
    meta_place = varint(len(table)) + varint(len(meta))
    table += meta + b"\0" + masked(meta + b"\0")
    index = block([(entries[-1][0], varint(0) + varint(len(first)))])
    index_place = varint(len(table)) + varint(len(index))
    table += index + b"\0" + masked(index + b"\0")
    footer = (meta_place + index_place).ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")
    prefix.with_name(prefix.name + ".index").write_bytes(table + footer)
    prefix.with_name(prefix.name + ".data-00000-of-00001").write_bytes(data)


# Attacks ----------------------------------------------------------------------------------------------------


def legacy(content: bytes, keys: list[str] | None = None, data: bytes = b"") -> bytes:
    """A torch file before 1.6 around a pickle."""
    system = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {}}
    parts = [pickle.dumps(value, 2) for value in (MAGIC, PROTOCOL, system)]
    return b"".join([*parts, content, pickle.dumps(keys or [], 2), data])


def nested_lists(depth: int) -> bytes:
    """A pickle of 5 bytes a level whose text doubles with each."""
    levels = b"".join(
        b"]q" + bytes([i + 1]) + b"(h" + bytes([i]) + b"h" + bytes([i]) + b"e" for i in range(depth)
    )
    return b"\x80\x02]q\x00K\x01a" + levels + b"."


def h5_with_shared_object(num_links: int, num_messages: int) -> bytes:
    """A root group whose links all mean one object of many empty messages, as old headers write it."""

    def header(messages: list[tuple[int, bytes]]) -> bytes:
        body = b"".join(struct.pack("<HHB3x", kind, len(part), 0) + part for kind, part in messages)
        return struct.pack("<BxHII4x", 1, len(messages), 1, len(body)) + body

    base = 96
    shared = header([(0, b"")] * num_messages)
    names = [str(i).encode() for i in range(num_links)]
    links = [(6, bytes([1, 0, len(name)]) + name + struct.pack("<Q", base)) for name in names]
    root, nowhere = header(links), (1 << 64) - 1
    end = base + len(shared) + len(root)
    start = b"\x89HDF\r\n\x1a\n" + bytes([0, 0, 0, 0, 0, 8, 8, 0]) + struct.pack("<HHI", 4, 16, 0)
    start += struct.pack("<QQQQ", 0, nowhere, end, nowhere)
    return start + struct.pack("<QQII16x", 0, base + len(shared), 0, 0) + shared + root


def attacks(marker: Path) -> dict[str, bytes]:
    """Pickles that make the folder `marker` when they are executed."""
    text = str(marker).encode()
    long = b"X" + struct.pack("<I", len(text)) + text
    code = f"__import__('os').mkdir({str(marker)!r})".encode()
    run = b"(X" + struct.pack("<I", len(code)) + code + b"tR"
    call = b"\x85R"
    return {
        "REDUCE os": b"cos\nmkdir\n" + long + call + b".",
        "REDUCE posix": b"cposix\nmkdir\n" + long + call + b".",
        "REDUCE os.system": b"cos\nsystem\nX" + struct.pack("<I", len(text) + 6) + b"mkdir " + text + call + b".",
        "eval": b"c__builtin__\neval\n" + run + b".",
        "exec": b"\x80\x04cbuiltins\nexec\n" + run + b".",
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + long + call + b".",
        "INST": b"(V" + text + b"\nios\nmkdir\n.",
        "OBJ": b"(cos\nmkdir\nV" + text + b"\no.",
        "below state_dict": b"}X\x0a\x00\x00\x00state_dict}X\x01\x00\x00\x00acos\nmkdir\n" + long + call + b"ss.",
        "in a tuple that is dropped": b"cos\nmkdir\n" + long + call + b"0}.",
        "as an argument of a dictionary": b"ccollections\nOrderedDict\n]cos\nmkdir\n" + long + call + b"0\x85R.",
        "as state": b"ccollections\nOrderedDict\n)Rcos\nmkdir\n" + long + call + b"0}b.",
        "getattr": b"c__builtin__\ngetattr\n(cposix\nlistdir\nX\x08\x00\x00\x00__self__tRX\x05\x00\x00\x00mkdir0c"
        b"os\nmkdir\n" + long + call + b".",
    }  # fmt: skip
