"""A small synthesiser whose 16-bit output is the same on every machine.

What reaches a sample is computed with integers and with element-wise `+ - * /` and `floor` on float64, which
IEEE 754 rounds the same way everywhere. So there is no `np.sin`, `exp` or `pow` (each C library and SIMD level has its
own last bit), no BLAS, FFT or convolution and no float reduction (their order of addition differs), and random
numbers are a counter through splitmix64. Phases are 32-bit fractions of a period, so they never drift.
"""

from __future__ import annotations

import hashlib
import math
import os
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

SAMPLE_RATE_HZ = 24_000
TUNING_HZ = 440.0  # A4, MIDI 69

T = TypeVar("T")


class Note(NamedTuple):
    """One sounding note of a clip: onset and length in samples, MIDI pitch, gain in (0, 1]."""

    start_sample: int
    num_samples: int
    midi: int
    gain: float


def render(notes: Sequence[Note], timbre: str, num_samples: int, draws: Draws) -> np.ndarray:
    """Notes -> int16 PCM `(num_samples,)` at 24 kHz: one timbre, a room, a gain, never clipping.

    `draws` decides attack, brightness, vibrato, noise, room and gain. An unknown timbre raises ValueError.
    """
    if timbre not in TIMBRES:
        raise ValueError(f"timbre '{timbre}' does not exist. Known: {', '.join(TIMBRES)}.")
    player = _Player(TIMBRES[timbre], draws)
    mix = np.zeros(num_samples)
    for note in notes:
        sound = player.play(note)
        end = min(num_samples, note.start_sample + len(sound))
        mix[note.start_sample : end] += sound[: end - note.start_sample]
    mix = _room(mix, draws)
    fade = min(num_samples, SAMPLE_RATE_HZ // 100)  # 10 ms: a clip cut out of the music ends without a click
    mix[num_samples - fade :] *= 1.0 - _smoothstep(np.arange(fade) / fade)
    peak = float(np.max(np.abs(mix))) or 1.0
    loudness = draws.uniform(0.35, 0.97)
    return np.floor(mix * (loudness * loudness / peak) * 32767.0 + 0.5).astype(np.int16)


def write_wav(path: Path, pcm: np.ndarray) -> None:
    """Mono 16-bit WAV, complete or not there: written beside `path` and renamed."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with wave.open(str(partial), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes(pcm.astype("<i2").tobytes())
    os.replace(partial, path)


class Draws:
    """Random numbers that depend on the name only: splitmix64 on a counter that starts at the name's SHA-256."""

    _STEP = 0x9E3779B97F4A7C15
    _MASK = (1 << 64) - 1

    def __init__(self, *name: object) -> None:
        digest = hashlib.sha256("/".join(str(part) for part in name).encode()).digest()
        self._counter = int.from_bytes(digest[:8], "big")

    def _bits(self, count: int) -> np.ndarray:
        """The next `count` values `(count,)`, uint64. Unsigned 64-bit arithmetic wraps, as splitmix64 wants."""
        steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(self._STEP)
        z = steps + np.uint64(self._counter)
        self._counter = (self._counter + count * self._STEP) & self._MASK
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    def below(self, count: int) -> int:
        """An integer in [0, count)."""
        return int(self._bits(1)[0]) % count

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * ((int(self._bits(1)[0]) >> 11) * 2.0**-53)

    def noise(self, num_samples: int) -> np.ndarray:
        """White noise `(num_samples,)`, uniform in [-1, 1)."""
        return (self._bits(num_samples) >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """A new list in random order (Fisher-Yates)."""
        out = list(items)
        for i in range(len(out) - 1, 0, -1):
            j = self.below(i + 1)
            out[i], out[j] = out[j], out[i]
        return out


# ---------------------------------------------------------------------------------------------- timbres

Spectrum = Callable[[int, float], float]
"""(harmonic number, its frequency in Hz) -> amplitude."""


def _resonances(*centres_hz: float) -> Spectrum:
    """Formants: a bell of half-width 90 Hz + 6 % around each centre, each weaker than the one before."""

    def amplitude(h: int, hz: float) -> float:
        total = 0.02
        for i, centre in enumerate(centres_hz):
            offset = (hz - centre) / (90.0 + 0.06 * centre)
            total += 1.0 / (1.0 + i) / (1.0 + offset * offset)
        return total / h

    return amplitude


def _listed(*amplitudes: float) -> Spectrum:
    return lambda h, hz: amplitudes[h - 1] if h <= len(amplitudes) else 0.0


@dataclass(frozen=True)
class Timbre:
    """How an instrument sounds: `mellow` follows the envelope, `bright` its square or its faster decay.

    spectra: pairs (mellow, bright); a clip draws one of them (the vowels of the voice).
    decay_seconds: (of mellow, of bright); None for a sustained sound.
    partials: (frequency ratio, amplitude, decay seconds) of inharmonic bars, in place of the spectra.
    breath: level of noise that lasts as long as the note; strike: of noise in its first hundredth of a second.
    vibrato: greatest depth as a fraction of the frequency; desks: players, slightly out of tune with each other.
    """

    spectra: tuple[tuple[Spectrum, Spectrum], ...] = ()
    attack_seconds: float = 0.01
    release_seconds: float = 0.08
    decay_seconds: tuple[float, float] | None = None
    partials: tuple[tuple[float, float, float], ...] = ()
    breath: float = 0.0
    strike: float = 0.0
    vibrato: float = 0.0
    desks: tuple[float, ...] = (1.0,)


TIMBRES: dict[str, Timbre] = {
    "flute": Timbre(
        ((_listed(1.0, 0.25, 0.06, 0.02), _listed(0.0, 0.10, 0.06)),),
        attack_seconds=0.06, breath=0.06, vibrato=0.004,
    ),
    "clarinet": Timbre(
        ((lambda h, hz: 1.0 / h if h % 2 else 0.03 / h, lambda h, hz: 0.5 / h if h % 2 and h > 1 else 0.0),),
        attack_seconds=0.03, breath=0.004,
    ),
    "brass": Timbre(
        ((lambda h, hz: 1.0 / (h * h), lambda h, hz: 1.0 / (1.0 + h * h / 50.0)),),
        attack_seconds=0.05, breath=0.004, vibrato=0.002,
    ),
    "guitar": Timbre(
        ((lambda h, hz: 1.0 / (h * h), lambda h, hz: (1.0 if h % 5 else 0.1) / h),),
        attack_seconds=0.002, release_seconds=0.25, decay_seconds=(0.9, 0.2), strike=0.25,
    ),
    "organ": Timbre(
        ((_listed(1.0, 0.9, 0.5, 0.7, 0.0, 0.4, 0.0, 0.6), _listed(0.0)),),
        attack_seconds=0.008, release_seconds=0.05,
    ),
    "strings": Timbre(
        ((lambda h, hz: 1.0 / h, lambda h, hz: 0.25 if h > 4 and hz < 5000.0 else 0.0),),
        attack_seconds=0.09, release_seconds=0.15, breath=0.02, vibrato=0.006, desks=(1.0, 1.0019, 0.9981),
    ),
    "marimba": Timbre(
        partials=((1.0, 1.0, 0.35), (3.932, 0.45, 0.10), (9.538, 0.25, 0.04)),
        attack_seconds=0.001, release_seconds=0.3, strike=0.35,
    ),
    "voice": Timbre(
        tuple((_resonances(*vowel), _listed(0.0)) for vowel in
              ((700.0, 1150.0, 2600.0), (450.0, 850.0, 2700.0), (520.0, 1800.0, 2500.0))),
        attack_seconds=0.08, release_seconds=0.12, breath=0.01, vibrato=0.012,
    ),
}  # fmt: skip

# 2 ** (k / 12) for k = 0..11, written out because pow() differs between machines.
_SEMITONES = (
    1.0, 1.0594630943592953, 1.122462048309373, 1.189207115002721, 1.2599210498948732, 1.3348398541700344,
    1.4142135623730951, 1.4983070768766815, 1.5874010519681994, 1.681792830507429, 1.7817974362806785,
    1.8877486253633868,
)  # fmt: skip
_TABLE_BITS = 12
_TABLE_SIZE = 1 << _TABLE_BITS
_PERIOD = 1 << 32  # phases are integers, fractions of a period in 1/2**32


def frequency_hz(midi: int) -> float:
    """Equal temperament on A4 = 440 Hz; octaves are exact."""
    octave, semitone = divmod(midi - 69, 12)
    return math.ldexp(TUNING_HZ * _SEMITONES[semitone], octave)


class _Player:
    """One instrument in one clip: its drawn character, and its wavetables by pitch."""

    def __init__(self, timbre: Timbre, draws: Draws) -> None:
        self._timbre, self._draws = timbre, draws
        self._spectra = timbre.spectra[draws.below(len(timbre.spectra))] if timbre.spectra else None
        self._attack_seconds = timbre.attack_seconds * draws.uniform(0.6, 1.5)
        self._dullness = draws.uniform(0.0, 0.06)
        self._noise_level = draws.uniform(0.5, 1.5)
        self._vibrato_depth = timbre.vibrato * draws.uniform(0.4, 1.0)
        self._vibrato_hz = draws.uniform(4.5, 6.5)
        self._decay_scale = draws.uniform(0.7, 1.3)
        self._tables: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def play(self, note: Note) -> np.ndarray:
        """Samples `(note.num_samples + release,)`."""
        t = self._timbre
        length = note.num_samples + int(t.release_seconds * SAMPLE_RATE_HZ)
        seconds = np.arange(length) / SAMPLE_RATE_HZ
        release = (note.num_samples / SAMPLE_RATE_HZ + t.release_seconds - seconds) / t.release_seconds
        envelope = _smoothstep(seconds / self._attack_seconds) * _smoothstep(release)
        hz = frequency_hz(note.midi)
        if self._spectra is None:
            sound = np.zeros(length)
            for ratio, amplitude, decay_seconds in t.partials:
                if hz * ratio < 0.45 * SAMPLE_RATE_HZ:
                    partial = _lookup(_SINE, self._phase(hz * ratio, seconds))
                    sound += partial * _decay(seconds, decay_seconds * self._decay_scale) * amplitude
            sound *= envelope
        else:
            mellow, bright = self._wavetables(note.midi)
            if t.decay_seconds is None:
                shape_mellow, shape_bright = envelope, envelope * envelope
            else:
                slow, fast = (s * self._decay_scale for s in t.decay_seconds)
                shape_mellow, shape_bright = (
                    envelope * _decay(seconds, slow),
                    envelope * _decay(seconds, fast),
                )
            sound = np.zeros(length)
            for detune in t.desks:
                phase = self._phase(hz * detune, seconds)
                sound += _lookup(mellow, phase) * shape_mellow + _lookup(bright, phase) * shape_bright
        if t.breath or t.strike:
            noise = self._draws.noise(length + 1)
            noise = (noise[1:] + noise[:-1]) * (0.5 * self._noise_level)  # a gentle low-pass
            sound += noise * envelope * (t.breath + t.strike * _decay(seconds, 0.01))
        return sound * note.gain

    def _phase(self, hz: float, seconds: np.ndarray) -> np.ndarray:
        """Phase `(n,)` int64 in 1/2**32 of a period; vibrato grows over the first third of a second."""
        step = hz / SAMPLE_RATE_HZ * _PERIOD
        start = self._draws.below(_PERIOD)
        if not self._vibrato_depth:
            return (start + np.arange(len(seconds)) * int(step)) & (_PERIOD - 1)
        wobble_step = int(self._vibrato_hz / SAMPLE_RATE_HZ * _PERIOD)
        wobble = _lookup(_SINE, (np.arange(len(seconds)) * wobble_step) & (_PERIOD - 1))
        depth = self._vibrato_depth * _smoothstep(seconds * 3.0)
        steps = np.floor(step * (1.0 + depth * wobble)).astype(np.int64)
        return (start + np.cumsum(steps)) & (_PERIOD - 1)  # a sum of integers: exact in any order

    def _wavetables(self, midi: int) -> tuple[np.ndarray, np.ndarray]:
        """(mellow, bright), each one period plus its first sample again `(table + 1,)`, below 0.45 of the rate."""
        if midi not in self._tables:
            assert self._spectra is not None
            hz = frequency_hz(midi)
            tables = (np.zeros(_TABLE_SIZE + 1), np.zeros(_TABLE_SIZE + 1))
            for h in range(1, min(40, int(0.45 * SAMPLE_RATE_HZ / hz)) + 1):
                wave_h = _SINE[(h * np.arange(_TABLE_SIZE + 1)) & (_TABLE_SIZE - 1)]
                for table, spectrum in zip(tables, self._spectra, strict=True):
                    amplitude = spectrum(h, h * hz) / (1.0 + (h - 1) * self._dullness)
                    if amplitude:
                        table += wave_h * amplitude
            self._tables[midi] = tables
        return self._tables[midi]


# ---------------------------------------------------------------------------------------------- signal parts


def _sine_table() -> np.ndarray:
    """One period of a sine and its first sample again `(table + 1,)`, from the Taylor series on a quarter."""
    quarter = _TABLE_SIZE // 4
    x = np.arange(quarter + 1) * (1.5707963267948966 / quarter)
    square, series = x * x, np.ones(quarter + 1)
    for k in range(10, 0, -1):  # Horner; terms to x**21, error < 1e-15
        series = 1.0 - square * series / (2 * k * (2 * k + 1))
    rising = x * series
    half = np.concatenate([rising, rising[-2:0:-1]])
    return np.concatenate([half, -half, half[:1]])


_SINE = _sine_table()


def _lookup(table: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """Linear interpolation in a table of one period `(table + 1,)` at integer phases `(n,)`."""
    shift = 32 - _TABLE_BITS
    index = phase >> shift
    fraction = (phase & ((1 << shift) - 1)) * (1.0 / (1 << shift))
    low = table[index]
    return low + fraction * (table[index + 1] - low)


def _smoothstep(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, x*x*(3 - 2x) between."""
    x = np.minimum(np.maximum(x, 0.0), 1.0)
    return x * x * (3.0 - 2.0 * x)


def _decay(seconds: np.ndarray, time_constant_seconds: float) -> np.ndarray:
    """About exp(-t / T), as (1 / (1 + t / 64T)) ** 64 by six squarings."""
    y = 1.0 / (1.0 + seconds * (1.0 / (64.0 * time_constant_seconds)))
    for _ in range(6):
        y = y * y
    return y


def _room(dry: np.ndarray, draws: Draws) -> np.ndarray:
    """Two early reflections, then four feedback combs in parallel and two all-passes (Schroeder 1962)."""
    size = draws.uniform(0.6, 1.3)
    feedback = draws.uniform(0.62, 0.80)
    level = draws.uniform(0.03, 0.22)
    early = np.zeros_like(dry)
    for delay_seconds, gain in ((0.0113, 0.7), (0.0197, 0.5)):
        delay = max(1, int(size * delay_seconds * SAMPLE_RATE_HZ))
        early[delay:] += gain * dry[:-delay]
    late = np.zeros_like(dry)
    for delay_seconds in (0.0297, 0.0371, 0.0411, 0.0437):
        delay = int(size * delay_seconds * SAMPLE_RATE_HZ)
        comb = dry.copy()
        for start in range(delay, len(comb), delay):  # a block only needs the one before it
            block = comb[start : start + delay]
            block += feedback * comb[start - delay : start - delay + len(block)]
        late += comb
    for delay_seconds in (0.0050, 0.0017):
        delay, gain = int(size * delay_seconds * SAMPLE_RATE_HZ), 0.7
        inner = late.copy()
        for start in range(delay, len(inner), delay):
            block = inner[start : start + delay]
            block += gain * inner[start - delay : start - delay + len(block)]
        late = -gain * inner
        late[delay:] += inner[:-delay]
    return dry + (early + 0.5 * late) * level
