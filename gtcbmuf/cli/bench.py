"""`gtcbmuf bench`: what a plan needs to know of these machines, measured.

    gtcbmuf bench                                this process: encode and decode rates
    mpirun -n 4 gtcbmuf bench --save here.json   a job: latency and bandwidth of its exchanges, too

Says whether compression pays here. The file is for gtcbmuf plan --inputs. Rank 0 prints.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time

from gtcbmuf import backends, config, launcher, runtime
from gtcbmuf.errors import SettingsError
from gtcbmuf.plan import inputs, measure, saved
from gtcbmuf.plan.exchanges import Team
from gtcbmuf.plan.inputs import Inputs
from gtcbmuf.plan.network import Link, Rates


def add_to(commands) -> None:
    parser = commands.add_parser(
        "bench", help="measure encode and decode rates, and exchanges: does compression pay here?",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--density", type=float, default=0.005, metavar="X",
                        help="share of the elements sent (default: 0.005)")  # fmt: skip
    parser.add_argument("--save", metavar="FILE", help="write what gtcbmuf plan --inputs reads")
    parser.add_argument("--force", action="store_true", help="replace that file if it exists")
    parser.set_defaults(run=run)


def run(options) -> int:
    settings = config.current()
    alone = launcher.detect(os.environ).kind == "none"
    if not alone:
        runtime.init()
    ranks = 1 if alone else runtime.size()
    problem = _problem(options)
    if ranks > 1:  # whether there is a file is for rank 0 to say
        problem = runtime.gather(problem)[0]
    if problem:
        print(f"gtcbmuf bench: {problem}\n" * _prints(ranks), end="", file=sys.stderr, flush=True)
        return 2
    threads = settings.threads or config.default_threads(1 if alone else runtime.local_size())
    codec = backends.choose("native", variant=settings.variant, threads=threads)
    measure.check_codec(codec)
    meet = runtime.barrier if ranks > 1 else lambda: None
    rates = measure.rates(codec, options.density, meet)
    about = {"ranks": ranks, "threads": threads, "density": options.density,
             "time": time.strftime("%Y-%m-%d %H:%M:%S %z")}  # fmt: skip
    if ranks == 1:
        found = Inputs(rates=rates, about={**about, "hosts": 1})
        _print_alone(found, options.density)
    else:
        found = _job(rates, about, options.density)
    if options.save and _prints(ranks):
        inputs.save(found, options.save, options.force)
        print(f"saved: {options.save}")
    return 0


def _prints(ranks: int) -> bool:
    return ranks == 1 or runtime.rank() == 0


def _problem(options) -> str | None:
    """What is wrong with the options; to be known before anything is measured."""
    if not 0 < options.density <= 1:
        return f"--density {options.density}: give a share, more than 0 and at most 1."
    try:
        if options.save:
            saved.check_free(options.save, options.force)
    except SettingsError as error:
        return str(error)
    return None


# -- a job ----------------------------------------------------------------------------------------


def _job(rates: Rates, about: dict, density: float) -> Inputs:
    """Everything that takes two ranks; rank 0 prints."""
    groups, world = runtime.groups("node"), runtime.world()
    rates = _slowest_rates(runtime.gather(rates))
    size = groups.intra.size
    by_message = runtime.by_message(groups.members)  # as hops within a host go, and parts of sums
    local = measure.link(by_message, Team.of(size, size)) if size > 1 else None
    intra = _slowest_link(runtime.gather(local))
    inter = _between_hosts(groups, world)
    trial = measure.trial(world, density)
    hosts = len(groups.members)
    found = Inputs(inter, intra, rates, {**about, "hosts": hosts})
    if runtime.rank() == 0:
        per_host = max(len(group) for group in groups.members)
        _print_rates(rates, about["threads"])
        for name, link in ("within a host", intra), ("between hosts", inter):
            print(f"  {name:18}{_link_text(link)}")
        network, _ = inputs.network(found, single_host=hosts == 1)
        expected = measure.predicted(network, Team.of(world.size, per_host), density)
        _print_trial(trial, expected, world.size, density)
        bucket = measure.worthwhile_bucket(network, Team.of(world.size, per_host), density)
        print(f"Buckets: GTC(bucket_bytes={bucket >> 20} << 20); smaller ones would mostly wait for latency, larger ones "
              "leave more to be done after backward.")  # fmt: skip
    return found


def _between_hosts(groups, world) -> Link | None:
    """Latency between leaders; bandwidth by leaders or by all ranks, whichever uses more of it; in turn
    by all ranks."""
    hosts = len(groups.members)
    if hosts == 1:
        return None
    leaders = measure.link(groups.inter, Team.of(hosts, 1)) if groups.inter is not None else None
    leaders = _slowest_link(runtime.gather(leaders))
    per_host = max(len(group) for group in groups.members)
    team = Team.of(world.size, per_host)
    everyone = measure.link(world, team)
    in_turn = measure.in_turn(runtime.by_message(), team)
    bandwidth = max(leaders.bandwidth, everyone.bandwidth)
    return Link(bandwidth, leaders.latency, min(in_turn, bandwidth))


def _slowest_rates(found: list[Rates]) -> Rates:
    return Rates(*(min(getattr(r, name) for r in found) for name in ("encode", "decode", "reduce")))


def _slowest_link(found: list[Link | None]) -> Link | None:
    links = [link for link in found if link is not None]
    if not links:
        return None
    return Link(min(link.bandwidth for link in links), max(link.latency for link in links))


# -- output ---------------------------------------------------------------------------------------


def _print_rates(rates: Rates, threads: int) -> None:
    print(f"measured, a codec of {threads} thread{'s' * (threads > 1)} in each process")
    for name in ("encode", "decode", "reduce"):
        unit = "sent elements" if name == "decode" else "elements"
        print(f"  {name:18}{getattr(rates, name) / 1e6:.0f} million {unit}/s")


def _link_text(link: Link | None) -> str:
    if link is None:
        return "not measured: no two ranks are placed so"
    turns = f" ({link.in_turn * 8 / 1e9:.3g} where ranks send in turn)" if link.in_turn else ""
    return f"{link.bandwidth * 8 / 1e9:.3g} Gbit/s{turns}, {1e6 * link.latency:.3g} µs"


def _print_alone(found: Inputs, density: float) -> None:
    _print_rates(found.rates, found.about["threads"])
    limit = measure.worthwhile_below(found.rates, density) * 8 / 1e9
    links = f"on links below {limit:.3g} Gbit/s" if limit < math.inf else "on any link"
    print(f"Between two hosts of one worker, compression to a density of {density:g} pays {links}, "
          "by these rates.\nmpirun -n 4 gtcbmuf bench measures exchanges as well.")  # fmt: skip


def _print_trial(trial, expected, ranks: int, density: float) -> None:
    print(f"a bucket of {measure.ELEMENTS:,} elements between {ranks} ranks [ms]")
    print(f"  {'':18}{'measured':>10}{'predicted':>10}")
    for name in ("dense", "gtc"):
        seconds, formula = getattr(trial, name), getattr(expected, name)
        print(f"  {name:18}{1e3 * seconds:10.1f}{1e3 * formula:10.1f}")
    if trial.gtc < trial.dense:
        print(f"Compression pays here: at density {density:g} GTC takes "
              f"{trial.dense / trial.gtc:.1f} times less than dense.")  # fmt: skip
    else:
        print(f"On this network compression does not pay: use dense (at density {density:g} GTC "
              f"takes {trial.gtc / trial.dense:.1f} times as long).")  # fmt: skip
