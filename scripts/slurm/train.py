"""A training that survives preemption: what the batch templates here start.

    python train.py FOLDER [--steps 2000] [--strategy gtc|bmuf|hybrid] [--save-every 500] [--agree-every 10]

FOLDER, on a file system that all nodes share, gets the checkpoint. Started again, it goes on from there.
"""

import argparse
import logging
import os
import random
import sys

import numpy as np
import torch

import gtcbmuf.torch as hvd

GTC, BMUF = hvd.GTC(threshold=0.1, dense_below=0), hvd.BMUF(sync_period=20)
STRATEGIES = {"gtc": GTC, "bmuf": BMUF, "hybrid": hvd.Hybrid(GTC, BMUF, groups=2)}


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--strategy", choices=STRATEGIES, default="gtc")
    parser.add_argument("--save-every", type=int, default=500, help="steps that a lost node may cost")
    parser.add_argument("--agree-every", type=int, default=10, help="a signal is agreed on after up to twice as many steps")
    return parser.parse_args()


def batch(device):
    """In place of your data: from torch's generator, whose state the checkpoint has."""
    inputs = torch.randn(64, 100)
    return inputs.to(device), inputs[:, :10].sum(dim=1, keepdim=True).to(device)


def main():
    options = parse()
    preemption = hvd.Preemption(every=options.agree_every)  # from here on a signal only sets a flag
    hvd.init()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", hvd.local_rank() % torch.cuda.device_count())
        torch.cuda.set_device(device)
    logging.basicConfig(format="%(asctime)s %(message)s", stream=sys.stdout,
                        level=logging.INFO if hvd.rank() == 0 else logging.WARNING)  # fmt: skip

    for seed in torch.manual_seed, np.random.seed, random.seed:  # every rank draws its own data
        seed(hvd.rank())
    model = torch.nn.Sequential(torch.nn.Linear(100, 200), torch.nn.Tanh(), torch.nn.Linear(200, 1)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    optimizer = hvd.DistributedOptimizer(optimizer, model.named_parameters(), STRATEGIES[options.strategy])
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    saved = hvd.restore(options.folder, model, optimizer, missing_ok=True)
    first = saved.step if saved else 0
    logging.info("%d ranks on %s, start %s of the job, from step %d", hvd.size(), device,
                 os.environ.get("SLURM_RESTART_COUNT", "0"), first)  # fmt: skip

    def save(step):
        hvd.save(options.folder, model, optimizer, step=step, rng=True)
        logging.info("saved step %d", step)

    with preemption as stop:
        for step in range(first + 1, options.steps + 1):
            inputs, targets = batch(device)
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
            if step % 100 == 0:
                logging.info("step %d, loss %.4f", step, loss.item())
            if stop.agreed():
                logging.info("%s: stopping", stop.reason)
                save(step)
                sys.exit(stop.exit_code)  # the batch script puts the job back into the queue
            if step % options.save_every == 0:
                save(step)
    optimizer.finalize()
    save(options.steps)
    logging.info("done")


if __name__ == "__main__":
    main()
