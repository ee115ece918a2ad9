"""Train the speech model in one way; scripts/demo starts this once for each strategy.

    python scripts/train_speech.py --strategy one
    mpirun -n 4 python scripts/train_speech.py --strategy hybrid --groups 2

All ways of training see the same samples in the same order, dealt out among the ranks.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from speech import data, defaults
from speech.model import AcousticModel, cross_entropy, frame_error_rate
from tqdm import tqdm

import gtcbmuf.torch as hvd
from gtcbmuf import runtime


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--strategy", choices=defaults.STRATEGIES, default="gtc")
    parser.add_argument("--groups", type=int, default=2, help="hybrid: number of groups (2)")
    parser.add_argument("--threshold", type=float, help="τ of GTC and hybrid")
    parser.add_argument("--sync-period", type=int, help="steps in a block of BMUF and hybrid")
    parser.add_argument("--epochs", type=int, default=defaults.EPOCHS)
    parser.add_argument("--seed", type=int, default=defaults.SEED)
    parser.add_argument("--quick", action="store_true", help="a tenth of the data, one pass")
    parser.add_argument("--workers", type=int, default=defaults.WORKERS,
                        help="the largest number of ranks to compare with")  # fmt: skip
    parser.add_argument("--progress", action="store_true", help="a progress bar (rank 0)")
    parser.add_argument("--json", type=Path, help="write the record of this run here")
    options = parser.parse_args(argv)
    if options.epochs < 1:
        parser.error(f"--epochs {options.epochs}: at least 1")
    return options


def make_strategy(options, ranks):
    """The strategy object, and the peak learning rate. The tuned values are for 4 workers: with
    another number of gradients in a mean the rate is scaled, with another number of models in one
    the block momentum is left to its rule 1 - 1/N."""
    tuned = defaults.STRATEGIES[options.strategy]
    group = {"bmuf": 1, "hybrid": ranks // options.groups}.get(options.strategy, ranks)
    if options.strategy == "one" and ranks > 1:
        raise SystemExit(f"--strategy one is for one rank, mpirun started {ranks}")
    if options.strategy == "hybrid" and group * options.groups != ranks:
        raise SystemExit(f"{ranks} ranks do not make {options.groups} equal groups")
    rate = tuned.learning_rate * group / tuned.group_size
    participants = ranks // group
    momentum = tuned.block_momentum if participants * tuned.group_size == tuned.workers else None
    # The biases as well, as in the paper: in a model this small, sent whole, they would be most of
    # the traffic.
    gtc = lambda: hvd.GTC(threshold=options.threshold or tuned.threshold, dense_below=0)
    bmuf = lambda: hvd.BMUF(sync_period=options.sync_period or tuned.sync_period,
                            block_momentum=momentum)  # fmt: skip
    make = {"one": hvd.Dense, "dense": hvd.Dense, "gtc": gtc, "bmuf": bmuf,
            "hybrid": lambda: hvd.Hybrid(gtc(), bmuf(), groups=group)}  # fmt: skip
    return make[options.strategy](), rate


class Meter:
    """Training time and traffic; evaluation in between does not count."""

    def __init__(self):
        self.seconds, self.totals = 0.0, {}
        self.resume()

    def resume(self):
        hvd.barrier()
        self.begin, self.before = time.perf_counter(), runtime.counters()

    def pause(self):
        self.seconds += time.perf_counter() - self.begin
        for name, value in runtime.counters().items():
            self.totals[name] = self.totals.get(name, 0) + value - self.before[name]


def train(options, speech, model, optimizer, peak_rate):
    """The record of the run: its course (lists), and what it came to."""
    rank, size = hvd.rank(), hvd.size()
    count = len(speech) // 10 if options.quick else len(speech)
    epochs = 1 if options.quick else options.epochs
    orders = [data.epoch_order(count, options.seed, epoch, defaults.BATCH * options.workers)
              for epoch in range(epochs)]  # fmt: skip
    batches = [batch for order in orders
               for batch in data.shard(order, rank, size).reshape(-1, defaults.BATCH)]  # fmt: skip
    evaluations = {round(len(batches) * i / (2 * epochs)) for i in range(1, 2 * epochs)}
    test = speech.evaluation("test") if rank == 0 else None
    course = {"samples": [], "error": [], "bytes_sent_per_worker": []}
    bar = tqdm(total=len(batches), unit="step", desc=options.strategy,
               disable=not (options.progress and rank == 0))  # fmt: skip
    meter = Meter()

    def evaluate(step):
        meter.pause()
        sent = sum(runtime.gather(meter.totals["bytes_sent"])) / size
        with optimizer.global_model():
            error = frame_error_rate(model, test) if rank == 0 else None
        if rank == 0:
            for name, value in zip(course, (step * defaults.BATCH * size, error, sent), strict=True):
                course[name].append(value)
            bar.set_postfix_str(f"test error {100 * error:.1f} %")
            if not options.progress:
                print(f"{options.strategy:8} {step:6} of {len(batches)} steps, test error "
                      f"{100 * error:.1f} %, {meter.seconds:.0f} s", flush=True)  # fmt: skip
        meter.resume()

    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = defaults.learning_rate(peak_rate, step / len(batches))
        inputs, targets = speech.batch(batch)
        optimizer.zero_grad()
        with optimizer.no_sync():  # each worker clips its own gradient before it is exchanged
            cross_entropy(model(inputs), targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), defaults.CLIP)
        optimizer.step()
        bar.update()
        if step + 1 in evaluations:
            evaluate(step + 1)
    optimizer.finalize()
    evaluate(len(batches))
    bar.close()
    return course, summary(meter, model, len(batches))


def summary(meter, model, steps):
    """Means over the ranks."""
    mean = {name: sum(runtime.gather(value)) / hvd.size() for name, value in meter.totals.items()}
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "ranks": hvd.size(),
        "parameters": parameters,
        "steps": steps,
        "seconds": meter.seconds,
        "bytes_sent_per_worker_and_step": mean["bytes_sent"] / steps,
        "exchange_share": mean["wait_seconds"] / meter.seconds,
        "density": mean["elements_sent"] / steps / parameters,
    }


def main():
    options = parse()
    torch.set_num_threads(1)
    hvd.init()
    strategy, peak_rate = make_strategy(options, hvd.size())
    speech = data.load()
    torch.manual_seed(options.seed)
    model = AcousticModel(speech.inputs, speech.classes, defaults.HIDDEN)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=peak_rate),
                                         model.named_parameters(), strategy)  # fmt: skip
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    course, totals = train(options, speech, model, optimizer, peak_rate)
    if hvd.rank() == 0 and options.json:
        record = {"strategy": options.strategy, "settings": repr(strategy), "peak_rate": peak_rate,
                  "seed": options.seed, "test_error": course["error"][-1],
                  "unseen_error": frame_error_rate(model, speech.evaluation("unseen")),
                  **totals, **course}  # fmt: skip
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
