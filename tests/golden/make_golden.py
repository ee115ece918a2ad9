"""Writes the golden messages, and makes the inputs that they were encoded from.

    python tests/golden/make_golden.py          # writes NAME.bin and residuals.txt

Only the oracle makes them, never a codec. Inputs come from `mix` below, so they are the same
everywhere and for ever. A change of a stored byte is a change of the format: raise its version.
"""

import hashlib
import pathlib
import sys
from dataclasses import dataclass, field

import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import oracle


def mix(i, salt):
    """64 bits that look random: the finaliser of splitmix64 over i and salt."""
    x = (i * 0x9E3779B97F4A7C15 + salt * 0xD1B54A32D192ED03 + 1) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def fractions(n, salt, bits=16):
    """n floats in [-1, 1): signed integers of so many bits, over 2^(bits - 1)."""
    half = 2 ** (bits - 1)
    return np.array([mix(i, salt) % (2 * half) - half for i in range(n)], np.float64) / half


def spikes(sent, stride, salt):
    """sent * stride floats: in each run of `stride` one is +-1 or beyond, the others below 1/2."""
    values = fractions(sent * stride, salt) / 2
    for j in range(sent):
        h = mix(j, salt + 1)
        values[j * stride + h % stride] = (1 if h >> 32 & 1 else -1) * (1 + (h >> 33) % 8 / 8)
    return values


def as_bfloat16(values):
    """Bits of floats that bfloat16 holds exactly."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    assert not (bits & 0xFFFF).any()
    return (bits >> 16).astype(np.uint16)


@dataclass
class Case:
    """One message: how to make its inputs, and the rest of the arguments of encode or raw."""

    name: str
    gradient: object  # function without arguments -> array; for raw: the array to send
    residual: object = None  # function, or None for zeros
    threshold: float | None = 1.0  # None: raw
    options: dict = field(default_factory=dict)  # dtype, cap, sequence, bucket, sender, weight

    def inputs(self):
        """(gradient, residual): 1-D arrays, the residual float32."""
        gradient = self.gradient()
        if self.residual is None:
            return gradient, np.zeros(len(gradient), np.float32)
        return gradient, self.residual().astype(np.float32)

    def from_oracle(self):
        """(message, new residual); the residual is None for raw and announcements."""
        gradient, residual = self.inputs()
        if self.threshold is None:
            return oracle.raw(gradient, **self.options), None
        return oracle.encode(gradient, residual, self.threshold, **self.options)

    @property
    def path(self):
        return HERE / f"{self.name}.bin"


def f32(function, *args):
    return lambda: function(*args).astype(np.float32)


def at(n, places):
    """n zeros but for {index: value}."""

    def make():
        values = np.zeros(n, np.float32)
        for i, value in places.items():
            values[i] = value
        return values

    return make


def corners():
    """Around the threshold 1: exactly +-1, the floats next to it, zeros, denormals, the largest."""
    one, tiny, top = np.float32(1), np.float32(1e-45), np.finfo(np.float32).max
    below, above = np.nextafter(one, np.float32(0)), np.nextafter(one, np.float32(2))
    some = np.array([one, below, above, 0, tiny, 1e-38, top, 3, 0.1, 2.5], np.float32)
    return np.concatenate([some, -some])


INF, NAN = float("inf"), float("nan")
LIMITS = {"sequence": 2**64 - 1, "bucket": 2**32 - 1, "sender": 2**32 - 1}
CASES = [
    Case("nothing_sent", f32(fractions, 500, 2), options={"sequence": 1, "bucket": 2, "sender": 3}),
    Case("one_element", at(1, {0: -5.0})),
    Case("words_1", at(1000, {999: 1.0})),
    Case("words_4_equal_to_packed", at(16384, {5: 1, 1000: -1, 2047: -1, 16383: 1})),
    Case("words_1_equal_to_dense", at(16, {3: 1.0})),
    Case("packed_equal_to_dense", f32(fractions, 126, 30), threshold=0.7),
    Case("header_limits", at(1000, {0: 1.0, 500: -2.0}), options=LIMITS),
    Case("packed_few", f32(spikes, 10, 10000, 3)),
    Case("packed_short_gaps", f32(fractions, 3000, 4), threshold=0.8),
    Case("packed_1023", f32(spikes, 1023, 20, 5)),
    Case("packed_1024", f32(spikes, 1024, 20, 6)),
    Case("packed_1025", f32(spikes, 1025, 20, 7)),
    Case("packed_uneven", lambda: np.concatenate(
        [spikes(1500, 9, 8), spikes(3, 4000, 9), spikes(1400, 11, 10)]).astype(np.float32)),
    Case("packed_residual", f32(fractions, 4000, 11), lambda: fractions(4000, 12), 1.7),
    Case("dense_fill", f32(fractions, 1001, 13), threshold=0.4),
    Case("dense_all", f32(fractions, 64, 14), threshold=2.0**-16),
    Case("corners", corners),
    Case("corners_residual", corners, lambda: corners()[::-1] / 4, 0.1),
    Case("cap_first", f32(fractions, 2000, 15), threshold=0.5, options={"cap": 100}),
    Case("cap_wraps", f32(fractions, 2000, 16), lambda: fractions(2000, 17), 0.3,
         options={"cap": 900, "sequence": 5}),
    Case("cap_overflow", f32(fractions, 2000, 18), threshold=0.9,
         options={"cap": 77, "sequence": 2**63 + 12345}),
    Case("float16", lambda: fractions(2000, 19, 11).astype(np.float16), lambda: fractions(2000, 20),
         1.2, options={"dtype": "float16"}),
    Case("bfloat16", lambda: as_bfloat16(fractions(2000, 21, 8)), lambda: fractions(2000, 22),
         1.2, options={"dtype": "bfloat16"}),
    Case("float64", lambda: fractions(2000, 23, 50), lambda: fractions(2000, 24), 1.2,
         options={"dtype": "float64"}),
    Case("nan", at(3000, {1234: NAN, 2000: INF}), options={"sequence": 9, "sender": 2}),
    Case("overflow", at(10, {7: 3e38}), lambda: at(10, {7: 3e38})()),
    Case("overflow_float64", lambda: np.array([0.5, -1e39]), options={"dtype": "float64"}),
    Case("raw_bytes", lambda: np.array([mix(i, 25) % 256 for i in range(77)], np.uint8),
         threshold=None, options={"weight": 12, "sequence": 3, "bucket": 1, "sender": 4}),
    Case("raw_float32", f32(fractions, 33, 26), threshold=None, options={"weight": 2**63}),
    Case("raw_float64", lambda: fractions(33, 27, 50), threshold=None, options={"sender": 1}),
    Case("raw_nan", lambda: np.array([1.0, 2.0, NAN, INF]), threshold=None),
    Case("raw_empty", lambda: np.zeros(0, np.uint8), threshold=None, options={"weight": 0}),
]  # fmt: skip


def residual_digest(residual):
    """What residuals.txt holds; "-" where there is none."""
    return "-" if residual is None else hashlib.sha256(residual.tobytes()).hexdigest()


def stored_digests():
    lines = (HERE / "residuals.txt").read_text().splitlines()
    return dict(line.split() for line in lines)


def main():
    digests = []
    for case in CASES:
        message, residual = case.from_oracle()
        case.path.write_bytes(message)
        digests.append(f"{case.name} {residual_digest(residual)}")
        print(f"{case.name:24} kind {message[5]} flags {message[6]} {len(message):6} bytes")
    (HERE / "residuals.txt").write_text("\n".join(digests) + "\n")


if __name__ == "__main__":
    main()
