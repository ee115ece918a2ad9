"""scripts/bench allreduce: sums in one bucket and in several, beside MPI's own, on this machine and over links."""

from __future__ import annotations

import statistics

from . import files, places, tables

PART = "allreduce"
WAYS = {"one": "one bucket", "two": "2 buckets", "eight": "8 buckets", "mpi": "MPI_Allreduce", "nonblocking": "MPI_Iallreduce"}
UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def options(add) -> None:
    places.options(add)
    add("--arrays", type=places.numbers, default="4e5,2e6,2e7", help="bytes that each rank adds to the sum (4e5,2e6,2e7)")
    add("--rounds", type=int, default=7, help="of which the medians are (7)")
    files.options(add)


def measure(o) -> dict:
    return {"rounds": o.rounds, "runs": places.run(o, "allreduce.py", {"arrays": o.arrays, "rounds": o.rounds})}


def floor(run: dict, size: int) -> float | None:
    """Seconds: what a rank must send of an array of so many bytes, 2 (n-1)/n of it, at the rate of its link; with several ranks
    on a card, in a ring that visits host by host."""
    if run["link"] == places.HERE:
        return None
    rate = next(float(run["link"].removesuffix(unit)) * factor for unit, factor in UNITS.items() if run["link"].endswith(unit))
    return 2 * (run["ranks"] - 1) / run["ranks"] * size * 8 / rate


def table(content: dict) -> str:
    """Milliseconds, medians over rounds of the slowest rank; factors are medians of a round's factor."""
    lines = []
    for run in content["runs"]:
        for record in run["records"]:
            seconds, least = record["seconds"], floor(run, record["bytes"])
            median = {way: statistics.median(seconds[way]) for way in WAYS}
            ratio = lambda a, b, seconds=seconds: statistics.median(x / y for x, y in zip(seconds[a], seconds[b]))
            best = "mpi" if median["mpi"] < median["nonblocking"] else "nonblocking"
            lines.append([run["link"], str(run["ranks"]), f"{record['bytes'] / 1e6:g}", f"{1e3 * least:.1f}" if least else "",
                          *(f"{1e3 * median[way]:.1f}" for way in WAYS), f"{median['one'] / least:.2f}" if least else "",
                          f"{ratio('one', best):.2f}", f"{ratio('two', 'one'):.2f}", f"{ratio('eight', 'one'):.2f}"])  # fmt: skip
    columns = ["link", "ranks", "MB", "floor [ms]", *(f"{name} [ms]" for name in WAYS.values()), "one / floor", "one / MPI's faster",
               "2 / one", "8 / one"]  # fmt: skip
    return tables.rows(columns, lines)


def run(o) -> None:
    """The command."""
    files.command(o, PART, measure, table)
