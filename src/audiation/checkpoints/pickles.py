"""Pickles as data: a machine of our own that builds plain containers and records of tensors, and nothing else.

No name in a pickle is ever imported, and nothing that a pickle brings is called. A name stands for one of torch's
tensors, for a plain container, or, if it is known to be configuration, for an `Inert` placeholder. Every other name
is refused as soon as it occurs, whether it would be called or not.

The format: the opcodes of Python's pickle protocols 0 to 5 (module `pickletools`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from audiation.checkpoints.pickle_machine import MARK, Machine
from audiation.checkpoints.pickle_records import Inert, Storage, UnsafePickleError
from audiation.checkpoints.tensors import ByteRange, DamagedError


class Loaded(NamedTuple):
    """The value of a pickle, where it ends, and every storage that it mentions, by key."""

    value: Any
    end: int
    storages: dict[str, Storage]


def read_pickle(data: ByteRange, offset: int = 0) -> Loaded:
    """The pickle at `offset`, as dict, list, tuple, str, bytes, numbers, None, and `pickle_records`.

    Raises:
        UnsafePickleError: it names what is neither a tensor nor known to be harmless, or makes objects by number.
        DamagedError: it is no pickle, not whole, or unreasonably large.
    """
    machine = Machine(data, offset)
    try:
        while True:
            machine.charge(1)
            code = machine.take(1)[0]
            if code == STOP:
                return Loaded(machine.pop(), offset + machine.place, machine.storages)
            if code in _UNSAFE:
                raise UnsafePickleError(f"opcode {_UNSAFE[code]}")
            if code not in _STEPS:
                raise DamagedError(f"byte {code} is no opcode of a pickle")
            _STEPS[code](machine)
    except (IndexError, struct.error, UnicodeError, OverflowError) as error:
        raise DamagedError(f"its pickle is damaged ({error})") from error


# Opcodes -----------------------------------------------------------------------------------------------------


def _text(form: str) -> Callable[[Machine], None]:
    def step(m: Machine) -> None:
        m.push(m.take(m.number(form)).decode("utf-8", "replace"))

    return step


def _bytes(form: str) -> Callable[[Machine], None]:
    def step(m: Machine) -> None:
        count = m.number(form)
        if count < 0:
            raise DamagedError("its pickle is damaged (a negative length)")
        m.push(m.take(count))

    return step


def _old_text(form: str) -> Callable[[Machine], None]:
    """Python 2's str: text to us, whatever it was."""

    def step(m: Machine) -> None:
        count = m.number(form)
        if count < 0:
            raise DamagedError("its pickle is damaged (a negative length)")
        m.push(m.take(count).decode("latin1"))

    return step


def _number(form: str) -> Callable[[Machine], None]:
    return lambda m: m.push(m.number(form))


def _number_line(m: Machine) -> int | bool:
    text = m.line()
    if text in ("00", "01"):
        return text == "01"
    try:
        return int(text.removesuffix("L"))
    except ValueError as error:
        raise DamagedError("its pickle is damaged (a number that is none)") from error


def _float_line(m: Machine) -> float:
    try:
        return float(m.line())
    except ValueError as error:
        raise DamagedError("its pickle is damaged (a number that is none)") from error


def _quoted_line(m: Machine) -> str:
    text = m.line()
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "'\"":
        raise DamagedError("its pickle is damaged (a text without quotes)")
    return text[1:-1]


def _protocol(m: Machine) -> None:
    if (number := m.number("B")) > 5:
        raise DamagedError(f"its pickle has protocol {number}")


def _frame(m: Machine) -> None:
    if m.number("Q") > m.limit - m.place:
        raise DamagedError("its pickle is truncated")


def _drop(m: Machine) -> None:
    m.stack.pop()


def _drop_to_mark(m: Machine) -> None:
    m.pop_to_mark()


def _dict_from_mark(m: Machine) -> None:
    values = m.pop_to_mark()
    m.push({})
    m.set_items(values)


def _set_from_mark(m: Machine) -> None:
    m.pop_to_mark()
    m.push(Inert("builtins.frozenset"))


def _append(m: Machine) -> None:
    value = m.pop()
    m.extend([value])


def _set_item(m: Machine) -> None:
    key, value = m.pop_many(2)
    m.set_items([key, value])


def _reduce(m: Machine) -> None:
    maker, arguments = m.pop_many(2)
    m.make(maker, arguments)


def _new_object_with_keywords(m: Machine) -> None:
    maker, arguments, _ = m.pop_many(3)
    m.make(maker, arguments)


def _instance(m: Machine) -> None:
    module, name = m.line(), m.line()
    m.name(module, name)
    maker = m.pop()
    m.make(maker, tuple(m.pop_to_mark()))


def _object(m: Machine) -> None:
    values = m.pop_to_mark()
    m.make(values[0], tuple(values[1:]))


_STEPS: dict[int, Callable[[Machine], None]] = {
    ord(code): step
    for code, step in {
        "\x80": _protocol, "\x95": _frame,
        "0": _drop, "1": _drop_to_mark,
        "(": lambda m: m.push(MARK), "2": lambda m: m.push(m.top()),
        "N": lambda m: m.push(None), "\x88": lambda m: m.push(True), "\x89": lambda m: m.push(False),
        "I": lambda m: m.push(_number_line(m)), "L": lambda m: m.push(_number_line(m)),
        "F": lambda m: m.push(_float_line(m)), "J": _number("i"), "K": _number("B"), "M": _number("H"),
        "\x8a": lambda m: m.push(m.integer(m.number("B"))), "\x8b": lambda m: m.push(m.integer(m.number("i"))),
        "G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
        "S": lambda m: m.push(_quoted_line(m)), "T": _old_text("i"), "U": _old_text("B"),
        "V": lambda m: m.push(m.line()), "X": _text("I"), "\x8c": _text("B"), "\x8d": _text("Q"),
        "B": _bytes("I"), "C": _bytes("B"), "\x8e": _bytes("Q"), "\x96": _bytes("Q"),
        "]": lambda m: m.push([]), "l": lambda m: m.push(m.pop_to_mark()), "a": _append,
        "e": lambda m: m.extend(m.pop_to_mark()),
        ")": lambda m: m.push(()), "t": lambda m: m.push(tuple(m.pop_to_mark())),
        "\x85": lambda m: m.push(m.pop_many(1)), "\x86": lambda m: m.push(m.pop_many(2)),
        "\x87": lambda m: m.push(m.pop_many(3)),
        "}": lambda m: m.push({}), "d": _dict_from_mark, "s": _set_item, "u": lambda m: m.set_items(m.pop_to_mark()),
        "\x8f": lambda m: m.push(Inert("builtins.set")), "\x90": lambda m: m.extend(m.pop_to_mark()),
        "\x91": _set_from_mark,
        "p": lambda m: m.remember(_number_line(m)), "q": lambda m: m.remember(m.number("B")),
        "r": lambda m: m.remember(m.number("I")), "\x94": lambda m: m.remember(len(m.memo)),
        "g": lambda m: m.recall(_number_line(m)), "h": lambda m: m.recall(m.number("B")),
        "j": lambda m: m.recall(m.number("I")),
        "c": lambda m: m.name(m.line(), m.line()), "\x93": lambda m: m.name(*m.pop_many(2)),
        "R": _reduce, "\x81": _reduce, "\x92": _new_object_with_keywords, "b": lambda m: m.build(),
        "i": _instance, "o": _object, "Q": lambda m: m.persistent(),
    }.items()
}  # fmt: skip
STOP = ord(".")
_UNSAFE = {
    ord("P"): "PERSID", 0x82: "EXT1", 0x83: "EXT2", 0x84: "EXT4", 0x97: "NEXT_BUFFER", 0x98: "READONLY_BUFFER",
}  # fmt: skip
