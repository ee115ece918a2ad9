"""Files of results and their table.

A file holds runs, one for each link, number of ranks, model and choice of methods. A run has for each method its rounds, of which the first
method, "none", is the same step without an exchange.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from gtcbmuf.plan import saved

FORMAT, VERSION = "gtcbmuf beside peers", 1
KEY = ("link", "ranks", "model", "device", "step_seconds", "asked")
HEAD = ("link", "ranks", "model", "method", "step [ms]", "exchange [ms]", "/ GTC", "MB a card and step")


def load(path: Path) -> dict:
    """SettingsError for what is no file of this version."""
    return saved.read(path, FORMAT, VERSION, "results of scripts/compare_peers", "Measure again.")


def start(path: Path, **facts) -> None:
    """A file to add runs to: a new one, with these facts, if none is there."""
    if path.exists():
        load(path)
    else:
        saved.write(path, FORMAT, VERSION, {**facts, "runs": []})


def add(path: Path, run: dict) -> None:
    """In place of a run that was asked for the same."""
    content = load(path)
    others = [r for r in content["runs"] if any(r[key] != run[key] for key in KEY)]
    content["runs"] = [*others, run]
    saved.write(path, FORMAT, VERSION, content)


def exchange(run: dict, method: str) -> list[float]:
    """Seconds of each round: a step, less the same step without an exchange in that round."""
    both = zip(run["methods"][method]["rounds"], run["methods"]["none"]["rounds"])
    return [found["seconds"] - alone["seconds"] for found, alone in both]


def ratio(run: dict, above: str, below: str) -> float:
    """Exchange time of one over that of another: the median over rounds."""
    return statistics.median(a / b for a, b in zip(exchange(run, above), exchange(run, below)))


def row(run: dict, method: str) -> str:
    record, cells = run["methods"][method], [run["link"], str(run["ranks"]), run["model"], method]
    rounds = record["rounds"]
    if "left_out" in record:
        cells += ["missing", "", "", ""]
    elif not rounds:
        cells += ["not timed", "", "", ""]
    else:
        cells.append(f"{1e3 * statistics.median(r['seconds'] for r in rounds):.0f}")
        if method == "none":
            cells += ["", ""]
        else:
            times = exchange(run, method)
            cells.append(f"{1e3 * statistics.median(times):.1f} ± {1e3 * (max(times) - min(times)) / 2:.1f}")
            timed = run["methods"].get("GTC", {}).get("rounds")
            cells.append(f"{ratio(run, method, 'GTC'):.1f}" if timed and method != "GTC" else "")
        cells.append(f"{statistics.median(r['card_bytes'] for r in rounds) / 1e6:.2f}")
    return "| " + " | ".join(cells) + " |"


def facts(run: dict) -> str:
    """What one must know of a run to read its rows."""
    sentences = [
        f"{run['link']}, {run['ranks']} ranks on {run['hosts']} hosts, {run['model']} of {run['elements'] / 1e6:.1f} M parameters"
        f"{', on a GPU that they share' if run['device'] == 'cuda' else ''}; "
        f"computation is a wait of {1e3 * run['step_seconds']:.0f} ms; blocks of {run['period']} steps; groups of {run['group']}; "
        f"{run['rounds']} rounds."
    ]  # fmt: skip
    sent = ", ".join(f"{100 * m['density']:.2f} % by {name}" for name, m in run["methods"].items() if "density" in m)
    if sent:
        sentences.append(f"Sent when timing began: {sent}.")
    sentences += [f"{name} left out: {m['left_out']}." for name, m in run["methods"].items() if "left_out" in m]
    return " ".join(sentences)


def table(content: dict) -> str:
    rows = ["| " + " | ".join(HEAD) + " |", "|---" * 4 + "|---:" * 4 + "|"]
    rows += [row(run, method) for run in content["runs"] for method in run["methods"]]
    return "\n".join([*(facts(run) for run in content["runs"]), "", *rows])
