"""`gtcbmuf doctor`: what is installed, what will be used, and does an exchange really work?

    gtcbmuf doctor               this process
    mpirun -n 4 gtcbmuf doctor   a job: its ranks, and a verified exchange between them

Rank 0 prints. The exit status is not 0 if anything is broken, on any rank.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass, field

import numpy as np

from gtcbmuf import agreement, config, launcher, runtime
from gtcbmuf import groups as grouping
from gtcbmuf.cli import facts
from gtcbmuf.device import why_on_the_host
from gtcbmuf.errors import GtcbmufError

ELEMENTS = 1_000_000  # of the gradient that the exchange is tried with
THRESHOLD = np.float32(2.5)  # about 1 % of a normal gradient
WAIT_SECONDS = 30


@dataclass
class Report:
    sections: list[tuple[str, facts.Lines]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, title: str, lines: facts.Lines) -> None:
        self.sections.append((title, lines))

    def print(self) -> None:
        width = max(len(name) for _, lines in self.sections for name, _ in lines) + 2
        for title, lines in self.sections:
            print(title)
            for name, text in lines:
                print(f"  {name:{width}}{text}")
        for problem in self.problems:
            print(f"PROBLEM: {problem}")
        print("something is broken" if self.problems else "all is well", flush=True)


def add_to(commands) -> None:
    parser = commands.add_parser(
        "doctor", help="what is installed and used, and whether an exchange works",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--groups", default="node", type=_group_spec, metavar="node|world|N",
                        help="form groups like this (default: node)")  # fmt: skip
    parser.set_defaults(run=run)


def _group_spec(text):
    return int(text) if text.lstrip("-").isdigit() else text


def run(options) -> int:
    report = Report()
    report.add("software", facts.software())
    try:
        settings = config.current()
    except GtcbmufError as error:
        report.problems.append(str(error))
        settings = config.Config()
    lines, problems = facts.codec(settings)
    report.problems += problems
    started = _start(report)
    report.add("codec", lines)
    report.add("settings", facts.environment(settings))
    if started:
        _job(report, settings, options.groups)
    elif _rank_by_environment() == 0:
        report.print()
    return 1 if report.problems else 0


def _start(report) -> bool:
    """MPI and the runtime; False if this process cannot talk to the others."""
    try:
        MPI = launcher.load_mpi()
    except GtcbmufError as error:
        launch = launcher.detect(os.environ)
        report.add("MPI", [("library", "not usable"), ("launcher", launch.text)])
        report.problems.append(str(error))
        return False
    lines = facts.mpi(MPI, launcher.detect(os.environ))
    report.add("MPI", lines)
    try:
        runtime.init()
    except Exception as error:  # noqa: BLE001 - init raises on all ranks together
        if str(error) not in report.problems:
            report.problems.append(f"init() failed: {error}")
        return False
    report.add("gradients on a GPU", _on_gpus())
    lines.append(("progress", "in the background" if runtime.engine().progress_thread
                  else "only while the program waits for it"))  # fmt: skip
    return True


def _on_gpus() -> facts.Lines:
    reason, mpi = why_on_the_host(), runtime.cuda_mpi()
    where = f"copied to the host whole: {reason}" if reason else "thresholded there, where all parameters are on one GPU"
    how = "MPI reads and writes them in the GPU's memory" if mpi.direct else "by way of pinned memory of the host"
    return [("gradients", where), ("messages", f"{how} ({mpi.why})")]


def _rank_by_environment() -> int:
    """Which process prints, when MPI itself cannot say."""
    for name in ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


# -- the job: every rank's facts, and an exchange ------------------------------------------------


def _job(report, settings, spec) -> None:
    world = runtime.world()
    try:
        groups = grouping.form(spec, runtime.host_numbers(), world.size)
    except GtcbmufError as error:
        report.problems.append(str(error))
        groups = grouping.form("world", [], world.size)
    verdict = _try_exchange(world)
    mine = {
        "facts": _comparable(settings),
        "cores": facts.usable_cores(),
        "threads": runtime.engine().threads,
        "variant": facts.chosen_variant(settings),
        "local": f"{runtime.local_rank()} of {runtime.local_size()}",
        "verdict": verdict,
        "problems": report.problems,
    }
    everyone = runtime.gather(mine)
    report.problems = _merged(everyone)
    report.add("ranks", _rank_lines(everyone, groups))
    report.add("groups", [(str(spec), grouping.describe(groups))])
    if runtime.rank() == 0:
        report.print()


def _comparable(settings):
    versions = [(name, facts.version_of(name)) for name in ("numpy", "mpi4py")]
    return [*agreement.fingerprint(), ("Python", sys.version.split()[0]), *versions,
            ("GTCBMUF_TIMEOUT_SECONDS", settings.timeout_seconds)]  # fmt: skip


def _merged(everyone):
    """The problems of all ranks, each once, with the ranks that have it; and their differences."""
    holders: dict[str, list[int]] = {}
    for rank, found in enumerate(everyone):
        exchange = [] if found["verdict"].startswith("OK") else [f"exchange: {found['verdict']}"]
        for problem in [*found["problems"], *exchange]:
            holders.setdefault(problem, []).append(rank)
    problems = [
        problem if len(ranks) == len(everyone) else f"rank {agreement.ranks(ranks)}: {problem}"
        for problem, ranks in holders.items()
    ]
    of_ranks = [found["facts"] for found in everyone]
    if any(other != of_ranks[0] for other in of_ranks):
        problems.append(agreement.difference(of_ranks))
    return problems


def _rank_lines(everyone, groups):
    """A table with a line for each rank."""
    index = {rank: i for i, group in enumerate(groups) for rank in group}
    leaders = {group[0] for group in groups}
    rows = [("rank", "host", "local", "cores", "threads", "variant", "group", "exchange")]
    for rank, (host, found) in enumerate(zip(runtime.hosts(), everyone, strict=True)):
        group = f"{index[rank]}{' leader' if rank in leaders else ''}"
        rows.append((rank, host, found["local"], found["cores"], found["threads"],
                     found["variant"], group, found["verdict"]))  # fmt: skip
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]) - 1)]
    return [(str(row[0]), "  ".join(str(cell).ljust(width) for cell, width
             in zip(row[1:], [*widths[1:], 0], strict=True))) for row in rows]  # fmt: skip


def _try_exchange(world) -> str:
    """Encode, allgather, decode, and an allreduce, each checked against NumPy: "OK (...)" or why not."""
    try:
        gtc, allreduce = _check_gtc(world), _check_allreduce(world)
    except Exception as error:  # noqa: BLE001 - reported for this rank; the others have it as well
        return f"{type(error).__name__}: {error}"
    return f"OK (GTC {1e3 * gtc:.1f} ms, allreduce {1e3 * allreduce:.1f} ms)"


def _gradient(rank):
    return np.random.default_rng(rank).standard_normal(ELEMENTS, dtype=np.float32)


def _quanta(gradient):
    return np.where(np.abs(gradient) >= THRESHOLD, np.copysign(THRESHOLD, gradient), np.float32(0))


def _check_gtc(world) -> float:
    """Seconds that it took."""
    mine, residual, rest, dense = _gradient(world.rank), *np.zeros((3, ELEMENTS), np.float32)
    begin = time.perf_counter()
    ticket = world.post_encode(0, [mine], residual, rest, float(THRESHOLD))
    ticket.wait(WAIT_SECONDS)
    ticket.decode_mean([dense], 1)
    seconds = time.perf_counter() - begin
    if not np.array_equal(rest, mine - _quanta(mine)):
        raise GtcbmufError("what this rank held back is wrong")
    expected = sum((_quanta(_gradient(rank)) for rank in range(world.size)), np.float32(0))
    if not np.array_equal(dense, expected):
        raise GtcbmufError("the sum of what all ranks sent is wrong")
    return seconds


def _check_allreduce(world) -> float:
    """Seconds that it took."""
    values = np.full(ELEMENTS, world.rank, np.float32)
    begin = time.perf_counter()
    world.post_allreduce(values, mean=False).wait(WAIT_SECONDS)
    seconds = time.perf_counter() - begin
    if not np.all(values == world.size * (world.size - 1) // 2):
        raise GtcbmufError("the allreduced sum is wrong")
    return seconds
