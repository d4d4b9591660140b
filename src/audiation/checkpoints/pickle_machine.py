"""Stack and memo of a pickle, without an interpreter behind them: nothing is imported, nothing is called."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

from audiation.checkpoints.pickle_records import (
    BYTES_FROM_TEXT,
    DICTIONARIES,
    RARE_STORAGES,
    STORAGE_DTYPES,
    TENSOR_MAKERS,
    Inert,
    OtherTensor,
    Storage,
    StoredTensor,
    UnsafePickleError,
    is_allowed,
)
from audiation.checkpoints.tensors import ByteRange, DamagedError

MAX_PICKLE_BYTES = 1 << 26  # tensors lie outside of it
MAX_STEPS = 10_000_000
MAX_LINE_BYTES, MAX_INTEGER_BYTES, MAX_DIMENSIONS = 1 << 12, 1 << 10, 64

MARK = object()


@dataclass(frozen=True)
class _Name:
    """A name on the stack; nothing else about it exists."""

    text: str


class _Key:
    """Stands for a dictionary key that is neither text nor a small number: equal to nothing else."""


class Machine:
    """Stack, memo, and a window on the file."""

    def __init__(self, data: ByteRange, offset: int) -> None:
        self.data, self.offset = data, offset
        available = data.num_bytes - offset
        self.window = data.read(offset, min(1 << 16, max(available, 0)))
        self.limit = min(available, MAX_PICKLE_BYTES)
        self.place = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.steps = 0

    # Bytes

    def charge(self, steps: int) -> None:
        """Bounds time and memory: work that a few bytes can ask for again and again counts in full."""
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise DamagedError(f"its pickle takes more than {MAX_STEPS:,} steps")

    def take(self, num_bytes: int) -> bytes:
        end = self.place + num_bytes
        if end > self.limit:
            too_large = self.limit == MAX_PICKLE_BYTES
            raise DamagedError(f"its pickle is {'too large' if too_large else 'truncated'}")
        if end > len(self.window):
            wanted = min(self.limit, max(2 * len(self.window), end))
            self.window += self.data.read(self.offset + len(self.window), wanted - len(self.window))
        taken = self.window[self.place : end]
        self.place = end
        return taken

    def number(self, form: str) -> Any:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0]

    def line(self) -> str:
        found = bytearray()
        while (byte := self.take(1)) != b"\n":
            found += byte
            if len(found) > MAX_LINE_BYTES:
                raise DamagedError("a line of its pickle has no end")
        return found.decode("utf-8")

    def integer(self, num_bytes: int) -> int:
        if not 0 <= num_bytes <= MAX_INTEGER_BYTES:
            raise DamagedError("its pickle holds an integer without reason")
        return int.from_bytes(self.take(num_bytes), "little", signed=True)

    # Stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is MARK:
            raise DamagedError("its pickle is damaged (a mark where a value should be)")
        return value

    def pop_to_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            self.charge(1)
            if self.stack[index] is MARK:
                found = self.stack[index + 1 :]
                del self.stack[index:]
                return found
        raise DamagedError("its pickle is damaged (no mark)")

    def pop_many(self, count: int) -> tuple[Any, ...]:
        return tuple(reversed([self.pop() for _ in range(count)]))

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise DamagedError(f"its pickle recalls {index}, which it has not kept")
        self.push(self.memo[index])

    # Containers

    def extend(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Inert):
            raise DamagedError(f"its pickle adds to a {type(target).__name__}")

    def set_items(self, values: list[Any]) -> None:
        target = self.top()
        if len(values) % 2 or not isinstance(target, (dict, Inert)):
            raise DamagedError(f"its pickle sets items of a {type(target).__name__}")
        if isinstance(target, dict):
            target.update(zip(map(_key, values[::2]), values[1::2], strict=True))

    def top(self) -> Any:
        value = self.stack[-1]
        if value is MARK:
            raise DamagedError("its pickle is damaged (a mark where a value should be)")
        return value

    # Names and what is made of them

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise DamagedError("its pickle is damaged (a name that is no text)")
        if len(module) + len(name) > MAX_LINE_BYTES:  # both may come from the memo, again and again
            raise DamagedError("its pickle holds a name without end")
        text = f"{module}.{name}"
        if not is_allowed(module, name, text):
            raise UnsafePickleError(text[:200])
        self.push(_Name(text))

    def make(self, maker: Any, arguments: Any) -> None:
        """What REDUCE, NEWOBJ, INST and OBJ would call is made here, or stood for."""
        if isinstance(maker, Inert):
            self.push(maker)
            return
        if not isinstance(maker, _Name):
            raise UnsafePickleError(f"a call of a {type(maker).__name__}")
        if not isinstance(arguments, tuple):
            raise DamagedError(f"its pickle gives {maker.text} no arguments")
        self.push(self.made(maker.text, arguments))

    def made(self, name: str, arguments: tuple[Any, ...]) -> Any:
        module, _, leaf = name.rpartition(".")
        if name in DICTIONARIES:
            return self.dictionary(arguments)
        if name == BYTES_FROM_TEXT:
            text = arguments[0] if arguments else None
            if not isinstance(text, str) or arguments[1:] not in ((), ("latin1",), ("latin-1",)):
                raise UnsafePickleError(name)
            self.charge(len(text))
            return text.encode("latin1")
        if name == "torch._tensor._rebuild_from_type_v2":
            inner = arguments[0] if len(arguments) == 4 else None
            if not isinstance(inner, _Name) or not isinstance(arguments[2], tuple):
                raise UnsafePickleError(name)
            self.charge(1000)  # it may be nested
            if inner.text == name:
                raise UnsafePickleError(f"{name} of itself")
            return self.made(inner.text, arguments[2])
        if module == "torch._utils":
            if leaf in TENSOR_MAKERS:
                return self.tensor(leaf, arguments)
            if leaf.startswith("_rebuild_parameter") and arguments:
                return arguments[0]
            return OtherTensor(leaf)
        return Inert(name)

    def dictionary(self, arguments: tuple[Any, ...]) -> dict[Any, Any]:
        """OrderedDict(), OrderedDict([(key, value), ...]) or defaultdict(factory)."""
        made: dict[Any, Any] = {}
        pairs = arguments[0] if arguments else []
        if isinstance(pairs, (list, tuple)):
            self.charge(len(pairs))
            for pair in pairs:
                if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                    raise DamagedError("its pickle is damaged (a dictionary of other things than pairs)")
                made[_key(pair[0])] = pair[1]
        return made

    def tensor(self, maker: str, arguments: tuple[Any, ...]) -> StoredTensor | OtherTensor:
        if len(arguments) < 4:
            raise DamagedError("its pickle is damaged (a tensor without shape)")
        storage, offset, shape, stride = arguments[:4]
        if isinstance(storage, OtherTensor):
            return storage
        if maker == "_rebuild_tensor_v3":
            return OtherTensor("a dtype without storage type of its own")
        numbers = (
            [offset, *shape, *stride] if isinstance(shape, tuple) and isinstance(stride, tuple) else [None]
        )
        self.charge(len(numbers))
        fits = isinstance(storage, Storage) and all(type(n) is int and 0 <= n < 1 << 62 for n in numbers)
        if not fits or len(shape) != len(stride) or len(shape) > MAX_DIMENSIONS:
            raise DamagedError("its pickle is damaged (a tensor without shape, stride or storage)")
        made = StoredTensor(storage, offset, shape, stride)
        if math.prod(shape) > storage.num_elements or offset + made.span > storage.num_elements:
            raise DamagedError(f"a tensor {shape} reaches beyond its {storage.num_elements} stored elements")
        return made

    def build(self) -> None:
        """The state of an object: only dictionaries and placeholders get one, and neither needs it."""
        self.pop()
        target = self.top()
        if not isinstance(target, (dict, Inert, StoredTensor, OtherTensor)):
            raise UnsafePickleError(f"a state for a {type(target).__name__}")

    def persistent(self) -> None:
        saved = self.pop()
        form = isinstance(saved, tuple) and len(saved) in (5, 6) and saved[0] == "storage"
        if not form or not isinstance(saved[1], _Name):
            raise UnsafePickleError("a persistent id that is no storage")
        _, kind, key, _, num_elements = saved[:5]
        if not isinstance(key, str) or type(num_elements) is not int or not 0 <= num_elements < 1 << 62:
            raise DamagedError("its pickle is damaged (a storage without key or size)")
        leaf = kind.text.rpartition(".")[2]
        dtype = STORAGE_DTYPES.get(leaf) or RARE_STORAGES.get(leaf)
        if dtype is None:
            raise UnsafePickleError(f"a storage of type {kind.text}")
        view = saved[5] if len(saved) == 6 else None
        start, used = 0, num_elements
        if view is not None:  # of old files: (key, start, length) within the storage
            if not isinstance(view, tuple) or len(view) != 3 or not all(type(n) is int for n in view[1:]):
                raise DamagedError("its pickle is damaged (a view of a storage)")
            start, used = view[1:]
            if min(start, used) < 0 or start + used > num_elements:
                raise DamagedError("a view reaches beyond its storage")
        made = Storage(key, dtype, used, start, num_elements)
        known = self.storages.setdefault(key, made)
        if (known.dtype, known.num_stored) != (dtype, num_elements):
            raise DamagedError(f"its storage {key[:40]} has two types or sizes")
        self.push(OtherTensor(leaf) if leaf in RARE_STORAGES else made)


def _key(value: Any) -> Any:
    """Keys whose hash costs little and that cannot be made to collide; others equal nothing."""
    if value is None or isinstance(value, (str, bytes, bool)):
        return value
    return value if type(value) is int and abs(value) < 1 << 31 else _Key()
