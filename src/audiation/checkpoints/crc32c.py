"""CRC32C (Castagnoli) of large pieces of memory with numpy, and the mask that LevelDB's formats put on it."""

from __future__ import annotations

import functools

import numpy as np

POLYNOMIAL = 0x82F63B78  # 0x1EDC6F41 with its bits reversed
MASK_DELTA = 0xA282EAD8
NUM_LANES = 1 << 12
ALL_ONES = 0xFFFFFFFF


def crc32c(data: bytes | memoryview | np.ndarray) -> int:
    """CRC32C of the bytes.

    Long data is cut into lanes of equal length that are worked on side by side; a CRC is linear, so those of the lanes
    are joined by shifting each over the length of what follows it.
    """
    octets = np.frombuffer(data, np.uint8)
    length = len(octets) // NUM_LANES
    state = ALL_ONES
    if length >= 16:
        lanes = np.ascontiguousarray(octets[: length * NUM_LANES].reshape(NUM_LANES, length).T)
        states = np.zeros(NUM_LANES, np.uint32)
        table = _table()
        for column in lanes:
            states = table[(states ^ column) & 0xFF] ^ (states >> np.uint32(8))
        shift = _shift(length)
        for lane in states.tolist():
            state = (
                shift[0][state & 255]
                ^ shift[1][state >> 8 & 255]
                ^ shift[2][state >> 16 & 255]
                ^ shift[3][state >> 24]
            ) ^ lane
        octets = octets[length * NUM_LANES :]
    small = _table().tolist()
    for octet in octets.tolist():
        state = small[(state ^ octet) & 0xFF] ^ (state >> 8)
    return state ^ ALL_ONES


def masked(crc: int) -> int:
    """As it is stored: rotated right by 15 bits, plus a constant, so that a CRC of data with a CRC in it is good."""
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & ALL_ONES


@functools.cache
def _table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(POLYNOMIAL), table >> 1).astype(np.uint32)
    return table


@functools.lru_cache(8)
def _shift(num_bytes: int) -> tuple[list[int], ...]:
    """For every byte of a state, what `num_bytes` zero bytes make of it."""
    table = _table().tolist()
    matrix = [table[1 << bit] if bit < 8 else 1 << bit - 8 for bit in range(32)]  # one zero byte
    result = [1 << bit for bit in range(32)]
    while num_bytes:
        if num_bytes & 1:
            result = [_apply(matrix, column) for column in result]
        matrix = [_apply(matrix, column) for column in matrix]
        num_bytes >>= 1
    return tuple([_apply(result, value << 8 * place) for value in range(256)] for place in range(4))


def _apply(matrix: list[int], vector: int) -> int:
    found = 0
    for bit in range(32):
        if vector >> bit & 1:
            found ^= matrix[bit]
    return found
