"""Packing beside a += b, beside the steps of it in torch, and beside torch.topk: 12 bytes an element are the floor."""

from __future__ import annotations

import numpy as np
import torch
from tqdm import tqdm

from gtcbmuf.errors import GtcbmufError

from . import timing
from .gradients import reached
from .library import Library, address

THRESHOLD = 0.5
SLOW = 3  # rounds of topk


class Bucket:
    """Gradient and residual of which the given share comes to the threshold, and preallocated places for torch."""

    def __init__(self, elements: int, density: float):
        rng = np.random.default_rng(0)
        sent = rng.random(elements, np.float32) < density
        sign = (2 * rng.integers(0, 2, elements, np.int8) - 1).astype(np.float32)
        self.gradient = sign * np.where(sent, np.float32(0.6), np.float32(0.3) * rng.random(elements, np.float32))
        self.initial = sign * np.float32(0.1)
        self.residual = self.initial.copy()
        self.words = reached(self.gradient, self.initial, THRESHOLD)
        g, r = torch.from_numpy(self.gradient), torch.from_numpy(self.residual)
        sums, sizes, mask = torch.empty_like(g), torch.empty_like(g), torch.empty(elements, dtype=torch.bool)
        k = len(self.words)
        found, best = torch.empty((k, 1), dtype=torch.int64), (torch.empty(k), torch.empty(k, dtype=torch.int64))

        def steps():
            torch.add(r, g, out=sums)
            torch.abs(sums, out=sizes)
            torch.ge(sizes, THRESHOLD, out=mask)
            torch.nonzero(mask, out=found)

        self.steps, self.found, self.best = steps, found, best
        self.topk = lambda: torch.topk(sizes, k, sorted=False, out=best)

    def reset(self):
        np.copyto(self.residual, self.initial)


def measure(library: Library, options) -> list[dict]:
    """A record for each density and number of threads."""
    records = []
    for density in tqdm(options.packing_densities, desc="packing", leave=False):
        bucket = Bucket(options.elements, density)
        for threads in options.threads:
            records.append(_compare(library, bucket, threads, options.rounds))
    return records


def _compare(library: Library, bucket: Bucket, threads: int, rounds: int) -> dict:
    torch.set_num_threads(threads)
    n, encoder = len(bucket.gradient), library.encoder(len(bucket.gradient))
    residual, gradient = address(bucket.residual), address(bucket.gradient)
    encode = lambda: encoder.run(bucket.gradient, bucket.residual, bucket.residual, THRESHOLD, threads)
    _check(library, bucket, encode)
    actions = {"add": lambda: library.add(residual, gradient, n, threads), "encode": encode, "torch": bucket.steps,
               "topk": bucket.topk}  # fmt: skip
    samples = timing.interleaved(actions, rounds, before=bucket.reset, only_in={"topk": SLOW})
    return {"elements": n, "density": len(bucket.words) / n, "threads": threads, "times": timing.medians(samples),
            "of_add": timing.ratio(samples, "add", "encode"), "torch": timing.ratio(samples, "torch", "encode"),
            "topk": timing.ratio(samples, "topk", "encode")}  # fmt: skip


def _check(library: Library, bucket: Bucket, encode) -> None:
    """The message, torch's steps and topk mean the same elements, those of the definition."""
    bucket.reset()
    message = encode().copy()
    library.check(message)
    expected, dense = np.zeros((2, len(bucket.gradient)), np.float32)
    expected[bucket.words >> 1] = np.where(bucket.words & 1, np.float32(-THRESHOLD), np.float32(THRESHOLD))
    library.adder([message], dense)[0]()
    rest = bucket.initial + bucket.gradient - expected
    bucket.reset()
    bucket.steps()
    bucket.topk()
    indices = bucket.words >> 1
    same = [np.array_equal(dense, expected), np.array_equal(bucket.found.numpy()[:, 0], indices),
            np.array_equal(np.sort(bucket.best[1].numpy()), indices)]  # fmt: skip
    bucket.reset()
    encode()
    if not all(same) or not np.array_equal(bucket.residual, rest):
        raise GtcbmufError(f"packing: library, torch, topk and residual do not agree: {same}")
