"""What every rank runs: the speech task, trained by one contestant; rank 0 prints what came of it, a line of JSON.

    mpirun -n 4 python train.py '{"method": "GTC", "threshold": 0.02, "steps": 1000, ...}'
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from mpi4py import MPI

sys.path.insert(0, str(Path(__file__).parents[1]))
import simulate_speech
from peers import contestants, work
from speech import data
from speech.fast import SpeechProblem

import gtcbmuf.torch
from gtcbmuf import runtime
from gtcbmuf.simulate.sgd import clip

MODEL = "speech"
MAKE = {"DDP": contestants.ddp, "PowerSGD": lambda job: contestants.power_sgd(job, job["rank"]), "GTC": contestants.gtc}
CHECKED = 20  # steps in which both ways to a dense mean must come to the same; then rounding errors have grown
PARTS = 10  # of the steps, for the course of the loss


class Sequences:
    """In the place of work.Gradients: in each step a rank's own sequence, its gradient at the parameters of now, clipped."""

    def __init__(self, problem: SpeechProblem, model: work.Model, comm, largest: float):
        self.problem, self.model, self.comm, self.largest = problem, model, comm, largest
        self.flat = np.empty(work.elements(MODEL), np.float32)
        self.layers = work.by_layer(torch.from_numpy(self.flat), work.MODELS[MODEL])
        self.losses: list[float] = []

    def work(self, step: int, seconds: float) -> work.Work:
        number = step * self.comm.size + self.comm.rank
        self.losses.append(self.problem.gradient(number, self.model.flat().numpy(), self.flat))
        clip(self.flat, self.largest)
        return work.Work(self.layers, seconds)


def train(comm, problem: SpeechProblem, contestant: contestants.Contestant, job: dict) -> np.ndarray:
    """Of each step the mean loss of all ranks, float64 [steps]. All must have the same parameters at the end."""
    with torch.no_grad():
        start = torch.from_numpy(problem.start()).split([p.numel() for p in contestant.model.parameters()])
        for parameter, values in zip(contestant.model.parameters(), start, strict=True):
            parameter.copy_(values.view_as(parameter))
    sequences = Sequences(problem, contestant.model, comm, job["clip"])
    rate = simulate_speech.rate(SimpleNamespace(**job), job["learning_rate"] * job["scale"])
    for step in range(job["steps"]):
        contestant.optimizer.param_groups[0]["lr"] = rate(step / job["steps"])
        contestant.step(sequences, 0.0)
    losses = comm.allreduce(np.array(sequences.losses)) / comm.size
    ends = comm.allgather(contestant.model.flat().numpy().tobytes())
    if len(set(ends)) > 1:
        raise RuntimeError("the parameters of the ranks differ")
    if not np.isfinite(losses).all():
        raise RuntimeError("the loss is not finite: give a lower learning rate")
    return losses


def check_dense(comm, problem: SpeechProblem, job: dict) -> None:
    """The mean of gradients by PyTorch and by this library: the same training, but for rounding."""
    short = {**job, "steps": CHECKED}
    theirs, own = (train(comm, problem, make(short), short) for make in (contestants.ddp, contestants.dense))
    if not np.allclose(theirs, own, rtol=1e-3):
        raise RuntimeError(f"dense training differs: losses {theirs[-3:]} by DDP, {own[-3:]} by this library")


def ring_bytes(ranks: int, job: dict) -> float:
    """What a worker sends in a step of DDP: a ring's share of the float32 that it gives to be added up.

    PowerSGD gives P [n, rank] and Q [m, rank] of each matrix [n, m], which for these models is always the less, and vectors whole.
    """
    def floats(shape: tuple[int, ...]) -> int:
        return job["rank"] * sum(shape) if "rank" in job and len(shape) == 2 else math.prod(shape)

    return 2 * (ranks - 1) / ranks * 4 * sum(floats(shape) for shape in work.shapes(job["model"]).values())


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    gtcbmuf.torch.init()
    comm = MPI.COMM_WORLD
    problem = SpeechProblem(data.load(), hidden=job["hidden"], seed=job["seed"])
    work.MODELS[MODEL], job["model"], job["device"] = work.acoustic(job["hidden"]), MODEL, "cpu"
    check_dense(comm, problem, job)
    contestant = MAKE[job["method"]](job)
    before, begin = runtime.counters(), time.perf_counter()
    losses = train(comm, problem, contestant, job)
    seconds = time.perf_counter() - begin
    counted = {name: value - before[name] for name, value in runtime.counters().items()}
    steps = comm.size * job["steps"]
    found = {"parameters": work.elements(MODEL), "seconds": seconds,
             "losses": [float(part.mean()) for part in np.array_split(losses, PARTS)]}  # fmt: skip
    if contestant.gtc is None:
        found["bytes_sent_per_worker_and_step"] = ring_bytes(comm.size, job)
    else:
        found["bytes_sent_per_worker_and_step"] = comm.allreduce(counted["bytes_sent"]) / steps
        found["density"] = comm.allreduce(counted["elements_sent"]) / steps / work.elements(MODEL)
    if comm.rank == 0:
        print(json.dumps({**found, **problem.evaluate(contestant.model.flat().numpy())}), flush=True)
    gtcbmuf.torch.shutdown()


if __name__ == "__main__":
    main()
