"""Make the accuracy table: all trials with seed 0, the best setting of each cell with the other seeds.

Every run is one of scripts/simulate_speech, on one core; --jobs of them at a time. The tables are those of
scripts/accuracy_table. With --long the best settings are trained on twice the samples as well, and --controls
trains GTC's settings without compression.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import accuracy_table
import simulate_speech
from speech import data, trials
from tqdm import tqdm

from gtcbmuf.errors import FileError
from gtcbmuf.simulate import results

SAMPLES = 200_000
SIMULATE = Path(__file__).with_name("simulate_speech")  # as a user starts it: it sets up what its process needs
Cell = tuple[str, int]


def parse(argv=None):
    parser = argparse.ArgumentParser(prog="scripts/reproduce", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        help="the full set, made by scripts/speech/build_dataset.py --full",
    )
    add(
        "--small",
        action="store_true",
        help="one seed, 32 workers, the extract, 40000 samples",
    )
    add("--seeds", type=int, default=4, help="of the best settings (4)")
    add("--long", action="store_true", help="twice the samples as well, one seed")
    add(
        "--controls",
        action="store_true",
        help="GTC's best settings without compression as well, one seed",
    )
    add(
        "--jobs",
        type=int,
        default=os.cpu_count(),
        help="runs at a time (one for each core)",
    )
    add("--results", type=Path, default=Path("runs/reproduce/results.jsonl"))
    add("--plots", type=Path, help="folder for figures")
    options = parser.parse_args(argv)
    if options.small and options.data:
        parser.error("--small takes the extract; leave out --data")
    if not options.small and not options.data:
        parser.error("--data FILE is needed: python scripts/speech/build_dataset.py --full FILE makes it "
                     "(scripts/speech/README.md); or --small")  # fmt: skip
    if options.seeds < 1 or options.jobs < 1:
        parser.error("--seeds and --jobs: at least 1")
    options.data = data.EXTRACT if options.small else options.data
    options.samples = SAMPLES // 5 if options.small else SAMPLES
    options.seeds = 1 if options.small else options.seeds
    return options


def cells(small: bool) -> dict[Cell, list[trials.Trial]]:
    """All that are trained, one worker among them."""
    chosen = {cell: tried for cell, tried in trials.TRIALS.items() if not small or cell[1] == 32}
    return {("one", 1): trials.ONE, **chosen}


def arguments(cell: Cell, trial: trials.Trial, seed: int, samples: int, options) -> list[str]:
    words = ["--strategy", cell[0], "--workers", str(cell[1]), "--seed", str(seed), "--samples", str(samples),
             "--evaluations", "4", "--data", str(options.data)]  # fmt: skip
    for knob, value in trial.items():
        words += [f"--{knob.replace('_', '-')}", str(value)]
    return words


def train(runs: list[list[str]], options) -> None:
    """Runs what the file of results has not; the first failure is said, after all have ended."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    common = [
        "--results",
        str(options.results),
        "--folder",
        str(options.results.parent),
        "--no-progress",
    ]

    def one(words):
        done = subprocess.run([str(SIMULATE), *words, *common], env=env, text=True, capture_output=True, check=False)
        return (
            None
            if done.returncode == 0 or "has this run already" in done.stderr
            else (words, done.stderr)
        )

    with ThreadPoolExecutor(options.jobs) as pool:
        failures = [
            failure for failure in tqdm(pool.map(one, runs), total=len(runs), unit="run") if failure
        ]
    for words, errors in failures:
        print(f"simulate_speech {' '.join(words)}: {errors.strip()}", file=sys.stderr)
    if failures:
        sys.exit(
            f"{len(failures)} of {len(runs)} runs failed; the others are kept in {options.results}"
        )


def best(cell: Cell, tried: list[trials.Trial], options) -> trials.Trial:
    """By the error on dev with seed 0."""
    records = results.read(options.results)

    def error(trial):
        run = simulate_speech.knobs(
            simulate_speech.parse(arguments(cell, trial, 0, options.samples, options))
        )
        return next(r["dev"] for r in records if all(r.get(k) == v for k, v in run.items()))

    return min(tried, key=error)


def main():
    options = parse()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    wanted = cells(options.small)
    try:
        results.read(options.results)  # before hours of work
        train(
            [
                arguments(c, t, 0, options.samples, options)
                for c, tried in wanted.items()
                for t in tried
            ],
            options,
        )
        chosen = {cell: best(cell, tried, options) for cell, tried in wanted.items()}
        train([arguments(c, t, seed, options.samples, options)
               for seed in range(1, options.seeds) for c, t in chosen.items()], options)  # fmt: skip
        controls = {("dense", n): trials.without_compression(t) for (m, n), t in chosen.items() if m == "gtc"}
        once = controls if options.controls else {}
        train([arguments(c, t, 0, options.samples, options) for c, t in once.items()], options)
        if options.long:
            once = {**chosen, **once}
            train([arguments(c, t, 0, 2 * options.samples, options) for c, t in once.items()], options)
    except FileError as error:
        sys.exit(f"error: {error}")
    print(
        json.dumps(
            {f"{name} {workers}": trial for (name, workers), trial in chosen.items()},
            indent=1,
        )
    )
    accuracy_table.report(options.results, "test", options.plots)


if __name__ == "__main__":
    main()
