"""What every rank runs: all contestants are checked, then timed in turn; rank 0 writes the results.

    mpirun -n 4 python rank.py '{"model": "LSTM", "asked": ["none", "GTC"], ...}'
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import torch
from mpi4py import MPI

sys.path.insert(0, str(Path(__file__).parents[1]))
from peers import results, work
from peers.contestants import MAKE, Contestant, LeftOut

import gtcbmuf.torch
from gtcbmuf.device import local_device

APART = 1.5  # of a step's computation, from one step to the next where a clock begins them
TURN_SECONDS = 3.0  # of a contestant that exchanges in every step; the others take a whole block


def refuse(comm, message: str) -> None:
    """The same end on all ranks, who all know the reason."""
    if comm.rank == 0:
        print(f"not timed: {message}", file=sys.stderr, flush=True)
    sys.exit(1)


def check(comm, name: str, contestant: Contestant, gradients: work.Gradients, samples: np.ndarray) -> float:
    """Ends the job unless all ranks have the same parameters, and what was sent adds up: lr is 1, parameters start at 0, so

        -parameters = mean over ranks of (Σ gradients - residual)

    samples: of the gradients, float32 [ranks, ROTATION, n]. The magnitude of an element, to which errors are relative, is
    that of its gradients, and where there is a τ that as well. Returns the seconds of the last step.
    """
    steps, seconds = 0, 0.0
    for more, tolerance in contestant.checks:
        for _ in range(more):
            comm.Barrier()
            begin = time.perf_counter()
            contestant.step(gradients, 0.0)
            seconds = time.perf_counter() - begin
        steps += more
        contestant.arrive()
        parameters = contestant.model.flat().numpy()
        if len(set(comm.allgather(hashlib.blake2b(parameters).digest()))) > 1:
            refuse(comm, f"{name}: after {steps} steps the parameters of the ranks differ")
        if tolerance is None:
            continue
        times = np.bincount(np.arange(steps) % work.ROTATION, minlength=work.ROTATION)
        residuals = np.array(comm.allgather(contestant.residual()), np.float64)
        expected = (np.einsum("k,rkn->rn", times, samples.astype(np.float64)) - residuals).mean(0)
        magnitude = np.abs(samples).mean((0, 1)) * steps + (contestant.gtc.threshold if contestant.gtc else 0)
        worst = float(np.max(np.abs(-parameters[:: work.STRIDE] - expected) / magnitude))
        if not max(comm.allgather(worst)) <= tolerance:
            refuse(comm, f"{name}: after {steps} steps the sum is {worst:.1e} off, more than {tolerance:.0e}")
    return max(comm.allgather(seconds))


def settle(contestant: Contestant, gradients: work.Gradients) -> float | None:
    """Residuals as in a long run; the share of the elements that is then sent, on this rank's sample."""
    if contestant.gtc is None:
        return None
    for _ in range(work.SETTLE):
        contestant.step(gradients, 0.0)
    sent = elements = 0
    for _ in range(work.ROTATION):
        before = contestant.residual()
        total = before + gradients.sample[contestant.steps % work.ROTATION]
        contestant.step(gradients, 0.0)
        sent += np.count_nonzero(contestant.residual() != total)
        elements += before.size
    return sent / elements


def turn(comm, contestant: Contestant, gradients: work.Gradients, steps: int, job: dict) -> dict:
    """Seconds of a step on the slowest rank, and bytes of a step through the busiest card."""
    card = Path(f"/sys/class/net/{job['card']}/statistics/tx_bytes")
    comm.Barrier()
    before, seconds = int(card.read_text()), 0.0
    begin = together = comm.bcast(time.perf_counter())  # all hosts are one machine, whose clock they share
    for _ in range(steps):
        if contestant.together:
            together += APART * job["step_seconds"]
            time.sleep(max(0.0, together - time.perf_counter()))
            begin = time.perf_counter()
        contestant.step(gradients, job["step_seconds"])
        end = time.perf_counter()
        seconds, begin = seconds + end - begin, end
    comm.Barrier()
    sent = int(card.read_text()) - before
    seconds, sent = np.max(comm.allgather((seconds, sent)), axis=0)
    return {"steps": steps, "seconds": seconds / steps, "card_bytes": sent / steps}


def main() -> None:
    job = json.loads(sys.argv[1])
    gtcbmuf.torch.init()
    comm = MPI.COMM_WORLD
    if job["device"] == "cuda":
        torch.cuda.set_device(local_device(share=True))
    gradients = work.Gradients(job["model"], comm.rank, job["device"])
    samples = np.array(comm.allgather(gradients.sample))
    job["threshold"] = comm.bcast(work.threshold(samples[0][:, :30_000], job["density"]) if comm.rank == 0 else None)
    here = ("card", "store", "save")  # of this machine, no facts of the run
    run = {**{key: job[key] for key in job if key not in here}, "ranks": comm.size, "elements": work.elements(job["model"]),
           "methods": {}}  # fmt: skip
    there, steps = {}, {}

    def note(name: str, **facts) -> None:
        run["methods"].setdefault(name, {"rounds": []}).update(facts)
        if comm.rank == 0:
            results.add(Path(job["save"]), run)

    for name in job["asked"]:
        try:
            there[name] = MAKE[name](job)
        except LeftOut as error:
            note(name, left_out=str(error))
            continue
        contestant = there[name]
        contestant.turn(True)
        once = check(comm, name, contestant, gradients, samples) + job["step_seconds"]
        sent = settle(contestant, gradients)
        contestant.turn(False)
        contestant.optimizer.zero_grad()
        steps[name] = max(1, round(TURN_SECONDS / once)) if contestant.period == 1 else contestant.period
        note(name, **({} if sent is None else {"density": float(np.mean(comm.allgather(sent)))}))
        if comm.rank == 0:
            print(f"{name}: checked", flush=True)
    for _ in range(job["rounds"]):
        for name, contestant in there.items():
            contestant.turn(True)
            if contestant.period == 1 and steps[name] > 1:
                contestant.step(gradients, 0.0)  # memory and connections that have been at rest
            found = turn(comm, contestant, gradients, steps[name], job)
            contestant.turn(False)
            contestant.optimizer.zero_grad()
            note(name, rounds=[*run["methods"][name]["rounds"], found])
    gtcbmuf.torch.shutdown()


try:
    main()
except Exception:
    traceback.print_exc()
    time.sleep(1)  # what is printed just before MPI_Abort gets lost on its way between hosts
    raise
