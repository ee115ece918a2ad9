"""The same step by what users have at hand: torch.topk, plain torch, CuPy element by element. Each if it is there."""

from __future__ import annotations

import numpy as np


def rows(gradient: np.ndarray, thresholds, densities, keep_busy) -> list[dict]:
    """name, density, and ms or why it is missing. keep_busy: called before what is timed, as for the codec."""
    found = []
    for name, load in (("torch", _torch), ("CuPy", _cupy)):
        try:
            steps = load(gradient, keep_busy)
        except Exception as error:  # noqa: BLE001 - not installed, or built without CUDA: the table says so
            found.append({"name": name, "missing": f"{type(error).__name__}: {error}"})
            continue
        for threshold, density in zip(thresholds, densities):
            found += [{"name": label, "density": density, "ms": time(step, threshold, density)} for label, step, time in steps]
    return found


def _median(keep_busy, begin, end, wait, elapsed, run, rounds=15, warm=3):
    times = []
    for i in range(warm + rounds):
        keep_busy()
        begin()
        run()
        end()
        wait()
        if i >= warm:
            times.append(elapsed())
    return sorted(times)[len(times) // 2]


def _torch(gradient, keep_busy):
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("this torch sees no GPU")
    g = torch.from_numpy(gradient).cuda()
    residual, out = torch.zeros_like(g), torch.empty_like(g)
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def threshold_and_nonzero(threshold, _):
        torch.add(residual, g, out=out)
        sent = (out.abs() >= threshold).nonzero().view(-1)
        out[sent] -= torch.sign(out[sent]) * threshold

    def topk(_, density):
        torch.add(residual, g, out=out)
        torch.topk(out.abs(), max(1, int(density * out.numel())), sorted=False)

    def time(step, threshold, density):
        return _median(keep_busy, start.record, stop.record, stop.synchronize, lambda: start.elapsed_time(stop),
                       lambda: step(threshold, density))  # fmt: skip

    return [("torch: threshold and nonzero", threshold_and_nonzero, time), ("torch.topk", topk, time)]


def _cupy(gradient, keep_busy):
    import cupy

    g = cupy.asarray(gradient)
    residual, out = cupy.zeros_like(g), cupy.empty_like(g)
    start, stop = cupy.cuda.Event(), cupy.cuda.Event()

    def elementwise(threshold, _):
        cupy.add(residual, g, out=out)
        sent = cupy.flatnonzero(cupy.abs(out) >= threshold)
        out[sent] -= cupy.sign(out[sent]) * cupy.float32(threshold)

    def time(step, threshold, density):
        return _median(keep_busy, start.record, stop.record, stop.synchronize, lambda: cupy.cuda.get_elapsed_time(start, stop),
                       lambda: step(threshold, density))  # fmt: skip

    return [("CuPy: element by element", elementwise, time)]
