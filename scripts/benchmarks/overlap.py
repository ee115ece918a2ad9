"""scripts/bench overlap: how much of the exchange is hidden behind the backward pass."""

from __future__ import annotations

import contextlib
import json
import statistics

from links import hosts

from . import build, files, launch
from .tables import rows

PART = "overlap"
COMPUTE = ("wait", "linear", "lstm")
METHODS = ("dense", "GTC")
WIDTH = 72  # characters of the timeline


def options(add) -> None:
    """The command line; add: add_argument of its parser."""
    add("--compute", default="wait,linear,lstm", help="what a backward pass is made of (wait,linear,lstm)")
    add("--methods", default="dense,GTC", help="(dense,GTC)")
    add("--ranks", type=int, default=2, help="on this machine (2)")
    add("--links", metavar="RATE", help="between hosts joined by links of that rate (1gbit); needs root")
    add("--hosts", type=int, default=2, help="at the links, with a rank each (2)")
    add("--layers", type=int, default=8, help="of the model; a layer is a bucket (8)")
    add("--elements", type=lambda text: int(float(text)), default=2_000_000, help="of a layer (2e6)")
    add("--layer-ms", type=float, default=40, help="of a wait (40)")
    add("--batch", type=int, default=256, help="samples in a real layer's batch; an eighth of it for lstm (256)")
    add("--density", type=float, default=0.01, help="share of the elements that GTC sends (0.01)")
    add("--rounds", type=int, default=15, help="of which the medians are (15)")
    files.options(add)


def measure(o) -> dict:
    kinds = files.choose(o.compute, COMPUTE, "--compute")
    methods = files.choose(o.methods, METHODS, "--methods")
    runs = []
    with hosts.Hosts(o.hosts, o.links) if o.links else contextlib.nullcontext() as links:
        for compute in kinds:
            for method in methods:
                job = {"method": method, "compute": compute, "layers": o.layers, "elements": o.elements,
                       "density": o.density, "layer_seconds": o.layer_ms / 1e3, "rounds": o.rounds,
                       "batch": o.batch // 8 if compute == "lstm" else o.batch}  # fmt: skip
                if links:
                    out = links.mpirun(1, launch.command("overlap.py", job))
                    runs.append(json.loads(out.splitlines()[-1]))
                else:
                    runs.append(launch.run(o.ranks, "overlap.py", job))
    return {"machine": build.machine("best"), "links": o.links, "runs": runs}


# -- what it means ------------------------------------------------------------------------------------


def medians(run: dict) -> dict[str, float]:
    """Milliseconds of a step each way."""
    return {way: 1e3 * statistics.median(times) for way, times in run["times"].items()}


def hidden(ms: dict[str, float]) -> float:
    """The share of the exchange of all buckets but the last that costs the step nothing.

        1 - (overlap - last) / (serial - last)

    In `last` the last bucket is exchanged, which has no backward left: so serial - last is what the others take when
    nothing hides them, and overlap - last what is left of it. Encode, transfer and decode are all in it.
    """
    return 1 - (ms["overlap"] - ms["last"]) / (ms["serial"] - ms["last"])


def table(content: dict) -> str:
    lines = []
    for run in content["runs"]:
        ms = medians(run)
        lines.append([run["compute"], run["method"], *(f"{ms[way]:.1f}" for way in ms),
                      f"{ms['serial'] - ms['last']:.1f}", f"{ms['overlap'] - ms['last']:.1f}",
                      f"{100 * hidden(ms):.0f} %"])  # fmt: skip
    columns = ["backward", "strategy", "plain [ms]", "nothing exchanged", "last bucket", "overlapped", "after backward",
               "exchange", "of it exposed", "hidden"]  # fmt: skip
    first = content["runs"][0]
    where = f"hosts, links of {content['links']}" if content["links"] else "ranks on one host"
    machine = content["machine"]
    head = (f"{first['ranks']} {where}, {machine['cores']} cores, load {machine['load']:g} at the start; "
            f"{first['layers']} layers of {first['elements']:,} elements, waits of {1e3 * first['layer_seconds']:g} ms; "
            f"density {first['density']:g}; medians of {first['rounds']} rounds.")  # fmt: skip
    return head + "\n\n" + rows(columns, lines, 2)


def timeline(run: dict) -> str:
    """A line for each bucket: = from posted to exchanged, . until the step asks for it; | is the end of backward."""
    line, end = run["timeline"], run["timeline"]["end"]
    at = lambda ms: min(WIDTH - 1, int(WIDTH * ms / end))
    text = [f"{run['compute']}, {run['method']}, one step of {end:.0f} ms: posted, exchanged, waited for [ms]"]
    for number, bucket in enumerate(line["buckets"]):
        cells = [" "] * WIDTH
        cells[at(line["backward"])] = "|"
        for i in range(at(bucket["exchanged"]), at(bucket["waited"]) + 1):
            cells[i] = "."
        for i in range(at(bucket["posted"]), at(bucket["exchanged"]) + 1):
            cells[i] = "="
        times = "".join(f"{bucket[what]:7.1f}" for what in ("posted", "exchanged", "waited"))
        text.append(f"{number:3d} {times}  {''.join(cells)}".rstrip())
    return "\n".join(text)


def text(content: dict) -> str:
    return "\n\n".join([table(content), *(f"```\n{timeline(run)}\n```" for run in content["runs"])])


def run(o) -> None:
    """The command."""
    files.command(o, PART, measure, text)
