"""A rank of a job that goes on when ranks die. The gradient of rank r in step s is known beforehand, whatever the model is:
tests/system/shrink_oracle.py computes what must come of it.

    mpirun --with-ft ulfm -n 4 python shrink_run.py FOLDER '{"strategy": "GTC", "steps": 40, "deaths": {"2": ["before", 20]}}'

deaths: of each rank that dies: where and in which step; or ["time", seconds] after the first step; or ["recovery", seconds] after
the first recovery has begun.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch

# The first optimizer would import it for nothing, which takes seconds on each rank.
torch._dynamo = sys.modules["torch._dynamo"] = MagicMock(disable=lambda function, *_, **__: function)

import gtcbmuf.torch as hvd
from gtcbmuf import recovery, ulfm
from gtcbmuf.errors import RankFailedError
from gtcbmuf.policy.machine import Machine

SHAPES = ((int(os.environ.get("CHAOS_ROWS", 40)), 30), (50,), (7, 11))


def gradients(rank, step):
    """The same in every process, at every size of the job."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return [torch.randn(shape, generator=generator) * 0.05 for shape in SHAPES]


def initial():
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def initial_buffers():
    """One to be averaged, and a counter."""
    return np.zeros(9, np.float32), 0


def buffers_after(buffers, rank, step):
    """What the forward pass of a step makes of them."""
    return np.float32(0.5) * buffers[0] + np.float32(rank + step), max(buffers[1], step + rank)


def gtc_of(how):
    return hvd.GTC(threshold=0.0625, dense_below=60, bucket_bytes=4096, **how.get("gtc", {}))


def bmuf_of(how):
    return hvd.BMUF(sync_period=5, block_momentum=how.get("momentum"), sync_dtype=how.get("sync_dtype"), **how.get("bmuf", {}))


def strategy_of(how):
    return {
        "GTC": lambda: gtc_of(how),
        "Dense": lambda: hvd.Dense(bucket_bytes=4096),
        "Hybrid": lambda: hvd.Hybrid(gtc_of(how), bmuf_of(how), groups=how["groups"], **how.get("hybrid", {})),
        "BMUF": lambda: bmuf_of(how),
    }[how["strategy"]]()


def optimizer_of(how, parameters):
    if how.get("optimizer") == "Adam":
        return torch.optim.Adam(parameters, lr=0.01)
    return torch.optim.SGD(parameters, lr=0.125, momentum=0.5)


now = 0  # step
sequences = {}  # (step, parameter): of the exchange, as it was posted last


def note_sequences():
    post = Machine.post

    def noted(worker, bucket, segments):
        sequences[now, int(worker.layout.buckets[bucket].tensors[0].name[1:])] = worker._gradients.exchange.sequence
        post(worker, bucket, segments)

    Machine.post = noted


def ending(worker, model):
    """What test and oracle ask for; the buckets have a parameter each."""
    lanes = list(zip(worker.layout.buckets, worker._gradients.lanes if worker._gradients else []))
    of_lanes = lambda attribute, value: {bucket.tensors[0].name: value(lane) for bucket, lane in lanes if hasattr(lane, attribute)}
    seconds = of_lanes("second", lambda lane: lane.second and lane.second.state())
    blocks = worker._blocks
    return {
        "model": model,
        "residuals": of_lanes("residual", lambda lane: torch.from_numpy(lane.residual)),
        "seconds": {name: (s["first"], torch.from_numpy(s["residual"])) for name, s in seconds.items() if s},
        "thresholds": worker.thresholds(), "sequences": sequences,
        "global_params": torch.from_numpy(blocks.filter.params) if blocks.begun else None,
        "block_update": torch.from_numpy(blocks.filter.block_update) if blocks.begun else None,
        "steps": worker.steps, "rank": hvd.rank(), "size": hvd.size(),
    }  # fmt: skip


def die(folder, born, step=None):
    step = now if step is None else step
    (folder / f"died-{born}").write_text(f"{time.time()} {step}")
    os.kill(os.getpid(), signal.SIGKILL)


def fall_behind(optimizer):
    """This rank sends all that it has to send in this step, and hears of the death instead of what others have sent."""
    finish = optimizer._worker.finish

    def hears_of_the_death():
        time.sleep(0.5)
        optimizer._worker.finish = finish
        raise RankFailedError("for the test")
        yield

    optimizer._worker.finish = hears_of_the_death


def fall_behind_a_block(optimizer):
    """This rank brings all that it has to the block's end, and hears of the death instead of what has come of it."""
    blocks = optimizer._worker._blocks
    name = "_check_finite" if blocks.settings.sync_overlap else "_apply"

    def hears_of_the_death(*_):
        time.sleep(0.5)
        delattr(blocks, name)
        raise RankFailedError("for the test")

    setattr(blocks, name, hears_of_the_death)


def make_no_communicators():
    """This rank alone hears of an error in the making of one, as it may when another dies meanwhile."""
    from mpi4py import MPI

    class Failing(MPI.Intracomm):
        def Dup(self):
            super().Dup()
            raise RankFailedError("for the test")

    shrink = ulfm.shrink
    ulfm.shrink = lambda MPI, comm: Failing(shrink(MPI, comm))


def die_after(seconds, *where):
    timer = threading.Timer(seconds, die, where)
    timer.daemon = True
    timer.start()


def log_recoveries(path, dies):
    """When each began and ended. dies: seconds after the beginning of the first one; 0: in what ranks hand over."""
    recover = recovery.recover

    def logged(report, transfer):
        begin = time.time()
        if dies:
            die_after(dies, path.parent, path.name.removeprefix("recovered-"))
        result = recover(report, transfer if dies != 0 else lambda _: die(path.parent, path.name.removeprefix("recovered-")))
        with path.open("a") as log:
            log.write(f"{begin} {time.time()}\n")
        return result

    recovery.recover = logged


def main():
    global now
    folder, how = Path(sys.argv[1]), json.loads(sys.argv[2])
    hvd.init(on_failure="shrink")
    note_sequences()
    born = hvd.rank()
    where, at = how["deaths"].get(str(born), (None, None))
    parameters = [torch.nn.Parameter(p) for p in initial()]
    averages, counter = initial_buffers()
    buffers = [torch.from_numpy(averages), torch.tensor(counter)]
    scaler = hvd.GradScaler("cpu", init_scale=1024.0) if how.get("scaler") else None
    optimizer = hvd.DistributedOptimizer(optimizer_of(how, parameters), [(f"p{i}", p) for i, p in enumerate(parameters)],
                                         strategy=strategy_of(how), buffers=zip("ab", buffers), check_every=how.get("check_every"), scaler=scaler)  # fmt: skip
    log_recoveries(folder / f"recovered-{born}", at if where == "recovery" else None)
    if born == how.get("makes_none"):
        make_no_communicators()
    for step in range(how["steps"]):
        now = step
        if where == "time" and step == 1:
            die_after(at, folder, born)
        if step == at and where == "before":
            die(folder, born, step)
        if step == how.get("behind", {}).get(str(born)):
            fall_behind(optimizer)
        if step == how.get("block_behind", {}).get(str(born)):
            fall_behind_a_block(optimizer)
        if step == how.get("corrupt", {}).get(str(born)):
            optimizer._groups.intra._core.corrupt_next()
        for buffer, new in zip(buffers, buffers_after([b.numpy() for b in buffers], born, step)):
            buffer.copy_(torch.as_tensor(new))
        loss = sum((p * g).sum() for p, g in zip(parameters, gradients(born, step)))
        if step == at and where == "backward":
            parameters[1].register_hook(lambda _: die(folder, born, step))
        optimizer.zero_grad()
        (loss if scaler is None else scaler.scale(loss)).backward()
        if step == at and where == "after backward":
            die(folder, born, step)
        if how.get("clip"):
            optimizer.synchronize()
            with optimizer.skip_synchronize():
                optimizer.step()
        elif scaler is not None:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        if step == at and where == "after":
            die(folder, born, step)
        if step == how.get("ends", {}).get(str(born)):
            return
        if step + 1 == how.get("save"):
            if where == "save":
                die(folder, born, step)
            hvd.save(folder / "checkpoint", torch.nn.ParameterList(parameters), optimizer, step=step + 1)
    end = ending(optimizer._worker, [p.detach() for p in parameters])
    torch.save({**end, "averaged": buffers[0], "counted": int(buffers[1]), "state": optimizer.inner.state_dict()["state"]}, folder / f"end-{born}.pt")
    raise SystemExit(how.get("exit"))


if __name__ == "__main__":
    main()
