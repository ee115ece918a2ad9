"""`gtcbmuf plan`: what would each strategy take on a cluster? Before it is booked.

    gtcbmuf plan --elements 25e6 --step-ms 200 --workers 128 --per-host 8 --link-gbit 10 --link-us 50
    mpirun -n 4 gtcbmuf bench --save here.json && gtcbmuf plan --inputs here.json ...

Predicted step time, speed-up and bytes of dense, GTC, BMUF and hybrid, for 1, 2, 4 … N workers,
the hybrid with its best group size; a verdict. What is not measured is assumed, and marked so.
docs/planning.md has the formulas.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace

from gtcbmuf.errors import SettingsError
from gtcbmuf.plan import advise, inputs, saved
from gtcbmuf.plan.model import METHODS, Job
from gtcbmuf.plan.network import Link, Rates


def add_to(commands) -> None:
    parser = commands.add_parser(
        "plan", help="predicted step time, speed-up and bytes of each strategy on a cluster",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    number = {"type": float, "metavar": "X"}
    count = {"type": int, "metavar": "N"}
    add = parser.add_argument
    add("--elements", required=True, help="parameters of the model", **number)
    add("--step-ms", required=True, help="a step of one worker alone [ms]", **number)
    add("--workers", required=True, help="most workers to plan for", **count)
    add("--per-host", default=1, help="workers on each host (default: 1)", **count)
    add("--density", default=0.005, help="share of elements GTC sends (default: 0.005)", **number)
    add("--overlap", default=0.5, help="share of the step behind which gradients are exchanged; "
        "assumed, not measured (default: 0.5)", **number)  # fmt: skip
    add("--period", default=50, help="longest block you would train with (default: 50)", **count)
    add("--group", default=None, help="group size of the hybrid (default: the best)", **count)
    add("--representatives", choices=("leader", "sharded"), default="leader",
        help="who exchanges a group's model in the hybrid: its leader, or every rank a shard (leader)")
    add("--sync-dtype", choices=("bfloat16",), help="of block deltas (default: float32)")
    add("--sync-overlap", action="store_true", help="a block's mean travels during the next one")
    add("--inputs", metavar="FILE", help="measured numbers, from gtcbmuf bench --save; "
        "the options below count before them")  # fmt: skip
    add("--link-gbit", help="bandwidth of a host's network card, each way [Gbit/s]", **number)
    add("--link-us", help="latency between hosts [µs]", **number)
    add("--intra-gbit", help="what a worker receives within its host [Gbit/s]", **number)
    add("--intra-us", help="latency within a host [µs]", **number)
    add("--encode-rate", help="elements encoded a second", **number)
    add("--decode-rate", help="sent elements decoded a second", **number)
    add("--reduce-rate", help="elements added up in an allreduce a second", **number)
    add("--json", action="store_true", help="print everything as JSON instead")
    add("--plot", metavar="FILE", help="draw speed-ups into a PNG or SVG file")
    add("--force", action="store_true", help="replace the file of --plot if it exists")
    parser.set_defaults(run=run)


def run(options) -> int:
    if options.plot:
        saved.check_free(options.plot, options.force)
        draw = _matplotlib()
    job = _job(options)
    measured = inputs.load(options.inputs) if options.inputs else inputs.Inputs()
    network, assumed = inputs.network(_given(measured, options), job.world.outside == 0)
    rows = advise.table(job, network, options.period, options.group)
    crossover = advise.crossover(job, network)
    if options.json:
        print(json.dumps(_document(job, network, assumed, rows, crossover), indent=2))
    else:
        _print(job, network, assumed, rows, crossover, measured.about)
    if options.plot:
        _plot(draw, options.plot, rows)
        if not options.json:
            print(f"drawn: {options.plot}")
    return 0


def _job(options) -> Job:
    if options.elements != int(options.elements if abs(options.elements) < 1e18 else 0):
        raise SettingsError(f"--elements {options.elements}: give a whole number of parameters.")
    return Job(int(options.elements), options.step_ms / 1e3, options.workers, options.per_host,
               options.density, options.overlap, sync_dtype=options.sync_dtype,
               sync_overlap=options.sync_overlap, representatives=options.representatives)  # fmt: skip


def _given(measured: inputs.Inputs, options) -> inputs.Inputs:
    """The measured numbers with those of the command line in their place."""
    inter = _link(measured.inter, options.link_gbit, options.link_us, "--link-gbit", 50e-6)
    intra = _link(measured.intra, options.intra_gbit, options.intra_us, "--intra-gbit", 10e-6)
    given = {name: rate for name in ("encode", "decode", "reduce")
             if (rate := getattr(options, f"{name}_rate")) is not None}  # fmt: skip
    rates = replace(measured.rates or Rates(), **given) if given else measured.rates
    return inputs.Inputs(inter, intra, rates, measured.about)


def _link(measured, gbit, us, option, latency) -> Link | None:
    if gbit is None and us is None:
        return measured
    if gbit is None and measured is None:
        raise SettingsError(f"a latency without a bandwidth: give {option} as well.")
    bandwidth = measured.bandwidth if gbit is None else gbit * 1e9 / 8
    if us is None:
        us = 1e6 * (measured.latency if measured else latency)
    return Link(bandwidth, us / 1e6, measured.in_turn if gbit is None else None)


# -- output ---------------------------------------------------------------------------------------


def _document(job, network, assumed, rows, crossover) -> dict:
    """Seconds and bytes throughout."""
    of_rows = [{**asdict(p), "step": p.step, "speedup": p.speedup}
               for row in rows for p in (*row.predictions, row.owners, row.ring)]  # fmt: skip
    return {"job": asdict(job), "network": asdict(network), "assumed": [*assumed, "overlap"],
            "predictions": of_rows, "owners_from": crossover, "choice": advise.choose(rows[-1]).method,
            "verdict": advise.verdict(rows[-1])}  # fmt: skip


def _print(job, network, assumed, rows, crossover, about) -> None:
    print("inputs")
    if about:
        facts = ", ".join(f"{name} {value}" for name, value in about.items())
        print(f"  {'measured':16}{facts}")
    for name, text in _input_lines(job, network, assumed):
        print(f"  {name:16}{text}")
    print("\npredicted step [ms], speed-up, MB that a worker sends in a step")
    print(f"  {'workers':>7}" + "".join(f"  {name:^23}" for name in METHODS))
    for row in rows:
        cells = (f"  {1e3 * p.step:9.1f}{p.speedup:7.1f}{p.worker_bytes / 1e6:7.2f}"
                 for p in row.predictions)  # fmt: skip
        print(f"  {row.workers:7}{''.join(cells)}  {_best(row)}")
    ring = rows[-1].ring
    print(f"\n{_owners(rows[-1], crossover)}")
    print(advise.verdict(rows[-1]))
    print(f"(For comparison: a ring allreduce, as other libraries have it, would at best take "
          f"{1e3 * ring.step:.1f} ms, speed-up {ring.speedup:.1f}.)")  # fmt: skip


def _owners(row, crossover) -> str:
    found = row.owners
    pays = f"pays from {plural(crossover, 'worker')} on" if crossover else f"does not pay with {plural(row.workers, 'worker')}"
    return (f'GTC(exchange="owners") {pays}: {1e3 * found.step:.1f} ms, speed-up {found.speedup:.1f}, '
            f"{found.worker_bytes / 1e6:.2f} MB with {row.workers}, for GTC's {1e3 * row.gtc.step:.1f} ms.")  # fmt: skip


def _best(row) -> str:
    if row.workers == 1:
        return ""
    return f"blocks {row.bmuf.period} | groups {row.hybrid.group}, blocks {row.hybrid.period}"


def _input_lines(job, network, assumed):
    hosts = plural(-(-job.workers // job.per_host), "host")
    mark = {name: "  (assumed)" * (name in assumed) for name in ("intra", "rates")}
    yield (
        "model",
        f"{job.elements:,} elements, {plural(job.buckets, 'bucket')}; density {job.density:g}",
    )
    yield "one worker", f"{1e3 * job.step_seconds:g} ms a step"
    yield "overlap", f"{job.overlap:g} of a step  (assumed)"
    if job.sync_dtype or job.sync_overlap:
        late = ", their mean one block late" * job.sync_overlap
        yield "block deltas", f"in {job.sync_dtype or 'float32'}{late}"
    if job.representatives != "leader":
        yield "representatives", job.representatives
    yield "workers", f"{job.workers} on {hosts}"
    if job.world.outside:
        yield "between hosts", _link_text(network.inter)
    yield "within a host", _link_text(network.intra) + mark["intra"]
    rates = network.rates
    text = ", ".join(f"{name} {getattr(rates, name) / 1e6:.0f}"
                     for name in ("encode", "decode", "reduce"))  # fmt: skip
    yield "rates", f"{text} million elements/s{mark['rates']}"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _link_text(link: Link) -> str:
    return f"{link.bandwidth * 8 / 1e9:.3g} Gbit/s, {1e6 * link.latency:.3g} µs"


def _matplotlib():
    try:
        import matplotlib
    except ImportError:
        raise SettingsError(
            "--plot needs matplotlib, which is not installed: pip install matplotlib"
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _plot(pyplot, path: str, rows) -> None:
    figure, axes = pyplot.subplots(figsize=(6.4, 4.8), layout="constrained")
    counts = [row.workers for row in rows]
    axes.plot(counts, counts, color="0.8", label="ideal")
    for i, name in enumerate(METHODS):
        speedups = [row.predictions[i].speedup for row in rows]
        axes.plot(counts, speedups, marker="os^D"[i], label=name)
    axes.plot(counts, [row.ring.speedup for row in rows], "k:", label="ring (other libraries)")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(counts, map(str, counts))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("workers")
    axes.set_ylabel("predicted speed-up over one worker")
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:  # ValueError: a kind of file that it does not know
        raise SettingsError(f"{path} cannot be drawn ({error}); name it .png or .svg.") from None
