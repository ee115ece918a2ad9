"""scripts/bench memory: what the torch wrappers keep for each parameter, and what they allocate in a step.

Every large block (64 KiB and more) of the C heap is counted as it comes and goes, by a preloaded library (allocations.c):
the library's own buffers, NumPy's arrays, torch's tensors, MPI's. torch's profiler, which sees what its CPU allocator
gives, and the peak of the resident set of a fresh process stand beside.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

from gtcbmuf.errors import GtcbmufError

from . import build, files, launch
from .tables import rows

PART = "memory"
METHODS = ("dense", "GTC", "BMUF", "hybrid")
DTYPES = ("float32", "bfloat16")


def options(add) -> None:
    """The command line; add: add_argument of its parser."""
    add("--ranks", type=int, default=4, help="even: groups of two for the hybrid (4)")
    add("--layers", type=int, default=12, help="parameters of the model (12)")
    add("--elements", type=lambda text: int(float(text)), default=1_000_000, help="of each (1e6)")
    add("--density", type=float, default=0.01, help="share of the elements that GTC sends (0.01)")
    files.options(add)


def counter(folder: str) -> Path:
    """allocations.c as a library to be preloaded."""
    target = Path(folder) / "allocations.so"
    return build.compile_to(target, "scripts/benchmarks/allocations.c", flags=("-shared", "-ldl"))


def measure(o) -> dict:
    if o.ranks < 2 or o.ranks % 2:
        raise GtcbmufError(f"--ranks {o.ranks}: an even number, for groups of two")
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        preload = counter(folder)
        for dtype in DTYPES:
            job = {"layers": o.layers, "elements": o.elements, "density": o.density, "dtype": dtype}
            peaks = {}
            for method in ("plain", *METHODS):  # each in processes of its own
                found = launch.run(o.ranks, "memory.py", {**job, "methods": [method]}, preload)
                peaks[method] = max(rank["peak_rss"] for rank in found)
                if method != "plain":
                    worst = max((rank["ranks"][0] for rank in found), key=lambda r: r["live"])
                    runs.append({**worst, "dtype": dtype, "peak_rss": peaks[method] - peaks["plain"]})
    return {"machine": build.machine("any"), "ranks": o.ranks, "layers": o.layers, "elements": o.elements,
            "density": o.density, "runs": runs}  # fmt: skip


def allocations(found: list) -> str:
    """ "2 of 48.0 MB, 184 of 0.3 MB" """
    sizes = Counter(f"{size / 1e6:.1f} MB" for size, _ in found)
    return ", ".join(f"{count} of {size}" for size, count in sizes.items()) or "none"


def table(content: dict) -> str:
    n = content["layers"] * content["elements"]
    lines = []
    for run in content["runs"]:
        *steps, last = run["steps"]
        lines.append([run["method"], run["dtype"], f"{run['live'] / n:.2f}", f"{run['peak'] / n:.2f}",
                      f"{run['peak_rss'] / n:.1f}", allocations(sum(steps, [])), allocations(last)])  # fmt: skip
    head = (f"{content['ranks']} ranks, {content['layers']} parameters of {content['elements']:,} elements, density "
            f"{content['density']:g}.")  # fmt: skip
    columns = ["strategy", "model", "kept [B/param]", "at most", "by peak RSS", "allocations in a step",
               "in a block's last step"]  # fmt: skip
    return head + "\n\n" + rows(columns, lines, 2)


def run(o) -> None:
    """The command."""
    files.command(o, PART, measure, table)
