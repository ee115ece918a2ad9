"""Where the parts that compare exchanges run: on this machine, and on 4 hosts with links between them."""

from __future__ import annotations

import json

from links.hosts import Hosts

from . import launch

HERE = "this machine"


def numbers(text: str) -> list[int]:
    return [int(float(x)) for x in text.split(",")]


def options(add) -> None:
    add("--ranks", type=numbers, default="2,4", help="on this machine (2,4)")
    add("--rates", default="", help="of links between 4 hosts, as tc writes them: 1gbit,100mbit; needs root, ip and tc")
    add("--per-host", type=numbers, default="1,2", help="ranks on each of these hosts (1,2)")


def run(o, program: str, job: dict) -> list[dict]:
    """What rank 0 of the program prints, everywhere; with `link` and `per_host`."""
    runs = [{"link": HERE, "per_host": n, **launch.run(n, program, job)} for n in o.ranks]
    for rate in o.rates.split(",") if o.rates else []:
        with Hosts(4, rate) as hosts:
            for per_host in o.per_host:
                found = json.loads(hosts.mpirun(per_host, launch.command(program, job)).splitlines()[-1])
                runs.append({"link": rate, "per_host": per_host, **found})
    return runs
