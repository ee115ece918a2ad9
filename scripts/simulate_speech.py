"""Train the speech model with many virtual workers in this process, on one core.

Every worker's step is one sequence of 20 inputs; all strategies and numbers of workers see the same
ones. The outcome, with every knob, is one line in the file of results: scripts/accuracy_table
makes a table of them. A run that was interrupted goes on where it last saved its state.
"""

import argparse
import hashlib
import json
import math
import sys
from pathlib import Path

import torch
from speech import data
from speech.fast import CompilerError, SpeechProblem
from tqdm import tqdm

from gtcbmuf.errors import FileError, NonFiniteError, SettingsError
from gtcbmuf.policy import BMUF, GTC, Dense, Hybrid
from gtcbmuf.simulate import Schedule, results, simulate

WHERE = ("results", "folder", "save_seconds", "no_progress")  # options that are no knobs


def parse(argv=None):
    parser = argparse.ArgumentParser(prog="scripts/simulate_speech", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("--data", default=str(data.EXTRACT), help="the set, .npz (the extract)")
    add("--strategy", choices=("one", "dense", "gtc", "bmuf", "hybrid"), default="gtc")
    add("--workers", type=int, help="virtual workers (32; of strategy one: 1)")
    add("--group-size", type=int, help="hybrid: workers in a group (16)")
    add("--threshold", type=float, help="τ of GTC and hybrid (0.02)")
    add("--exchange", choices=("owners",), help="GTC and hybrid: by way of owners of shards (to all)")
    add("--sync-period", type=int, help="BMUF and hybrid: steps in a block (5)")
    add("--block-momentum", type=float, help="BMUF and hybrid: η (1 - 1/participants)")
    add("--block-lr", type=float, help="BMUF and hybrid: ζ (1)")
    add("--classical", action="store_true", help="BMUF and hybrid: no Nesterov look-ahead")
    add("--sync-dtype", choices=("bfloat16",), help="BMUF and hybrid: of the block deltas (float32)")
    add("--sync-overlap", action="store_true", default=None,
        help="BMUF and hybrid: a block's mean travels during the next one")
    add("--residuals", choices=("keep", "flush", "zero"), help="hybrid, at a block's end (keep)")
    add("--learning-rate", type=float, default=0.5, help="peak rate of one worker (0.5)")
    add("--scale", type=float, default=1.0, help="the workers' rate is so many times that (1)")
    add("--momentum", type=float, default=0.0, help="of each worker's SGD (0)")
    add("--clip", type=float, default=1.0, help="largest norm of a worker's gradient (1)")
    add("--warm-up", type=float, default=0.05, help="share in which the rate rises (0.05)")
    add("--final", type=float, default=0.02, help="share of the peak rate at the end (0.02)")
    add("--samples", type=int, default=200_000, help="sequences of all workers (200000)")
    add("--alone", type=int, default=0, help="sequences that one worker trains first (0)")
    add("--hidden", type=int, default=96, help="units in each of two layers (96)")
    add("--seed", type=int, default=0, help="of the model and the order (0)")
    add("--evaluations", type=int, default=2, help="equally spaced (2)")
    add("--results", type=Path, default=Path("runs/simulate/results.jsonl"))
    add("--folder", type=Path, default=Path("runs/simulate"), help="for states of unfinished runs")
    add("--save-seconds", type=float, default=60.0, help="time between two saved states (60)")
    add("--no-progress", action="store_true")
    options = parser.parse_args(argv)
    _fill(parser, options)
    return options


# What a knob is if it is not given, and the strategies that have it.
KNOBS = {"group_size": (16, ("hybrid",)), "threshold": (0.02, ("gtc", "hybrid")),
         "exchange": (None, ("gtc", "hybrid")),
         "sync_period": (5, ("bmuf", "hybrid")), "block_momentum": (None, ("bmuf", "hybrid")),
         "sync_dtype": (None, ("bmuf", "hybrid")), "sync_overlap": (None, ("bmuf", "hybrid")),
         "block_lr": (1.0, ("bmuf", "hybrid")), "residuals": ("keep", ("hybrid",))}  # fmt: skip


def _fill(parser, options):
    if options.workers is None:
        options.workers = 1 if options.strategy == "one" else 32
    if options.strategy == "one" and options.workers != 1:
        parser.error(f"--strategy one has one worker, not {options.workers}")
    for knob, (default, strategies) in KNOBS.items():
        value, flag = getattr(options, knob), "--" + knob.replace("_", "-")
        if options.strategy in strategies:
            setattr(options, knob, default if value is None else value)
        elif value is not None:
            parser.error(f"{flag} is of {' and '.join(strategies)}, not of {options.strategy}")
    if not 0 <= options.warm_up < 1:
        parser.error(f"--warm-up {options.warm_up}: from 0 to less than 1")


def make_strategy(options):
    block = lambda: BMUF(sync_period=options.sync_period, block_momentum=options.block_momentum,
                         block_lr=options.block_lr, nesterov=not options.classical,
                         sync_dtype=options.sync_dtype, sync_overlap=bool(options.sync_overlap))  # fmt: skip
    gtc = lambda: GTC(threshold=options.threshold, exchange=options.exchange or "all")
    make = {"one": Dense, "dense": Dense, "gtc": gtc, "bmuf": block,
            "hybrid": lambda: Hybrid(gtc(), block(), options.group_size, options.residuals)}  # fmt: skip
    return make[options.strategy]()


def rate(options, peak):
    """Linear rise, linear decay."""

    def at(share):
        if share < options.warm_up:
            return peak * share / options.warm_up
        decay = (1 - share) / (1 - options.warm_up)
        return peak * (options.final + (1 - options.final) * decay)

    return at


def make_schedule(options):
    alone = rate(options, options.learning_rate)
    together = rate(options, options.learning_rate * options.scale)
    return Schedule(options.samples, together, options.momentum, options.clip, options.alone, alone,
                    options.evaluations)  # fmt: skip


def knobs(options) -> dict:
    """Every option that changes the outcome."""
    chosen = {k: v for k, v in vars(options).items() if k not in WHERE}
    return {**chosen, "data": Path(options.data).name}


def run(options, state: Path) -> dict:
    """The record of one run: its knobs, and what came of it."""
    torch.set_num_threads(1)
    strategy, schedule = make_strategy(options), make_schedule(options)
    schedule.steps(options.workers)  # before the data are read: are there enough?
    problem = SpeechProblem(data.load(options.data), hidden=options.hidden, seed=options.seed,
                            name=Path(options.data).name)  # fmt: skip
    bar = tqdm(total=options.samples, unit="seq", disable=options.no_progress,
               desc=f"{options.strategy} {options.workers}")  # fmt: skip

    def progress(done, entry):
        bar.update(done - bar.n)
        if entry:
            bar.set_postfix_str(f"dev error {100 * entry['dev']:.1f} %")

    record = {**knobs(options), "parameters": sum(t.elements for t in problem.tensors)}
    try:
        result = simulate(problem, strategy, options.workers, schedule=schedule, save=state,
                          save_seconds=options.save_seconds, progress=progress)  # fmt: skip
    except NonFiniteError as error:
        return {**record, "failed": str(error)}
    finally:
        bar.close()
    if not math.isfinite(result.course[-1]["loss"]):  # one worker alone exchanges nothing
        return {**record, "failed": "the loss is not finite (NaN)"}
    return {**record, **result.course[-1], "density": result.density, "course": result.course,
            "bytes_sent_per_worker_and_step": result.bytes_sent, "seconds": result.seconds}  # fmt: skip


def main():
    options = parse()
    options.folder.mkdir(parents=True, exist_ok=True)
    wanted = knobs(options)
    name = hashlib.blake2b(json.dumps(wanted).encode(), digest_size=8).hexdigest()
    state = options.folder / f"{options.strategy}-{options.workers}-{name}.npz"
    try:
        if any(wanted == {k: r.get(k) for k in wanted} for r in results.read(options.results)):
            sys.exit(f"{options.results} has this run already")
        record = run(options, state)
        results.append(options.results, record)
    except (SettingsError, FileError, data.DatasetError, CompilerError, ValueError) as error:
        sys.exit(f"error: {error}")
    state.unlink(missing_ok=True)
    if "failed" in record:
        sys.exit(f"the run has failed: {record['failed']}")
    errors = ", ".join(f"{n} {100 * record[n]:.2f} %" for n in data.SPLIT_NAMES[1:] if n in record)
    print(f"{options.strategy}, {options.workers} workers, {record['steps']} steps each: {errors}; "
          f"density {100 * record['density']:.2f} %, {record['seconds']:.0f} s")  # fmt: skip


if __name__ == "__main__":
    main()
