"""scripts/bench exchange: allgathers of the library beside a bare ring and MPI's own, on this machine and over links."""

from __future__ import annotations

import statistics

from . import files, places, tables

PART = "exchange"
WAYS = {"whole": "the library", "ring": "bare ring", "mpi": "MPI_Iallgather", "buckets": "in buckets"}


def options(add) -> None:
    places.options(add)
    add("--bodies", type=places.numbers, default="4e3,4e4,3e5,2e6", help="bytes of each rank (4e3,4e4,3e5,2e6)")
    add("--buckets", type=int, default=64, help="in which the same bytes go as well (64)")
    add("--rounds", type=int, default=15, help="of which the medians are (15)")
    files.options(add)


def measure(o) -> dict:
    job = {"bodies": o.bodies, "buckets": o.buckets, "rounds": o.rounds}
    return {"buckets": o.buckets, "rounds": o.rounds, "runs": places.run(o, "exchange.py", job)}


def table(content: dict) -> str:
    """Milliseconds, medians over rounds of the slowest rank; factors are medians of a round's factor."""
    lines = []
    for run in content["runs"]:
        for record in run["records"]:
            seconds = record["seconds"]
            ratio = lambda a, b, seconds=seconds: statistics.median(x / y for x, y in zip(seconds[a], seconds[b]))
            times = [f"{1e3 * statistics.median(seconds[way]):.2f}" for way in WAYS]
            lines.append([run["link"], str(run["ranks"]), f"{record['body'] / 1e3:g}", *times,
                          f"{ratio('whole', 'ring'):.2f}", f"{ratio('mpi', 'ring'):.2f}",
                          f"{ratio('buckets', 'whole'):.1f}"])  # fmt: skip
    columns = ["link", "ranks", "kB a rank", *(f"{name} [ms]" for name in WAYS.values()), "library / ring", "MPI / ring",
               "buckets / whole"]  # fmt: skip
    return tables.rows(columns, lines)


def run(o) -> None:
    """The command."""
    files.command(o, PART, measure, table)
