"""scripts/bench observe: what metrics, timeline, comparisons of replicas and call sites cost a step."""

from __future__ import annotations

import statistics

from . import build, files, launch
from .tables import rows

PART = "observe"


def options(add) -> None:
    """The command line; add: add_argument of its parser."""
    add("--ranks", type=int, default=2, help="on this machine (2)")
    add("--layers", type=int, default=8, help="of the model, LSTMs; a layer is one or two buckets (8)")
    add("--elements", type=lambda text: int(float(text)), default=1_000_000, help="of a layer (1e6)")
    add("--batch", type=int, default=8, help="samples in a batch (8)")
    add("--density", type=float, default=0.01, help="share of the elements that GTC sends at first (0.01)")
    add("--rounds", type=int, default=100, help="of steps, each way in turn (100)")
    files.options(add)


def measure(o) -> dict:
    job = {name: getattr(o, name) for name in ("layers", "elements", "batch", "density", "rounds")}
    return {"machine": build.machine("best"), "run": launch.run(o.ranks, "observe.py", job)}


def text(content: dict) -> str:
    """Differences are medians over rounds: of a step observed, less the step of the same round that was not."""
    run, machine = content["run"], content["machine"]
    base, lines = run["times"]["none"], []
    for way, times in run["times"].items():
        more = [1e6 * (a - b) for a, b in zip(times, base)]
        low, _, high = statistics.quantiles(more, n=4) if any(more) else (0, 0, 0)
        lines.append([way, f"{1e3 * statistics.median(times):.2f}", f"{statistics.median(more):.0f}",
                      f"{low:.0f} to {high:.0f}", f"{1e6 * statistics.median(run['writing'][way]):.0f}", f"{100 * statistics.median(more) / (1e6 * statistics.median(base)):.2f} %"])  # fmt: skip
    head = (f"{run['ranks']} ranks on one host, {machine['cores']} cores, load {machine['load']:g} at the start; "
            f"{run['layers']} LSTM layers, {run['parameters']:,} parameters; {run['rounds']} rounds.")  # fmt: skip
    columns = ["observed", "step [ms]", "more [µs]", "its quartiles", "writing it [µs]", "more, of a step"]
    sites = 1e6 * statistics.median(run["call_sites"])
    return head + "\n\n" + rows(columns, lines) + f"\n\nCall sites of all operations of a step: {sites:.0f} µs."


def run(o) -> None:
    """The command."""
    files.command(o, PART, measure, text)
