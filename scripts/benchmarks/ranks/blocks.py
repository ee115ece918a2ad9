"""What every rank of scripts/bench blocks runs: ends of the hybrid's blocks, in several forms; rank 0 prints JSON.

    mpirun -n 4 python blocks.py '{"elements": [1000000], "group": 2, "rounds": 3, "block_seconds": 1.0}'

Blocks of one step, with overlap of two, without gradients, so that nothing but the block's end is exchanged. What a group has learnt in a
step are small whole numbers, the same on its ranks: all sums are exact, in bfloat16 as well, and known beforehand.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

import gtcbmuf
from gtcbmuf.policy import run

FORMS = {"leader": {}, "sharded": {}, "leader, bfloat16": {"sync_dtype": "bfloat16"},
         "sharded, bfloat16": {"sync_dtype": "bfloat16"}, "leader, overlap": {"sync_overlap": True},
         "sharded, bfloat16, overlap": {"sync_dtype": "bfloat16", "sync_overlap": True}}  # fmt: skip
CARD = Path("/sys/class/net/eth0/statistics/tx_bytes")


def learnt(group: int, step: int, elements: int) -> np.ndarray:
    """By a group in a step: -1 to 1, float32 [elements]."""
    return ((np.arange(elements, dtype=np.int32) * 7 + 3 * group + step) % 3 - 1).astype(np.float32)


class Trial:
    """One form, from a model of zeros on. η is 0: W is the sum of the means of all blocks."""

    def __init__(self, comm, form: str, elements: int, group: int):
        self.comm, self.form, self.group = comm, form, group
        self.params, self.overlaps = np.zeros(elements, np.float32), "overlap" in form
        self.period = 2 if self.overlaps else 1
        strategy = gtcbmuf.Hybrid(
            gtcbmuf.GTC(threshold=1.0), gtcbmuf.BMUF(sync_period=self.period, block_momentum=0.0, **FORMS[form]),
            groups=group, representatives=form.split(",")[0],
        )  # fmt: skip
        self.opt = strategy.bind([self.params])
        run(self.opt.starting())
        self.steps = 0

    def train(self) -> None:
        self.params += learnt(self.comm.rank // self.group, self.steps, len(self.params))
        self.steps += 1

    def take_steps(self, steps: int, seconds: float = 0.0) -> None:
        """seconds: of computation in each."""
        for _ in range(steps):
            time.sleep(seconds)
            self.train()
            self.opt.after_update()

    def check(self) -> None:
        """Two blocks, to their very end: W on all ranks."""
        self.take_steps(2 * self.period)
        self.opt.finalize()
        groups = self.comm.size // self.group
        total = sum(learnt(g, b, len(self.params)) for g in range(groups) for b in range(self.steps))
        if not np.array_equal(self.params, total / np.float32(groups)):
            raise SystemExit(f"rank {self.comm.rank}: {self.form}: W is not the mean of the groups' models")

    def measure(self, block_seconds: float) -> dict:
        """Seconds of a block's end, of the slowest rank; bytes of a block through the busiest card."""
        self.comm.Barrier()
        before = sent_by_host()
        if self.overlaps:
            self.take_steps(self.period)
            self.take_steps(self.period - 1, block_seconds)  # the next block, up to its last step
            time.sleep(block_seconds)
        self.train()
        self.comm.Barrier()
        begin = time.perf_counter()
        self.opt.after_update()
        seconds = time.perf_counter() - begin
        if self.overlaps:
            self.opt.finalize()
        self.comm.Barrier()
        sent = (sent_by_host() - before) / (self.steps / self.period)
        seconds, sent = np.max(self.comm.allgather((seconds, sent)), axis=0)
        return {"seconds": seconds, "card_bytes": sent}


def sent_by_host() -> int:
    return int(CARD.read_text()) if CARD.exists() else 0


def main() -> None:
    job = json.loads(sys.argv[1])
    gtcbmuf.init()
    comm, records = MPI.COMM_WORLD, []
    for elements in job["elements"]:
        rounds = {form: [] for form in FORMS}
        for number in range(1 + job["rounds"]):
            for form in FORMS:
                trial = Trial(comm, form, elements, job["group"])
                if number == 0:
                    trial.check()
                else:
                    rounds[form].append(trial.measure(job["block_seconds"]))
        records.append({"elements": elements, "forms": rounds})
    if comm.rank == 0:
        print(json.dumps({"ranks": comm.size, "records": records}), flush=True)
    gtcbmuf.shutdown()


main()
