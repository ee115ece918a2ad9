"""Every kernel once, on small buckets, with its result compared with the host's: what scripts/gpu_check runs under compute-sanitizer.

    compute-sanitizer --tool racecheck python scripts/gpu/every_kernel.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from gtcbmuf.backends import cuda, native

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gpu.bench import OnDevice, WrongResult

ELEMENTS, SEGMENTS, MESSAGES = 60_003, 80, 9
# threshold, cap: few and many sent elements, so that every body occurs
CASES = ((4.0, None), (2.0, None), (2.0, 700), (0.3, None))


def up(array: np.ndarray) -> OnDevice:
    found = OnDevice(len(array), array.dtype)
    found.upload(array)
    return found


def same(what: str, found: np.ndarray, expected: np.ndarray) -> None:
    if not np.array_equal(found, expected):
        raise WrongResult(f"{what}: another result than the host's")


def encode(codec, gradient: np.ndarray, cuts: list[int], threshold: float, cap: int | None) -> np.ndarray:
    zeros, rest = np.zeros_like(gradient), np.empty_like(gradient)
    parts = np.split(gradient, cuts)
    expected = native.encode(parts, zeros, rest, threshold, max_sent=cap)
    target = up(np.full_like(gradient, np.nan))
    found = codec.encode([up(part) for part in parts], up(zeros), target, threshold, max_sent=cap)
    same(f"encode at {threshold}, cap {cap}, {len(parts)} segments", found, expected)
    same("its residual", target.read(), rest)
    return found


def sums(codec, messages: list[np.ndarray]) -> None:
    expected = np.zeros(ELEMENTS, np.float32)
    native.decode_add(messages, expected)
    added, mean = up(np.zeros_like(expected)), up(np.full_like(expected, np.nan))
    codec.decode_add(messages, added)
    codec.decode_mean(messages, mean, len(messages))
    same("the sum of messages", added.read(), expected)
    same("their mean", mean.read(), expected / np.float32(len(messages)))


def block_update(codec, values: np.ndarray) -> None:
    arrays = [up(values) for _ in range(4)]
    codec.block_update(*arrays, momentum=0.5, lr=1.0, nesterov=True)
    delta = np.float32(0.5) * values + values
    same("the block update", arrays[2].read(), values + delta)


def main() -> None:
    gradient = np.random.default_rng(0).standard_normal(ELEMENTS).astype(np.float32)
    codec, messages = cuda.CudaCodec(0), []
    for threshold, cap in CASES:
        encode(codec, gradient, sorted({i * i * 9 for i in range(SEGMENTS)}), threshold, cap)
        messages.append(encode(codec, gradient, [], threshold, cap))
    sums(codec, (messages * MESSAGES)[:MESSAGES])
    block_update(codec, gradient)
    print(f"every kernel: {len(CASES)} thresholds, {MESSAGES} messages, as on the host")


if __name__ == "__main__":
    main()
