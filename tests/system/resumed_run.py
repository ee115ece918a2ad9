"""A training run that saves, is killed, and goes on; test_checkpoint_faults.py and test_chaos.py start it with mpirun.

    resumed_run.py FOLDER STEPS SAVE_EVERY

Eight runs side by side (Dense, GTC, BMUF, hybrid; SGD with momentum, Adam), each with its own checkpoint in FOLDER.
At the end each rank writes the bits of every run's model and state to FOLDER/end-<rank>.
"""

import os
import random
import sys
from pathlib import Path

import numpy as np
import torch

import gtcbmuf.torch as hvd

folder, steps, every = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
hvd.init()
(folder / f"pid-{hvd.rank()}").write_text(str(os.getpid()))
torch.set_num_threads(1)

GTC = hvd.GTC(threshold=0.003, dense_below=0, density=0.02)
BLOCK = hvd.BMUF(sync_period=5)
STRATEGIES = {"dense": hvd.Dense(), "gtc": GTC, "bmuf": BLOCK, "hybrid": hvd.Hybrid(GTC, BLOCK, groups=2)}
OPTIMIZERS = {"sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
              "adam": lambda p: torch.optim.Adam(p, lr=0.005)}  # fmt: skip


def start(strategy, optimizer):
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(20, 20), torch.nn.BatchNorm1d(20), torch.nn.Tanh(),
                                torch.nn.Dropout(0.2), torch.nn.Linear(20, 4))  # fmt: skip
    opt = hvd.DistributedOptimizer(OPTIMIZERS[optimizer](model.parameters()), model.named_parameters(),
                                   STRATEGIES[strategy], buffers=model.named_buffers())  # fmt: skip
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    return model, opt


def step(model, opt, generators):
    """On data and dropout masks from the global generators of this rank: torch, NumPy and Python."""
    torch.set_rng_state(generators[0]), np.random.set_state(generators[1]), random.setstate(generators[2])
    inputs = torch.randn(16, 20) * random.uniform(0.5, 1.5)
    classes = torch.from_numpy(np.random.randint(4, size=16))
    opt.zero_grad()
    torch.nn.functional.cross_entropy(model(inputs), classes).backward()
    opt.step()
    generators[:] = torch.get_rng_state(), np.random.get_state(), random.getstate()


def bits(model, opt):
    tensors = [t for t in model.state_dict().values()]
    state = opt.state_dict()
    tensors += [t for s in state["state"].values() for t in s.values() if t is not None]
    worker = state["gtcbmuf"]["worker"]
    tensors += [lane["residual"] for lane in (worker["gradients"] or {"lanes": []})["lanes"] if "residual" in lane]
    tensors += [worker["blocks"][k] for k in ("global_params", "block_update") if worker["blocks"]]
    return b"".join(t.numpy().tobytes() for t in tensors)


runs = {f"{s}-{o}": start(s, o) for s in STRATEGIES for o in OPTIMIZERS}
generators = {}
first = {}
for name, (model, opt) in runs.items():
    torch.manual_seed(hvd.rank()), np.random.seed(hvd.rank()), random.seed(hvd.rank())
    saved = hvd.restore(folder / name, model, opt, missing_ok=True)
    first[name] = saved.step if saved else 0
    assert saved is None or saved.exact
    generators[name] = [torch.get_rng_state(), np.random.get_state(), random.getstate()]
if hvd.rank() == 0:
    print("resumed at", *first.values(), flush=True)
for done in range(min(first.values()), steps):
    for name, (model, opt) in runs.items():
        if done < first[name]:
            continue  # this one had been saved once more
        step(model, opt, generators[name])
        if every and (done + 1) % every == 0:
            hvd.save(folder / name, model, opt, step=done + 1, rng=True)
    if hvd.rank() == 0:
        print(done + 1, flush=True)
(folder / f"end-{hvd.rank()}").write_bytes(b"".join(bits(*run) for run in runs.values()))
