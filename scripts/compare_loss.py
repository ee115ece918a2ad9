"""What PowerSGD and GTC lose against the mean of all gradients, at the same steps, rates and batches.

Real ranks on this machine train the speech task (one sequence in a rank's step) by each method. At the end of a training all
ranks must have the same parameters; before it, DDP and this library's own mean must have come to the same losses.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import socket
import statistics
import sys
from pathlib import Path

from benchmarks import launch

from gtcbmuf.errors import GtcbmufError, SettingsError
from gtcbmuf.policy.gtc import BUCKET_BYTES
from gtcbmuf.simulate import results

TRAIN = Path(__file__).parent / "peers" / "train.py"
METHODS = {"DDP": (), "PowerSGD": (("rank", int),), "GTC": (("threshold", float),)}  # each with its settings
REFERENCE = "PowerSGD 2"
MORE = f"more than {REFERENCE}"
HEAD = ("units", "steps", "method", "density", "kB", "last half", MORE, "last tenth", MORE, "dev [%]", "test [%]")


def method(words: str) -> dict:
    """"GTC 0.02" -> {"method": "GTC", "threshold": 0.02}"""
    asked, *values = words.split() or [""]
    if asked not in METHODS or len(values) != len(METHODS[asked]):
        known = "; ".join(" ".join([m, *(setting for setting, _ in own)]) for m, own in METHODS.items())
        raise SettingsError(f"--methods: there is no {words!r}; give some of {known}")
    return {"method": asked, **{setting: read(v) for (setting, read), v in zip(METHODS[asked], values)}}


def name(record: dict) -> str:
    return " ".join([record["method"], *(f"{record[setting]:g}" for setting, _ in METHODS[record["method"]])])


def parse(argv=None):
    parser = argparse.ArgumentParser(prog="scripts/compare_loss", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("--methods", default="DDP;PowerSGD 2;GTC 0.01;GTC 0.02;GTC 0.04", help="DDP, PowerSGD with its rank, GTC with its τ; ; between them")
    add("--seeds", default="0,1,2", help="of the model and the order (0,1,2)")
    add("--ranks", type=int, default=4)
    add("--hidden", type=int, default=96, help="units in each of two layers (96)")
    add("--steps", type=int, default=4000, help="of each rank (4000)")
    add("--scale", type=float, default=8.0, help="peak rate of all methods, in units of 0.5, that of one worker (8)")
    add("--save", type=Path, help="add the runs to this file; those that it has already are left out")
    add("--table", type=Path, help="print the table of a saved file, and train nothing")
    return parser.parse_args(argv)


def jobs(options) -> list[dict]:
    """All knobs of each run; those of the schedule that are no option are simulate_speech's."""
    common = {"data": "extract.npz", "ranks": options.ranks, "hidden": options.hidden, "steps": options.steps,
              "learning_rate": 0.5, "scale": options.scale, "clip": 1.0, "warm_up": 0.05, "final": 0.02,
              "bucket_bytes": BUCKET_BYTES, "torch": importlib.metadata.version("torch")}  # fmt: skip
    methods = [method(words) for words in options.methods.split(";")]
    return [{**own, "seed": int(seed), **common} for own, seed in itertools.product(methods, options.seeds.split(","))]


def run(job: dict) -> dict:
    with socket.create_server(("127.0.0.1", 0)) as free:
        store = f"127.0.0.1:{free.getsockname()[1]}"
    return {**job, **launch.run(job["ranks"], str(TRAIN), {**job, "card": "lo", "store": store})}


def last(record: dict, share: float) -> float:
    """The mean training loss of this share of the steps."""
    losses = record["losses"]
    return statistics.fmean(losses[-round(share * len(losses)) :])


def more(runs: list[dict], reference: dict[int, dict], share: float) -> str:
    """By how much the loss is higher than the reference's with the same seed: mean, least and most over the seeds."""
    found = [last(r, share) - last(reference[r["seed"]], share) for r in runs if r["seed"] in reference]
    if not found or name(runs[0]) == REFERENCE:
        return ""
    return f"{statistics.fmean(found):+.3f} ({min(found):+.3f} to {max(found):+.3f})"


def row(runs: list[dict], reference: dict[int, dict]) -> str:
    """Of runs that differ in nothing but the seed; reference: runs by seed."""
    each = lambda form, values: " ".join(form.format(v) for v in values)
    mean = lambda key: statistics.fmean(r[key] for r in runs)
    cells = [
        str(runs[0]["hidden"]),
        str(runs[0]["steps"]),
        name(runs[0]),
        f"{100 * mean('density'):.2f} %" if "density" in runs[0] else "",
        f"{mean('bytes_sent_per_worker_and_step') / 1e3:.1f}",
        each("{:.3f}", (last(r, 0.5) for r in runs)),
        more(runs, reference, 0.5),
        each("{:.3f}", (last(r, 0.1) for r in runs)),
        more(runs, reference, 0.1),
        each("{:.1f}", (100 * r["dev"] for r in runs)),
        each("{:.1f}", (100 * r["test"] for r in runs)),
    ]
    return "| " + " | ".join(cells) + " |"


def table(records: list[dict]) -> str:
    """A row for each model, length of training and method; in a cell a value for each seed, in order."""
    task = lambda r: (r["hidden"], r["steps"])
    order = lambda r: (*task(r), list(METHODS).index(r["method"]), *(r[setting] for setting, _ in METHODS[r["method"]]))
    lines = ["| " + " | ".join(HEAD) + " |", "|---:|---:|---" + "|---:" * (len(HEAD) - 3) + "|"]
    for _, found in itertools.groupby(sorted(records, key=lambda r: (*order(r), r["seed"])), key=order):
        runs = list(found)
        same = (r for r in records if task(r) == task(runs[0]) and name(r) == REFERENCE)
        lines.append(row(runs, {r["seed"]: r for r in same}))
    return "\n".join(lines)


def main():
    options = parse()
    try:
        if options.table:
            print(table(results.read(options.table)))
            return
        there = results.read(options.save) if options.save else []
        records = []
        for job in jobs(options):
            if any(job == {knob: r.get(knob) for knob in job} for r in there):
                print(f"{options.save} has {name(job)}, seed {job['seed']} already", flush=True)
                continue
            records.append(run(job))
            print(f"{name(job)}, seed {job['seed']}: {records[-1]['seconds']:.0f} s", flush=True)
            if options.save:
                results.append(options.save, records[-1])
        print(table(there + records))
    except GtcbmufError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
