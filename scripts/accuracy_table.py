"""From the results of scripts/simulate_speech: what many workers cost in accuracy.

A cell is the relative increase of the frame error against the mean of all seeds of one worker: its
mean and standard deviation over the cell's seeds, beside the published figure. Runs that differ in
more than the seed are settings of one method: the cell is of the one with the most seeds and, among
those, the lowest error on dev. It is reported on test, which has no part in the choice.
"""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from gtcbmuf.errors import FileError
from gtcbmuf.simulate import results

METHODS = {"gtc": "GTC", "bmuf": "BMUF", "hybrid": "hybrid"}
WORKERS = (32, 64, 128)
# Ladkat et al., Interspeech 2019: relative increase of the frame error, in percent.
PUBLISHED = {
    ("gtc", 32): "1.4", ("gtc", 64): "2.8", ("gtc", 128): "15.6",
    ("bmuf", 32): "3.5", ("bmuf", 64): "8.9", ("bmuf", 128): "9.6",
    ("hybrid", 32): "below 0", ("hybrid", 64): "3.1", ("hybrid", 128): "4.7",
}  # fmt: skip
SAME_TASK = (
    "data",
    "samples",
    "hidden",
)  # what runs must have in common to be compared
KNOBS = ("group_size", "threshold", "sync_period", "block_momentum", "block_lr", "classical",
         "residuals", "learning_rate", "scale", "momentum", "clip", "warm_up", "final", "alone")  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One method with one number of workers. increases: of each seed, in percent."""

    seeds: tuple[int, ...]
    increases: tuple[float, ...]
    knobs: dict
    steps: int

    @property
    def mean(self) -> float:
        return statistics.fmean(self.increases)

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None for one seed."""
        return statistics.stdev(self.increases) if len(self.increases) > 1 else None


def tasks(records: list[dict]) -> dict[tuple, list[dict]]:
    """The runs that did not fail, by SAME_TASK."""
    found = defaultdict(list)
    for record in records:
        if "failed" not in record:
            found[tuple(record[name] for name in SAME_TASK)].append(record)
    return dict(found)


def best(records: list[dict]) -> list[dict]:
    """The runs of the setting with the most seeds and, among those, the lowest mean error on dev."""
    settings = defaultdict(dict)
    for record in records:
        settings[json.dumps([record[knob] for knob in KNOBS])][record["seed"]] = record
    rank = lambda runs: (-len(runs), statistics.fmean(r["dev"] for r in runs.values()))
    return [run for _, run in sorted(min(settings.values(), key=rank).items())]


def cells(records: list[dict], split: str = "test", methods=METHODS) -> dict[tuple[str, int], Cell]:
    """By method and workers, of one task; empty without a run of one worker."""
    alone = [record for record in records if record["strategy"] == "one"]
    if not alone:
        return {}
    base = statistics.fmean(record[split] for record in best(alone))
    found = {}
    for method in methods:
        for workers in sorted({r["workers"] for r in records if r["strategy"] == method}):
            runs = best([r for r in records if (r["strategy"], r["workers"]) == (method, workers)])
            increases = tuple(100 * (run[split] / base - 1) for run in runs)
            knobs = {knob: runs[0][knob] for knob in KNOBS}
            seeds = tuple(run["seed"] for run in runs)
            found[method, workers] = Cell(seeds, increases, knobs, runs[0]["steps"])
    return found


def text(cell: Cell | None) -> str:
    if cell is None:
        return "missing"
    spread = "one seed" if cell.spread is None else f"± {cell.spread:.1f}, {len(cell.seeds)} seeds"
    return f"{cell.mean:+.1f} % ({spread})"


def table(found: dict[tuple[str, int], Cell]) -> str:
    """Markdown: a line for each number of workers."""
    rows = [["workers", *(f"{name} | published" for name in METHODS.values())],
            ["---"] * (1 + len(METHODS)) + ["---"] * len(METHODS)]  # fmt: skip
    for workers in WORKERS:
        row = [str(workers)]
        for method in METHODS:
            published = PUBLISHED[method, workers]
            row += [
                text(found.get((method, workers))),
                published if " " in published else f"{published} %",
            ]
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def settings(found: dict[tuple[str, int], Cell]) -> str:
    """What the runs of each cell have in common, a line each; what is not used is left out."""
    lines = []
    for (method, workers), cell in found.items():
        knobs = ", ".join(f"{k} {v}" for k, v in cell.knobs.items() if v not in (None, False))
        lines.append(f"{METHODS[method]} {workers}: {cell.steps} updates a worker; {knobs}")
    return "\n".join(lines)


def plot(found: dict[tuple[str, int], Cell], path: Path, title: str) -> None:
    """A bar for each cell, with its spread; the published figure is a line across it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    width = 0.26
    for i, (method, name) in enumerate(METHODS.items()):
        for j, workers in enumerate(WORKERS):
            at, cell = j + (i - 1) * width, found.get((method, workers))
            if cell is None:
                axes.text(at, 0.98, "missing", rotation=90, ha="center", va="top", size=8,
                          transform=axes.get_xaxis_transform())  # fmt: skip
            else:
                axes.bar(
                    at,
                    cell.mean,
                    0.9 * width,
                    yerr=cell.spread,
                    capsize=3,
                    color=f"C{i}",
                )
            if " " not in PUBLISHED[method, workers]:
                axes.hlines(
                    float(PUBLISHED[method, workers]),
                    at - width / 2,
                    at + width / 2,
                    "black",
                )
        axes.bar(0, 0, color=f"C{i}", label=name)
    axes.hlines(0, -0.5, len(WORKERS) - 0.5, "black", linewidth=0.5)
    axes.plot([], [], color="black", label="published")
    axes.set(title=title, xlabel="workers", xticks=range(len(WORKERS)), xticklabels=WORKERS,
             ylabel="relative increase of frame error [%]", xlim=(-0.5, len(WORKERS) - 0.5))  # fmt: skip
    figure.legend(loc="outside right upper")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def curve(found: dict[tuple, list[dict]], path: Path, split: str) -> None:
    """Increase against the updates that a worker makes: what many workers have in common."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    names = {**METHODS, "dense": "GTC without threshold"}
    for position, (task, records) in enumerate(sorted(found.items(), key=str)):
        for i, (method, name) in enumerate(names.items()):
            own = {w: c for (m, w), c in cells(records, split, names).items() if m == method}
            if own:
                axes.plot([c.steps for c in own.values()], [c.mean for c in own.values()], f"C{i}o" + ":-"[position > 0],
                          label=f"{name}, {task[1]:,} samples")  # fmt: skip
                for workers, cell in own.items():
                    axes.annotate(
                        workers,
                        (cell.steps, cell.mean),
                        textcoords="offset points",
                        xytext=(4, 4),
                        size=7,
                    )
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set(xscale="log", xlabel="updates of each worker (the points: number of workers)",
             ylabel=f"relative increase of frame error on {split} [%]")  # fmt: skip
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def report(path: Path, split: str, plots: Path | None) -> None:
    """Prints a table for each task of a file of results; plots: a folder for figures."""
    found = tasks(results.read(path))
    if not found:
        sys.exit(f"{path} has no results; scripts/simulate_speech makes some")
    for task, records in sorted(found.items(), key=str):
        title = ", ".join(f"{name} {value}" for name, value in zip(SAME_TASK, task, strict=True))
        print(f"\n{title}; error on {split} against one worker\n")
        made = cells(records, split)
        if not made:
            print(
                "missing: a run with --strategy one, and one of another strategy to compare with it"
            )
            continue
        print(table(made), settings(made), sep="\n\n")
        if plots:
            plot(made, plots / f"{split}-{task[1]}.png", title)
    if plots:
        curve(found, plots / f"{split}-updates.png", split)


def parse(argv=None):
    parser = argparse.ArgumentParser(prog="scripts/accuracy_table", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--results", type=Path, default=Path("runs/simulate/results.jsonl"))
    parser.add_argument("--split", choices=("test", "unseen", "dev"), default="test")
    parser.add_argument("--plots", type=Path, help="folder for figures")
    return parser.parse_args(argv)


def main():
    options = parse()
    try:
        report(options.results, options.split, options.plots)
    except FileError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
