"""scripts/bench blocks: the end of a hybrid's block, by leaders and by shards, in bfloat16, overlapped; over links."""

from __future__ import annotations

import json
import statistics

from links.hosts import Hosts

from . import files, launch, tables

PART = "blocks"


def options(add) -> None:
    numbers = lambda text: [int(float(x)) for x in text.split(",")]
    add("--rates", default="1gbit,100mbit", help="of links between 4 hosts, as tc writes them (1gbit,100mbit); needs root")
    add("--per-host", type=numbers, default="1,2", help="ranks on each host (1,2); groups are of two ranks")
    add("--elements", type=numbers, default="3.4e6,25e6", help="of the models (3.4e6,25e6)")
    add("--rounds", type=int, default=3, help="of which the medians are (3)")
    add("--block-ms", type=float, default=4000, help="computation of a block, behind which a mean can travel (4000)")
    files.options(add)


def measure(o) -> dict:
    runs = []
    for rate in o.rates.split(","):
        for per_host in o.per_host:
            job = {"elements": o.elements, "group": 2, "rounds": o.rounds, "block_seconds": o.block_ms / 1e3}
            with Hosts(4, rate) as hosts:
                found = json.loads(hosts.mpirun(per_host, launch.command("blocks.py", job), timeout=1800).splitlines()[-1])
            runs.append({"link": rate, "per_host": per_host, **found})
    return {"rounds": o.rounds, "block_seconds": o.block_ms / 1e3, "runs": runs}


def table(content: dict) -> str:
    """Medians over rounds, ± half their range; the factor is the median over rounds of leader over this form."""
    lines = []
    for run in content["runs"]:
        for record in run["records"]:
            of_leader = [r["seconds"] for r in record["forms"]["leader"]]
            for form, rounds in record["forms"].items():
                seconds = [r["seconds"] for r in rounds]
                spread = (max(seconds) - min(seconds)) / 2
                factor = statistics.median(x / y for x, y in zip(of_leader, seconds))
                sent = statistics.median(r["card_bytes"] for r in rounds)
                lines.append([run["link"], str(run["ranks"]), f"{record['elements'] / 1e6:g}", form,
                              f"{1e3 * statistics.median(seconds):.0f} ± {1e3 * spread:.0f}", f"{factor:.1f}",
                              f"{sent / 1e6:.1f}"])  # fmt: skip
    columns = ["link", "ranks", "million parameters", "form", "block's end [ms]", "leader / this", "MB a card and block"]
    return tables.rows(columns, lines, 4)


def run(o) -> None:
    """The command."""
    files.command(o, PART, measure, table)
