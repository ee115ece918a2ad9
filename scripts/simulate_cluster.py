"""The library's exchange in simulated clusters, beside the plan.

The C code of the exchange runs in every rank, linked with SimGrid's MPI; all bytes are moved, the links and the
computation are simulated. Gradients become ready at the end of a step (no overlap), as in the prediction. With --links
the clusters are those that scripts/compare_links has measured, and what comes out stands beside what was measured.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from glob import glob
from pathlib import Path

import compare_links
from cluster.platform import Cluster
from tqdm import tqdm

from gtcbmuf.errors import SettingsError
from gtcbmuf.plan import inputs, model, saved
from gtcbmuf.plan.exchanges import RING_BYTES, expected_body
from gtcbmuf.plan.network import Link, Network

FORMAT, VERSION = "gtcbmuf simulated cluster", 2
ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("scripts/cluster/*.c", "csrc/codec/*.c", "csrc/transport/*.c", "csrc/exchange/*.c")
# Ladkat et al., Interspeech 2019: speed-ups.
PUBLISHED = {("GTC", 32): 26, ("GTC", 64): 17, ("GTC", 128): 11, ("BMUF", 32): 36.6, ("BMUF", 64): 57, ("BMUF", 128): 80,
             ("hybrid", 32): 31, ("hybrid", 64): 42, ("hybrid", 128): 97}  # fmt: skip
# Links as they are given: no factors fitted to another network, no window of TCP, no time in MPI itself.
EXACT = ("smpi/host-speed:1Gf", "smpi/simulate-computation:no", "smpi/bw-factor:0:1", "smpi/lat-factor:0:1",
         "network/bandwidth-factor:1", "network/latency-factor:1", "network/TCP-gamma:0", "smpi/os:0:0:0",
         "smpi/or:0:0:0", "smpi/test:0", "smpi/wtime:0", "smpi/send-is-detached-thresh:0", "smpi/grow-injected-times:no")  # fmt: skip


def parse(argv=None):
    parser = argparse.ArgumentParser(prog="scripts/simulate_cluster", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    numbers = lambda text: [float(x) for x in text.split(",")]
    add("--workers", type=numbers, default="32,64,128", help="(32,64,128)")
    add("--per-host", type=int, default=8, help="workers on a host (8)")
    add("--link-gbit", type=numbers, default="10,25", help="of a host's card (10,25)")
    add("--link-us", type=float, default=50, help="latency between hosts (50)")
    add("--elements", type=float, default=8e6, help="of the model (8e6)")
    add("--step-ms", type=float, default=100, help="computation of a step (100)")
    add("--density", type=float, default=0.01, help="share of the elements that GTC sends (0.01)")
    add("--period", type=int, default=10, help="steps in a block of BMUF and hybrid (10)")
    add("--warm-up", type=int, default=1, help="blocks before the one that is counted (1)")
    add("--group", type=int, help="workers in a group of the hybrid (a host)")
    add("--methods", default=",".join(model.METHODS), help=f"of {', '.join(model.METHODS)}, GTC owners (all but the last)")
    add("--inputs", type=Path, help="a file of gtcbmuf bench --save: rates, and links within a host (assumed)")
    add("--links", type=Path, help="simulate what is in this file of scripts/compare_links --save, and nothing else")
    add("--save", type=Path, help="write the results here")
    add("--force", action="store_true", help="replace that file if it exists")
    add("--table", type=Path, help="print the table of a saved file, and simulate nothing")
    return parser.parse_args(argv)


def build(folder: str) -> Path:
    """The program that every simulated rank runs."""
    for tool in "smpicc", "smpirun":
        if shutil.which(tool) is None:
            raise SettingsError(f"needs SimGrid's {tool} (Debian: apt install libsimgrid-dev)")
    program = Path(folder) / "steps"
    sources = sorted(path for pattern in SOURCES for path in glob(str(ROOT / pattern)))
    line = ["smpicc", "-O2", "-w", f"-I{ROOT / 'csrc'}", *sources, "-lm", "-o", str(program)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if not program.exists():
        raise SettingsError(f"{' '.join(line)}\n{done.stdout}{done.stderr}")
    return program


def simulate(
    program: Path, cluster: Cluster, job: model.Job, method: str, group: int, period: int, warm_up: int = 1
) -> dict:
    """Seconds and bytes of a step, the mean of one block after `warm_up` that are not counted.

    What exchanges at every step has blocks of one.
    """
    if method in ("dense", "GTC", "GTC owners"):
        period = 1
    platform, hostfile = program.with_name("platform.xml"), program.with_name("hostfile")
    cluster.write(platform, hostfile)
    each, rates = job.elements / job.buckets, cluster.network.rates
    body = expected_body(each, job.density * each)
    words = [method.removeprefix("GTC "), job.elements, job.buckets, round(job.density * each), int(body),
             job.step_seconds, period, group, warm_up, rates.encode, job.density * each / rates.decode,
             rates.reduce, cluster.per_host, RING_BYTES]  # fmt: skip
    line = ["smpirun", "-np", str(cluster.workers), "-hostfile", str(hostfile), "-platform", str(platform),
            *(f"--cfg={setting}" for setting in EXACT), "--log=root.thres:critical", str(program)]  # fmt: skip
    done = subprocess.run([*line, *map(str, words)], capture_output=True, text=True, check=False)
    found = [text.split() for text in done.stdout.splitlines() if text.startswith("result ")]
    if not found:
        raise SettingsError(
            f"{method}, {cluster.workers} workers: the simulation failed\n{done.stderr[-2000:]}"
        )
    step, _, total = map(float, found[0][1:])
    return {"step": step, "worker_bytes": total / cluster.workers}


def predict(
    cluster: Cluster, job: model.Job, method: str, group: int, period: int
) -> model.Prediction:
    make = {"dense": lambda: model.dense(job, cluster.network), "GTC": lambda: model.gtc(job, cluster.network),
            "GTC owners": lambda: model.gtc_owners(job, cluster.network),
            "BMUF": lambda: model.bmuf(job, cluster.network, period),
            "hybrid": lambda: model.hybrid(job, cluster.network, group, period)}  # fmt: skip
    return make[method]()


def measured(options) -> inputs.Inputs:
    return inputs.load(options.inputs) if options.inputs else inputs.Inputs()


def run(options) -> dict:
    records, found = [], measured(options)
    inter = lambda gbit: Link(gbit * 1e9 / 8, options.link_us / 1e6)
    networks = {gbit: inputs.network(replace(found, inter=inter(gbit)), False)[0] for gbit in options.link_gbit}
    cells = [
        (int(w), g, m)
        for w in options.workers
        for g in options.link_gbit
        for m in options.methods.split(",")
    ]
    with tempfile.TemporaryDirectory() as folder:
        program = build(folder)
        for workers, gbit, method in tqdm(cells, unit="run"):
            cluster = Cluster(workers, options.per_host, networks[gbit])
            job = model.Job(int(options.elements), options.step_ms / 1e3, workers, options.per_host, options.density,
                            overlap=0.0)  # fmt: skip
            group = options.group or min(options.per_host, workers)
            plan = predict(cluster, job, method, group, options.period)
            step = simulate(program, cluster, job, method, group, options.period, options.warm_up)
            records.append({"workers": workers, "gbit": gbit, "method": method, **step, "predicted": plan.step,
                            "predicted_bytes": plan.worker_bytes})  # fmt: skip
    facts = ("per_host", "link_us", "elements", "step_ms", "density", "period", "group", "warm_up")
    return {
        **{k: getattr(options, k) for k in facts},
        "intra": asdict(networks[options.link_gbit[0]].intra),
        "rates": asdict(networks[options.link_gbit[0]].rates),
        "runs": records,
    }


def run_links(content: dict) -> dict:
    """A file of scripts/compare_links with the simulated step of each run, on links as its own inputs say."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        program = build(folder)
        for record in tqdm(content["runs"], unit="run"):
            if record["method"] in model.METHODS:
                network = compare_links.measured_network(content, record)
                cluster = Cluster(record["ranks"], record["per_host"], _simulable(network))
                found = simulate(program, cluster, compare_links.job(record), record["method"], record["group"],
                                 record["period"])  # fmt: skip
                record = {**record, "simulated": found["step"]}
            runs.append(record)
    return {**content, "runs": runs}


def _simulable(network: Network) -> Network:
    """A message to another host leaves by its worker's link first, so it cannot be faster than one within the host. Where ranks share
    few cores, and wait for one, it may have been measured so: then both are as slow."""
    inter, intra = network.inter, network.intra
    slower = max(inter.latency, intra.latency)
    return replace(network, inter=replace(inter, latency=slower))


def load(path: Path) -> dict:
    """SettingsError for what is no file of this version."""
    return saved.read(path, FORMAT, VERSION, "simulated clusters", "Simulate again.")


def table(content: dict) -> str:
    step = content["step_ms"] / 1e3
    head = [
        "card",
        "workers",
        "method",
        "step [ms]",
        "predicted",
        "error",
        "speed-up",
        "published",
        "MB a worker and step",
        "predicted",
    ]
    rates = ", ".join(f"{name} {rate / 1e6:.0f}" for name, rate in content["rates"].items())
    lines = [f"Simulated: hosts of {content['per_host']} workers, {content['link_us']:g} µs; within a host "
             f"{8 * content['intra']['bandwidth'] / 1e9:.3g} Gbit/s, {1e6 * content['intra']['latency']:.3g} µs; "
             f"{content['elements']:,.0f} elements; {content['step_ms']:g} ms of computation; density "
             f"{content['density']:g}; blocks of {content['period']} steps; groups of "
             f"{content['group'] or content['per_host']}; {rates} million elements/s.", "",
             "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]  # fmt: skip
    for r in content["runs"]:
        error = 100 * (r["predicted"] / r["step"] - 1)
        published = PUBLISHED.get((r["method"], r["workers"]), "")
        cells = [f"{r['gbit']:g} Gbit/s", f"{r['workers']}", r["method"], f"{1e3 * r['step']:.1f}",
                 f"{1e3 * r['predicted']:.1f}", f"{error:+.1f} %", f"{r['workers'] * step / r['step']:.1f}", f"{published}",
                 f"{r['worker_bytes'] / 1e6:.3f}", f"{r['predicted_bytes'] / 1e6:.3f}"]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    options = parse()
    try:
        if options.table:
            print(table(load(options.table)))
            return
        if options.save:
            saved.check_free(options.save, options.force)
        kind = FORMAT, VERSION
        if options.links:
            kind = compare_links.FORMAT, compare_links.VERSION
            content = run_links(compare_links.load(options.links))
            print(compare_links.table(content))
        else:
            content = run(options)
            print(table(content))
        if options.save:
            saved.write(options.save, *kind, content)
    except SettingsError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
