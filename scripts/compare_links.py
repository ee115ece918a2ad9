"""Real MPI runs over shaped links, beside the plan.

For each rate and number of ranks on each of 4 hosts: what a plan needs is measured by `gtcbmuf bench` on these very
links; then steps of each strategy, computation being a wait that takes no core. Every run checks its sums before it
is timed. A bare MPI_Allreduce stands beside: as this MPI chooses it, and as a ring.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from links.hosts import Hosts, LinksError, check_machine

from gtcbmuf.errors import SettingsError
from gtcbmuf.plan import inputs, model, saved
from gtcbmuf.plan.network import Link, Network, Rates

FORMAT, VERSION = "gtcbmuf shaped links", 2
RANK = Path(__file__).parent / "links" / "rank.py"
RING = {
    "coll_tuned_use_dynamic_rules": "1",
    "coll_tuned_allreduce_algorithm": "4",
    "btl_tcp_flags": "1",
}
METHODS = (*model.METHODS, "MPI_Allreduce", "MPI_Allreduce, ring")


def parse(argv=None):
    parser = argparse.ArgumentParser(prog="scripts/compare_links", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("--hosts", type=int, default=4)
    add(
        "--rates",
        default="1gbit,100mbit",
        help="of the links, as tc writes them (1gbit,100mbit)",
    )
    add("--per-host", default="1,2", help="ranks on each host (1,2)")
    add(
        "--elements",
        default="25e6,2.5e6",
        help="of the model, for each rate (25e6,2.5e6)",
    )
    add(
        "--density",
        type=float,
        default=0.005,
        help="share of the elements that GTC sends (0.005)",
    )
    add("--step-ms", type=float, default=200, help="computation of a step (200)")
    add("--period", type=int, default=5, help="steps in a block of BMUF and hybrid (5)")
    add("--blocks", type=int, default=5, help="of which a median is taken (5)")
    add("--save", type=Path, help="write the results here")
    add("--force", action="store_true", help="replace that file if it exists")
    add(
        "--table",
        type=Path,
        help="print the tables of a saved file, and measure nothing",
    )
    options = parser.parse_args(argv)
    options.rates = options.rates.split(",")
    options.per_host = [int(n) for n in options.per_host.split(",")]
    options.elements = [int(float(n)) for n in options.elements.split(",")]
    if len(options.elements) != len(options.rates):
        parser.error("--elements: give one number for each of --rates")
    return options


def measure_inputs(hosts: Hosts, per_host: int, density: float) -> inputs.Inputs:
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/inputs.json"
        hosts.mpirun(per_host, [sys.executable, "-P", "-m", "gtcbmuf.cli", "bench", "--density", str(density),
                                "--save", file])  # fmt: skip
        return inputs.load(file)


def job(record: dict) -> model.Job:
    """Of a run: what a plan is made of. No overlap: gradients are ready at the end of the wait."""
    return model.Job(record["elements"], record["step_seconds"], record["ranks"], record["per_host"],
                     record["density"], overlap=0.0)  # fmt: skip


def measured_network(content: dict, record: dict) -> Network:
    """What was measured on the links of a run."""
    found = next(m for m in content["inputs"] if (m["rate"], m["per_host"]) == (record["rate"], record["per_host"]))
    intra = found["intra"] and Link(**found["intra"])
    measured = inputs.Inputs(Link(**found["inter"]), intra, Rates(**found["rates"]))
    return inputs.network(measured, single_host=False)[0]


def predict(network: Network, record: dict) -> model.Prediction:
    plan, period = job(record), record["period"]
    make = {"dense": lambda: model.dense(plan, network), "GTC": lambda: model.gtc(plan, network),
            "BMUF": lambda: model.bmuf(plan, network, period),
            "hybrid": lambda: model.hybrid(plan, network, record["group"], period)}  # fmt: skip
    return make[record["method"]]()


def run(hosts: Hosts, per_host: int, method: str, elements: int, options) -> dict:
    ranks = per_host * options.hosts
    record = {"method": method.split(",")[0], "elements": elements, "density": options.density,
              "step_seconds": options.step_ms / 1e3, "period": options.period, "blocks": options.blocks,
              "ranks": ranks, "per_host": per_host, "group": per_host if per_host > 1 else ranks // 2}  # fmt: skip
    out = hosts.mpirun(per_host, [sys.executable, str(RANK), json.dumps(record)],
                        mca=RING if "ring" in method else None)  # fmt: skip
    return {**json.loads(out.splitlines()[-1]), "method": method, "rate": hosts.rate}


def measure(options) -> dict:
    runs, measured = [], []
    for rate, elements in zip(options.rates, options.elements):
        for per_host in options.per_host:
            with Hosts(options.hosts, rate) as hosts:
                found = measure_inputs(hosts, per_host, options.density)
                measured.append({"rate": rate, "per_host": per_host, "inter": vars(found.inter),
                                 "intra": found.intra and vars(found.intra), "rates": vars(found.rates)})  # fmt: skip
                for method in METHODS:
                    record = run(hosts, per_host, method, elements, options)
                    if method in model.METHODS:
                        plan = predict(inputs.network(found, single_host=False)[0], record)
                        record |= {
                            "predicted": plan.step,
                            "predicted_card_bytes": plan.host_bytes,
                        }
                    runs.append(record)
                    print(line(record), flush=True)
    return {"cores": os.cpu_count(), "hosts": options.hosts, "inputs": measured, "runs": runs}


def load(path: Path) -> dict:
    """SettingsError for what is no file of this version."""
    return saved.read(path, FORMAT, VERSION, "runs over shaped links", "Measure again.")


def line(record: dict) -> str:
    """A row of the table."""
    spread = (max(record["steps"]) - min(record["steps"])) / 2
    cells = [record["rate"], str(record["ranks"]), record["method"], f"{1e3 * record['step']:.0f} ± {1e3 * spread:.0f}"]
    for name in "predicted", "simulated":
        there = name in record
        cells.append(f"{1e3 * record[name]:.0f}" if there else "")
        cells.append(f"{100 * (record[name] / record['step'] - 1):+.1f} %" if there else "")
    cells.append(f"{record['card_bytes'] / 1e6:.2f}")
    cells.append(f"{record['predicted_card_bytes'] / 1e6:.2f}" if "predicted" in record else "")
    return "| " + " | ".join(cells) + " |"


def table(content: dict) -> str:
    head = [
        "link",
        "ranks",
        "method",
        "step [ms]",
        "predicted",
        "error",
        "simulated",
        "error",
        "MB a card and step",
        "predicted",
    ]
    rows = [
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
        *map(line, content["runs"]),
    ]
    first = content["runs"][0]
    facts = (f"{content['hosts']} hosts on one machine of {content['cores']} cores; computation is a wait of "
             f"{1e3 * first['step_seconds']:.0f} ms; density {first['density']:g}; blocks of {first['period']} steps.")  # fmt: skip
    return "\n".join([facts, "", *rows])


def main():
    options = parse()
    try:
        if options.table:
            print(table(load(options.table)))
            return
        if options.save:
            saved.check_free(options.save, options.force)
        check_machine()
        content = measure(options)
        print("\n" + table(content))
        if options.save:
            saved.write(options.save, FORMAT, VERSION, content)
    except (SettingsError, LinksError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
