"""Train one speech model in five ways on the same samples, and compare error and traffic.

One worker, then several ranks of this machine with the mean of all gradients (dense), thresholded
gradients (GTC), block model averaging (BMUF), and GTC in groups with BMUF across (hybrid).
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

TRAIN = Path(__file__).with_name("train_speech.py")
NAMES = {"one": "one worker", "dense": "dense allreduce", "gtc": "GTC", "bmuf": "BMUF",
         "hybrid": "hybrid"}  # fmt: skip


def parse():
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--ranks", type=int, default=4, help="processes to train with (4)")
    parser.add_argument("--groups", type=int, default=2, help="groups of the hybrid (2)")
    parser.add_argument("--strategy", choices=NAMES, action="append", dest="strategies",
                        help="only this one (may be repeated)")  # fmt: skip
    parser.add_argument("--threshold", type=float, help="τ of GTC and hybrid")
    parser.add_argument("--sync-period", type=int, help="steps in a block of BMUF and hybrid")
    parser.add_argument("--epochs", type=int, help="passes over the data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a tenth of the data, one pass")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder (runs/demo)")
    options = parser.parse_args()
    if options.ranks < 1:
        parser.error(f"--ranks {options.ranks}: at least 1")
    if options.groups < 1 or options.ranks % options.groups:
        fitting = [str(g) for g in range(1, options.ranks + 1) if options.ranks % g == 0]
        parser.error(f"--ranks {options.ranks} do not make --groups {options.groups} equal groups; "
                     f"for {options.ranks} ranks give --groups {' or '.join(fitting)}")  # fmt: skip
    return options


def train(strategy, options) -> dict:
    """One run of train_speech.py; its record."""
    record = options.out / f"{strategy}.json"
    record.unlink(missing_ok=True)
    command = [] if strategy == "one" else ["mpirun", "-n", str(options.ranks)]
    command += [sys.executable, str(TRAIN), "--strategy", strategy, "--json", str(record),
                "--workers", str(options.ranks), "--seed", str(options.seed)]  # fmt: skip
    if strategy == "hybrid":
        command += ["--groups", str(options.groups)]
    for name in ("threshold", "sync_period", "epochs"):
        value = getattr(options, name)
        if value is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    command += ["--quick"] * options.quick + ["--progress"] * sys.stderr.isatty()
    status = subprocess.run(command, check=False).returncode
    if status != 0 or not record.exists():
        sys.exit(f"{NAMES[strategy]}: the run failed (status {status}): {' '.join(command)}")
    return json.loads(record.read_text())


def amount(number: float) -> str:
    """Bytes for people: 1234567 -> "1.23 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            return f"{number:.3g} {unit}"
        number /= 1000


def table(records: dict[str, dict]) -> str:
    """A line for each run; what it is compared with is one worker, and dense float32 gradients."""
    head = ("strategy", "ranks", "test error", "vs one worker", "sent per worker and step",
            "vs dense", "exchange", "time")  # fmt: skip
    rows = [head]
    one, dense = records.get("one"), records.get("dense")
    for name, run in records.items():
        sent = run["bytes_sent_per_worker_and_step"]
        rows.append((
            NAMES[name],
            str(run["ranks"]),
            f"{100 * run['test_error']:.1f} %",
            f"{100 * (run['test_error'] / one['test_error'] - 1):+.1f} %" if one and run is not one else "",
            amount(sent) if run["ranks"] > 1 else "",
            f"1/{dense['bytes_sent_per_worker_and_step'] / sent:.3g}" if dense and sent else "",
            f"{100 * run['exchange_share']:.0f} %" if run["ranks"] > 1 else "",
            f"{run['seconds']:.0f} s",
        ))  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) if i == 0 else cell.rjust(w)
                               for i, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip()
                     for row in rows)  # fmt: skip


def main():
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    records = {}
    for strategy in options.strategies or NAMES:
        records[strategy] = train(strategy, options)
    (options.out / "results.json").write_text(json.dumps(records, indent=1) + "\n")

    from speech.plot import plot_records  # matplotlib is slow to import, and --help needs none

    plot_records([{**run, "strategy": NAMES[name]} for name, run in records.items()],
                 options.out / "results.png", "Phone recognition, frame error on held-out speech")  # fmt: skip
    print(f"\n{table(records)}\n")
    print("test error: share of frames of held-out recordings whose phone is wrong. exchange: share of the\n"
          "training time that a rank waited for others; on a machine with fewer cores than ranks that\n"
          f"is mostly waiting for a core. {options.out}/results.json and results.png have the details.\n"
          f"{time.monotonic() - begin:.0f} s in all")  # fmt: skip


if __name__ == "__main__":
    main()
