"""A rank of a job that goes on when ranks die. The gradient of rank r in step s is known beforehand, whatever the model is:
tests/system/shrink_oracle.py computes what must come of it.

    mpirun --with-ft ulfm -n 4 python shrink_run.py FOLDER '{"strategy": "GTC", "steps": 40, "deaths": {"2": ["before", 20]}}'

deaths: of each rank that dies: where and in which step; or ["time", seconds] after the first step.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch

import gtcbmuf.torch as hvd
from gtcbmuf.errors import RankFailedError

SHAPES = ((40, 30), (50,), (7, 11))


def gradients(rank, step):
    """The same in every process, at every size of the job."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return [torch.randn(shape, generator=generator) * 0.05 for shape in SHAPES]


def initial():
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def strategy_of(how):
    return {
        "GTC": lambda: hvd.GTC(threshold=0.0625, dense_below=60, bucket_bytes=4096),
        "Dense": lambda: hvd.Dense(bucket_bytes=4096),
        "BMUF": lambda: hvd.BMUF(sync_period=5, block_momentum=how.get("momentum")),
    }[how["strategy"]]()


def optimizer_of(how, parameters):
    if how.get("optimizer") == "Adam":
        return torch.optim.Adam(parameters, lr=0.01)
    return torch.optim.SGD(parameters, lr=0.125, momentum=0.5)


def die(folder, born, step):
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


def main():
    folder, how = Path(sys.argv[1]), json.loads(sys.argv[2])
    hvd.init(on_failure="shrink")
    born = hvd.rank()
    where, at = how["deaths"].get(str(born), (None, None))
    parameters = [torch.nn.Parameter(p) for p in initial()]
    optimizer = hvd.DistributedOptimizer(optimizer_of(how, parameters), [(f"p{i}", p) for i, p in enumerate(parameters)],
                                         strategy=strategy_of(how), check_every=how.get("check_every"))  # fmt: skip
    for step in range(how["steps"]):
        if where == "time" and step == 1:
            threading.Timer(at, die, (folder, born, step)).start()
        if step == at and where == "before":
            die(folder, born, step)
        if step == how.get("behind", {}).get(str(born)):
            fall_behind(optimizer)
        loss = sum((p * g).sum() for p, g in zip(parameters, gradients(born, step)))
        if step == at and where == "backward":
            parameters[1].register_hook(lambda _: die(folder, born, step))
        optimizer.zero_grad()
        loss.backward()
        if step == at and where == "after backward":
            die(folder, born, step)
        if how.get("clip"):
            optimizer.synchronize()
            with optimizer.skip_synchronize():
                optimizer.step()
        else:
            optimizer.step()
        if step == at and where == "after":
            die(folder, born, step)
    state = optimizer._worker.state_dict()
    gradients_state = state["gradients"]
    torch.save({"model": [p.detach() for p in parameters], "steps": state["steps"], "generation": hvd.generation(),
                "rank": hvd.rank(), "size": hvd.size(), "state": optimizer.inner.state_dict()["state"],
                "global": optimizer._worker.global_params() is not None and torch.from_numpy(optimizer._worker.global_params().copy()),
                "residuals": [torch.from_numpy(lane["residual"]) for lane in (gradients_state or {"lanes": []})["lanes"]
                              if "residual" in lane]}, folder / f"end-{born}.pt")  # fmt: skip


if __name__ == "__main__":
    main()
